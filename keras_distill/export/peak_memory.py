"""The peak memory of models and artefacts, each measured in a process of its own.

`python -m keras_distill.export.peak_memory` is that process.
"""

import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import keras

from keras_distill.export import arguments, examples, manifest
from keras_distill.export.batches import of_size
from keras_distill.export.formats import Target
from keras_distill.export.loading import load_served
from keras_distill.export.quiet import no_remarks
from keras_distill.types import Nested

_CALLS = 3
# Only Linux can measure the peak memory from a chosen moment on.
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class _Request(NamedTuple):
    """The model that the other process loads and calls.

    Args:
        path: A `.keras` file, or an artefact of an export.
        target: The artefact's name in its export; "" for a `.keras` file.
        batch: The inputs of the call.
    """

    path: str
    target: str
    batch: Nested


def of_model(model: keras.Model, batch: Nested) -> int:
    """Return the peak memory in bytes of loading and calling a Keras model.

    The memory of Keras, its backend and their imports isn't counted.

    Args:
        model: A model that can be loaded by a process that imports only
            `keras_distill`.
        batch: The inputs of one call.

    Raises:
        OSError: If this isn't Linux.
        ValueError: If the model can't be loaded or called there.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.keras"
        try:
            model.save(path)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise _refused(model.name, f"{type(error).__name__}: {error}") from error
        return _measured(_Request(str(path), "", batch), model.name)


def of_export(directory: str | os.PathLike[str], batch_size: int) -> dict[str, int]:
    """Return the peak memory in bytes of loading and calling each artefact.

    Args:
        directory: An export.
        batch_size: The rows of one call, made from the export's examples. An export of
            a fixed batch size is called with that size.

    Raises:
        OSError: If this isn't Linux.
        ValueError: If an artefact can't be loaded or called.
    """
    directory = Path(directory)
    described = manifest.require(directory, to_run=True)
    rows = described.get("batch_size") or batch_size
    batch = of_size(examples.read(directory)["inputs"], rows)
    found = {}
    for name in described["artefacts"]:
        path = directory / arguments.target_named(name).file
        found[name] = _measured(_Request(str(path), name, batch), name)
    return found


def _measured(request: _Request, what: str) -> int:
    if not _RESET.exists():
        raise OSError(
            f"Peak memory is measured on Linux alone. Received: {sys.platform}"
        )
    done = subprocess.run(  # noqa: S603 - its own interpreter and module
        [sys.executable, "-m", __name__],
        input=pickle.dumps(request),
        capture_output=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise _refused(what, lines[-1] if lines else "no error")
    return int(done.stdout.split()[-1])


def _refused(what: str, reason: str) -> ValueError:
    return ValueError(
        f"The peak memory of {what!r} can't be measured: it can't be saved, or loaded "
        f"and called in a process of its own. Leave out `peak_memory`, or see to it "
        "that the package of its code registers it with Keras. Received: "
        + textwrap.shorten(reason, 300)
    )


def _resident(field: str) -> int:
    """Return the memory of this process in bytes: now (`VmRSS`), or its peak."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def _serve(request: _Request) -> int:
    """Load and call a model; return the peak of the memory that this added."""
    keras.ops.convert_to_numpy(keras.ops.zeros(1))  # This starts the backend.
    target = arguments.target_named(request.target) if request.target else None
    for module in target.format.modules if target else ():
        import_module(module)
    before = _resident("VmRSS")
    _RESET.write_text("5")  # The peak is measured from here on.
    run = _loaded(request, target)
    for _ in range(_CALLS):
        run(request.batch)
    return max(0, _resident("VmHWM") - before)


def _loaded(request: _Request, target: Target | None) -> Any:
    if target is None:
        model, _ = load_served(request.path)
        return model.predict_on_batch
    return target.format.load(Path(request.path)).run


def main() -> None:
    """Read the request from the standard input, and print the peak memory."""
    request = pickle.load(sys.stdin.buffer)  # noqa: S301 - of the process that began it
    with no_remarks():
        print(_serve(request))


if __name__ == "__main__":
    main()

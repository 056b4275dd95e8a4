"""The check that an export is still the one that was published."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import atomic
from keras_distill.export import arguments, examples, manifest, parity, saved_model
from keras_distill.export.batches import Arrays, other_size, taken, to_arrays
from keras_distill.export.evaluation import Evaluation, HeldOut, check_drop
from keras_distill.export.examples import Examples
from keras_distill.export.formats import Loaded, Target
from keras_distill.export.manifest import Manifest
from keras_distill.export.parity import ParityError
from keras_distill.export.signature import Specs

Report = dict[str, Any]


def verify(
    directory: str | os.PathLike[str],
    *,
    run: bool = True,
    evaluation: Evaluation | None = None,
) -> Report:
    """Check an export without its model: files, then outputs, then the task metric.

    Every file must have the size and SHA-256 of the manifest, and there must be no
    further files. Its own runtime then runs every artefact on the examples of the
    export. The outputs must be the model's, within the artefact's tolerance. The check
    doesn't protect against somebody who also changes the manifest.

    Args:
        directory: An export: the directory with the `manifest.json`.
        run: Whether to run the artefacts. If False, only files are checked.
        evaluation: Measures again how much of the metric the artefacts lose. The metric
            and the number of examples must be those of `export`. If `export` was given
            a `preprocessing`, `x` must be the output of that preprocessing.

    Returns:
        `{"directory", "ok", "problems", "artefacts", "evaluation"}`. `"problems"` are
        those that belong to no artefact, and `"evaluation"` is the manifest's entry.
        Each artefact has `{"ok", "problems"}` and, if it was run,
        `"max_abs_difference"` and `"metric"`.

    Raises:
        FileNotFoundError: `directory` contains no export.
        ImportError: The runtime of an artefact isn't installed.
        ValueError: The manifest or the examples are damaged, or `evaluation` isn't the
            one that `export` was given.

    Example:
    >>> import tempfile
    >>> import keras, numpy as np
    >>> from keras_distill.export import export
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     _ = export(
    ...         model, f"{parent}/served", ["saved_model"],
    ...         example_batch=np.ones((3, 4), "float32"),
    ...     )
    ...     verify(f"{parent}/served")["ok"]
    True
    """
    directory = Path(directory)
    described = manifest.require(directory, to_run=True)
    problems = _strangers(directory, described)
    problems += _damages(directory, described["examples"])
    check = _checks(directory, described, evaluation) if run and not problems else None
    artefacts = {
        name: _verify_artefact(directory, name, artefact, check)
        for name, artefact in described["artefacts"].items()
    }
    ok = not problems and all(artefact["ok"] for artefact in artefacts.values())
    return {
        "directory": str(directory),
        "ok": ok,
        "problems": problems,
        "artefacts": artefacts,
        "evaluation": described.get("evaluation") if evaluation else None,
    }


def check_files(directory: Path, described: Manifest) -> None:
    """Raise `ParityError` if a file isn't the one of the manifest."""
    problems = _damages(directory, manifest.files(described))
    if problems:
        raise ParityError(
            f"The export in {str(directory)!r} must be as it was published. "
            f"Received: {'; '.join(problems)}. Export the model again."
        )


# Runs an artefact; returns the measurements.
_Check = Callable[[Target, Path, float], dict[str, float]]


def _verify_artefact(
    directory: Path, name: str, artefact: dict[str, Any], check: _Check | None
) -> dict[str, Any]:
    problems = _damages(directory, artefact["files"])
    if not problems and check is not None:
        problems = _unlisted(arguments.target_named(name), artefact["files"])
    measured: dict[str, float] = {}
    # A file that isn't the published one isn't loaded.
    if check is not None and not problems:
        target = arguments.target_named(name)
        target.format.require()
        try:
            measured = check(target, directory / target.file, artefact["tolerance"])
        except RuntimeError as error:
            problems.append(str(error))
    return {"ok": not problems, "problems": problems, **measured}


def _checks(
    directory: Path, described: Manifest, evaluation: Evaluation | None
) -> _Check:
    kept = examples.read(directory)
    manifest.check_examples(kept, described)
    scales = described["scales"]
    held_out = None
    if evaluation is not None:
        held_out = _held_out(evaluation, described)

    def check(target: Target, path: Path, tolerance: float) -> dict[str, float]:
        with target.explaining("loading it"):
            loaded = target.format.load(path)
        cases = _cases(kept, "inputs", described)
        difference = parity.compare(target, loaded, cases, scales, tolerance)
        if "raw" in kept and target.format is saved_model.FORMAT:
            raw = saved_model.load_signature(path, saved_model.RAW_SIGNATURE)
            cases = _cases(kept, "raw", described)
            difference |= parity.compare(target, raw, cases, scales, tolerance)
        measured = {"max_abs_difference": difference.absolute}
        if evaluation is not None and held_out is not None:
            metric = held_out.metric(map(_running(loaded), held_out.inputs()))
            before = described["evaluation"]["keras"]
            check_drop(evaluation, target.name, before=before, after=metric)
            measured["metric"] = metric
        return measured

    return check


def _running(loaded: Loaded) -> Callable[[Arrays], Arrays]:
    """Return the function that runs held-out data, with errors that name the data."""

    def run(batch: Arrays) -> Arrays:
        with taken("evaluation", Exception):
            return loaded.run(batch)

    return run


def _cases(
    kept: Examples, group: str, described: Manifest
) -> list[tuple[Arrays, Arrays]]:
    cases = [(kept[group], kept["outputs"])]
    dependence = described.get("rows_depend_on_each_other")
    # If rows depend on each other in the preprocessing, only raw features are affected.
    alone = dependence is None or (dependence["part"], group) == (
        "preprocessing",
        "inputs",
    )
    if described.get("batch_size") is None and alone:
        cases.append((other_size(kept[group]), other_size(kept["outputs"])))
    return cases


def _held_out(evaluation: Evaluation, described: Manifest) -> HeldOut:
    before = described.get("evaluation")
    if before is None:
        raise ValueError(
            "`evaluation` must be the one that the export was made with. "
            f"Received: {evaluation.metric.name}, and an export made without any."
        )
    held_out = HeldOut(
        evaluation,
        _arrays_of(described),
        outputs=[spec["name"] for spec in described["signature"]["outputs"]],
        batch_size=described.get("batch_size"),
    )
    given = (evaluation.metric.name, held_out.examples)
    if given != (before["metric"], before["examples"]):
        raise ValueError(
            "`evaluation` must be the one that the export was made with: "
            f"{before['metric']} on {before['examples']} examples. "
            f"Received: {given[0]} on {given[1]} examples."
        )
    return held_out


def _taken(batch: Any, specs: Specs) -> Any:
    """Drop keys that are for a distiller's training only, as `export` did."""
    if isinstance(batch, dict) and set(specs) <= set(batch):
        return {name: batch[name] for name in specs}
    return batch


def _arrays_of(described: Manifest) -> Callable[[Any, str], Arrays]:
    """Return the function that converts held-out data to inputs of the artefacts."""
    inputs, raw = (
        {
            spec["name"]: tf.TensorSpec(spec["shape"], spec["dtype"])
            for spec in described["signature"].get(group, [])
        }
        for group in ("inputs", "raw_inputs")
    )

    def arrays(batch: Any, argument: str) -> Arrays:
        try:
            return to_arrays(_taken(batch, inputs), inputs, argument)
        except ValueError as error:
            if not raw:
                raise
            raise ValueError(
                f"`{argument}` must hold {sorted(inputs)}, as the preprocessing makes "
                f"them of {sorted(raw)}: the artefacts begin behind it, and the export "
                "doesn't hold it by itself. Make them in Python, with the first model "
                "that `split_preprocessing` returns: `numpy.savez('prepared.npz', "
                f"labels=y, **preprocessing(x))`. Received: {_described(batch)}."
            ) from error

    return arrays


def _described(batch: Any) -> Any:
    return keras.tree.map_structure(
        lambda values: f"{np.asarray(values).dtype}{np.shape(values)}", batch
    )


def _unlisted(target: Target, listed: list[dict[str, Any]]) -> list[str]:
    """Return a problem if the file to be loaded isn't among the listed files."""
    paths = [file["path"] for file in listed]
    if any(path.split("/")[0] == target.file for path in paths):
        return []
    return [f"{target.file} isn't among the files of {target.name} in the manifest"]


def _strangers(directory: Path, described: Manifest) -> list[str]:
    """Return a problem for each file that the manifest doesn't list."""
    present = {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    strangers = sorted(present - manifest.listed_files(described))
    return [f"{name} isn't in the manifest" for name in strangers]


def _damages(directory: Path, listed: list[dict[str, Any]]) -> list[str]:
    """Return a problem for each damaged or missing file of the manifest."""
    damages = [_damage(directory, file) for file in listed]
    return [damage for damage in damages if damage is not None]


def _damage(directory: Path, file: dict[str, Any]) -> str | None:
    name = file["path"]
    path = directory / name
    # A foreign manifest mustn't make this process read files outside of its directory.
    if not path.resolve().is_relative_to(directory.resolve()):
        return f"{name} lies outside of the export"
    if not path.is_file():
        return f"{name} is missing"
    size = path.stat().st_size
    if size != file["bytes"]:
        return f"{name} has {size} bytes where the manifest says {file['bytes']}"
    if atomic.sha256(path) != file["sha256"]:
        return f"{name} has another SHA-256 than the manifest says"
    return None

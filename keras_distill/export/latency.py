"""Latencies of an export's artefacts and of the Keras model."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_distill.export import (
    arguments,
    examples,
    manifest,
    parity,
    signature,
    state,
)
from keras_distill.export.batches import Arrays, of_size
from keras_distill.export.examples import Examples
from keras_distill.export.loading import load_model
from keras_distill.export.manifest import Manifest
from keras_distill.export.names import any_name
from keras_distill.export.portability import is_graph
from keras_distill.export.quiet import no_remarks
from keras_distill.export.serving import serve, tensors_of
from keras_distill.export.values import as_float, as_int
from keras_distill.export.verification import check_files
from keras_distill.types import Nested

Row = dict[str, Any]

KERAS_PREDICT = "keras predict"
KERAS_FUNCTION = "keras tf.function"
_ROUNDS = 5
_WARM_UPS = 5


def measure(
    directory: str | os.PathLike[str],
    *,
    model: keras.Model | str | os.PathLike[str] | None = None,
    batch_sizes: Sequence[int] = (1, 8, 64),
    calls: int = 200,
    seconds: float = 5.0,
    threads: int | None = None,
) -> list[Row]:
    """Time every artefact of an export in its own runtime, in this process.

    A call reads NumPy arrays and returns NumPy arrays. A side is an artefact, or Keras'
    `predict` or `tf.function`. The sides alternate, with a fifth of their calls at a
    time, so that other load on the machine slows all of them equally. Compare ratios,
    not milliseconds.

    Args:
        directory: An export.
        model: The Keras model that the export was made from, or its `.keras` file. It
            is timed as `predict` and inside a `tf.function`. For an export with a
            preprocessing, pass the core, or the whole model to time it on the raw
            features.
        batch_sizes: The numbers of examples of a call. Batches are made from the
            export's examples. An export of a fixed batch size is timed with that only.
        calls: How often a side is called for each batch size.
        seconds: After this many seconds a side isn't called any more, for each batch
            size. At least 10 calls are made.
        threads: How many threads ONNX Runtime and LiteRT use; None for their own
            choice. `tf.config.threading` sets those of TensorFlow.

    Returns:
        For each side and batch size `{"side", "batch_size", "calls", "p50_ms",
        "p95_ms", "p99_ms", "examples_per_s", "speedup"}`. `"speedup"` is the median of
        `predict` divided by that of the side; None without `model`.

    Raises:
        FileNotFoundError: `directory` contains no export.
        ImportError: The runtime of an artefact isn't installed.
        ParityError: A file isn't the published one.
        ValueError: A number isn't usable, or `model` isn't the one that the export was
            made from.

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
    ...     rows = measure(f"{parent}/served", batch_sizes=[1], calls=10)
    >>> [(row["side"], row["batch_size"], row["calls"]) for row in rows]
    [('saved_model', 1, 10)]
    """
    sizes, limit = _checked(batch_sizes, calls, seconds, threads)
    directory = Path(directory)
    described = manifest.require(directory, to_run=True)
    check_files(directory, described)
    answers = examples.read(directory)
    manifest.check_examples(answers, described)
    sides = _artefacts(directory, described, threads)
    examples_of = dict.fromkeys(sides, answers["inputs"])
    loaded = None if model is None else load_model(model)
    fixed = described.get("batch_size")
    rows = []
    with _as_it_was(loaded), no_remarks():
        if loaded is not None:
            given = _read_by(loaded, answers)
            of_keras = _keras(loaded, given, answers["outputs"], described)
            examples_of |= dict.fromkeys(of_keras, given)
            sides |= of_keras
        for batch_size in [fixed] if fixed else sizes:
            batches = {
                side: of_size(kept, batch_size) for side, kept in examples_of.items()
            }
            timed = in_turn(sides, batches, calls, limit)
            predict = timed.get(KERAS_PREDICT)
            rows += [_row(name, batch_size, t, predict) for name, t in timed.items()]
    return rows


def _checked(
    batch_sizes: Any, calls: Any, seconds: Any, threads: Any
) -> tuple[list[int], float]:
    """Check all arguments; return the batch sizes and the seconds."""
    sizes = _whole_numbers(batch_sizes)
    if not sizes:
        raise ValueError(
            "`batch_sizes` must be a list of whole numbers from 1 on. "
            f"Received: batch_sizes={batch_sizes!r}."
        )
    if not _whole_numbers([calls]):
        raise ValueError(
            f"`calls` must be a whole number from 1 on. Received: calls={calls!r}."
        )
    if threads is not None and not _whole_numbers([threads]):
        raise ValueError(
            "`threads` must be a whole number from 1 on, or None for the runtime's own "
            f"choice. Received: threads={threads!r}."
        )
    limit = as_float(seconds)
    if limit is None or not limit > 0:
        raise ValueError(
            f"`seconds` must be a positive number. Received: seconds={seconds!r}."
        )
    return sizes, limit


def _whole_numbers(values: Any) -> list[int]:
    """Return the numbers as `int`; an empty list if one isn't whole or is below 1."""
    given = [as_int(value) for value in values] if np.iterable(values) else []
    whole = [value for value in given if value is not None and value >= 1]
    return whole if len(whole) == len(given) else []


@contextmanager
def _as_it_was(model: keras.Model | None) -> Iterator[None]:
    """Restore a model afterwards, including the function that `predict` traces."""
    if model is None:
        yield
        return
    with state.untouched(model):
        predict = model.predict_function
        try:
            yield
        finally:
            model.predict_function = predict


def _artefacts(
    directory: Path, described: Manifest, threads: int | None
) -> dict[str, Callable[[Arrays], Any]]:
    sides = {}
    for name in described["artefacts"]:
        target = arguments.target_named(name)
        target.format.require()
        with target.explaining("loading it"):
            sides[name] = target.format.load(directory / target.file, threads).run
    return sides


def _read_by(model: keras.Model, answers: Examples) -> Arrays:
    """Return the raw features if the model reads them, else the inputs of the core."""
    raw = answers.get("raw")
    if raw and is_graph(model) and set(raw) == set(signature.input_specs(model, None)):
        return raw
    return answers["inputs"]


def _keras(
    model: keras.Model, kept: Arrays, outputs: Arrays, described: Manifest
) -> dict[str, Callable[[Arrays], Any]]:
    served = serve(
        model,
        kept if len(kept) > 1 else next(iter(kept.values())),
        batch_size=described.get("batch_size"),
    )
    names = [*served.inputs], [*served.outputs]
    if tuple(map(set, names)) != (set(kept), set(outputs)):
        raise ValueError(
            "`model` must be the one that the export was made from. Received: a model "
            f"with the inputs and outputs {names}, where the export has "
            f"{[*kept]}, {[*outputs]}."
        )
    _check_answers(parity.call(served, kept), outputs, described["scales"])

    def function(batch: Arrays) -> Arrays:
        outputs = served.function(tensors_of(batch))
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    def predict(batch: Arrays) -> Any:
        # Keras reads text only from tensors.
        arrays = {name: batch[name] for name in served.inputs}
        texts = {name: it for name, it in arrays.items() if it.dtype == object}
        packed = served.pack({**arrays, **tensors_of(texts)})
        size = len(next(iter(batch.values())))
        with any_name():
            return model.predict(packed, batch_size=size, verbose=0)

    return {KERAS_PREDICT: predict, KERAS_FUNCTION: function}


def _check_answers(given: Arrays, wanted: Arrays, scales: dict[str, float]) -> None:
    for name, scale in scales.items():
        numbers = np.issubdtype(wanted[name].dtype, np.floating)
        if numbers and not np.allclose(given[name], wanted[name], atol=1e-2 * scale):
            raise ValueError(
                "`model` must be the one that the export was made from. Received: a "
                f"model with other answers on the examples, in the output {name!r}."
            )


def in_turn(
    sides: Mapping[str, Callable[[Any], Any]],
    batches: Mapping[str, Nested],
    calls: int,
    seconds: float,
) -> dict[str, list[float]]:
    """Call the sides in turn, a fifth of their calls at a time.

    Args:
        sides: Functions of one batch, by name.
        batches: What each side is called on.
        calls: How often a side is called.
        seconds: After this many seconds a side isn't called any more. At least 10
            calls are made.

    Returns:
        The milliseconds of each call, by side.
    """
    for name, call in sides.items():
        for _ in range(_WARM_UPS):
            call(batches[name])
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(_ROUNDS):
        for name, call in sides.items():
            end = time.perf_counter() + seconds / _ROUNDS
            for number in range(-(-calls // _ROUNDS)):
                begin = time.perf_counter()
                if begin > end and number >= 2:
                    break
                call(batches[name])
                times[name].append(1e3 * (time.perf_counter() - begin))
    return times


def _row(
    side: str, batch_size: int, times: list[float], predict: list[float] | None
) -> Row:
    p50, p95, p99 = (float(value) for value in np.percentile(times, [50, 95, 99]))
    return {
        "side": side,
        "batch_size": batch_size,
        "calls": len(times),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "examples_per_s": 1e3 * batch_size * len(times) / sum(times),
        "speedup": float(np.median(predict)) / p50 if predict else None,
    }

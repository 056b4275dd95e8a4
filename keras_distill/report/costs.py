"""Costs of models: parameters, operations, sizes of files, time and memory."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_distill.export import peak_memory as memory
from keras_distill.export.batches import of_size
from keras_distill.export.cost import flops
from keras_distill.export.latency import in_turn, measure
from keras_distill.export.manifest import require
from keras_distill.export.quiet import no_remarks
from keras_distill.report.reading import Read

tree = keras.tree

KERAS = "keras"
# The largest number of calls for each batch size, and the most seconds that they take.
_CALLS, _SECONDS = 100, 1.0


def measured(
    models: Mapping[str, Read],
    exports: Mapping[str, str | os.PathLike[str]],
    batch_sizes: Sequence[int],
    *,
    with_memory: bool,
) -> dict[str, Any]:
    """Return the costs, by the names of their fields in `Findings`."""
    largest = max(batch_sizes, default=1)
    return {
        "models": {name: of_model(read) for name, read in models.items()},
        "files": {name: of_exports(path) for name, path in exports.items()},
        "latencies": latencies(models, exports, batch_sizes),
        "memory": peak_memory(models, exports, largest) if with_memory else [],
    }


def of_model(read: Read) -> dict[str, Any]:
    """Return the parameters, the operations of one row and the time of `predict`."""
    operations = flops(read.model, tree.map_structure(lambda x: x[:1], read.inputs))
    return {
        "parameters": int(read.model.count_params()),
        "flops": operations,
        "predict_s": read.seconds,
    }


def of_exports(directory: str | os.PathLike[str]) -> dict[str, int]:
    """Return the bytes of each artefact of an export."""
    described = require(Path(directory), to_run=True)
    return {name: it["bytes"] for name, it in described["artefacts"].items()}


def latencies(
    models: Mapping[str, Read],
    exports: Mapping[str, str | os.PathLike[str]],
    batch_sizes: Sequence[int],
) -> list[dict[str, Any]]:
    """Time the Keras models and all exported files.

    Returns:
        Rows with the keys `model`, `side`, `batch_size`, `p50_ms` and `p95_ms`.
    """
    rows = []
    called = {name: read.model.predict_on_batch for name, read in models.items()}
    for batch_size in batch_sizes:
        batches = {
            name: of_size(read.inputs, batch_size) for name, read in models.items()
        }
        with no_remarks():
            timed = in_turn(called, batches, _CALLS, _SECONDS)
        for name, times in timed.items():
            p50, p95 = (float(p) for p in np.percentile(times, [50, 95]))
            row = {"model": name, "side": KERAS, "batch_size": batch_size}
            rows.append(row | {"p50_ms": p50, "p95_ms": p95})
    for name, directory in exports.items() if batch_sizes else ():
        measured = measure(
            directory, batch_sizes=batch_sizes, calls=_CALLS, seconds=_SECONDS
        )
        keys = ("side", "batch_size", "p50_ms", "p95_ms")
        rows += [{"model": name} | {key: row[key] for key in keys} for row in measured]
    return rows


def peak_memory(
    models: Mapping[str, Read],
    exports: Mapping[str, str | os.PathLike[str]],
    batch_size: int,
) -> list[dict[str, Any]]:
    """Measure the memory of the Keras models and of all exported files.

    Returns:
        Rows with the keys `model`, `side`, `batch_size` and `bytes`.
    """
    sides = [
        (name, KERAS, memory.of_model(read.model, of_size(read.inputs, batch_size)))
        for name, read in models.items()
    ]
    for name, directory in exports.items():
        found = memory.of_export(directory, batch_size)
        sides += [(name, side, size) for side, size in found.items()]
    keys = ("model", "side", "bytes")
    return [dict(zip(keys, row, strict=True), batch_size=batch_size) for row in sides]

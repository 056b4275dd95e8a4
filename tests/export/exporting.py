"""An export in a process that a test can kill.

The processes are forked from one that has imported all that an export needs, which
would take longer than the export.
"""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from keras_distill.export import export

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


@contextmanager
def exporting(
    model: Path, directory: Path, version: str | None, mark: str
) -> Iterator[tuple[multiprocessing.Process, Connection]]:
    """Begin an export; give its process, and a connection that says when it is done."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(
        target=_export, args=(theirs, model, directory, version, mark)
    )
    process.start()
    theirs.close()
    assert ours.recv() == "ready"
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


def _export(
    connection: Connection, model: Path, directory: Path, version: str | None, mark: str
) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    batch = np.ones((4, 28, 28, 1), "float32")
    connection.send("ready")
    export(
        model,
        directory,
        example_batch=batch,
        quantize=["float16", "int8"],
        calibration_data=batch,
        version=version,
        provenance={"mark": mark},
    )
    connection.send("done")

"""Files that are whole at every moment, whenever their writer is killed."""

import os
from collections.abc import Callable
from pathlib import Path


def replace(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` make a file beside `path`, then put it in the place of `path`.

    The file is written under one hidden name that keeps the suffixes, so that what a
    killed writer left is written over by the next: one writer at a time.

    Args:
        path: Where the file goes; its directory is made where there is none.
        write: Writes a whole file at the path that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".writing.{path.name}")
    write(scratch)
    flush(scratch)
    os.replace(scratch, path)
    flush(path.parent)  # the rename itself


def flush(path: Path) -> None:
    """Bring to the disk what a power cut would lose."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

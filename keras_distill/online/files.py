"""The files of processes that share a directory."""

import os
import time
import warnings
from pathlib import Path

from keras_distill import atomic

# Identifies a version of a file: its modification time, size and inode number.
Version = tuple[int, ...]


def others(
    directory: Path, name: str, *, forget_after: float | None
) -> dict[str, tuple[Path, Version]]:
    """Return the path and version of each other process' file by the process' name.

    Args:
        directory: The shared directory.
        name: The name of this process.
        forget_after: As in `SharedPeers`.
    """
    found: dict[str, tuple[Path, Version]] = {}
    try:
        for path in sorted(directory.glob("*.keras")):
            # A hidden file is still being written.
            if path.name.startswith(".") or path.stem == name:
                continue
            stat = path.stat()
            age = time.time() - stat.st_mtime
            if forget_after is None or age <= forget_after:
                version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                found[path.stem] = path, version
    except OSError as error:
        warnings.warn(f"Not all peers could be read: {error}", stacklevel=2)
    return found


def lock(directory: Path, name: str) -> int:
    """Lock a name until the returned file descriptor is closed or the process ends.

    Raises:
        RuntimeError: If another running process has locked the name.
    """
    path = directory / f".{name}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if not atomic.lock(descriptor, wait=False):
        os.close(descriptor)
        raise RuntimeError(
            "`name` must be this process' own: one that is alive has it in this "
            f"directory. Received: name={name!r}, locked by {path}"
        )
    return descriptor

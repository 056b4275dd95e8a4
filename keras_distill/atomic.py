"""Files and directories that are replaced as a whole, even if the writer is killed."""

import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# From the Linux headers: paths relative to the working directory; swap two paths.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# The scratch directory of a writer of `name`. `.old` marks a directory that was renamed
# to make room for the new one.
_SCRATCH = re.compile(r"\.(?P<name>.+)\.keras-distill-[0-9a-f]{8}(?P<old>\.old)?")


def replace(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a file as a whole.

    The new file is first written beside `path`, under a fixed hidden name with the same
    suffixes. The next writer overwrites the file of a killed writer. So only one writer
    may run at a time.

    Args:
        path: The file to replace. Its directory is made if there is none.
        write: Writes a complete file at the path that it gets.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".writing.{path.name}")
    write(scratch)
    move(scratch, path)


def move(scratch: Path, path: Path) -> None:
    """Give a complete file its name in the same directory, in one step."""
    flush(scratch)
    os.replace(scratch, path)
    # A power cut could undo the rename while the directory isn't flushed.
    flush(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Replace a text file in UTF-8 as a whole, as `replace` does."""

    def write(scratch: Path) -> None:
        scratch.write_text(text, encoding="utf-8")

    replace(path, write)


def replace_bytes(path: Path, content: bytes) -> None:
    """Replace a file as a whole, as `replace` does."""

    def write(scratch: Path) -> None:
        scratch.write_bytes(content)

    replace(path, write)


@contextmanager
def replacing(
    directory: Path,
    check: Callable[[Path], None],
    *,
    check_first: Callable[[Path], None] | None = None,
) -> Iterator[Path]:
    """Yield a scratch directory that replaces `directory` at the end of the block.

    The scratch directory is beside `directory`, under a name that no other writer has.
    An error in the block removes it. If the process is killed, the next writer in the
    same parent directory removes it.

    On Linux one system call swaps the old and the new directory, so that one of them is
    complete at `directory` at every moment. Some file systems can't swap. There the old
    directory is renamed first. If the process is killed between the two renames, the
    next writer renames it back before it does anything else.

    If several processes write to one directory, the last one to finish replaces it.

    Args:
        directory: An absolute path.
        check: Raises an error if `directory` must not be replaced. It is called at the
            start and again before the swap.
        check_first: Called at the start in place of `check`, while no other writer in
            the same parent directory can start or finish.

    Raises:
        OSError: If `directory` can't be written, or the error of `check`.
    """
    scratch, locked = _make_scratch(directory, check_first or check)
    try:
        yield scratch
        _flush_tree(scratch)
        with alone_in(directory.parent):
            # The directory may have changed while the scratch directory was filled.
            check(directory)
            _swap(scratch, directory)
        flush(directory.parent)
    finally:
        # It contains the unfinished files or, after the swap, the old ones.
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(locked)


def target_name(path: Path) -> str | None:
    """Return the name of the directory that a scratch directory is to replace.

    None if `path` isn't named like a scratch directory.
    """
    scratch = _SCRATCH.fullmatch(path.name)
    return scratch["name"] if scratch else None


@contextmanager
def alone_in(parent: Path) -> Iterator[None]:
    """Wait until no other writer changes the entries of `parent`; lock others out."""
    # A scratch directory belongs to one process, which has locked it already.
    if target_name(parent) is not None:
        yield
        return
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def recover(parent: Path) -> None:
    """Put back or remove the directories that killed writers left in `parent`."""
    for path in parent.iterdir():
        scratch = _SCRATCH.fullmatch(path.name)
        if not scratch or not path.is_dir():
            continue
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # Its writer has finished meanwhile.
        try:
            if not _try_lock(descriptor):
                continue
            directory = parent / scratch["name"]
            if scratch["old"] and not directory.exists():
                path.rename(directory)
            else:
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file or directory until it is closed or this process ends.

    Some file systems have no locks. There, nothing is locked, and the result is True.

    Args:
        descriptor: The descriptor of the open file or directory.
        wait: Whether to wait while another process has the lock.

    Returns:
        Whether no other process has the lock.
    """
    import fcntl  # Absent on Windows, where the rest of the package works.

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Write a file's or directory's cached data to the disk, in case of a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_tree(directory: Path) -> None:
    """Flush a directory and all that it contains.

    Without this, after a power cut the swapped directory could contain empty files.
    """
    for path in [*directory.rglob("*"), directory]:
        flush(path)


def _make_scratch(directory: Path, check: Callable[[Path], None]) -> tuple[Path, int]:
    """Clean up after killed writers; make a scratch directory and lock it."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with alone_in(directory.parent):
            recover(directory.parent)
            check(directory)
            name = f".{directory.name}.keras-distill-{secrets.token_hex(4)}"
            scratch = directory.with_name(name)
            # `mkdtemp` would make a directory that servers of other users can't read.
            scratch.mkdir()
            descriptor = os.open(scratch, os.O_RDONLY)
            _try_lock(descriptor)
        return scratch, descriptor
    except OSError as error:
        # `check` raised it, with advice.
        if error.errno is None:
            raise
        raise OSError(
            error.errno,
            "`directory` must lie where this process can write. "
            f"Received: directory={str(directory)!r} ({error.strerror})",
        ) from error


def _try_lock(descriptor: int) -> bool:
    """Lock a directory until this process ends; return False if another has it."""
    import fcntl  # Absent on Windows, where the rest of the package works.

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # A running writer has it, or the file system has no locks. In both cases the
        # directory must not be touched.
        return False
    return True


def _swap(scratch: Path, directory: Path) -> None:
    """Put `scratch` at `directory`, and the old directory at `scratch`."""
    if not directory.exists():
        scratch.rename(directory)
    elif not _exchange(scratch, directory):
        aside = scratch.with_name(f"{scratch.name}.old")
        directory.rename(aside)
        try:
            scratch.rename(directory)
        except OSError:
            aside.rename(directory)
            raise
        aside.rename(scratch)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step; return False if the system can't."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, TypeError):
        return False
    source, target = os.fsencode(first), os.fsencode(second)
    if rename(_AT_FDCWD, source, _AT_FDCWD, target, _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(second))

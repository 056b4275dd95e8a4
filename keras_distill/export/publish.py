"""A directory that is replaced as a whole, or left as it was."""

import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from keras_distill.atomic import flush
from keras_distill.export import manifest
from keras_distill.export.values import as_int

# From the Linux headers: paths relative to the working directory; swap two paths.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# The scratch directory of `name`; what it steps aside as ends with `.old`.
_SCRATCH = re.compile(r"\.(?P<name>.+)\.keras-distill-[0-9a-f]{8}(?P<old>\.old)?")


def check_replaceable(directory: Path) -> None:
    """Raise where replacing `directory` would lose what isn't an export of ours."""
    if not os.path.lexists(directory):
        return
    if not directory.is_dir():
        raise NotADirectoryError(
            f"`directory` must be a directory. Received: directory={str(directory)!r}, "
            "which is a file."
        )
    present = {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }
    earlier = manifest.read(directory)
    foreign = present - (manifest.listed_files(earlier) if earlier else set())
    if foreign:
        raise FileExistsError(
            "`directory` must be absent, empty or an earlier export, as it is replaced "
            f"as a whole. Received: directory={str(directory)!r}, which holds "
            f"{', '.join(sorted(foreign)[:3])}. Choose another directory, or move "
            "these files."
        )


def place(
    directory: Path, version: int | Literal["next"] | None
) -> tuple[Path, Callable[[Path], None]]:
    """Return where an export goes, and the check that nothing is lost there.

    Args:
        directory: An absolute path.
        version: None for `directory` itself; a number for that version inside of it;
            `"next"` for the one after the highest.
    """
    if version is None:
        return directory, check_replaceable
    if isinstance(version, str) and version == "next":
        version = 1 + max(_versions(directory), default=0)
    number = as_int(version)
    if number is None or number < 1:
        raise ValueError(
            "`version` must be a number from 1 on, 'next', or None. "
            f"Received: version={version!r}."
        )
    if manifest.read(directory) is not None:
        raise FileExistsError(
            "`directory` must be one of versions. Received: directory="
            f"{str(directory)!r}, which is an export by itself. Choose another "
            "directory, or leave out `version` to replace it."
        )
    return directory / str(number), check_absent


def check_absent(directory: Path) -> None:
    """Raise where `directory` is there: what was published as a version stays."""
    if os.path.lexists(directory):
        raise FileExistsError(
            f"`version` must be a new one. Received: {str(directory)!r}, which exists. "
            "Published versions stay as they are: pass `version='next'`."
        )


def _versions(directory: Path) -> Iterator[int]:
    """Yield the versions that are published, and those about to be."""
    if not directory.is_dir():
        return
    with _alone_in(directory):
        _recover(directory)
        present = list(directory.iterdir())
    for path in present:
        scratch = _SCRATCH.fullmatch(path.name)
        name = scratch["name"] if scratch else path.name
        if name.isdecimal():
            yield int(name)


@contextmanager
def publishing(
    directory: Path, version: int | Literal["next"] | None
) -> Iterator[tuple[Path, Path]]:
    """Yield where an export goes, and the scratch directory that takes that place.

    Exports to versions that run at the same time never go to the same one.
    """
    with ExitStack() as stack:
        while True:
            goal, check = place(directory, version)
            try:
                scratch = stack.enter_context(
                    replacing(goal, check, alone=version is not None)
                )
            except FileExistsError:
                if version != "next":
                    raise
                continue  # another export was faster to take this number
            break
        yield goal, scratch


@contextmanager
def replacing(
    directory: Path,
    check: Callable[[Path], None] = check_replaceable,
    *,
    alone: bool = False,
) -> Iterator[Path]:
    """Yield a scratch directory that takes the place of `directory` at the end.

    The scratch directory lies beside `directory` under a name of its own; an error
    inside removes it, and a killed process leaves it to the next export.

    On Linux one system call swaps old and new, so that at every moment one of them is
    whole at `directory`. Where the file system can't swap, the old one steps aside
    first; a process killed between the two renames leaves it under the name of a
    scratch directory, and the next export puts it back before anything else.

    Args:
        directory: An absolute path.
        check: Raises where `directory` holds what must not be replaced; called first
            and last.
        alone: Whether it is an error that another export is under way to `directory`;
            else the last one stays.

    Raises:
        OSError: `directory` can't be written, or what `check` raises.
    """
    scratch, lock = _make_scratch(directory, check, alone)
    try:
        yield scratch
        _flush(scratch)
        with _alone_in(directory.parent):
            # It may have changed during a conversion of minutes.
            check(directory)
            _swap(scratch, directory)
        flush(directory.parent)
    finally:
        # Holds the unfinished export, or after the swap the one that was replaced.
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _make_scratch(
    directory: Path, check: Callable[[Path], None], alone: bool
) -> tuple[Path, int]:
    """Clean up after killed runs; make a scratch directory and lock it."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(directory.parent):
            _recover(directory.parent)
            check(directory)
            if alone:
                _refuse_company(directory)
            name = f".{directory.name}.keras-distill-{secrets.token_hex(4)}"
            scratch = directory.with_name(name)
            # Not `mkdtemp`: a server of another user couldn't read what that makes.
            scratch.mkdir()
            lock = os.open(scratch, os.O_RDONLY)
            _try_lock(lock)
        return scratch, lock
    except OSError as error:
        if error.errno is None:  # it is one of ours, with its advice
            raise
        raise OSError(
            error.errno,
            "`directory` must lie where this process can write. "
            f"Received: directory={str(directory)!r} ({error.strerror})",
        ) from error


@contextmanager
def _alone_in(parent: Path) -> Iterator[None]:
    """Wait for the moment in which no other export changes what `parent` lists."""
    import fcntl

    if _SCRATCH.fullmatch(parent.name):  # nobody's but ours, who hold its lock
        yield
        return
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refuse_company(directory: Path) -> None:
    for path in directory.parent.iterdir():
        scratch = _SCRATCH.fullmatch(path.name)
        if scratch and scratch["name"] == directory.name:
            raise FileExistsError(
                "`version` must be one that no other export is about to publish. "
                f"Received: {str(directory)!r}, which is written in {path.name!r}. "
                "Pass `version='next'`."
            )


def _recover(parent: Path) -> None:
    """Put back or remove what killed exports left in `parent`."""
    for path in parent.iterdir():
        scratch = _SCRATCH.fullmatch(path.name)
        if not scratch or not path.is_dir():
            continue
        try:
            lock = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # its owner has finished
        try:
            if not _try_lock(lock):
                continue
            directory = parent / scratch["name"]
            if scratch["old"] and not directory.exists():
                path.rename(directory)
            else:
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _try_lock(descriptor: int) -> bool:
    """Lock a directory for as long as this process lives, unless another holds it."""
    import fcntl  # absent on Windows, where the rest of the package works

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # Held by a running export, or a file system without locks: hands off.
        return False
    return True


def _swap(scratch: Path, directory: Path) -> None:
    """Put `scratch` at `directory`, and what was there at `scratch`."""
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
    """Swap two paths in one step; False where the system can't."""
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


def _flush(directory: Path) -> None:
    """Bring a tree to the disk, so that a power cut can't swap in empty files."""
    for path in [*directory.rglob("*"), directory]:
        flush(path)

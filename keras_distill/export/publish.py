"""The directory of an export, and the check of what it may replace."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from keras_distill import atomic
from keras_distill.export import manifest
from keras_distill.export.values import as_int


def check_replaceable(directory: Path) -> None:
    """Raise an error if `directory` contains anything but an earlier export."""
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
    """Return the directory of an export, and the check that it may be written.

    Args:
        directory: An absolute path.
        version: None for `directory` itself; a number for `directory/NUMBER`; `"next"`
            for the number after the highest one.
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
    """Raise an error if `directory` exists: published versions never change."""
    if os.path.lexists(directory):
        raise FileExistsError(
            f"`version` must be a new one. Received: {str(directory)!r}, which exists. "
            "Published versions stay as they are: pass `version='next'`."
        )


@contextmanager
def publishing(
    directory: Path, version: int | Literal["next"] | None
) -> Iterator[tuple[Path, Path]]:
    """Yield the directory of an export, and the scratch directory that replaces it.

    Exports that run at the same time never write the same version.

    Args:
        directory: An absolute path.
        version: As in `place`.
    """
    with ExitStack() as stack:
        while True:
            goal, check = place(directory, version)
            check_first = None if version is None else _check_free
            try:
                scratch = stack.enter_context(
                    atomic.replacing(goal, check, check_first=check_first)
                )
            except FileExistsError:
                if version != "next":
                    raise
                continue  # Another export has taken this number meanwhile.
            break
        yield goal, scratch


def _versions(directory: Path) -> Iterator[int]:
    """Yield the numbers of published versions, and of those that are being written."""
    if not directory.is_dir():
        return
    with atomic.alone_in(directory):
        atomic.recover(directory)
        present = list(directory.iterdir())
    for path in present:
        name = atomic.target_name(path) or path.name
        if name.isdecimal():
            yield int(name)


def _check_free(directory: Path) -> None:
    """Raise an error if a version exists, or if another export is writing it."""
    check_absent(directory)
    for path in directory.parent.iterdir():
        if atomic.target_name(path) == directory.name:
            raise FileExistsError(
                "`version` must be one that no other export is about to publish. "
                f"Received: {str(directory)!r}, which is written in {path.name!r}. "
                "Pass `version='next'`."
            )

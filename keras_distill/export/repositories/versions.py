"""Versions of a model in a repository: numbered, written whole, never overwritten."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from keras_distill import atomic
from keras_distill.export.repositories.source import Export
from keras_distill.naming import NAME, NAMES

_NUMBER = re.compile(r"[1-9][0-9]*")


@contextmanager
def new_version(
    export: Export,
    repository: str | os.PathLike[str],
    name: str | None,
    version: int | None,
) -> Iterator[Path]:
    """Yield the path of a new version, with the repository locked.

    Args:
        export: The export that will be written there.
        repository: The root of the repository. It is made if absent.
        name: The model's name in the server. Defaults to the Keras model's name.
        version: A positive number. Defaults to the name of the export's directory if
            that is a number, else to the number after the highest version.
    """
    name = _checked_name(export.manifest["model"] if name is None else name)
    _check_version(version)
    root = Path(os.path.realpath(repository))
    model = root / name
    if model.is_relative_to(export.directory):
        raise ValueError(
            "`repository` must be elsewhere than the export, which holds what its "
            f"manifest lists alone. Received: repository={str(root)!r}, where the "
            f"model {name!r} would lie in {str(export.directory)!r}. Choose another "
            "`repository`, or another `name`."
        )
    with _locked(root):
        model.mkdir(exist_ok=True)
        try:
            yield model / str(_number(export, model) if version is None else version)
        finally:
            # The directory is empty only if the model's first version failed.
            with suppress(OSError):
                model.rmdir()


@contextmanager
def writing(directory: Path, files: Mapping[str, Path]) -> Iterator[None]:
    """Copy `files` to a scratch directory, and rename it when the block ends.

    Args:
        directory: The path that `new_version` yielded.
        files: Relative path in the version to the file that is copied there.
    """
    with atomic.replacing(directory, _check_absent) as scratch:
        for relative, source in files.items():
            target = scratch / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        yield


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step: readers get the old text or the new."""
    scratch = path.with_name(f".{path.name}.keras-distill")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"`name` must be {NAMES}. Received: name={name!r}.")
    return name


def _check_version(version: int | None) -> None:
    if version is not None and (isinstance(version, bool) or version < 1):
        raise ValueError(
            "`version` must be a positive number; servers take the largest. "
            f"Received: version={version}."
        )


def _number(export: Export, model: Path) -> int:
    if _NUMBER.fullmatch(export.directory.name):
        return int(export.directory.name)
    present = [int(it.name) for it in model.iterdir() if _NUMBER.fullmatch(it.name)]
    return max(present, default=0) + 1


def _check_absent(directory: Path) -> None:
    if os.path.lexists(directory):
        raise FileExistsError(
            "`version` must be new, as a version that may be served is never "
            f"overwritten. Received: version={directory.name}, which is at "
            f"{str(directory)!r}. Choose another `version`."
        )


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    """Make the repository, and wait until no other process writes a version to it."""
    try:
        repository.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(repository, os.O_RDONLY)
    except OSError as error:
        raise OSError(
            error.errno,
            "`repository` must be a directory where this process can write. "
            f"Received: repository={str(repository)!r} ({error.strerror})",
        ) from error
    try:
        # If the file system has no locks, processes that write to a repository at the
        # same time must each pass a `version`.
        atomic.lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)

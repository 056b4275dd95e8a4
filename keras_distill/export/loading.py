"""Models and data from files, neither of which may bring code along."""

import os
import re
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np

# What may lie where a `.keras` file is expected, as words for an error.
_SAVED_MODEL = "the directory of a SavedModel"
_EXPORT = "the directory of an export"
_DIRECTORY = "a directory"
_HDF5 = "an HDF5 file"
_ARCHIVE = "an archive of Keras"
_SAVE = "Save the model with"
_REMEDIES = {
    _SAVED_MODEL: "A SavedModel holds no Keras model; save the Keras model with",
    _EXPORT: "An export holds no Keras model; save the Keras model with",
    _HDF5: "Load it in Python with `keras.saving.load_model`, and save it with",
}
# What Keras writes into each, beside the weights.
_MEMBERS = ("metadata.json", "config.json")


@runtime_checkable
class Trainer(Protocol):
    """A Keras model that trains another one, as a distiller trains its student.

    What is exported of it is the model that it trains, under that model's names.
    """

    def serving_model(self) -> keras.Model:
        """Return the model that serves."""

    def serving_inputs(self, inputs: Any) -> Any:
        """Return the part of a batch to train on that this model reads."""


def load_model(model: keras.Model | str | os.PathLike[str]) -> keras.Model:
    """Return a built model: `model` itself, or what its `.keras` file holds.

    Of a model that trains another one, as a distiller or its file, that other one is
    returned. Files are loaded in safe mode: code inside of them, as of a `Lambda`, is
    refused.
    """
    return load_served(model)[0]


def load_served(
    model: keras.Model | str | os.PathLike[str],
) -> tuple[keras.Model, Callable[[Any], Any]]:
    """Return what `load_model` does, and the function that picks its inputs.

    The function takes a batch, which of a trainer may be one to train on, with keys
    that exist in training only. It returns the part that the served model reads. Of
    any other model it returns the batch as it is.
    """
    model, selections = _served(model)
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a `keras.Model` or the path of a `.keras` file. "
            f"Received: {type(model).__name__}."
        )
    if not model.built:
        raise ValueError(
            "`model` must be built. Received: a model without weights, named "
            f"{model.name!r}. Call it on a batch first."
        )

    def select(batch: Any) -> Any:
        for selection in selections:
            batch = selection(batch)
        return batch

    return model, select


def served_model(model: Any) -> Any:
    """Return what `load_model` does, of whatever kind and built or not."""
    return _served(model)[0]


def _served(model: Any) -> tuple[Any, list[Callable[[Any], Any]]]:
    """Return the model that serves, and what picks its inputs."""
    if isinstance(model, str | os.PathLike):
        model = _load_file(Path(model))
    selections: list[Callable[[Any], Any]] = []
    # The student of a distiller may be one itself.
    while isinstance(model, Trainer):
        selections.append(model.serving_inputs)
        model = model.serving_model()
    return model, selections


def _load_file(path: Path) -> keras.Model:
    _check_file(path)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"`model` can't be loaded in safe mode. Received: {str(path)!r} "
            f"({_reason(path, error)}). Load it in Python, with the code of its "
            "custom layers imported, and pass the model."
        ) from error


def _check_file(path: Path) -> None:
    """Raise where Keras would only report that there is no such file."""
    received = f"Received: {str(path)!r}"
    if not path.exists():
        raise FileNotFoundError(
            f"`model` must be the path of a `.keras` file. {received}, where there is "
            "no file."
        )
    kind = _kind(path)
    # Other suffixes are HDF5 and SavedModels to Keras, which safe mode doesn't cover.
    if path.suffix != ".keras" or kind in (_SAVED_MODEL, _EXPORT, _DIRECTORY, _HDF5):
        raise ValueError(
            "`model` must be the path of a `.keras` file, which is loaded in safe "
            f"mode. {received}, which is {kind}. {_REMEDIES.get(kind, _SAVE)} "
            f"`model.save('{path.stem or 'model'}.keras')`."
        )
    if kind != _ARCHIVE:
        raise ValueError(
            "`model` must be a whole `.keras` file, which is loaded in safe mode. "
            f"{received}, which is {kind}. Copy it again, or save the model again "
            f"with `model.save('{path.name}')`."
        )


def _kind(path: Path) -> str:
    """Return what lies at `path`, as words for an error."""
    if path.is_dir():
        if (path / "saved_model.pb").exists():
            return _SAVED_MODEL
        return _EXPORT if (path / "manifest.json").exists() else _DIRECTORY
    with path.open("rb") as file:
        begin = file.read(8)
    if not begin:
        return "empty"
    if begin == b"\x89HDF\r\n\x1a\n":
        return _HDF5
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            missing = [name for name in _MEMBERS if name not in archive.namelist()]
        return f"an archive without {', '.join(missing)}" if missing else _ARCHIVE
    return "cut short" if begin[:2] == b"PK" else "a file of another kind"


def _reason(path: Path, error: Exception) -> str:
    """Return why Keras couldn't load an archive, in few words."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        return f"{damaged!r} in it is damaged"
    missing = re.search(r"Could not locate (class|function) '([^']+)'", str(error))
    if missing:  # Keras adds the whole config
        return f"its {missing[1]} {missing[2]!r} isn't registered in this process"
    return textwrap.shorten(f"{type(error).__name__}: {error}", 600)


def load_arrays(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the arrays of an `.npz` file by name; pickled ones are refused.

    Text is returned as objects, as TensorFlow takes it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        # Of another zip archive NumPy gives the bytes of the members.
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("another kind of archive")
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            "Data must be an .npz file of arrays by input name, as `numpy.savez` "
            "writes it; text as fixed-width strings. "
            f"Received: {str(path)!r} ({error})."
        ) from error
    return {
        name: array.astype(object) if array.dtype.kind in "US" else array
        for name, array in arrays.items()
    }

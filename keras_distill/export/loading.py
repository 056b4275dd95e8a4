"""Models and data from files. Code inside the files is refused."""

import io
import json
import os
import re
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import h5py  # type: ignore[import-untyped]
import keras
import numpy as np
import numpy.typing as npt

from keras_distill.export.quiet import no_remarks

# Other things that may be in place of a `.keras` file, as text for an error.
_SAVED_MODEL = "the directory of a SavedModel"
_EXPORT = "the directory of an export"
_DIRECTORY = "a directory"
_HDF5 = "an HDF5 file"
_WEIGHTS = "a file of weights alone"
_ARRAY = "a single array, as `numpy.save` writes it"
_ARCHIVE = "an archive"
_SAVE = "Save the model with"
_CODE = (
    "Load it in Python, with the code of its custom layers imported, and pass the "
    "model."
)
_REMEDIES = {
    _SAVED_MODEL: "A SavedModel holds no Keras model; save the Keras model with",
    _EXPORT: "An export holds no Keras model; save the Keras model with",
    _HDF5: "Load it in Python with `keras.saving.load_model`, and save it with",
    _WEIGHTS: "Build the model in Python, load them with `load_weights`, save it with",
}
_HDF5_BEGINS = b"\x89HDF\r\n\x1a\n"
# The members that Keras writes into each archive besides the weights.
_MEMBERS = ("metadata.json", "config.json")


@runtime_checkable
class Trainer(Protocol):
    """A Keras model that trains another one, as a distiller trains its student.

    The trained model is exported instead, under its own names.
    """

    def serving_model(self) -> keras.Model:
        """Return the model that is served."""

    def serving_inputs(self, inputs: Any) -> Any:
        """Return the part of a training batch that the served model reads."""


def load_model(model: keras.Model | str | os.PathLike[str]) -> keras.Model:
    """Return a built model: `model` itself, or the model of a `.keras` file.

    If that model trains another one, as a distiller does, the trained model is
    returned. Files are loaded in safe mode: code inside of them, as of a `Lambda`, is
    refused.
    """
    return load_served(model)[0]


def load_served(
    model: keras.Model | str | os.PathLike[str],
) -> tuple[keras.Model, Callable[[Any], Any]]:
    """Return the model of `load_model`, and the function that selects its inputs.

    For a trainer, the function reads a batch that may have keys for training only, and
    returns the part that the served model reads. For any other model, it returns the
    batch unchanged.
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
    """Return the model of `load_model`, which may have any type or be unbuilt."""
    return _served(model)[0]


def _served(model: Any) -> tuple[Any, list[Callable[[Any], Any]]]:
    """Return the model that is served, and the functions that select its inputs."""
    if isinstance(model, str | os.PathLike):
        model = _load_file(Path(model))
    selections: list[Callable[[Any], Any]] = []
    # The student of a distiller may be a distiller itself.
    while isinstance(model, Trainer):
        selections.append(model.serving_inputs)
        model = model.serving_model()
    return model, selections


def _load_file(path: Path) -> keras.Model:
    _check_file(path)
    try:
        with no_remarks():
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        damage = _damage(path)
        reason, remedy = _reason(error), _CODE
        if damage:
            reason = damage
            remedy = "Copy it again, or save the model again."
        raise ValueError(
            f"`model` can't be loaded in safe mode. Received: {str(path)!r} "
            f"({reason}). {remedy}"
        ) from error


def _check_file(path: Path) -> None:
    """Raise a clearer error than Keras if `path` is no `.keras` file."""
    received = f"Received: {str(path)!r}"
    if not path.exists():
        raise FileNotFoundError(
            f"`model` must be the path of a `.keras` file. {received}, where there is "
            "no file."
        )
    kind = _kind(path)
    # Keras reads files of other suffixes as HDF5 or SavedModels, without safe mode.
    if path.suffix != ".keras" or kind in _REMEDIES or kind == _DIRECTORY:
        raise ValueError(
            "`model` must be the path of a `.keras` file, which is loaded in safe "
            f"mode. {received}, which is {kind}. {_REMEDIES.get(kind, _SAVE)} "
            f"`model.save('{_stem(path)}.keras')`."
        )
    if kind == _ARCHIVE:
        with zipfile.ZipFile(path) as archive:
            missing = [name for name in _MEMBERS if name not in archive.namelist()]
        if not missing:
            return
        kind = f"an archive without {', '.join(missing)}"
    raise ValueError(
        "`model` must be a whole `.keras` file, which is loaded in safe mode. "
        f"{received}, which is {kind}. Copy it again, or save the model again "
        f"with `model.save('{path.name}')`."
    )


def _stem(path: Path) -> str:
    return path.name.partition(".")[0] or "model"


def _kind(path: Path) -> str:
    """Return the kind of file or directory at `path`, as text for an error."""
    if path.is_dir():
        if (path / "saved_model.pb").exists():
            return _SAVED_MODEL
        return _EXPORT if (path / "manifest.json").exists() else _DIRECTORY
    with path.open("rb") as file:
        begin = file.read(8)
    if not begin:
        return "empty"
    if begin == _HDF5_BEGINS:
        return _kind_of_hdf5(path)
    if begin[:6] == b"\x93NUMPY":
        return _ARRAY
    if zipfile.is_zipfile(path):
        return _ARCHIVE
    return "cut short" if begin[:2] == b"PK" else "a file of another kind"


def _kind_of_hdf5(path: Path) -> str:
    try:
        with h5py.File(path) as file:
            return _HDF5 if "model_config" in file.attrs else _WEIGHTS
    except OSError:
        return "an HDF5 file that is cut short or damaged"


def _damage(path: Path) -> str | None:
    """Return what is damaged in an archive of Keras, if anything."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if not any(name.startswith("model.weights") for name in names):
            return "it holds no weights"
        for name in names:
            try:
                _check_member(name, archive.read(name))
            except Exception as error:  # From zip, zlib, JSON or HDF5, in any version.
                reason = textwrap.shorten(str(error) or type(error).__name__, 200)
                return f"{name!r} in it is damaged: {reason}"
    return None


def _check_member(name: str, data: bytes) -> None:
    if name in _MEMBERS and not isinstance(json.loads(data), dict):
        raise ValueError("it must be a JSON object")
    if name.endswith(".h5"):
        with h5py.File(io.BytesIO(data)) as file:
            file.visititems(lambda _, it: it[()] if hasattr(it, "dtype") else None)


def _reason(error: Exception) -> str:
    """Return in few words why Keras couldn't load an undamaged archive."""
    missing = re.search(r"Could not locate (class|function) '([^']+)'", str(error))
    if missing:  # Keras adds the whole config
        return f"its {missing[1]} {missing[2]!r} isn't registered in this process"
    return textwrap.shorten(f"{type(error).__name__}: {error}", 600)


def load_arrays(
    path: str | os.PathLike[str], argument: str = "data"
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an `.npz` file by name; pickled ones are refused.

    Text is returned as objects, the form that TensorFlow reads.

    Args:
        path: The path of the file.
        argument: The caller's name for it, for errors.
    """
    path = Path(path)
    arrays: dict[str, npt.NDArray[Any]] = {}
    problem = None
    if (kind := _kind(path)) != _ARCHIVE:
        problem = f"which is {kind}"
    else:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                try:
                    arrays[name] = _checked_array(file[name])
                # From zip, zlib, NumPy's headers or memory, in any version of them.
                except Exception as error:
                    reason = textwrap.shorten(str(error) or type(error).__name__, 200)
                    problem = f"whose {name!r} can't be read ({reason})"
                    break
        if not arrays and problem is None:
            problem = "which holds none"
    if problem:
        raise ValueError(
            f"`{argument}` must be an .npz file of arrays by input name, as "
            "`numpy.savez(path, x=array)` writes it, with one row an example and text "
            f"as fixed-width strings. Received: {str(path)!r}, {problem}."
        )
    return arrays


def _checked_array(array: Any) -> npt.NDArray[Any]:
    # For other zip archives, NumPy returns the bytes of the members.
    if not isinstance(array, np.ndarray):
        raise TypeError("it is no array")
    if array.ndim == 0:
        raise ValueError("it is a single value without rows")
    return array.astype(object) if array.dtype.kind in "US" else array

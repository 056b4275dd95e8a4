"""Models and data from files, neither of which may bring code along."""

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np


def load_model(model: keras.Model | str | os.PathLike[str]) -> keras.Model:
    """Return a built model: `model` itself, or what its `.keras` file holds.

    Files are loaded in safe mode: code inside of them, as of a `Lambda`, is refused.
    """
    if isinstance(model, str | os.PathLike):
        model = _load_file(Path(model))
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
    return model


def _load_file(path: Path) -> keras.Model:
    # Other suffixes are HDF5 and SavedModels to Keras, which safe mode doesn't cover.
    if path.suffix != ".keras":
        raise ValueError(
            "`model` must be the path of a `.keras` file, which is loaded in safe "
            f"mode. Received: {str(path)!r}. Save the model with `model.save("
            f"'{path.stem}.keras')`."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"`model` must be the path of a `.keras` file. Received: {str(path)!r}, "
            "where there is no file."
        )
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"`model` can't be loaded in safe mode. Received: {str(path)!r} "
            f"({type(error).__name__}: {error}). Load it in Python, with the code of "
            "its custom layers imported, and pass the model."
        ) from error


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

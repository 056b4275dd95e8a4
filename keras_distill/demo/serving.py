"""The demo's exported files: size, exactness and latency for a single image."""

from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from keras_distill.export import export
from keras_distill.export.latency import KERAS_FUNCTION, KERAS_PREDICT, measure

Image = npt.NDArray[np.float32]


class Artefact(NamedTuple):
    """One exported file or folder.

    Attributes:
        bytes: Size of all its files.
        parity: Largest absolute difference of its logits from Keras'.
        latency_ms: Median time of a call with a single image, in milliseconds.
    """

    bytes: int
    parity: float
    latency_ms: float


class Served(NamedTuple):
    """A model's exported files, and the time of the Keras model for comparison.

    Attributes:
        artefacts: One for each format.
        predict_ms: Median time of `model.predict` on a single image.
        compiled_ms: Median time of the model inside a `tf.function`.
    """

    artefacts: dict[str, Artefact]
    predict_ms: float
    compiled_ms: float


def serve(model: keras.Model, directory: Path, images: Image) -> Served:
    """Export a model in every format, and time each in its own runtime.

    Args:
        model: A trained model.
        directory: The directory of the files.
        images: Real images to check the files on. Latency is measured on the first.
    """
    manifest = export(model, directory, example_batch=images)
    rows = measure(directory, model=model, batch_sizes=[1])
    median = {row["side"]: row["p50_ms"] for row in rows}
    artefacts = {
        name: Artefact(
            bytes=artefact["bytes"],
            parity=artefact["max_abs_difference"],
            latency_ms=median[name],
        )
        for name, artefact in manifest["artefacts"].items()
    }
    return Served(artefacts, median[KERAS_PREDICT], median[KERAS_FUNCTION])

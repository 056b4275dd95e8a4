"""A loader of images for the examples, from disk or from the network."""

import os
from pathlib import Path

import numpy as np
import requests
import tensorflow as tf
import tensorflow_datasets as tfds

Arrays = tuple[np.ndarray, np.ndarray]


def default_data_dir() -> Path | None:
    """Return the folder of data in `KERAS_DISTILL_DATA`, or else beside the project.

    Returns:
        A TensorFlow Datasets folder, or None for TensorFlow Datasets' own default.
    """
    beside = Path(__file__).resolve().parents[2] / "shared"
    prepared = Path(os.environ.get("KERAS_DISTILL_DATA", beside)) / "tfds"
    return prepared if prepared.is_dir() else None


def load_images(name: str, data_dir: str | Path | None = None) -> tuple[Arrays, Arrays]:
    """Load a whole TensorFlow Datasets image set, downloading it if it's missing.

    Args:
        name: A set of images and labels, such as `"mnist"` or `"fashion_mnist"`.
        data_dir: A TensorFlow Datasets folder. Default: `default_data_dir()`.

    Returns:
        `(images, labels)` of the training set and of the test set. Images are float32
        in 0..1, of shape `(count, height, width, channels)`; labels are int32.

    Raises:
        ConnectionError: If the set isn't on disk and can't be downloaded.
    """
    builder = tfds.builder(name, data_dir=data_dir or default_data_dir())
    if not builder.is_prepared():
        # Without a network, the download itself would try for minutes before it fails.
        url = getattr(builder, "URL", "https://storage.googleapis.com")
        try:
            requests.head(url, timeout=5)
        except requests.RequestException as error:
            raise ConnectionError(
                f"`{name}` is not in {builder.data_dir} and {url} can't be reached to "
                "download it. Give a TensorFlow Datasets folder that holds it with "
                "`--data-dir FOLDER`, or set `KERAS_DISTILL_DATA` to the parent of a "
                "`tfds` folder that holds it."
            ) from error
        builder.download_and_prepare()
    train, test = (
        builder.as_dataset(split=split, batch_size=-1, as_supervised=True)
        for split in ("train", "test")
    )
    return _to_arrays(*train), _to_arrays(*test)


def _to_arrays(images: tf.Tensor, labels: tf.Tensor) -> Arrays:
    pixels = images.numpy().astype("float32") / 255.0
    return pixels, labels.numpy().astype("int32")

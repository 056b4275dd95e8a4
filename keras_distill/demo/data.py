"""The demo's data: the split of scikit-learn's handwritten digits, and their views."""

from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

SHAPE = (8, 8, 1)
CLASSES = 10
LABELLED = 100
TEST = 597
BATCH_SIZE = 64


class Digits(NamedTuple):
    """Images, float32 in [0, 1] of shape `(count, 8, 8, 1)`, and their classes."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]

    def take(self, indices: npt.NDArray[np.int64]) -> "Digits":
        """Return the images and labels at `indices`."""
        return Digits(self.images[indices], self.labels[indices])


class Split(NamedTuple):
    """One seed's disjoint parts of the data.

    Attributes:
        labelled: The images that are trained on with labels.
        unlabelled: Images whose labels no model reads.
        test: The images on which accuracy and the other scores are measured.
    """

    labelled: Digits
    unlabelled: npt.NDArray[np.float32]
    test: Digits

    @property
    def transfer(self) -> npt.NDArray[np.float32]:
        """The images of the distillation: all except the test images."""
        return np.concatenate([self.labelled.images, self.unlabelled])


def load() -> Digits:
    """Load scikit-learn's 1,797 digits; they are installed with it, so offline."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.reshape(-1, *SHAPE) / 16.0  # Pixels are 0 to 16.
    return Digits(images.astype("float32"), digits.target.astype("int32"))


def split(digits: Digits, seed: int) -> Split:
    """Return a seed's split; each part has the same proportions of classes."""
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(
        np.arange(len(digits.labels)),
        test_size=TEST,
        stratify=digits.labels,
        random_state=seed,
    )
    labelled, unlabelled = train_test_split(
        rest, train_size=LABELLED, stratify=digits.labels[rest], random_state=seed
    )
    return Split(digits.take(labelled), digits.images[unlabelled], digits.take(test))


def views(images: Any, labels: Any = None, *, seed: int) -> tf.data.Dataset:
    """Return endless batches of images, shifted and rotated a little at random.

    Args:
        images: Images of shape `(count, 8, 8, 1)`.
        labels: Their classes; None without labels.
        seed: The seed of order and distortions, which are the same in every run.

    Returns:
        Batches `(images, labels)`, or `(images,)` without labels.
    """
    distort = keras.Sequential(
        [
            # Half a pixel, 7 degrees. Larger distortions could change the digit.
            keras.layers.RandomTranslation(
                1 / 16, 1 / 16, fill_mode="constant", seed=seed
            ),
            keras.layers.RandomRotation(0.02, fill_mode="constant", seed=seed),
        ]
    )
    arrays = (images,) if labels is None else (images, labels)
    dataset = tf.data.Dataset.from_tensor_slices(arrays)
    dataset = dataset.shuffle(len(images), seed=seed).repeat().batch(BATCH_SIZE)
    dataset = dataset.map(
        lambda images, *labels: (distort(images, training=True), *labels)
    )
    return dataset.prefetch(tf.data.AUTOTUNE)

"""The demo's measurements on the test images, as means over several seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np

from keras_distill.demo.data import Digits


class Scores(NamedTuple):
    """The scores of a model on the test images.

    Attributes:
        accuracy: Share of images whose predicted class is right.
        nll: Negative log-likelihood of the labels, mean per image, in nats.
        agreement: Share of images for which model and teacher predict the same class.
    """

    accuracy: float
    nll: float
    agreement: float


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds; 0 for a single seed."""

    mean: float
    deviation: float


class Comparison(NamedTuple):
    """The distilled student's test accuracy minus that of the student alone, by seed.

    Attributes:
        differences: One for each seed.
        spread: Their mean and standard deviation.
        wins: Number of seeds in which the distilled student is strictly better.
    """

    differences: list[float]
    spread: Spread
    wins: int


def score(model: keras.Model, teacher: keras.Model, test: Digits) -> Scores:
    """Measure a model on the test images with Keras' own metrics."""
    count = len(test.labels)
    logits = model.predict(test.images, batch_size=count, verbose=0)
    teacher_logits = teacher.predict(test.images, batch_size=count, verbose=0)
    accuracy = keras.metrics.SparseCategoricalAccuracy()
    nll = keras.metrics.SparseCategoricalCrossentropy(from_logits=True)
    agreement = keras.metrics.SparseCategoricalAccuracy()
    accuracy.update_state(test.labels, logits)
    nll.update_state(test.labels, logits)
    agreement.update_state(teacher_logits.argmax(axis=-1), logits)
    return Scores(*(float(it.result()) for it in (accuracy, nll, agreement)))


def spread(values: Sequence[float]) -> Spread:
    """Return mean and sample standard deviation."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Spread(float(np.mean(values)), deviation)


def compare(alone: Sequence[Scores], distilled: Sequence[Scores]) -> Comparison:
    """Compare the students by seed; those of a seed share split and initial weights."""
    differences = [
        after.accuracy - before.accuracy
        for before, after in zip(alone, distilled, strict=True)
    ]
    wins = sum(difference > 0 for difference in differences)
    return Comparison(differences, spread(differences), wins)

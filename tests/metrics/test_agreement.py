"""Keras' accuracies measure agreement with a teacher, as the package says they do."""

import keras
import numpy as np
import pytest

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(64, 3), (16, 5, 4)])
def test_several_classes(shape):
    teacher, student = RNG.standard_normal((2, *shape)).astype("float32")
    agree = teacher.argmax(-1) == student.argmax(-1)
    metric = keras.metrics.CategoricalAccuracy()
    assert 0.1 < agree.mean() < 0.9
    np.testing.assert_allclose(metric(teacher, student), agree.mean(), rtol=1e-6)


def test_several_classes_weighted():
    teacher, student = RNG.standard_normal((2, 64, 3)).astype("float32")
    weight = RNG.random(64).astype("float32")
    agree = teacher.argmax(-1) == student.argmax(-1)
    metric = keras.metrics.CategoricalAccuracy()
    expected = np.average(agree, weights=weight)
    np.testing.assert_allclose(metric(teacher, student, weight), expected, rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.7])
@pytest.mark.parametrize("shape", [(64, 1), (64, 3)])
def test_units(shape, threshold):
    teacher, student = RNG.standard_normal((2, *shape)).astype("float32")
    teacher[0], student[0] = threshold, threshold - 1.0  # on it is below it
    agree = (teacher > threshold) == (student > threshold)
    metric = keras.metrics.BinaryAccuracy(threshold=threshold)
    assert agree[0].all()
    np.testing.assert_allclose(
        metric(teacher > threshold, student), agree.mean(), rtol=1e-6
    )

"""Losses on raw outputs."""

import numpy as np

from keras_distill.losses import LogitMSE
from tests.losses.neutral import value_and_gradient


def test_value_and_gradient_by_hand():
    student = np.array([[2.0, 1.0], [0.0, 0.0]], "float32")
    value, gradient = value_and_gradient(
        lambda s: LogitMSE(reduction="none")([[1.0, 3.0], [4.0, -2.0]], s), student
    )
    np.testing.assert_array_equal(value, [2.5, 10.0])
    np.testing.assert_array_equal(gradient, [[1.0, -2.0], [-4.0, 2.0]])


def test_masked_classes_count_as_equal():
    """-inf minus -inf is NaN; classes that both models mask don't differ."""
    teacher = np.array([[1.0, -np.inf]], "float32")
    student = np.array([[3.0, -np.inf]], "float32")
    value, gradient = value_and_gradient(lambda s: LogitMSE()(teacher, s), student)
    assert value == 2.0
    np.testing.assert_array_equal(gradient, [[2.0, 0.0]])


def test_zero_at_equality():
    logits = np.array([[1e4, -3.0, 0.5]], "float32")
    assert LogitMSE()(logits, logits) == 0.0


def test_other_axis():
    rng = np.random.default_rng(0)
    teacher, student = rng.standard_normal((2, 4, 3, 5)).astype("float32")
    np.testing.assert_allclose(
        LogitMSE(axis=1, reduction="none")(teacher, student),
        np.square(teacher - student).mean(1),
        rtol=1e-5,
    )

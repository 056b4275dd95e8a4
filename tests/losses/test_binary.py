"""Sigmoid heads: shapes, probabilities, and agreement with Keras' own loss."""

import keras
import numpy as np
import pytest
from scipy.special import expit

from keras_distill.losses import BinarySoftTargets
from tests.losses import reference

RNG = np.random.default_rng(4)
TEACHER, STUDENT = (3.0 * RNG.standard_normal((2, 8, 5))).astype("float32")


def test_is_keras_binary_crossentropy_at_temperature_one():
    keras_loss = keras.losses.BinaryCrossentropy(from_logits=True)
    np.testing.assert_allclose(
        BinarySoftTargets()(TEACHER, STUDENT),
        keras_loss(expit(TEACHER), STUDENT),
        rtol=1e-5,
    )


@pytest.mark.parametrize("subtract_entropy", [False, True])
def test_one_unit_heads(subtract_entropy):
    """Shapes (batch,) and (batch, 1) have one unit an example."""
    loss = BinarySoftTargets(2.0, subtract_entropy=subtract_entropy, reduction="none")
    name = "binary_kl" if subtract_entropy else "binary_cross_entropy"
    teacher, student = TEACHER[:, :1], STUDENT[:, :1]
    expected, _ = getattr(reference, name)(
        teacher.astype("float64"), student.astype("float64"), 2.0
    )
    np.testing.assert_allclose(loss(teacher, student), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        loss(teacher[:, 0], student[:, 0]), expected, rtol=1e-5, atol=1e-6
    )


def test_sample_weights_of_one_unit_heads():
    loss = BinarySoftTargets(reduction="sum")
    each = BinarySoftTargets(reduction="none")(TEACHER[:, 0], STUDENT[:, 0])
    weight = np.arange(8.0, dtype="float32")
    np.testing.assert_allclose(
        loss(TEACHER[:, 0], STUDENT[:, 0], sample_weight=weight),
        np.dot(each, weight),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        loss(TEACHER[:, :1], STUDENT[:, :1], sample_weight=weight),
        np.dot(each, weight),
        rtol=1e-6,
    )


def test_probabilities():
    logits = BinarySoftTargets(2.0, reduction="none")(TEACHER, STUDENT)
    loss = BinarySoftTargets(2.0, from_logits=False, reduction="none")
    np.testing.assert_allclose(loss(expit(TEACHER), expit(STUDENT)), logits, rtol=1e-4)


def test_certain_probabilities_are_finite():
    loss = BinarySoftTargets(from_logits=False, reduction="none")
    certain, doubtful = np.array([[0.0], [1.0]]), np.array([[0.25], [0.75]])
    np.testing.assert_allclose(
        loss(certain, doubtful), -np.log([0.75, 0.75]), rtol=1e-5
    )
    values = np.asarray(loss(doubtful, certain))
    assert np.isfinite(values).all()
    assert values.min() > 4.0


def test_units_on_another_axis():
    loss = BinarySoftTargets(axis=1, reduction="none")
    teacher, student = TEACHER.reshape(2, 4, 5), STUDENT.reshape(2, 4, 5)
    np.testing.assert_allclose(
        loss(teacher, student),
        BinarySoftTargets(reduction="none")(
            teacher.transpose(0, 2, 1), student.transpose(0, 2, 1)
        ),
        rtol=1e-6,
    )

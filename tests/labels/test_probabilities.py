"""Labels of binary cross-entropies lie in [0, 1], or are raised or flagged."""

from typing import Any

import keras
import numpy as np
import pytest

from keras_distill import backend
from keras_distill.labels.probabilities import checked_probabilities

GOOD = np.array([[0.0], [0.5], [1.0]], "float32")
BCE = keras.losses.BinaryCrossentropy()


def bad(value: float) -> np.ndarray:
    labels = GOOD.copy()
    labels[1] = value
    return labels


@pytest.mark.parametrize("labels", [GOOD, GOOD.astype("int32"), GOOD == 1.0])
def test_labels_within_pass(labels: Any) -> None:
    checked, valid = checked_probabilities(BCE, labels)
    np.testing.assert_array_equal(checked, labels)
    assert bool(valid)


@pytest.mark.parametrize("value", [-1.0, 2.0, np.nan, np.inf])
def test_labels_outside_are_flagged_where_nothing_can_raise(value: float) -> None:
    checked, valid = checked_probabilities(
        {"a": BCE, "b": "mse"}, {"a": bad(value), "b": bad(value)}, xla=True
    )
    assert not bool(valid)
    np.testing.assert_array_equal(checked["a"], np.zeros((3, 1)))
    np.testing.assert_array_equal(checked["b"], bad(value))


@pytest.mark.skipif(backend.is_tensorflow(), reason="TensorFlow raises")
def test_other_backends_always_flag() -> None:
    checked, valid = checked_probabilities(BCE, bad(2.0))
    assert not bool(valid)
    np.testing.assert_array_equal(checked, np.zeros((3, 1)))


@pytest.mark.skipif(not backend.is_tensorflow(), reason="other backends flag")
@pytest.mark.parametrize("traced", [False, True])
def test_tensorflow_raises_without_xla(traced: bool) -> None:
    import tensorflow as tf

    done = tf.Variable(0.0)

    def step(labels: Any) -> None:
        checked, _ = checked_probabilities(BCE, labels)
        done.assign(tf.reduce_sum(checked))

    run = tf.function(step) if traced else step
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"(?s)\[0, 1\].*-1.*1"):
        run(tf.constant(bad(-1.0)))
    assert float(done) == 0.0
    run(tf.constant(GOOD))
    assert float(done) == 1.5


def test_rows_that_weigh_nothing_may_have_any_label_but_nan() -> None:
    weight = np.array([1.0, 0.0, 1.0])
    checked, valid = checked_probabilities(BCE, bad(7.0), weight, xla=True)
    assert bool(valid)
    np.testing.assert_array_equal(checked, bad(7.0))
    assert not bool(checked_probabilities(BCE, bad(np.nan), weight, xla=True)[1])


def test_an_output_with_a_loss_needs_labels() -> None:
    with pytest.raises(ValueError, match=r"Output \['b'\] has a loss, but no labels"):
        checked_probabilities({"a": BCE, "b": "mse"}, {"a": GOOD, "b": None})

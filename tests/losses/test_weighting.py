"""Masks of values as sample weights, against Keras' own masks."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_distill.losses.weighting import both, masked_weights
from tests.losses import neutral

RNG = np.random.default_rng(3)
Y_TRUE, Y_PRED = RNG.standard_normal((2, 4, 3, 2)).astype("float32")
MASK = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], bool)
WEIGHTS = {
    "none": None,
    "values": RNG.random((4, 3)).astype("float32"),
    "rows": RNG.random((4, 1)).astype("float32"),
    "values with an axis": RNG.random((4, 3, 1)).astype("float32"),
    "one": 2.0,
}
REDUCTIONS = [
    None,
    "none",
    "sum",
    "mean",
    "sum_over_batch_size",
    "mean_with_sample_weight",
]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("mask", [MASK, np.zeros_like(MASK), np.ones_like(MASK)])
def test_are_the_masks_of_keras_to_the_bit(mask, reduction, weight, dtype):
    loss = keras.losses.MeanSquaredError(reduction=reduction, dtype=dtype)
    weight = WEIGHTS[weight]
    right = loss(Y_TRUE, neutral.masked(Y_PRED, mask), weight)
    value = loss(Y_TRUE, Y_PRED, masked_weights(mask, weight, reduction, dtype))
    np.testing.assert_array_equal(neutral.numpy(value), neutral.numpy(right))


def test_rows_of_one_value():
    """A mask and weights of rows, one of which has a last axis of size 1."""
    mask, weight = MASK[:, 0], np.arange(4.0, dtype="float32")
    for x, y in ((mask, weight[:, None]), (mask[:, None], weight)):
        found = masked_weights(x, y, "sum_over_batch_size", "float32")
        np.testing.assert_allclose(found, (weight * mask * 4 / 3)[:, None], rtol=1e-6)


def test_without_a_mask():
    assert masked_weights(None, None, "mean", "float32") is None
    assert masked_weights(None, WEIGHTS["rows"], "mean", "float32") is WEIGHTS["rows"]


def test_both():
    other = ops.convert_to_tensor(MASK[::-1].copy())
    assert both(None, None) is None
    assert both(MASK, None) is MASK
    assert both(None, other) is other
    np.testing.assert_array_equal(both(MASK, other), MASK & MASK[::-1])
    column = MASK[:, :1]
    np.testing.assert_array_equal(both(column, MASK[::-1, 0]), column & column[::-1])

"""Which outputs are known to be logits without a look at their values."""

import keras
import pytest
from keras import layers

from keras_distill.guards.heads import linear_outputs


def ending(*last: layers.Layer, width: int = 4) -> keras.Model:
    return keras.Sequential([keras.Input((width,)), layers.Dense(3, "relu"), *last])


class SigmoidAfter(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return keras.ops.sigmoid(super().call(inputs, training=training, mask=mask))


class Squashed(layers.Dense):
    def call(self, inputs):
        return keras.ops.sigmoid(super().call(inputs))


@pytest.mark.parametrize(
    "model",
    [
        ending(layers.Dense(2)),
        ending(layers.Reshape((3, 1)), layers.Conv1D(2, 1)),
        ending(ending(layers.Dense(2), width=3)),
        keras.Sequential(
            [keras.Input((5, 4)), layers.EinsumDense("abc,cd->abd", (None, 2))]
        ),
    ],
)
def test_logits(model):
    assert linear_outputs(model) is True


@pytest.mark.parametrize(
    "model",
    [
        ending(layers.Dense(2, "softmax")),
        ending(layers.Dense(2), layers.Softmax()),
        ending(layers.Dense(2, "softmax"), layers.Activation("linear")),
        ending(ending(layers.Dense(2, "sigmoid"), width=3)),
        ending(Squashed(2)),
        ending(SigmoidAfter([keras.Input((3,)), layers.Dense(2)])),
        ending(layers.Dense(2), layers.Lambda(keras.ops.sigmoid)),
    ],
)
def test_what_may_be_probabilities(model):
    assert linear_outputs(model) is False


def test_outputs_by_their_structure():
    x = keras.Input((4,))
    kinds = {"logits": layers.Dense(2)(x), "shares": [layers.Dense(2, "softmax")(x)]}
    assert linear_outputs(keras.Model(x, kinds)) == {"logits": True, "shares": [False]}


@pytest.mark.parametrize(
    "unknown",
    [
        SigmoidAfter([keras.Input((3,)), layers.Dense(2)]),
        keras.Sequential([layers.Dense(2)]),
        lambda x: x,
        None,
    ],
)
def test_unknown(unknown):
    assert linear_outputs(unknown) is None

"""Models and data of the golden fits, the same numbers on every backend."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

ROWS, FEATURES, CLASSES = 40, 4, 3


def random(seed: int) -> np.random.Generator:
    """Return NumPy's generator, whose numbers no backend changes."""
    return np.random.default_rng(seed)


def features(seed: int = 0, *shape: int) -> np.ndarray:
    """Return normal float32 rows of a shape; of `FEATURES` by default."""
    return random(seed).normal(size=(ROWS, *(shape or (FEATURES,)))).astype("float32")


def classes(seed: int = 1) -> np.ndarray:
    """Return a class id for each row."""
    return random(seed).integers(0, CLASSES, ROWS)


def some(seed: int, share: float = 0.6, *shape: int) -> np.ndarray:
    """Return which rows are taken, as booleans."""
    return random(seed).random((ROWS, *shape)) < share


def weights(seed: int = 2) -> np.ndarray:
    """Return float32 weights of rows between 0 and 2."""
    return 2.0 * random(seed).random(ROWS).astype("float32")


def filled(model: keras.Model, seed: int) -> keras.Model:
    """Fill a model's weights with numbers of NumPy and return it."""
    generator = random(100 + seed)
    for weight in model.weights:
        value = generator.normal(scale=0.5, size=weight.shape)
        if "variance" in weight.path or "gamma" in weight.path:
            value = 1.0 + 0.2 * np.abs(value)
        weight.assign(value.astype("float32"))
    return model


def mlp(
    seed: int = 0,
    units: int = 5,
    *inner: Any,
    outputs: int = CLASSES,
    **kwargs: Any,
) -> keras.Model:
    """A Sequential model with logits."""
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(units, "tanh", name="hidden", **kwargs),
            *inner,
            layers.Dense(outputs, name="head"),
        ]
    )
    return filled(model, seed)


def conv_net(seed: int, width: int) -> keras.Model:
    """A small convolutional model with layers that hints name."""
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Conv2D(width, 3, padding="same", activation="tanh", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(CLASSES, name="head"),
        ]
    )
    return filled(model, seed)


def heads(seed: int, structure: Any) -> keras.Model:
    """A model with a `kind` of `CLASSES` logits and a `size` of two numbers.

    Args:
        seed: Of its weights.
        structure: A function from the two outputs to the model's.
    """
    inputs = keras.Input((FEATURES,), name="x")
    hidden = layers.Dense(5, "tanh", name="hidden")(inputs)
    kind = layers.Dense(CLASSES, name="kind")(hidden)
    size = layers.Dense(2, name="size")(hidden)
    return filled(keras.Model(inputs, structure(kind, size)), seed)


def named(seed: int, names: Sequence[str], outputs: int = CLASSES) -> keras.Model:
    """A model that reads a dict of inputs of `FEATURES` numbers each."""
    inputs = {name: keras.Input((FEATURES,), name=name) for name in names}
    together = list(inputs.values())
    joined = layers.Concatenate()(together) if len(together) > 1 else together[0]
    hidden = layers.Dense(5, "tanh", name="hidden")(joined)
    return filled(keras.Model(inputs, layers.Dense(outputs)(hidden)), seed)


class AddsLoss(layers.Layer):
    """Passes its input on and adds a loss."""

    def call(self, inputs: Any) -> Any:
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def crossentropy(**kwargs: Any) -> keras.losses.Loss:
    """The label loss of class ids and logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)

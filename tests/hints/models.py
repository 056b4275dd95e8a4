"""Models with layers inside layers, small enough that tracing is what a test costs."""

from typing import Any

import keras
import numpy as np
from keras import layers

import keras_distill as kd
from tests.distiller.models import CLASSES, CountsCalls, crossentropy

SIZE = 4


def images(count: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, SIZE, SIZE, 2)).astype("float32")
    return x, rng.integers(0, CLASSES, count)


def conv_net(width: int, *, seed: int = 0, name: str | None = None) -> keras.Model:
    """`counts`, `backbone/conv`, `backbone/norm`, `pool`, `head`."""
    keras.utils.set_random_seed(seed)
    backbone = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 2)),
            layers.Conv2D(width, 3, padding="same", activation="tanh", name="conv"),
            layers.BatchNormalization(name="norm"),
        ],
        name="backbone",
    )
    inputs = keras.Input((SIZE, SIZE, 2))
    x = backbone(CountsCalls(name="counts")(inputs))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="head")(x), name=name)


def conv(model: keras.Model) -> keras.Layer:
    return model.get_layer("backbone").get_layer("conv")


@keras.saving.register_keras_serializable(package="tests")
class Nested(keras.Model):
    """A subclassed model whose layers are within a layer."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.block = Block(units)
        self.head = layers.Dense(CLASSES)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.head(self.block(inputs, training=training))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="tests")
class Block(layers.Layer):
    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units, "tanh")
        self.dropout = layers.Dropout(0.1, seed=1)

    def build(self, input_shape: Any) -> None:
        self.dense.build(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.dropout(self.dense(inputs), training=training)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def hinted(
    student: keras.Model,
    teacher: Any,
    *hints: kd.hints.Hint,
    optimizer: Any = None,
    **kwargs: Any,
) -> kd.Distiller:
    distiller = kd.Distiller(student, teacher, hints=hints)
    distiller.compile(optimizer or keras.optimizers.SGD(0.1), crossentropy(), **kwargs)
    return distiller

"""Data and models small enough that tracing is what a test costs."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

FEATURES = 4
CLASSES = 3


def data(count: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, FEATURES)).astype("float32")
    return x, rng.integers(0, CLASSES, count)


def mlp(seed: int = 0, units: int = 5, features: int = FEATURES) -> keras.Model:
    """A Sequential model with logits; the same weights for the same seed."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((features,)),
            layers.Dense(units, "tanh"),
            layers.Dense(CLASSES),
        ]
    )


def regularized_mlp() -> keras.Model:
    """A Sequential model whose first layer adds a loss of its weights."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(5, "tanh", kernel_regularizer="l2"),
            layers.Dense(CLASSES),
        ]
    )


def first_layer(model: keras.Model) -> keras.Layer:
    return model.layers[0]


def twins(build: Callable[[], keras.Model]) -> tuple[keras.Model, keras.Model]:
    """Two models with the same weights and the same seeds of their dropout."""
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        models.append(build())
    return models[0], models[1]


def crossentropy(**kwargs: Any) -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)


def log_softmax(logits: Any) -> np.ndarray:
    logits = np.asarray(logits, "float64")
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def forward_kl(teacher: Any, student: Any, temperature: float = 1.0) -> np.ndarray:
    """T² KL(teacher || student) per example, in float64."""
    log_p = log_softmax(np.asarray(teacher, "float64") / temperature)
    log_q = log_softmax(np.asarray(student, "float64") / temperature)
    return temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(-1)


def label_loss(labels: np.ndarray, logits: Any) -> np.ndarray:
    """Cross-entropy per example, in float64."""
    return -np.take_along_axis(log_softmax(logits), labels[..., None], -1)[..., 0]


def assert_same_weights(
    model: keras.Model, other: keras.Model, atol: float = 0.0
) -> None:
    """Bitwise by default."""
    weights, others = model.get_weights(), other.get_weights()
    assert len(weights) == len(others) > 0
    for weight, expected in zip(weights, others, strict=True):
        assert np.isfinite(weight).all()
        np.testing.assert_allclose(weight, expected, rtol=0.0, atol=atol)


@keras.saving.register_keras_serializable(package="tests")
class CountsCalls(layers.Layer):
    """Passes its input on and counts the forward passes, also in a compiled step."""

    def build(self, input_shape: Any) -> None:
        self.calls = self.add_weight(
            name="calls", shape=(), initializer="zeros", trainable=False
        )

    def call(self, inputs: Any) -> Any:
        self.calls.assign_add(1.0)
        return inputs

    @property
    def count(self) -> int:
        return int(self.calls.numpy())


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A model that declares no inputs and is unbuilt until it is called."""

    def __init__(self, units: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.hidden = layers.Dense(units, "tanh")
        self.dropout = layers.Dropout(0.3)
        self.head = layers.Dense(CLASSES)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if isinstance(inputs, dict):
            inputs = ops.concatenate([inputs[key] for key in sorted(inputs)], axis=-1)
        return self.head(self.dropout(self.hidden(inputs), training=training))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


class StepLogs(keras.callbacks.Callback):
    """Keeps what `call()` returns before each step and after the last one."""

    def __init__(self, read: Callable[[], Any]) -> None:
        super().__init__()
        self.read = read
        self.seen: list[Any] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # On JAX, `model` assigns what `fit` has computed to the variables.
        assert self.model is not None
        self.seen.append(self.read())

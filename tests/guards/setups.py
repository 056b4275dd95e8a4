"""Data with known probabilities, and teachers that know them."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

FEATURES = 6


def inputs(rows: int = 640, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, FEATURES)).astype("float32")


def linear(
    units: int, scale: float = 1.5, activation: str | None = None, seed: int = 1
) -> keras.Model:
    """A model that has the logits of `labels`, or others with another seed."""
    model = keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(units, activation=activation)]
    )
    rng = np.random.default_rng(seed)
    kernel = scale * rng.normal(size=(FEATURES, units)) / np.sqrt(FEATURES)
    model.set_weights([kernel.astype("float32"), np.zeros(units, "float32")])
    return model


def student(units: int, activation: str | None = None) -> keras.Model:
    """As large as the teacher, and untrained."""
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(units, activation=activation)]
    )


def classes(logits: Any, seed: int = 2) -> np.ndarray:
    """Labels that a softmax of these logits has."""
    noise = np.random.default_rng(seed).gumbel(size=np.shape(logits))
    return (np.asarray(logits) + noise).argmax(-1)


def clicks(logits: Any, seed: int = 2) -> np.ndarray:
    """Labels that a sigmoid of these logits has."""
    noise = np.random.default_rng(seed).logistic(size=np.shape(logits))
    return (np.asarray(logits) + noise > 0).astype("float32")


def sparse(**kwargs: Any) -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)


def binary(**kwargs: Any) -> keras.losses.Loss:
    return keras.losses.BinaryCrossentropy(from_logits=True, **kwargs)


# What Keras and NumPy warn of, whatever is distilled.
_OTHERS = ("__array__", "`shuffle=True`", "Your input ran out")


def warned_of(run: Callable[[], Any]) -> list[str]:
    """Return the warnings that a call gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    messages = [str(warning.message) for warning in caught]
    return [text for text in messages if not any(o in text for o in _OTHERS)]

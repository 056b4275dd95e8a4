"""Mistakes of set-ups that users make, with convolutional nets on real digits."""

import functools
import warnings
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from tests.guards.setups import sparse, warned_of

CHANCE, STUDENT = "The teacher is no better than chance", "no better than the student"
PROBABILITIES = "The {}'s output looks like probabilities"


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1).astype("float32") / 16.0
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], y[order]


def net(filters: int, activation: str | None = None) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(filters, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, activation=activation),
        ]
    )


@functools.cache
def trained(activation: str | None = None) -> keras.Model:
    keras.utils.set_random_seed(1)
    model = net(16, activation)
    loss = sparse() if activation is None else "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    x, y = digits()
    model.fit(x, y, batch_size=64, epochs=4, verbose=0)
    assert model.evaluate(x, y, verbose=0)[1] > 0.95
    return model


def permuted() -> keras.Model:
    model = keras.models.clone_model(trained())
    order = np.random.default_rng(2).permutation(10)
    *others, kernel, bias = trained().get_weights()
    model.set_weights([*others, kernel[:, order], bias[order]])
    return model


def warnings_of(
    teacher: Any, *, scale: float = 1.0, activation: str | None = None, **kwargs: Any
) -> list[str]:
    x, y = digits()
    keras.utils.set_random_seed(3)
    distiller = kd.Distiller(net(4, activation), teacher)
    loss = sparse() if activation is None else "sparse_categorical_crossentropy"
    arguments = {"distillation_loss": kd.losses.ForwardKL(4.0), **kwargs}
    distiller.compile(keras.optimizers.Adam(0.01), loss, **arguments)
    with warnings.catch_warnings():
        fit = functools.partial(distiller.fit, scale * x, y, batch_size=64, verbose=0)
        return warned_of(functools.partial(fit, epochs=3))


def once(found: list[str], message: str) -> bool:
    return sum(message in text for text in found) == 1


def test_a_sound_teacher_is_no_mistake() -> None:
    assert warnings_of(trained()) == []


@pytest.mark.parametrize("seed", [5, 7])
def test_an_untrained_teacher(seed: int) -> None:
    """Features of random filters tell some digits apart, more or less well."""
    keras.utils.set_random_seed(seed)
    (found,) = warnings_of(net(16))
    assert CHANCE in found or STUDENT in found


def test_permuted_classes() -> None:
    (found,) = warnings_of(permuted())
    assert CHANCE in found


def test_pixels_to_255_where_the_teacher_learned_from_0_to_1() -> None:
    (found,) = warnings_of(trained(), scale=255.0)
    assert CHANCE in found or STUDENT in found


def test_softmax_models_under_a_loss_of_logits() -> None:
    found = warnings_of(trained("softmax"), activation="softmax")
    assert once(found, PROBABILITIES.format("teacher"))
    assert once(found, PROBABILITIES.format("student"))

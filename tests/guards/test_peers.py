"""What peers that train together are warned of, and what is sound."""

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.online import MutualLearning
from tests.guards.setups import (
    FEATURES,
    binary,
    classes,
    clicks,
    inputs,
    linear,
    sparse,
    warned_of,
)

X = inputs(64)
LOGITS = keras.ops.convert_to_numpy(linear(4)(X))
Y = classes(LOGITS)


def peer(name: str, activation: str | None = None, units: int = 4) -> keras.Model:
    """Its activation isn't the last operation, so that a graph doesn't show it."""
    keras.utils.set_random_seed(len(name))
    layers = keras.layers.Dense(units), keras.layers.Activation(activation or "linear")
    reshape = keras.layers.Reshape((units,))
    return keras.Sequential([keras.Input((FEATURES,)), *layers, reshape], name=name)


def fit(
    first: str | None = None,
    second: str | None = None,
    *,
    units: int = 4,
    y: Any = Y,
    combine: str = "logits",
    activation: str = "softmax",
    fit: Any = None,
    **kwargs: Any,
) -> None:
    peers = [peer("small", first, units), peer("large", second, units)]
    mutual = MutualLearning(peers, combine=combine, activation=activation)
    mutual.compile("sgd", **{"loss": sparse(), "run_eagerly": True, **kwargs})
    mutual.fit(X, y, **{"batch_size": 64, "verbose": 0, **(fit or {})})


KL = kd.losses.ForwardKL
UNITS = {"units": 1, "y": clicks(linear(1)(X)), "activation": "sigmoid"}
OF_PROBABILITIES = {
    "loss": "sparse_categorical_crossentropy",
    "distillation_loss": KL(from_logits=False),
}
SOUND: dict[str, Callable[[], None]] = {
    "logits": lambda: fit(run_eagerly=False),
    "a mean of probabilities": lambda: fit(combine="probabilities"),
    "probabilities": lambda: fit("softmax", "softmax", **OF_PROBABILITIES),
    "sigmoids": lambda: fit(
        loss=binary(), distillation_loss=kd.losses.BinarySoftTargets(), **UNITS
    ),
    "a burn-in": lambda: fit(
        alpha=kd.schedules.LateStart(1, 0.5), fit={"batch_size": 32}
    ),
    "validation": lambda: fit(fit={"validation_data": (X, Y[:, None])}),
}


@pytest.mark.parametrize("name", SOUND)
def test_is_silent(name: str) -> None:
    assert warned_of(SOUND[name]) == []


PROBABILITIES = "The peer large's output looks like probabilities, but `{}` takes"
LOGS = "The peer {}'s output looks like logits, but `{}` takes"
# Each by what is wrong: what is run, and the warnings.
UNSOUND: dict[str, tuple[Callable[[], None], list[str]]] = {
    "a softmax for logits": (
        lambda: fit(second="softmax", distillation_loss="mse"),
        [PROBABILITIES.format("sparse_categorical_crossentropy")],
    ),
    "a softmax for logits, in a graph": (
        lambda: fit(second="softmax", distillation_loss="mse", run_eagerly=False),
        [PROBABILITIES.format("sparse_categorical_crossentropy")],
    ),
    "a softmax in a mean of probabilities": (
        lambda: fit(
            second="softmax",
            combine="probabilities",
            **{**OF_PROBABILITIES, "distillation_loss": "mse", "loss": "mse"},
            y=np.eye(4)[Y],
        ),
        [PROBABILITIES.format('combine="probabilities"') + '.*`combine="logits"`'],
    ),
    "logits for labels' probabilities": (
        lambda: fit(loss="crossentropy", distillation_loss="mse"),
        [LOGS.format(name, "crossentropy") for name in ("small", "large")],
    ),
    "logits for a divergence": (
        lambda: fit(distillation_loss="kl_divergence"),
        [LOGS.format(name, "kl_divergence") for name in ("small", "large")],
    ),
    "a burn-in that never ends": (
        lambda: fit(alpha=kd.schedules.LateStart(500, 0.5)),
        ["`alpha` never started: in all 1 steps"],
    ),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_is_warned_of(name: str) -> None:
    run, messages = UNSOUND[name]
    found = warned_of(run)
    assert len(found) == len(messages), found
    for message, pattern in zip(found, messages, strict=True):
        assert re.search(pattern, message), message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X,), "Evaluation needs labels.*validation_data without"),
        ((X, np.eye(4)[Y]), r"the form of the labels.*\(64, 4\).*\(64,\)"),
        (({"z": X}, Y), r"declares inputs that the batch doesn't hold"),
    ],
    ids=["no labels", "other labels", "other keys"],
)
def test_validation_data_is_looked_at_before_the_first_epoch(
    data: Any, message: str
) -> None:
    mutual = MutualLearning([peer("small"), peer("large")])
    mutual.compile("sgd", sparse())
    with pytest.raises(ValueError, match=message):
        mutual.fit(X, Y, validation_data=data, verbose=0)
    assert int(mutual.optimizer.iterations) == 0

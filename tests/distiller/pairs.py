"""A student and a teacher of clicks: the teacher knows more, and they may share layers.

All of it is a step's cost in tracing and no more.
"""

from typing import Any

import keras
import numpy as np
from keras import layers

import keras_distill as kd
from tests.backends import ON_JAX

IDS = 9
# JAX would warn of int64, which it has only where it is told so.
ID = "int32" if ON_JAX else "int64"
SERVED = ("user", "item")  # what the student reads
PRIVILEGED = "dwell"


def clicks(count: int = 24, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    x = {name: rng.integers(0, IDS, (count, 1)) for name in SERVED}
    x[PRIVILEGED] = rng.normal(size=(count, 1)).astype("float32")
    return x, rng.integers(0, 2, (count, 1)).astype("float32")


def served(x: dict[str, Any]) -> dict[str, Any]:
    return {name: x[name] for name in SERVED}


def pair(*shared: str, eventful: bool = False) -> tuple[keras.Model, keras.Model]:
    """The same student and teacher at each call.

    Args:
        shared: Which of the layers "users", "items" and "hidden" both models hold.
        eventful: Whether they have dropout, batch statistics and regularisers.
    """
    keras.utils.set_random_seed(0)
    of_student, of_teacher = _layers(eventful), _layers(eventful)
    of_teacher |= {name: of_student[name] for name in shared}
    return (
        _model(of_student, SERVED, eventful, name="student"),
        _model(of_teacher, (*SERVED, PRIVILEGED), eventful, name="teacher"),
    )


def _layers(eventful: bool) -> dict[str, keras.Layer]:
    regularizer = "l2" if eventful else None
    named: dict[str, keras.Layer] = {
        f"{name}s": layers.Embedding(IDS, 2, name=f"{name}s") for name in SERVED
    }
    named["hidden"] = layers.Dense(
        3, "tanh", kernel_regularizer=regularizer, name="hidden"
    )
    return named


def _model(
    own: dict[str, keras.Layer], names: Any, eventful: bool, name: str
) -> keras.Model:
    inputs = {name: keras.Input((1,), dtype=ID, name=name) for name in SERVED}
    found = [layers.Flatten()(own[f"{name}s"](inputs[name])) for name in SERVED]
    hidden = own["hidden"](layers.Concatenate()(found))
    if PRIVILEGED in names:
        inputs[PRIVILEGED] = keras.Input((1,), name=PRIVILEGED)
        hidden = layers.Concatenate()([hidden, inputs[PRIVILEGED]])
    if eventful:
        hidden = layers.Dropout(0.3)(layers.BatchNormalization()(hidden))
    return keras.Model(inputs, layers.Dense(1, name="click")(hidden), name=name)


def bce(**kwargs: Any) -> keras.losses.Loss:
    return keras.losses.BinaryCrossentropy(from_logits=True, **kwargs)


def together(
    student: keras.Model,
    teacher: Any,
    *,
    optimizer: Any = None,
    teacher_loss: Any = None,
    **kwargs: Any,
) -> kd.Distiller:
    """A distiller whose teacher trains."""
    distiller = kd.Distiller(student, teacher, privileged_features=[PRIVILEGED])
    distiller.compile(
        keras.optimizers.SGD(0.2, momentum=0.9) if optimizer is None else optimizer,
        bce(),
        teacher_loss=bce() if teacher_loss is None else teacher_loss,
        **{"distillation_loss": kd.losses.BinarySoftTargets(), **kwargs},
    )
    return distiller

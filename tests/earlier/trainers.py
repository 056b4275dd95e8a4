"""Tiny trainers whose files are kept, each with something else to restore."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.optimizers.schedules import PolynomialDecay

import keras_distill as kd

ROWS, FEATURES, CLASSES = 8, 4, 3
EPOCHS = 3  # of one batch each


@dataclass
class Case:
    """A compiled trainer and the teacher that its files don't hold.

    Args:
        trainer: A `Distiller` or a `MutualLearning`.
        teacher: The teacher that is passed when the file is loaded; None where the
            file holds it, or there is none.
        images: Whether the models read images.
    """

    trainer: keras.Model
    teacher: Any = None
    images: bool = False


CASES: dict[str, Callable[[], Case]] = {}
# Each backend draws random numbers in its own way.
WITH_RANDOM_NUMBERS = {"dropout"}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    """Add a case under its function's name."""
    CASES[make.__name__] = make
    return make


def data(images: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and class ids, computed without a random generator."""
    shape = (ROWS, 4, 4, 2) if images else (ROWS, FEATURES)
    x = np.sin(1.0 + 2.5 * np.arange(np.prod(shape))).reshape(shape).astype("float32")
    return x, np.arange(ROWS) * 5 % 7 % CLASSES


def filled(model: keras.Model, seed: int) -> keras.Model:
    """Fill a model's weights with fixed numbers and return it."""
    for number, weight in enumerate(model.weights):
        count = np.arange(np.prod(weight.shape))
        value = 0.6 * np.sin(seed + 3.0 * number + 1.7 * count).reshape(weight.shape)
        if "variance" in weight.path or "gamma" in weight.path:
            value = 1.0 + 0.2 * np.abs(value)
        weight.assign(value.astype("float32"))
    return model


def mlp(seed: int, units: int, *inner: keras.Layer, name: str) -> keras.Model:
    """A Sequential model with logits."""
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(units, "tanh"),
            *inner,
            layers.Dense(CLASSES),
        ],
        name=name,
    )
    return filled(model, seed)


def conv_net(seed: int, width: int, name: str) -> keras.Model:
    """A small convolutional model with layers that hints name."""
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Conv2D(width, 3, padding="same", activation="tanh", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(CLASSES, name="head"),
        ],
        name=name,
    )
    return filled(model, seed)


def compiled(trainer: keras.Model, **kwargs: Any) -> keras.Model:
    """Compile a trainer with Adam, a label loss, and schedules that go on changing."""
    arguments = {
        "alpha": PolynomialDecay(0.9, 8, 0.1),
        "distillation_loss": kd.losses.ForwardKL(PolynomialDecay(4.0, 8, 1.0)),
        "metrics": ["accuracy"],
        **kwargs,
    }
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.Adam(PolynomialDecay(0.1, 8)), loss, **arguments)
    return trainer


@case
def fixed_teacher() -> Case:
    student = mlp(0, 5, layers.BatchNormalization(), name="student")
    teacher = mlp(1, 9, name="teacher")
    return Case(compiled(kd.Distiller(student, teacher)), teacher)


@case
def dropout() -> Case:
    student = mlp(0, 5, layers.Dropout(0.3, seed=3), name="student")
    teacher = mlp(1, 9, name="teacher")
    return Case(compiled(kd.Distiller(student, teacher), alpha=0.4), teacher)


@case
def hints_with_projectors() -> Case:
    student, teacher = conv_net(0, 2, "student"), conv_net(1, 3, "teacher")
    of_conv = kd.hints.Hint(
        "conv", "norm", weight=PolynomialDecay(0.5, 12), name="of_conv"
    )
    of_pool = kd.hints.Hint("pool", "pool", weight=0.3, name="of_pool")
    distiller = kd.Distiller(student, teacher, hints=[of_conv, of_pool])
    for number, projector in enumerate(distiller.projectors.values()):
        filled(projector, 10 + number)
    return Case(compiled(distiller), teacher, images=True)


@case
def teacher_that_trains() -> Case:
    student = mlp(0, 5, name="student")
    teacher = mlp(1, 9, layers.BatchNormalization(), name="teacher")
    trainer = compiled(
        kd.Distiller(student, teacher),
        teacher_loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        teacher_optimizer=keras.optimizers.SGD(0.05, momentum=0.9),
        teacher_metrics=["accuracy"],
    )
    return Case(trainer)


@case
def shared_layer() -> Case:
    inputs = {name: keras.Input((FEATURES,), name=name) for name in ("x", "later")}
    hidden = layers.Dense(5, "tanh", name="hidden")(inputs["x"])
    both = layers.Concatenate()([hidden, inputs["later"]])
    student = keras.Model({"x": inputs["x"]}, layers.Dense(CLASSES)(hidden))
    teacher = keras.Model(inputs, layers.Dense(CLASSES)(both))
    filled(teacher, 1)
    filled(student, 0)
    distiller = kd.Distiller(student, teacher, privileged_features=["later"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Case(compiled(distiller, teacher_loss=loss))


@case
def moving_average() -> Case:
    student = mlp(0, 5, layers.BatchNormalization(), name="student")
    teacher = kd.teachers.EMA(student, decay=PolynomialDecay(0.5, 8, 0.9))
    return Case(compiled(kd.Distiller(student, teacher)))


@case
def moving_average_of_fixed_decay() -> Case:
    student = mlp(0, 5, name="student")
    teacher = kd.teachers.EMA(student, decay=0.8)
    return Case(compiled(kd.Distiller(student, teacher)))


@case
def ensemble() -> Case:
    members = [mlp(1, 9, name="first"), mlp(2, 7, name="second")]
    teacher = kd.teachers.Ensemble(
        members, [2.0, 1.0], combine="probabilities", log_losses=True, name="ensemble"
    )
    student = mlp(0, 5, name="student")
    return Case(compiled(kd.Distiller(student, teacher)), teacher)


def of_peers(staleness: int) -> Case:
    """Two peers of different widths."""
    peers = [
        mlp(0, 4, layers.BatchNormalization(), name="small"),
        mlp(1, 6, name="large"),
    ]
    return Case(compiled(kd.online.MutualLearning(peers, staleness=staleness)))


@case
def peers() -> Case:
    return of_peers(0)


@case
def stale_peers() -> Case:
    return of_peers(2)


def given(name: str, made: Case) -> dict[str, Any]:
    """Return the arguments of `fit` that hold a case's data."""
    x, y = data(made.images)
    return {"x": {"x": x, "later": x[:, ::-1]} if name == "shared_layer" else x, "y": y}


def fitted(name: str, made: Case) -> dict[str, list[float]]:
    """Train for `EPOCHS` steps and return the history."""
    arguments = {"batch_size": ROWS, "epochs": EPOCHS, "shuffle": False, "verbose": 0}
    history = made.trainer.fit(**given(name, made), **arguments)
    logs: dict[str, list[float]] = history.history
    return logs


def predicted(name: str, made: Case) -> np.ndarray:
    """Return the trainer's predictions of a case's data."""
    x = given(name, made)["x"]
    return np.asarray(made.trainer.predict(x, batch_size=ROWS, verbose=0))


def results(name: str, made: Case) -> dict[str, np.ndarray]:
    """Return all that a file must restore, and what the next steps make of it.

    Returns:
        `prediction` and `iterations` at first; then, after `EPOCHS` steps,
        `history/<log>` and `weights/<model>/<number>`.
    """
    found = {
        "prediction": predicted(name, made),
        "iterations": keras.ops.convert_to_numpy(made.trainer.optimizer.iterations),
    }
    for log, values in fitted(name, made).items():
        found[f"history/{log}"] = np.asarray(values, "float32")
    for model, of_model in models(made.trainer).items():
        for number, weight in enumerate(of_model.weights):
            value = keras.ops.convert_to_numpy(weight)
            found[f"weights/{model}/{number}"] = value
    return found


def models(trainer: keras.Model) -> Mapping[str, Any]:
    """Return the models that a trainer's files hold, by name."""
    if isinstance(trainer, kd.online.MutualLearning):
        copies = {f"copy_{number}": copy for number, copy in enumerate(trainer.copies)}
        return {**{peer.name: peer for peer in trainer.peers}, **copies}
    held = {"student": trainer.student, **trainer.projectors}
    if isinstance(trainer.teacher, kd.teachers.EMA):
        held["teacher"] = trainer.teacher.model
    elif trainer.teacher_in_training is not None:
        held["teacher"] = trainer.teacher
    return held

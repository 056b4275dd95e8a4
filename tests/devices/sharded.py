"""Fits that are the same on one device and on many of JAX: `python -m
tests.devices.sharded DIVIDED FILE`, where the environment tells on how many.

`XLA_FLAGS` makes devices within a process; `SHARDED_PROCESSES`, `SHARDED_PROCESS` and
`SHARDED_COORDINATOR` make a process one of several.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import keras

PROCESSES = int(os.environ.get("SHARDED_PROCESSES", "1"))
if PROCESSES > 1:
    keras.distribution.initialize(
        os.environ["SHARDED_COORDINATOR"], PROCESSES, int(os.environ["SHARDED_PROCESS"])
    )

import jax  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers  # noqa: E402

import keras_distill as kd  # noqa: E402
from tests.distiller.models import (  # noqa: E402
    CLASSES,
    FEATURES,
    crossentropy,
    data,
    first_layer,
    mlp,
    regularized_mlp,
)
from tests.distiller.pairs import clicks, pair, together  # noqa: E402

EPOCHS, ROWS, BATCH = 25, 32, 8  # a hundred steps
Fit = tuple[list[np.ndarray], dict[str, Any]]


def fit(model: keras.Model, x: Any, y: Any) -> dict[str, Any]:
    """Train on the rows of this process, which are its part of each batch."""
    part = BATCH // PROCESSES
    begin = part * jax.process_index()
    rows = np.arange(ROWS).reshape(-1, BATCH)[:, begin : begin + part].ravel()
    x, y = keras.tree.map_structure(lambda values: values[rows], (x, y))
    options = {"batch_size": part, "shuffle": False, "verbose": 0}
    return dict(model.fit(x, y, epochs=EPOCHS, **options).history)


def train(hints: bool) -> Fit:
    student = regularized_mlp()
    hint = kd.hints.Hint(
        first_layer, first_layer, projector=layers.Dense(5), name="hidden"
    )
    distiller = kd.Distiller(student, mlp(seed=1), hints=[hint] if hints else [])
    distiller.compile(
        keras.optimizers.SGD(0.3, momentum=0.9),
        crossentropy(),
        alpha=kd.schedules.LinearWarmup(60),
        metrics=["accuracy"],
    )
    history = fit(distiller, *data(ROWS))
    return distiller.get_weights(), history


def train_together() -> Fit:
    student, teacher = pair("items")
    distiller = together(student, teacher, alpha=kd.schedules.LinearWarmup(60))
    history = fit(distiller, *clicks(ROWS))
    return student.get_weights() + teacher.get_weights(), history


def train_under_its_average() -> Fit:
    student = mlp()
    teacher = kd.teachers.EMA(student, decay=0.8)
    distiller = kd.Distiller(student, teacher)
    distiller.compile(keras.optimizers.SGD(0.3, momentum=0.9), crossentropy())
    history = fit(distiller, *data(ROWS))
    return student.get_weights() + teacher.get_weights(), history


def train_under_a_divided_teacher() -> Fit:
    """The kernels of the teacher are divided among the devices, where there are two."""
    keras.utils.set_random_seed(0)
    teacher = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(6, "tanh", name="wide"),
            layers.Dense(CLASSES),
        ],
        name="teacher",
    )
    distiller = kd.Distiller(mlp(), teacher)
    distiller.compile(keras.optimizers.SGD(0.3, momentum=0.9), crossentropy())
    history = fit(distiller, *data(ROWS))
    return distiller.student.get_weights(), history


# By what is divided among the devices.
FITS: dict[str, dict[str, Callable[[], Fit]]] = {
    "data": {
        "plain": lambda: train(hints=False),
        "hints": lambda: train(hints=True),
        "privileged": train_together,
        "average": train_under_its_average,
    },
    "model": {"divided": train_under_a_divided_teacher},
}


def distribute(how: str) -> None:
    """Let Keras use all devices, as its users do."""
    devices = keras.distribution.list_devices()
    if how == "data":
        distribution = keras.distribution.DataParallel(
            devices=devices, auto_shard_dataset=False
        )
    else:
        mesh = keras.distribution.DeviceMesh((1, len(devices)), ("batch", "model"))
        layout = keras.distribution.LayoutMap(mesh)
        layout["wide/kernel"] = (None, "model")
        distribution = keras.distribution.ModelParallel(
            layout_map=layout, batch_dim_name="batch"
        )
    keras.distribution.set_distribution(distribution)


def main(divided: str, file: str) -> None:
    found: dict[str, Any] = {"devices": jax.device_count()}
    for how in divided.split(","):
        if jax.device_count() > 1:
            distribute(how)
        for fit, trained in FITS[how].items():
            weights, history = trained()
            name = f"{how}/{fit}"
            found |= {f"{name}/weight/{n}": it for n, it in enumerate(weights)}
            found |= {f"{name}/log/{log}": values for log, values in history.items()}
    np.savez(file, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

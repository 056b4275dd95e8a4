"""Generations that can be killed: `python -m tests.online.born DIRECTORY`.

With all that a resumed generation must find again: moments of the optimiser, a
schedule, dropout, batch statistics.
"""

import sys
from pathlib import Path

import keras
from keras import layers

import keras_distill as kd
from tests.distiller.models import CLASSES, FEATURES, crossentropy, data, mlp

GENERATIONS = 3
EPOCHS = 15


def make_student() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(5, "tanh"),
            layers.BatchNormalization(),
            layers.Dropout(0.4),
            layers.Dense(CLASSES),
        ]
    )


def fit(distiller: kd.Distiller, callbacks: list[keras.callbacks.Callback]) -> None:
    decay = keras.optimizers.schedules.PolynomialDecay(0.1, 3 * EPOCHS, 0.01)
    distiller.compile(keras.optimizers.Adam(decay), crossentropy())
    distiller.fit(
        *data(24),
        batch_size=8,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )


def run(directory: Path, generations: int = GENERATIONS) -> kd.online.Generations:
    teacher = mlp(seed=1)
    keras.utils.set_random_seed(3)
    return kd.online.born_again(
        make_student, teacher, generations, fit=fit, directory=directory
    )


if __name__ == "__main__":
    print("ready", flush=True)
    run(Path(sys.argv[1]))
    print("done", flush=True)

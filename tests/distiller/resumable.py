"""A training that can be killed:
`python -m tests.distiller.resumable DIRECTORY STEP fixed|trained|following`.

It has all that a resumed training must find again: a schedule each of alpha,
temperature and learning rate, moments of the optimiser, dropout, batch statistics; and
where the teacher trains, the same of the teacher, and a layer that both hold; or the
weights of a teacher that follows the student, and a schedule of its decay.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers

import keras_distill as kd
from tests.distiller.models import CLASSES, FEATURES, crossentropy, data, mlp

EPOCHS = 4
STEPS_PER_EPOCH = 3


class At(keras.callbacks.Callback):
    """Does something after a step, counted over all epochs from 1."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        super().__init__()
        self.step, self.action = step, action

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations) == self.step:
            self.action()


def student_and_teacher(kind: str) -> tuple[keras.Model, keras.Model]:
    keras.utils.set_random_seed(0)
    first = layers.Dense(5, "tanh")

    def model(own: keras.Layer) -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((FEATURES,)),
                own,
                layers.BatchNormalization(),
                layers.Dropout(0.4, seed=3),
                layers.Dense(CLASSES),
            ]
        )

    student = model(first)
    if kind == "following":
        decay = keras.optimizers.schedules.PolynomialDecay(0.5, 8, 0.9)
        return student, kd.teachers.EMA(student, decay)
    return student, mlp(seed=1) if kind == "fixed" else model(first)


def build(kind: str) -> kd.Distiller:
    decay = keras.optimizers.schedules.PolynomialDecay
    distiller = kd.Distiller(*student_and_teacher(kind))
    distiller.compile(
        keras.optimizers.Adam(decay(0.1, 12, 0.01)),
        crossentropy(),
        distillation_loss=kd.losses.ForwardKL(temperature=decay(4.0, 8, 1.0)),
        alpha=kd.schedules.LateStart(5, value=0.7),
        teacher_loss=crossentropy() if kind == "trained" else None,
    )
    return distiller


def train(
    directory: str, kind: str, callbacks: Sequence[keras.callbacks.Callback] = ()
) -> tuple[kd.Distiller, dict[str, Any]]:
    """Train to the end, from where an earlier call in this directory was stopped."""
    dataset = tf.data.Dataset.from_tensor_slices(data(8 * STEPS_PER_EPOCH)).batch(8)
    distiller = build(kind)
    backup = keras.callbacks.BackupAndRestore(directory, delete_checkpoint=False)
    history = distiller.fit(
        dataset,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[backup, *callbacks],
    )
    return distiller, history.history


if __name__ == "__main__":
    kill = At(int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL))
    train(sys.argv[1], sys.argv[3], [kill])

"""The demo's three trainings: the teacher, the student alone, the student distilled.

Each is `compile` and `fit`. All have the same number of steps. Both students have the
same batch size, optimiser and learning-rate schedule.
"""

from dataclasses import dataclass

import keras
import tensorflow as tf

from keras_distill import losses
from keras_distill.demo import models
from keras_distill.demo.data import Digits, Split, views
from keras_distill.distiller import Distiller

TEACHER_LEARNING_RATE = 2e-3
STUDENT_LEARNING_RATE = 5e-3
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Budget:
    """How long every model is trained.

    Attributes:
        epochs: How often the test accuracy is measured, for the curves.
        steps_per_epoch: Optimiser steps between two measurements.
    """

    epochs: int = 30
    steps_per_epoch: int = 50

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.epochs * self.steps_per_epoch


FULL = Budget()
SMOKE = Budget(epochs=2, steps_per_epoch=10)


@dataclass(frozen=True)
class Trained:
    """A trained model, and its test accuracy after each epoch."""

    model: keras.Model
    curve: list[float]


def train_teacher(split: Split, budget: Budget, seed: int) -> Trained:
    """Train the teacher on views of the labelled images."""
    model = models.teacher(seed)
    return _train_on_labels(model, TEACHER_LEARNING_RATE, split, budget, seed)


def train_alone(split: Split, budget: Budget, seed: int) -> Trained:
    """Train the student as the teacher was: on views of the labelled images."""
    model = models.student(seed)
    return _train_on_labels(model, STUDENT_LEARNING_RATE, split, budget, seed)


def train_distilled(
    teacher: keras.Model, split: Split, budget: Budget, seed: int
) -> Trained:
    """Train the student to match the teacher's outputs, without labels.

    In each step, student and teacher read the same view of an image.
    """
    distiller = Distiller(models.student(seed), teacher)
    distiller.compile(
        _adam(STUDENT_LEARNING_RATE, budget),
        distillation_loss=losses.ForwardKL(temperature=TEMPERATURE),
        alpha=1.0,  # The loss is that of the teacher only; no label is read.
        metrics=["accuracy"],
        steps_per_execution=budget.steps_per_epoch,
    )
    data = views(split.transfer, seed=seed)
    curve = _fit(distiller, data, split.test, budget)
    return Trained(distiller.student, curve)


def _train_on_labels(
    model: keras.Model, learning_rate: float, split: Split, budget: Budget, seed: int
) -> Trained:
    model.compile(
        _adam(learning_rate, budget),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=budget.steps_per_epoch,
    )
    data = views(*split.labelled, seed=seed)
    return Trained(model, _fit(model, data, split.test, budget))


def _adam(learning_rate: float, budget: Budget) -> keras.optimizers.Optimizer:
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, budget.steps)
    return keras.optimizers.Adam(schedule)


def _fit(
    model: keras.Model, data: tf.data.Dataset, test: Digits, budget: Budget
) -> list[float]:
    """Fit; return the test accuracy after each epoch, which decides nothing."""
    # A data set of one batch. Keras would cut arrays into batches again in each epoch,
    # which takes longer than the evaluation.
    whole = tf.data.Dataset.from_tensors(tuple(test))
    history = model.fit(
        data,
        epochs=budget.epochs,
        steps_per_epoch=budget.steps_per_epoch,
        validation_data=whole,
        shuffle=False,  # the data set shuffles itself
        verbose=0,
    )
    return [float(accuracy) for accuracy in history.history["val_accuracy"]]

"""Methods of training that a model's class overrides, and how they are honoured."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

# What Keras' methods read of a compiled model.
_COMPILED = (
    "compiled",
    "loss",
    "optimizer",
    "_compile_loss",
    "_compile_metrics",
    "_loss_tracker",
)


def overrides(model: keras.Model, name: str) -> bool:
    """Return whether a model has its own version of a method of `keras.Model`."""
    of_class = getattr(type(model), name) is not getattr(keras.Model, name)
    return of_class or name in vars(model)


def check_train_step(model: keras.Model, whose: str) -> None:
    """Raise ValueError if a model has a `train_step`, which can't be honoured."""
    if overrides(model, "train_step"):
        raise ValueError(
            f"The {whose} has its own `train_step`, which would not run: the step that "
            "distils takes its place. Write what it computes as `compute_loss` or "
            "`compute_metrics`, which are called; or set `train_step = "
            "keras.Model.train_step` in a subclass to train without it. Received: "
            f"{whose} '{model.name}' of type {type(model).__name__}"
        )


def check_student(student: keras.Model, *, alpha: Any, masks: Sequence[str]) -> None:
    """Raise ValueError if a student has methods that can't be honoured.

    Args:
        student: The student.
        alpha: As in `Distiller.compile`.
        masks: The names of the label masks.
    """
    check_train_step(student, "student")
    if overrides(student, "compute_loss") and keras.tree.is_nested(alpha):
        raise ValueError(
            "The student has its own `compute_loss`, which returns one loss for all "
            "outputs, so `alpha` must be one weight. Received: student of type "
            f"{type(student).__name__}, alpha={alpha}"
        )
    if overrides(student, "test_step") and masks:
        raise ValueError(
            "The student has its own `test_step`, which knows of no label mask. Write "
            "it as `compute_metrics`, or compile without `label_mask`. Received: "
            f"student of type {type(student).__name__}, label masks {list(masks)}"
        )


@contextmanager
def compiled_as(model: keras.Model, outer: keras.Model) -> Iterator[None]:
    """Let a model's own methods find the losses and metrics of the model around it."""
    earlier = {name: vars(model)[name] for name in _COMPILED if name in vars(model)}
    for name in _COMPILED:
        # past Keras' tracking, as what is only lent
        object.__setattr__(model, name, getattr(outer, name))
    try:
        yield
    finally:
        for name in _COMPILED:
            object.__delattr__(model, name)
        for name, value in earlier.items():
            object.__setattr__(model, name, value)


def own_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """Return the metrics that a model's class keeps, without compiled ones."""
    if not overrides(model, "metrics"):
        return list(model._metrics)
    compiled = [model._loss_tracker, model._compile_metrics]
    if model._compile_loss is not None:
        compiled += model._compile_loss.metrics
    return [m for m in model.metrics if all(m is not other for other in compiled)]

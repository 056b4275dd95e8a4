"""Losses, metrics and optimisers, built outside of the step: it is traced once."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf


def build_outside(model: keras.Model) -> None:
    """Let Keras build a compiled model's losses and metrics outside of the step.

    Keras builds them from the first batch, while the step is traced. TensorFlow traces
    a function a second time if its first trace creates variables, and training would
    begin half as fast.
    """
    for part in compiled_parts([model]):
        object.__setattr__(part, "build", _outside(part.build))


def build_optimizer(model: keras.Model) -> None:
    """Build a model's optimiser in its first step, where Keras does, but outside of it.

    In the first step, callbacks have decided on what trains.
    """
    optimizer, variables = model.optimizer, model.trainable_variables
    # on several devices, Keras has built it before
    if optimizer.built or not variables or tf.distribute.has_strategy():
        return
    with tf.init_scope(), tf.variable_creator_scope(_at_once):
        # weights that the step itself makes have no value yet
        if not any(map(is_empty, variables)):
            optimizer.build(variables)


def is_empty(variable: keras.Variable) -> bool:
    """Return whether a variable has no value yet, as one that a trace has made."""
    value = variable.value
    return isinstance(value, tf.Variable) and not bool(value.is_initialized())


def _outside(build: Callable[..., None]) -> Callable[..., None]:
    def build_outside_of_a_trace(*args: Any, **kwargs: Any) -> None:
        with tf.init_scope(), tf.variable_creator_scope(_at_once):
            build(*args, **kwargs)

    return build_outside_of_a_trace


def _at_once(create: Callable[..., tf.Variable], **kwargs: Any) -> tf.Variable:
    """Create a variable that has its value at once."""
    return create(**{**kwargs, "experimental_enable_variable_lifting": False})


def compiled_parts(models: Sequence[keras.Model]) -> list[Any]:
    """Return the losses and metrics that Keras builds from the first batch."""
    parts = [(model._compile_loss, model._compile_metrics) for model in models]
    return [part for pair in parts for part in pair if part is not None]

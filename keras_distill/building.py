"""Optimisers, losses and metrics, built so that TensorFlow traces a step only once."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_distill import backend


def build_outside(model: keras.Model) -> None:
    """Let Keras build a compiled model's losses and metrics outside of the step.

    Keras builds them from the first batch, while the step is traced. TensorFlow traces
    a function a second time if its first trace creates variables, and training would
    begin half as fast.
    """
    if backend.is_tensorflow():
        for part in compiled_parts([model]):
            object.__setattr__(part, "build", _outside(part.build))


def build_early(model: keras.Model) -> None:
    """Build the optimiser of a built model, so that files restore its state."""
    if model.built and not model.optimizer.built and model.trainable_variables:
        model.optimizer.build(model.trainable_variables)


def build_optimizer(model: keras.Model) -> None:
    """Build a model's optimiser in its first step on TensorFlow, outside of the trace.

    By then, callbacks have decided which weights train. An optimiser that was built
    for other weights, and that hasn't made a step, is replaced by a new one.
    """
    import tensorflow as tf

    optimizer, variables = model.optimizer, model.trainable_variables
    # On several devices, Keras has built it before.
    if not variables or tf.distribute.has_strategy():
        return
    if optimizer.built:
        optimizer = _for_others(optimizer, variables)
        if optimizer is None:
            return
        model.optimizer = optimizer
    with tf.init_scope(), tf.variable_creator_scope(_at_once):
        # Weights that the step itself creates have no value yet.
        if not any(map(is_empty, variables)):
            optimizer.build(variables)


def _for_others(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> keras.optimizers.Optimizer | None:
    """Return a fresh optimiser if this one was built for other weights, or None."""
    known = {id(variable) for variable in optimizer._trainable_variables}
    if known == {id(variable) for variable in variables}:
        return None
    import tensorflow as tf

    with tf.init_scope():
        if backend.batches_seen(optimizer):
            return None  # Keras raises an error that names the weights.
        return type(optimizer).from_config(optimizer.get_config())


def is_empty(variable: keras.Variable) -> bool:
    """Return whether a variable has no value yet: a trace has created it."""
    import tensorflow as tf

    value = variable.value
    return isinstance(value, tf.Variable) and not bool(value.is_initialized())


def _outside(build: Callable[..., None]) -> Callable[..., None]:
    import tensorflow as tf

    def build_outside_of_a_trace(*args: Any, **kwargs: Any) -> None:
        with tf.init_scope(), tf.variable_creator_scope(_at_once):
            build(*args, **kwargs)

    return build_outside_of_a_trace


def _at_once(create: Callable[..., Any], **kwargs: Any) -> Any:
    """Create a variable that has its value at once."""
    return create(**{**kwargs, "experimental_enable_variable_lifting": False})


def compiled_parts(models: Sequence[keras.Model]) -> list[Any]:
    """Return the losses and metrics that Keras builds from the first batch."""
    parts = [(model._compile_loss, model._compile_metrics) for model in models]
    return [part for pair in parts for part in pair if part is not None]

"""All questions about the backend that Keras runs on, asked in one place."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_distill.types import Tensor


def is_tensorflow() -> bool:
    """Return whether Keras runs on TensorFlow."""
    return bool(keras.backend.backend() == "tensorflow")


def is_jax() -> bool:
    """Return whether Keras runs on JAX."""
    return bool(keras.backend.backend() == "jax")


def replicas() -> int:
    """Return the number of devices among which Keras divides the loss of a batch."""
    if not is_tensorflow():
        return 1
    import tensorflow as tf

    count: int = tf.distribute.get_strategy().num_replicas_in_sync
    return count


def is_traced(x: Any) -> bool:
    """Return whether a tensor has no values yet, as while a step is compiled."""
    if is_tensorflow():
        import tensorflow as tf

        return bool(tf.is_symbolic_tensor(x))
    if is_jax():
        import jax

        return isinstance(x, jax.core.Tracer | keras.KerasTensor)
    return isinstance(x, keras.KerasTensor)


def keras_mask(x: Tensor) -> Tensor | None:
    """Return the mask that a layer of Keras has left on its output, None without."""
    # Keras' own reader, for JAX's tensors bear no attributes.
    from keras.src.backend.common.masking import get_keras_mask

    return get_keras_mask(x)


def assert_in_graph(holds: Tensor, message: str, values: Sequence[Tensor]) -> None:
    """Raise `message` when a TensorFlow graph runs in which a condition is False.

    XLA and JAX leave assertions out: what they compile can't raise.

    Args:
        holds: The condition, a boolean scalar.
        message: The text of the `tf.errors.InvalidArgumentError`.
        values: Tensors that are printed after it.
    """
    if is_tensorflow():
        import tensorflow as tf

        tf.debugging.Assert(holds, [message, *values])


def check_finite(x: Tensor, message: str) -> Tensor:
    """Return a tensor, or raise `message` where it holds NaN or infinity.

    In a TensorFlow graph, the error is raised when the graph runs.
    """
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)):
        return x
    if is_tensorflow():
        import tensorflow as tf

        return tf.debugging.check_numerics(x, message)
    if not bool(keras.ops.all(keras.ops.isfinite(x))):
        raise invalid_values(message)
    return x


def invalid_values(message: str) -> Exception:
    """Return the error that an operation of the backend raises for wrong values."""
    if is_tensorflow():
        import tensorflow as tf

        error: Exception = tf.errors.InvalidArgumentError(None, None, message)
        return error
    return FloatingPointError(message)


def compiles(model: keras.Model) -> bool:
    """Return whether the steps of a model can't raise errors about values."""
    return is_jax() or bool(model.jit_compile)


def updates(
    optimizer: keras.optimizers.Optimizer,
    counted: keras.Variable,
    batches_ago: int = 0,
) -> Tensor:
    """Return the number of updates that an optimiser has made so far.

    Args:
        optimizer: The optimiser, whose own count is in scope on TensorFlow and Torch.
        counted: The number of batches that were trained on. JAX's trainer hides the
            optimiser's variables from the loss.
        batches_ago: Return the number as it was before so many batches.
    """
    if not (is_jax() or batches_ago):
        return optimizer.iterations
    batches = counted if is_jax() else _counting(optimizer)._iterations
    steps = optimizer.gradient_accumulation_steps or 1
    return (keras.ops.add(batches, 0) - batches_ago) // steps


def batches_seen(optimizer: keras.optimizers.Optimizer) -> int:
    """Return the number of batches that an optimiser was given, between two steps."""
    return int(keras.ops.convert_to_numpy(_counting(optimizer)._iterations))


def _counting(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimiser that counts: a loss scale leaves it to the one within."""
    inner: keras.optimizers.Optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return inner


def count(batches: keras.Variable) -> None:
    """Count a batch in the step that runs, where `updates` reads the count."""
    if is_jax():
        batches.assign(keras.ops.add(batches, 1))


def after_update(result: Any, model: keras.Model, action: Callable[[], None]) -> Any:
    """Return what a step of Keras' trainer returned, after an action on its model.

    Args:
        result: What `keras.Model.train_step` returned: on JAX, logs and the state
            after the step; elsewhere logs, and the model is updated already.
        model: The model that trains.
        action: Reads and assigns variables of the model.
    """
    if not is_jax():
        action()
        return result
    logs, (trainable, non_trainable, *others) = result
    pairs = [
        *zip(model.trainable_variables, trainable, strict=True),
        *zip(model.non_trainable_variables, non_trainable, strict=True),
    ]
    with keras.StatelessScope(state_mapping=pairs) as scope:
        action()
    changed = [scope.get_current_value(v) for v in model.non_trainable_variables]
    return logs, (trainable, changed, *others)

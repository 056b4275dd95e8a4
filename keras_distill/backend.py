"""All questions about the backend that Keras runs on, asked in one place."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_distill.types import Tensor

# Operations of TensorFlow that write variables, such as those of seeds.
_WRITING_OPS = re.compile("Assign|ResourceScatter|Rng")


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


def after_check(
    x: Tensor, holds: Tensor, message: str, values: Sequence[Tensor]
) -> Tensor:
    """Return a tensor that a TensorFlow graph computes once a condition has held.

    Everything computed from it waits for the check, updates of variables included.

    Args:
        x: The tensor.
        holds: The condition, a boolean scalar.
        message: The text of the `tf.errors.InvalidArgumentError`.
        values: Tensors that are printed after it.
    """
    import tensorflow as tf

    check = tf.debugging.Assert(holds, [message, *values])
    # Outside of a graph, the check has raised, and returned None.
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(x)


def writes_state(call: Callable[[], Any]) -> set[str]:
    """Return what a call writes: names of operations or of variables, empty if none.

    TensorFlow traces the call and doesn't run it. Other backends run it, or trace it
    within a step, and drop what it writes.
    """
    if not is_tensorflow():
        with _Writes() as scope:
            call()
        written: set[str] = scope.names
        return written
    import tensorflow as tf

    graph = tf.__internal__.FuncGraph("called_again")
    with graph.as_default():
        call()
    traced = graph.as_graph_def()
    nodes = [*traced.node, *(n for f in traced.library.function for n in f.node_def)]
    return {node.op for node in nodes if _WRITING_OPS.search(node.op)}


class _Writes(keras.StatelessScope):
    """A scope that notes which variables are assigned, and keeps their values.

    Variables have the values that the scope around it gives them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def add_update(self, update: tuple[keras.Variable, Tensor]) -> None:
        self.names.add(f"Assign {update[0].path}")
        super().add_update(update)

    def get_current_value(self, variable: keras.Variable) -> Tensor | None:
        value = super().get_current_value(variable)
        if value is None and self.original_scope is not None:
            value = self.original_scope.get_current_value(variable)
        return value

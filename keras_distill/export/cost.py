"""The floating-point operations of a model, as the backend's compiler counts them."""

from typing import Any

import keras

from keras_distill.export.quiet import quiet
from keras_distill.types import Nested

tree = keras.tree


def flops(model: keras.Model, inputs: Nested) -> int | None:
    """Return the floating-point operations of one call in inference.

    A multiplication and an addition count as two operations. The body of a loop, e.g.
    of a recurrent layer, counts once. TensorFlow and JAX count activations differently:
    compare models on one backend.

    Args:
        model: A built model.
        inputs: The inputs of the call, e.g. of one row.

    Returns:
        The number; None if the backend can't count, e.g. operations of unknown cost.
    """
    counts = {"tensorflow": _by_tensorflow, "jax": _by_jax}
    count = counts.get(keras.backend.backend())
    return count(model, inputs) or None if count else None


def _by_tensorflow(model: keras.Model, inputs: Nested) -> int:
    import tensorflow as tf

    profiler = tf.compat.v1.profiler
    options: dict[str, Any] = profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    specs = tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), inputs)
    traced = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        specs
    )
    with quiet("tensorflow"):
        counted = profiler.profile(graph=traced.graph, cmd="op", options=options)
    return int(counted.total_float_ops)


def _by_jax(model: keras.Model, inputs: Nested) -> int:
    import jax

    def call(values: Any, x: Any) -> Any:
        state = list(zip(model.variables, values, strict=True))
        with keras.StatelessScope(state_mapping=state):
            return model(x, training=False)

    values = [variable.value for variable in model.variables]
    counted = jax.jit(call).lower(values, inputs).cost_analysis() or {}
    return int(counted.get("flops", 0))

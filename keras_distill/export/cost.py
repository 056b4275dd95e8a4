"""The floating-point operations of a model, as TensorFlow's profiler counts them."""

from typing import Any

import keras
import tensorflow as tf

from keras_distill.export.quiet import quiet
from keras_distill.types import Nested


def flops(model: keras.Model, inputs: Nested) -> int | None:
    """Return the floating-point operations of one call in inference.

    A multiplication and an addition count as two operations. What a loop does, e.g.
    that of a recurrent layer, counts once.

    Args:
        model: A built model.
        inputs: The inputs of the call, e.g. of one row.

    Returns:
        The number; None where TensorFlow can't count, e.g. on another backend or for
        operations of which it doesn't know the cost.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    profiler = tf.compat.v1.profiler
    options: dict[str, Any] = profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    specs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), inputs)
    traced = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        specs
    )
    with quiet("tensorflow"):
        counted = profiler.profile(graph=traced.graph, cmd="op", options=options)
    return int(counted.total_float_ops) or None

"""An order of models, which XLA would otherwise run at the same time."""

import keras
from keras import ops

from keras_distill import backend
from keras_distill.types import Nested, Tensor


def after(outputs: Nested, inputs: Nested) -> Nested:
    """Return `inputs`, which XLA computes only after a model's outputs.

    On CPUs, XLA starts all models that don't depend on each other at the same time.
    Each layer of one model evicts the others' weights from the caches. Four conv nets
    at the same time took 1.2 times as long as one after the other on TensorFlow, up to
    1.1 on JAX. Without XLA, the inputs are returned unchanged: TensorFlow's threads
    share the work well.

    Args:
        outputs: The outputs of one model.
        inputs: The inputs of the next model.
    """
    last = keras.tree.flatten(outputs)[-1]
    if not backend.inside_xla(last):
        return inputs
    # Always False, but XLA can't prove it. NaN compares as False, too.
    never = ops.max(ops.cast(last, "float32")) > float("inf")

    def waiting(tensor: Tensor) -> Tensor:
        if not ops.is_tensor(tensor):
            return tensor
        return ops.where(never, ops.zeros_like(tensor), tensor)

    return keras.tree.map_structure(waiting, inputs)

"""The one traced function that every format is made from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_distill.export import signature
from keras_distill.export.signature import Specs

Tensors = dict[str, tf.Tensor]


@dataclass(frozen=True)
class Served:
    """A model behind a `tf.function` from named inputs to named outputs.

    Attributes:
        model: The Keras model.
        call: The same as `function`, untraced: Keras as it computes by itself.
        function: Takes a dict of tensors, returns a dict of tensors; inference mode.
        inputs: Input name to spec, in the model's order.
        outputs: Output name to spec.
    """

    model: keras.Model
    call: Callable[[Tensors], Tensors]
    function: Any
    inputs: Specs
    outputs: Specs


def serve(model: keras.Model, example_batch: Any) -> Served:
    """Trace `model` in inference mode under stable names."""
    inputs = signature.input_specs(model, example_batch)
    pack = signature.packing(model, example_batch)

    def call(tensors: Tensors) -> Tensors:
        # TensorFlow hands a dict over in sorted order; a list needs the model's own.
        packed = pack({name: tensors[name] for name in inputs})
        outputs = model(packed, training=False)
        return signature.name_outputs(model, outputs, inputs)

    function = tf.function(call, input_signature=[inputs], autograph=False)
    traced = function.get_concrete_function().structured_outputs
    outputs = {
        name: tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
        for name, tensor in traced.items()
    }
    return Served(model, call, function, inputs, outputs)

"""The one traced function that every format is made from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_distill.export import signature
from keras_distill.export.batches import Arrays, by_name, to_arrays
from keras_distill.export.signature import Specs
from keras_distill.export.tracing import convertible

Tensors = dict[str, tf.Tensor]


@dataclass(frozen=True)
class Raw:
    """Preprocessing before a model: from raw features to its outputs.

    Attributes:
        preprocessing: Makes the model's inputs of raw features.
        call: Named raw tensors in, named inputs of the model out.
        function: Named raw tensors in, named outputs of the model out; a
            `tf.function`.
        inputs: Raw name to spec.
    """

    preprocessing: keras.layers.Layer
    call: Callable[[Tensors], Tensors]
    function: Any
    inputs: Specs


@dataclass(frozen=True)
class Served:
    """A model behind a `tf.function` from named inputs to named outputs.

    Attributes:
        model: The Keras model.
        pack: Named inputs to the structure that the model takes.
        call: The same as `function`, untraced: Keras as it computes by itself.
        function: Takes a dict of tensors, returns a dict of tensors; inference mode.
        inputs: Input name to spec, in the model's order.
        outputs: Output name to spec.
        batch_size: The only one that it takes; None for any.
        raw: What makes the inputs of raw features, where there is such.
    """

    model: keras.Model
    pack: Callable[[dict[str, Any]], Any]
    call: Callable[[Tensors], Tensors]
    function: Any
    inputs: Specs
    outputs: Specs
    batch_size: int | None = None
    raw: Raw | None = None

    def arrays(self, batch: Any, argument: str) -> Arrays:
        """Bring a batch, of raw features where there are such, to the model's inputs.

        Args:
            batch: As the model, or the preprocessing, takes it.
            argument: What the caller calls it, for errors.
        """
        if self.raw is None:
            return to_arrays(batch, self.inputs, argument)
        tensors = self.raw.call(tensors_of(to_arrays(batch, self.raw.inputs, argument)))
        prepared = {name: tensor.numpy() for name, tensor in tensors.items()}
        return to_arrays(prepared, self.inputs, "preprocessing")


def serve(
    model: keras.Model,
    example_batch: Any,
    *,
    batch_size: int | None = None,
    preprocessing: keras.layers.Layer | None = None,
) -> Served:
    """Trace `model` in inference mode under stable names.

    Args:
        model: A built model.
        example_batch: As the model, or else `preprocessing`, takes it.
        batch_size: The only one that the function takes; None for any.
        preprocessing: Makes the model's inputs of raw features.
    """
    prepared = example_batch
    if preprocessing is not None:
        raw_inputs = signature.input_specs(preprocessing, example_batch, batch_size)
        pack_raw = signature.packing(preprocessing, example_batch)
        raw_arrays = to_arrays(example_batch, raw_inputs, "example_batch")
        prepared = keras.tree.map_structure(
            lambda tensor: tensor.numpy(),
            preprocessing(pack_raw(tensors_of(raw_arrays)), training=False),
        )
    inputs = signature.input_specs(model, prepared, batch_size)
    pack = signature.packing(model, prepared)

    def call(tensors: Tensors) -> Tensors:
        # TensorFlow hands a dict over in sorted order; a list needs the model's own.
        packed = pack({name: tensors[name] for name in inputs})
        outputs = model(packed, training=False)
        return signature.name_outputs(model, outputs, inputs)

    function, outputs = _traced(call, inputs)
    raw = None
    if preprocessing is not None:

        def prepare(tensors: Tensors) -> Tensors:
            packed = pack_raw({name: tensors[name] for name in raw_inputs})
            made = preprocessing(packed, training=False)
            return by_name(made, list(inputs), "preprocessing")

        raw_function, _ = _traced(lambda t: call(prepare(t)), raw_inputs)
        raw = Raw(preprocessing, prepare, raw_function, raw_inputs)
    return Served(model, pack, call, function, inputs, outputs, batch_size, raw)


def tensors_of(arrays: Arrays) -> Tensors:
    """Make tensors of named arrays."""
    return {name: tf.constant(array) for name, array in arrays.items()}


def trace(call: Callable[[Tensors], Tensors], inputs: Specs) -> Any:
    """Make a `tf.function`, with operations that the converters know."""

    def traced(tensors: Tensors) -> Tensors:
        with convertible():
            return call(tensors)

    return tf.function(traced, input_signature=[inputs], autograph=False)


def _traced(call: Callable[[Tensors], Tensors], inputs: Specs) -> tuple[Any, Specs]:
    function = trace(call, inputs)
    traced = function.get_concrete_function().structured_outputs
    outputs = {
        name: tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
        for name, tensor in traced.items()
    }
    return function, outputs

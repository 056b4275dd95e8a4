"""The traced function from which every format is made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_distill.export import signature, state, tracing
from keras_distill.export.batches import Arrays, by_name, to_arrays
from keras_distill.export.callbacks import refuse_callbacks
from keras_distill.export.convertible import convertible
from keras_distill.export.names import any_name
from keras_distill.export.seeds import Drawn, frozen
from keras_distill.export.signature import Specs

Tensors = dict[str, tf.Tensor]


@dataclass(frozen=True)
class Raw:
    """A preprocessing before a model.

    Attributes:
        preprocessing: The layer that computes the model's inputs from raw features.
        call: Computes the model's named inputs from named raw tensors.
        function: A `tf.function` from named raw tensors to the model's named outputs.
        inputs: Name of a raw input to spec.
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
        pack: Converts named inputs to the structure that the model reads.
        call: The same as `function`, but untraced, and so computed by Keras itself.
        function: A `tf.function` from named inputs to named outputs, in inference mode.
        inputs: Input name to spec, in the model's order.
        outputs: Output name to spec.
        batch_size: The only batch size of the function; None for any.
        raw: The preprocessing; None without one.
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
        """Return a caller's batch as named inputs of the model.

        Args:
            batch: A batch for the preprocessing if there is one, else for the model.
            argument: The caller's name for it, for errors.
        """
        if self.raw is None:
            return to_arrays(batch, self.inputs, argument)
        return self.prepare(to_arrays(batch, self.raw.inputs, argument))

    def prepare(self, raw: Arrays) -> Arrays:
        """Compute the model's inputs with the preprocessing, if there is one."""
        if self.raw is None:
            return raw
        tensors = self.raw.call(tensors_of(raw))
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
        example_batch: A batch for `preprocessing` if it isn't None, else for the model.
        batch_size: The only batch size of the function; None for any.
        preprocessing: Computes the model's inputs from raw features.
    """
    state.refuse_stateful(model)
    prepared = example_batch
    if preprocessing is not None:
        state.refuse_stateful(preprocessing)
        raw_inputs = signature.input_specs(preprocessing, example_batch, batch_size)
        pack_raw = signature.packing(preprocessing, example_batch)
        raw_arrays = to_arrays(example_batch, raw_inputs, "example_batch")

        def preprocess(tensors: Tensors) -> Any:
            packed = pack_raw({name: tensors[name] for name in raw_inputs})
            return tracing.call(preprocessing, packed, raw_inputs)

        _concrete(preprocess, raw_inputs, [preprocessing])
        prepared = keras.tree.map_structure(
            lambda tensor: tensor.numpy(), preprocess(tensors_of(raw_arrays))
        )
    inputs = signature.input_specs(model, prepared, batch_size)
    pack = signature.packing(model, prepared)

    def call(tensors: Tensors) -> Tensors:
        # TensorFlow sorts dicts by name, but a list needs the order of the model.
        packed = pack({name: tensors[name] for name in inputs})
        outputs = tracing.call(model, packed, inputs)
        return signature.name_outputs(model, outputs, inputs)

    function, outputs = traced(call, inputs, [model])
    raw = None
    if preprocessing is not None:

        def prepare(tensors: Tensors) -> Tensors:
            return by_name(preprocess(tensors), list(inputs), "preprocessing")

        raw_function, _ = traced(lambda t: call(prepare(t)), raw_inputs)
        raw = Raw(preprocessing, prepare, raw_function, raw_inputs)
    return Served(model, pack, call, function, inputs, outputs, batch_size, raw)


def tensors_of(arrays: Arrays) -> Tensors:
    """Return named arrays as tensors."""
    return {name: tf.constant(array) for name, array in arrays.items()}


def trace(
    call: Callable[[Tensors], Tensors], inputs: Specs, drawn: Drawn | None = None
) -> Any:
    """Make a `tf.function`, with operations that the converters know.

    Args:
        call: Computes named tensors from named tensors.
        inputs: Input name to spec.
        drawn: The list to which the seeds that the call draws are added. They are
            constants in the function.
    """
    seeds = Drawn() if drawn is None else drawn

    # TensorFlow reserves the argument's name, so it is one that no input has.
    def converted(tensors_that_are_served_by_name: Tensors) -> Tensors:
        with convertible(), any_name(), frozen(seeds):
            return call(tensors_that_are_served_by_name)

    return tf.function(converted, input_signature=[inputs], autograph=False)


def traced(
    call: Callable[[Tensors], Tensors],
    inputs: Specs,
    models: Sequence[keras.layers.Layer] = (),
) -> tuple[Any, Specs]:
    """Trace a call of named tensors; return the function and its outputs' specs.

    Raises:
        ValueError: If the call updates the state of one of `models`.
    """
    function, concrete = _concrete(call, inputs, models)
    outputs = {
        name: tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
        for name, tensor in concrete.structured_outputs.items()
    }
    return function, outputs


def _concrete(
    call: Callable[[Tensors], Any], inputs: Specs, models: Sequence[keras.layers.Layer]
) -> tuple[Any, Any]:
    """Return a `tf.function` and its graph; refuse what no format can represent."""
    drawn = Drawn()
    function = trace(call, inputs, drawn)
    concrete = function.get_concrete_function()
    again = trace(call, inputs)
    state.refuse_random(drawn.of_outputs(), models)
    state.refuse_updates(again.get_concrete_function, concrete, models)
    refuse_callbacks(concrete, again.get_concrete_function)
    return function, concrete

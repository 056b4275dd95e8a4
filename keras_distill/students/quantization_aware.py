"""Quantisation-aware training of students."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_distill.fake_quantization import (
    FakeQuantizer,
    Offset,
    QuantizedWeights,
    Scale,
    quantizers,
)
from keras_distill.students.graph import graph_of, nodes_of
from keras_distill.types import Nested, Tensor

_BITS = {"int8": 8, "int4": 4}
# Layers whose operators in LiteRT support integer weights, also of 4 bits.
_WITH_WEIGHTS = (layers.Conv1D, layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
# Layers whose outputs are values of their inputs, so that the range is the same.
_PASSING = (
    layers.ActivityRegularization,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Dropout,
    layers.Flatten,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.Identity,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.Permute,
    layers.Reshape,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
)
# The ranges that LiteRT prescribes for outputs of these.
_PRESCRIBED: dict[str, tuple[float, ...]] = {
    "sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}
# The number of examples in a batch of calibration.
_BATCH = 32


def quantization_aware(
    student: keras.Model,
    weights: str = "int8",
    activations: str | None = "int8",
    *,
    calibration_data: Any = None,
    name: str | None = None,
) -> keras.Model:
    """Return a copy of a student that computes as an integer runtime would.

    Each call rounds the weights, the inputs, the outputs and the values between layers.
    Training adapts the float weights to the rounding. The calibration data determine
    the ranges of activations. Training doesn't change these ranges. A
    BatchNormalization becomes part of the convolution or dense layer before it, or two
    layers of constants.

    `keras_distill.export` with `quantize="int8"` writes the copy as a LiteRT file. It
    uses these ranges and needs no further calibration data.

    At 8 bits, training gains nothing over well-calibrated ranges, which the export of a
    float model has too. At 4 bits, it regains most of what rounding loses. In our runs
    (`benchmarks/int8_ranges.py`), it made no difference whether the copy learned from
    labels or from the float student.

    Args:
        student: A built and trained Functional or Sequential model. It isn't changed.
        weights: `"int8"` or `"int4"`.
        activations: `"int8"`, or None for floats. None needs `weights="int8"`, because
            LiteRT has no 4-bit weights with float activations.
        calibration_data: A few hundred typical inputs, as the student reads them. None
            if `activations` is None.
        name: The name of the copy.

    Returns:
        An uncompiled Keras model with weights of its own.

    Raises:
        TypeError: If `student` isn't a Keras model.
        ValueError: If an argument isn't usable, or if `student` is subclassed, shares
            layers or has layers whose weights can't be rounded. The error names them.

    Example:
    >>> import keras, numpy as np
    >>> import keras_distill as kd
    >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> data = np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
    >>> trained = kd.students.quantization_aware(student, calibration_data=data)
    >>> distiller = kd.Distiller(trained, teacher=student)

    Reference: "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", https://arxiv.org/abs/1712.05877
    """
    graph = _checked(student)
    _check_precisions(weights, activations)
    if (calibration_data is None) != (activations is None):
        raise ValueError(
            "`calibration_data` must hold a few hundred typical inputs where "
            "activations are rounded, and nothing is calibrated where they aren't. "
            f"Received: activations={activations!r}, "
            f"calibration_data={_shown(calibration_data)}."
        )
    if activations is not None:
        _check_data(calibration_data)
    copying = _Copying(_BITS[weights], activations is not None)
    copy = copying.model(graph, name or f"{student.name}_quantization_aware")
    if activations is not None:
        _calibrate(copy, calibration_data)
    return copy


def _checked(student: Any) -> Any:
    """Return the graph of a student. Raise an error with the reason if it is unfit."""
    if not isinstance(student, keras.Model):
        raise TypeError(f"`student` must be a Keras model. Received: {student!r}")
    if isinstance(student, keras.Sequential) and not student.built:
        raise ValueError(
            "`student` must be built: begin it with `keras.Input(shape)`. "
            f"Received: student={student.name!r}, which isn't built."
        )
    graph = graph_of(student)
    if graph is None:
        raise ValueError(
            "`student` must be a Functional or Sequential model, whose layers Keras "
            f"knows in their order. Received: student={student.name!r} of the class "
            f"{type(student).__name__}. Its file is quantised without training by "
            "`keras_distill.export.export(..., quantize='int8')`."
        )
    shared = [name for name, count in _calls(graph).items() if count > 1]
    if shared:
        raise ValueError(
            "`student` must call each layer once, as each call has ranges of its own. "
            f"Received: student={student.name!r}, which calls {shared} more often."
        )
    refused = [
        f"{layer.name!r} ({type(layer).__name__})"
        for layer in _operations(graph)
        if type(layer) not in _WITH_WEIGHTS
        and any(len(weight.shape) > 1 for weight in getattr(layer, "weights", ()))
    ]
    if refused:
        known = ", ".join(kind.__name__ for kind in _WITH_WEIGHTS)
        raise ValueError(
            f"`student` must have its weights in the layers {known}. Received: "
            f"{', '.join(refused)}. Its file is quantised without training by "
            "`keras_distill.export.export(..., quantize='int8')`."
        )
    return graph


def _check_precisions(weights: Any, activations: Any) -> None:
    if weights not in _BITS:
        raise ValueError(
            f"`weights` must be one of {list(_BITS)}. Received: weights={weights!r}."
        )
    if activations not in ("int8", None):
        raise ValueError(
            "`activations` must be 'int8', or None for floats. "
            f"Received: activations={activations!r}."
        )
    if activations is None and weights == "int4":
        raise ValueError(
            "`activations` must be 'int8' for weights in 4 bits: no runtime has them "
            "beside floats. Received: weights='int4', activations=None."
        )


def _check_data(data: Nested) -> None:
    """Raise where values of the calibration data can't be those of real inputs."""
    for values in keras.tree.flatten(data):
        array = np.asarray(values)
        if array.ndim == 0 or array.size == 0:
            raise ValueError(
                "`calibration_data` must hold arrays of at least one example. "
                f"Received: {_shown(values)}."
            )
        if array.dtype.kind != "f":
            continue
        if not np.isfinite(array).all():
            bad = array[~np.isfinite(array)]
            raise ValueError(
                "`calibration_data` must be finite. Received: "
                f"{bad.size} values as {bad.flat[0]}."
            )
        if array.min() == array.max():
            raise ValueError(
                "`calibration_data` must vary, as it shows the range of each layer. "
                f"Received: the value {array.flat[0]} alone."
            )


def _shown(data: Any) -> str:
    shape = getattr(data, "shape", None)
    return f"a {type(data).__name__}" + (f" of shape {shape}" if shape else "")


def _operations(graph: Any) -> Iterator[Any]:
    """Yield the operation of each call. A nested model yields its own operations."""
    for node in nodes_of(graph):
        inner = graph_of(node.operation)
        if inner is None:
            yield node.operation
        else:
            yield from _operations(inner)


def _calls(graph: Any) -> dict[str, int]:
    """Return the number of calls of each layer by its name."""
    counts: dict[int, int] = {}
    names: dict[int, str] = {}
    for layer in _operations(graph):
        if isinstance(layer, keras.Layer):
            counts[id(layer)] = counts.get(id(layer), 0) + 1
            names[id(layer)] = layer.name
    return {names[key]: count for key, count in counts.items()}


def _calibrate(model: keras.Model, data: Nested) -> None:
    """Set the ranges of a model's quantisers to those of data."""
    found = quantizers(model)
    for quantizer in found:
        quantizer.observes = quantizer.low is None
    size = len(np.asarray(keras.tree.flatten(data)[0]))
    for begin in range(0, size, _BATCH):
        batch = keras.tree.map_structure(
            lambda values, begin=begin: np.asarray(values)[begin : begin + _BATCH], data
        )
        model(batch, training=False)
    for quantizer in found:
        quantizer.observes = False
        # Values that are 0 in all examples need a scale too.
        if quantizer.low == quantizer.high:
            quantizer.high = keras.config.epsilon()


class _Copying:
    """Copies models with layers that round.

    Args:
        bits: The number of bits of the weights.
        activations: Whether activations are rounded.
    """

    def __init__(self, bits: int, activations: bool) -> None:
        self.bits = bits
        self.activations = activations

    def model(self, graph: Any, name: str) -> keras.Model:
        """Return the copy of a model."""
        inputs = keras.tree.map_structure(_input_like, graph._inputs_struct)
        pairs = zip(graph.inputs, keras.tree.flatten(inputs), strict=True)
        # The copies of the graph's tensors, rounded if needed, by the tensor's id.
        copies = {
            id(old): FakeQuantizer(name=f"{new.name}_rounded")(new)
            if self.activations and _is_float(new)
            else new
            for old, new in pairs
        }
        readers = _readers(graph)
        for node in nodes_of(graph):
            args, kwargs = node.arguments.fill_in(copies)
            outputs = self._called(node, args, kwargs, readers)
            for old, new in zip(node.outputs, keras.tree.flatten(outputs), strict=True):
                copies[id(old)] = new
        outputs = keras.tree.map_structure(
            lambda tensor: copies[id(tensor)], graph._outputs_struct
        )
        return keras.Model(inputs, outputs, name=name)

    def _called(
        self, node: Any, args: Any, kwargs: Any, readers: dict[int, list[Any]]
    ) -> Any:
        """Return the output of a copied call, rounded.

        The last layer of the copy has the name of the operation.
        """
        operation = node.operation
        inner = graph_of(operation)
        if inner is not None:
            return self.model(inner, operation.name)(*args, **kwargs)
        if _is_folded(node, readers):
            # It is a part of the layer before, which rounds after it.
            return args[0]
        norm = _normalisation_after(node, readers)
        made = node if norm is None else _only_reader(node, readers)
        name = made.operation.name
        rounds = self._rounds(node, made, readers)
        last = f"{name}_unrounded" if rounds else name
        if isinstance(operation, layers.BatchNormalization):
            outputs = self._normalised(operation, args[0], last)
        elif isinstance(operation, _WITH_WEIGHTS):
            outputs = self._weighted(operation, norm, args[0], last)
        else:
            config = operation.get_config() | {"name": last}
            copy = type(operation).from_config(config)
            outputs = copy(*args, **kwargs)
            if isinstance(operation, keras.Layer):
                copy.set_weights(operation.get_weights())
        if not rounds:
            return outputs
        given = _PRESCRIBED.get(_function_name(operation), ())
        rounded = [
            FakeQuantizer(*given, name=f"{name}_{i}" if i else name)(tensor)
            for i, tensor in enumerate(keras.tree.flatten(outputs))
        ]
        return keras.tree.pack_sequence_as(outputs, rounded)

    def _rounds(self, node: Any, made: Any, readers: dict[int, list[Any]]) -> bool:
        """Return whether the outputs of a call are rounded."""
        operation = node.operation
        is_passing = isinstance(operation, _PASSING)
        are_floats = all(map(_is_float, node.outputs))
        is_linear = getattr(operation, "activation", None) in (
            None,
            keras.activations.linear,
        )
        fuses = is_linear and _fuses(made, readers)
        return self.activations and are_floats and not is_passing and not fuses

    def _weighted(self, layer: Any, norm: Any, x: Any, name: str) -> Any:
        """Return the output, after the activation, of a layer with rounded weights."""
        if layer.activity_regularizer is not None:
            raise ValueError(
                "Layers must have no `activity_regularizer`; add an "
                f"`ActivityRegularization` layer. Received: {layer.name!r} with "
                f"{layer.activity_regularizer}."
            )
        is_linear = layer.activation is keras.activations.linear
        config = layer.get_config()
        config |= {"activation": None, "use_bias": layer.use_bias or norm is not None}
        copy = type(layer).from_config(config)
        linear = name if is_linear else f"{layer.name}_linear"
        output = QuantizedWeights(copy, self.bits, name=linear)(x)
        _fill(copy, layer, norm)
        if is_linear:
            return output
        activation = layers.Activation(layer.activation, name=name)
        if self.activations and not _is_fused(activation):
            output = FakeQuantizer(name=f"{layer.name}_linear_rounded")(output)
        return activation(output)

    def _normalised(self, layer: Any, x: Any, name: str) -> Any:
        """Return the output of a BatchNormalization by two layers of constants."""
        if layer.axis not in (-1, len(x.shape) - 1):
            raise ValueError(
                "A BatchNormalization must normalise the last axis. Received: "
                f"axis={layer.axis} of {layer.name!r}."
            )
        dtype = layer.dtype_policy.name
        scale = Scale(name=f"{layer.name}_scale", dtype=dtype)
        shift = Offset(name=name, dtype=dtype)
        product = scale(x)
        if self.activations:
            product = FakeQuantizer(name=f"{layer.name}_product")(product)
        output = shift(product)
        for part, values in zip((scale, shift), _constants(layer), strict=True):
            part.value.assign(values)
            part.trainable = layer.trainable
        return output


def _is_float(tensor: Any) -> bool:
    return bool(keras.backend.is_float_dtype(tensor.dtype))


def _input_like(tensor: Any) -> Any:
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)


def _readers(graph: Any) -> dict[int, list[Any]]:
    """Return the calls that read each tensor, by its id; None stands for outputs."""
    readers: dict[int, list[Any]] = {}
    for node in nodes_of(graph):
        for tensor in node.input_tensors:
            readers.setdefault(id(tensor), []).append(node)
    for tensor in graph.outputs:
        readers.setdefault(id(tensor), []).append(None)
    return readers


def _only_reader(node: Any, readers: dict[int, list[Any]]) -> Any:
    """Return the call that alone reads the output of a call, None without one."""
    found = readers.get(id(node.outputs[0]), [])
    return found[0] if len(node.outputs) == len(found) == 1 else None


def _normalisation_after(node: Any, readers: dict[int, list[Any]]) -> Any:
    """Return the BatchNormalization that becomes part of a layer, None without."""
    layer = node.operation
    reader = _only_reader(node, readers)
    if not isinstance(layer, _WITH_WEIGHTS) or reader is None:
        return None
    is_linear = layer.activation is keras.activations.linear
    norm = reader.operation
    is_norm = isinstance(norm, layers.BatchNormalization)
    axis = len(node.outputs[0].shape) - 1
    return norm if is_linear and is_norm and norm.axis in (-1, axis) else None


def _is_folded(node: Any, readers: dict[int, list[Any]]) -> bool:
    """Return whether a call is a BatchNormalization folded into the layer before it."""
    if not isinstance(node.operation, layers.BatchNormalization):
        return False
    history = node.input_tensors[0]._keras_history
    before = history.operation._inbound_nodes[history.node_index]
    return _normalisation_after(before, readers) is node.operation


def _fuses(node: Any, readers: dict[int, list[Any]]) -> bool:
    """Return whether LiteRT fuses a call with the activation that alone reads it."""
    kinds = (*_WITH_WEIGHTS, layers.BatchNormalization, layers.Add)
    is_sum = type(node.operation).__name__ == "Add"
    if not isinstance(node.operation, kinds) and not is_sum:
        return False
    reader = _only_reader(node, readers)
    return reader is not None and _is_fused(reader.operation)


def _is_fused(operation: Any) -> bool:
    """Return whether LiteRT can fuse an activation with other operators."""
    if isinstance(operation, layers.ReLU):
        plain = not operation.negative_slope and not operation.threshold
        return plain and operation.max_value in (None, 6)
    return _function_name(operation) in ("relu", "relu6")


def _function_name(operation: Any) -> str:
    """Return the name of the function that an operation applies last."""
    function = getattr(operation, "activation", None)
    if function in (None, keras.activations.linear):
        return type(operation).__name__.lower()
    return str(getattr(function, "__name__", function))


def _fill(copy: Any, layer: Any, norm: Any) -> None:
    """Set the weights of a copied layer, with a BatchNormalization folded in."""
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    if norm is None:
        copy.set_weights(layer.get_weights())
        return
    factor, offset = _constants(norm)
    bias = keras.ops.convert_to_numpy(layer.bias) if layer.use_bias else 0.0
    shape = kernel.shape[2:] if isinstance(layer, layers.DepthwiseConv2D) else (-1,)
    copy.set_weights([kernel * factor.reshape(shape), bias * factor + offset])


def _constants(norm: Any) -> tuple[Tensor, Tensor]:
    """Return the factor and the offset of a BatchNormalization in inference."""
    mean, variance = map(
        keras.ops.convert_to_numpy, (norm.moving_mean, norm.moving_variance)
    )
    factor = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        factor = factor * keras.ops.convert_to_numpy(norm.gamma)
    offset = -mean * factor
    if norm.center:
        offset = offset + keras.ops.convert_to_numpy(norm.beta)
    return factor, offset

"""The format ONNX, written by tf2onnx and run by ONNX Runtime."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_distill import standard_error
from keras_distill.export import (
    freezing,
    onnx_memory,
    onnx_operators,
    onnx_quantization,
    onnx_rounded,
)
from keras_distill.export.batches import Arrays
from keras_distill.export.formats import FULL, Conversion, Format, Loaded, Refusal
from keras_distill.export.onnx_padding import keep_padding
from keras_distill.export.patching import replaced
from keras_distill.export.portability import described, unportable_layers
from keras_distill.export.quiet import quiet
from keras_distill.export.serving import Served, Tensors, trace
from keras_distill.fake_quantization import quantizers

# The newest opset that tf2onnx writes. Its default is 15.
OPSET = 18
# Weights of this size and more bypass tf2onnx, which copies each weight tens of times.
_LARGE = 2**20
# The largest protobuf message, and so the largest ONNX file.
_LARGEST_FILE = 2**31 - 1

Weights = dict[str, keras.Variable]


def write(conversion: Conversion, path: Path) -> None:
    """Write an ONNX file. If the first axes are open, they are named `batch`."""
    if conversion.precision == FULL:
        _write_full(conversion.served, path)
    else:
        onnx_quantization.write(conversion, path.with_name(FORMAT.file), path)


def load(path: Path, threads: int | None = None) -> Loaded:
    """Load an artefact with ONNX Runtime on the CPU."""
    loaded = _load(path, threads, optimize=True)
    return replace(loaded, unoptimized=lambda: _load(path, threads, optimize=False))


def _load(path: Path, threads: int | None, *, optimize: bool) -> Loaded:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # Errors aren't logged either: they are raised.
    if not optimize:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    # The level of a session doesn't apply to its kernels.
    with standard_error.without(onnx_quantization.LOG_LINES):
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    outputs = [value.name for value in session.get_outputs()]

    def run(arrays: Arrays) -> Arrays:
        return dict(zip(outputs, session.run(outputs, arrays), strict=True))

    return Loaded(
        frozenset(value.name for value in session.get_inputs()),
        frozenset(outputs),
        run,
    )


def _write_full(served: Served, path: Path) -> None:
    import onnx
    import tf2onnx

    _refuse_unportable(served.model)
    weights = _large_weights(served)
    function, specs = _with_weights_as_inputs(served, weights)
    # The loggers of tf2onnx's modules pass their records to this one.
    with quiet("tf2onnx", "tensorflow", "absl") as errors, _transposes_kept():
        converted = _without_captures(function, specs, served.outputs)
        proto, _ = onnx_memory.convert(
            lambda: tf2onnx.convert.from_function(
                converted,
                input_signature=[specs],
                opset=OPSET,
                custom_op_handlers=onnx_operators.handlers(),
            ),
            weights=sum(math.prod(weight.shape) for weight in served.model.weights),
        )
    # tf2onnx continues after an error, and makes a file that no runtime loads. It also
    # reports failed rewrites as errors, but these are harmless.
    unsupported = [line for line in errors if "is not supported" in line]
    unconverted = [line for line in errors if line.startswith("Failed to convert")]
    if unsupported or unconverted:
        raise ValueError("; ".join(unsupported or unconverted))
    for value in [*proto.graph.input, *proto.graph.output]:
        if value.name not in weights:
            _name_open_axes(value)
    keep_padding(proto)
    # ONNX Runtime would round float weights again if their activations are rounded.
    if quantizers(served.model):
        onnx_rounded.in_integers(proto)
    onnx.checker.check_model(proto, full_check=True)
    _write_with_weights(proto, weights, path)


def _transposes_kept() -> AbstractContextManager[None]:
    """Make tf2onnx keep transposes of maps of one pixel.

    It would replace them by reshapes. Their shapes may be outdated, as tf2onnx also
    moves other transposes. Then a LayerNormalization over a pixel reads units as rows.
    """
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

    return replaced(
        TransposeOptimizer, {"post_optimize_action": lambda _: lambda self: None}
    )


def _refuse_unportable(model: keras.Model) -> None:
    layers = unportable_layers(model)
    if layers:
        raise Refusal(
            f"ONNX has no operators for the layers {described(layers)}: split them off "
            "with `keras_distill.export.split_preprocessing(model)`, or with "
            "`--split-preprocessing` on the command line"
        )


def _large_weights(served: Served) -> Weights:
    """Return the large weights that may become inputs of the traced function, by name.

    Those of recurrent and convolutional layers must be constants for tf2onnx, which
    fuses loops and transposes kernels.
    """
    large = [
        weight
        for layer in _layers(served.model)
        if isinstance(layer, keras.layers.Dense | keras.layers.Embedding)
        for weight in layer.weights
        if weight.dtype == "float32"
        and tf.TensorShape(weight.shape).num_elements() >= _LARGE
    ]
    unique = {id(weight): weight for weight in large}
    return {f"weight_{i}": weight for i, weight in enumerate(unique.values())}


def _layers(model: keras.Model) -> list[keras.layers.Layer]:
    return [
        layer
        for layer in tf.train.TrackableView(model).descendants()
        if isinstance(layer, keras.layers.Layer)
    ]


def _with_weights_as_inputs(
    served: Served, weights: Weights
) -> tuple[Any, dict[str, tf.TensorSpec]]:
    if not weights:
        return served.function, served.inputs
    specs = dict(served.inputs)
    for name, weight in weights.items():
        # TensorFlow's optimiser makes a tensor for every input of known shape.
        unknown = [None] * len(weight.shape)
        specs[name] = tf.TensorSpec(unknown, weight.dtype, name=name)

    def call(tensors: Tensors) -> Tensors:
        given = [
            (weight, tf.ensure_shape(tensors[name], weight.shape))
            for name, weight in weights.items()
        ]
        with keras.StatelessScope(state_mapping=given):
            return served.call({name: tensors[name] for name in served.inputs})

    return trace(call, specs), specs


def _write_with_weights(proto: Any, weights: Weights, path: Path) -> None:
    """Write a model; its inputs that are `weights` become constants.

    Parts of a protobuf message that are written one after the other are read as one
    message. So memory has a second copy of at most one large weight at a time.
    """
    import onnx

    total = proto.ByteSize() + sum(w.numpy().nbytes for w in weights.values())
    if total > _LARGEST_FILE:
        raise Refusal(f"its file would have {total:,} bytes, and ONNX ends at 2 GB")
    inputs = [value for value in proto.graph.input if value.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    with path.open("wb") as file:
        file.write(proto.SerializeToString())
        for name, weight in weights.items():
            tensor = onnx.numpy_helper.from_array(weight.numpy(), name)
            part = onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor]))
            file.write(part.SerializeToString())


def _without_captures(
    function: Any, inputs: dict[str, tf.TensorSpec], outputs: Iterable[str]
) -> Callable[[Tensors], Tensors]:
    """Return the function with captured tensors as constants.

    tf2onnx would convert every captured tensor, e.g. the mean and variance of a
    `Normalization` layer, to a required input.
    """
    concrete = function.get_concrete_function()
    if not freezing.needs_freezing(concrete):
        kept: Callable[[Tensors], Tensors] = function
        return kept
    frozen = freezing.freeze(concrete)
    if len(frozen.inputs) != len(inputs):
        raise ValueError("the model holds lookup tables, which can't become constants")

    def call(tensors: Tensors) -> Tensors:
        # A frozen function has flat lists as inputs and outputs, sorted by name.
        values = frozen(*(tensors[name] for name in sorted(inputs)))
        return dict(zip(sorted(outputs), values, strict=True))

    frozen_function: Callable[[Tensors], Tensors] = tf.function(
        call, input_signature=[inputs], autograph=False
    )
    return frozen_function


def _name_open_axes(value: Any) -> None:
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if not dim.HasField("dim_value"):
            dim.dim_param = "batch" if axis == 0 else f"{value.name}_axis_{axis}"


FORMAT = Format(
    name="onnx",
    file="model.onnx",
    precisions=("float16", "dynamic_int8", "int8"),
    extra="onnx",
    modules={"tf2onnx": "tf2onnx", "onnx": "onnx", "onnxruntime": "onnxruntime"},
    write=write,
    load=load,
    weights=onnx_quantization.weights,
)

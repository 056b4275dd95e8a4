"""ONNX by tf2onnx, read back by ONNX Runtime."""

from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_distill.export.batches import Arrays
from keras_distill.export.formats import Format, Loaded
from keras_distill.export.quiet import quiet
from keras_distill.export.serving import Served, Tensors

# The newest that tf2onnx writes; it takes 15 unless told.
OPSET = 18


def write(served: Served, path: Path) -> None:
    """Write an ONNX file whose first axes are called `batch`."""
    import tf2onnx

    # The tf2onnx module loggers hand their records up to this one.
    with quiet("tf2onnx", "tensorflow", "absl") as errors:
        proto, _ = tf2onnx.convert.from_function(
            _without_captures(served), input_signature=[served.inputs], opset=OPSET
        )
    # tf2onnx goes on after an error, to a file that no runtime loads. Failed rewrites
    # are among the errors too, and harmless.
    unsupported = [line for line in errors if "is not supported" in line]
    unconverted = [line for line in errors if line.startswith("Failed to convert")]
    if unsupported or unconverted:
        raise ValueError("; ".join(unsupported or unconverted))
    for value in [*proto.graph.input, *proto.graph.output]:
        _name_open_axes(value)
    path.write_bytes(proto.SerializeToString())


def load(path: Path) -> Loaded:
    """Load it with ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    outputs = [value.name for value in session.get_outputs()]

    def run(arrays: Arrays) -> Arrays:
        return dict(zip(outputs, session.run(outputs, arrays), strict=True))

    return Loaded(
        frozenset(value.name for value in session.get_inputs()),
        frozenset(outputs),
        run,
    )


def _without_captures(served: Served) -> Any:
    """Return the function with captured tensors as constants.

    tf2onnx makes a required input of every tensor that a function captures, such as
    the mean and variance of a `Normalization` layer.
    """
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    concrete = served.function.get_concrete_function()
    if all(tensor.dtype == tf.resource for tensor in concrete.captured_inputs):
        return served.function
    # Lowered control flow would turn the loops of LSTM and GRU into what tf2onnx
    # can't convert.
    frozen = convert_variables_to_constants_v2(
        concrete, lower_control_flow=False, aggressive_inlining=True
    )
    if len(frozen.inputs) != len(served.inputs):
        raise ValueError(
            "the model holds lookup tables (StringLookup, IntegerLookup, "
            "TextVectorization), which can't become constants"
        )

    def call(tensors: Tensors) -> Tensors:
        # A frozen function takes and gives flat lists, in the sorted order of dicts.
        outputs = frozen(*(tensors[name] for name in sorted(served.inputs)))
        return dict(zip(sorted(served.outputs), outputs, strict=True))

    return tf.function(call, input_signature=[served.inputs], autograph=False)


def _name_open_axes(value: Any) -> None:
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if not dim.HasField("dim_value"):
            dim.dim_param = "batch" if axis == 0 else f"{value.name}_axis_{axis}"


FORMAT = Format(
    "onnx",
    "model.onnx",
    "onnx",
    {"tf2onnx": "tf2onnx", "onnx": "onnx", "onnxruntime": "onnxruntime"},
    write,
    load,
    (
        "split off the preprocessing (StringLookup, IntegerLookup, TextVectorization, "
        "Hashing) and compute in float32"
    ),
)

"""The format LiteRT (TensorFlow Lite), converted from the SavedModel."""

import dataclasses
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_distill import standard_error
from keras_distill.export import saved_model
from keras_distill.export.batches import Arrays
from keras_distill.export.formats import Conversion, Format, Loaded, Refusal
from keras_distill.export.litert_biases import unbiased
from keras_distill.export.litert_graphs import quantized
from keras_distill.export.litert_ranges import exact_ranges
from keras_distill.export.portability import described
from keras_distill.export.quiet import quiet
from keras_distill.export.serving import trace
from keras_distill.fake_quantization import own_weights, quantizers

# Lines that the C++ library prints for every model.
_CHATTER = re.compile(
    rb"fully_quantize: |INFO: (Created TensorFlow Lite|Initialized TensorFlow Lite)"
)
# Precisions that need ranges of activations, from calibration data or from the model.
_STATIC = ("int8", "integer_only")


def write(conversion: Conversion, path: Path) -> None:
    """Convert with LiteRT's own operators only, so that the plain runtime runs them.

    TensorFlow's ("Flex") operators aren't available: no installable interpreter runs
    them, so such a file couldn't be compared with its model.
    """
    if conversion.precision in _STATIC:
        _refuse_loops(path.with_name(FORMAT.file), conversion.served.model)
    with tempfile.TemporaryDirectory() as scratch:
        source = path.with_name(saved_model.FORMAT.file)
        if _has_own_ranges(conversion):
            source = Path(scratch, saved_model.FORMAT.file)
            _write_with_own_weights(conversion, source)
        elif not source.exists():
            source = Path(scratch, saved_model.FORMAT.file)
            saved_model.write(conversion, source)
        # `from_concrete_functions` with a Keras 3 model writes a file that gives NaN.
        converter = tf.lite.TFLiteConverter.from_saved_model(
            str(source), signature_keys=[saved_model.SIGNATURE]
        )
        _configure(converter, conversion)
        # An error also contains the lines that the converter printed before it.
        silent = standard_error.without(_CHATTER, told_by=Exception)
        with quiet("tensorflow", "absl"), silent, exact_ranges() as calibrated:
            file = converter.convert()
            for each in calibrated:
                file = unbiased(file, each.file, each.samples)
        path.write_bytes(file)
    if conversion.precision == "integer_only" and _has_own_ranges(conversion):
        _refuse_floats(path)


def load(path: Path, threads: int | None = None) -> Loaded:
    """Load an artefact with the interpreter of `ai_edge_litert`."""
    from ai_edge_litert.interpreter import Interpreter

    with standard_error.without(_CHATTER):
        interpreter = Interpreter(model_path=str(path), num_threads=threads)
        # This makes the delegate, which prints a line. Open sizes are 1 here, which is
        # too small for some models.
        with suppress(RuntimeError, ValueError):
            interpreter.allocate_tensors()
        runner = interpreter.get_signature_runner(saved_model.SIGNATURE)
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    integers = {
        name: _integers(details)
        for name, details in {**inputs, **outputs}.items()
        if details["dtype"] == np.int8 and details["quantization"][0]
    }

    def run(arrays: Arrays) -> Arrays:
        given = {
            name: _quantized(array, integers[name]) if name in integers else array
            for name, array in arrays.items()
        }
        return {
            name: _dequantized(array, integers[name]) if name in integers else array
            for name, array in runner(**given).items()
        }

    return Loaded(frozenset(inputs), frozenset(outputs), run, integers)


def weights(path: Path) -> dict[str, int]:
    """Count the values of constants of two axes and more, by type."""
    from ai_edge_litert import schema_py_generated as schema

    types = {code: name.lower() for name, code in vars(schema.TensorType).items()}
    model = _read(path)
    counted: dict[str, int] = {}
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            is_constant = model.Buffers(tensor.Buffer()).DataLength() > 0
            if is_constant and tensor.ShapeLength() > 1:
                name = types[tensor.Type()]
                size = int(tensor.ShapeAsNumpy().prod())
                counted[name] = counted.get(name, 0) + size
    return counted


def _read(path: Path) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.Model.GetRootAs(path.read_bytes())


def _refuse_loops(path: Path, model: keras.Model) -> None:
    """Raise an error if the calibration of the file would end the process."""
    from ai_edge_litert import schema_py_generated as schema

    file, loop = _read(path), schema.BuiltinOperator.WHILE
    codes = map(file.OperatorCodes, range(file.OperatorCodesLength()))
    if not any(code.BuiltinCode() == loop for code in codes):
        return
    recurrent = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.RNN) and not layer.unroll
    ]
    raise Refusal(
        "it can't be calibrated, as it holds a loop",
        where=described(recurrent),
        remedy="give recurrent layers `unroll=True`" if recurrent else "",
    )


def _has_own_ranges(conversion: Conversion) -> bool:
    """Return whether an int8 file gets its ranges from layers of the model."""
    is_static = conversion.precision in _STATIC
    return is_static and bool(quantizers(conversion.served.model))


def _refuse_floats(path: Path) -> None:
    """Raise an error if operators of a file compute in floats, as they lack ranges."""
    from ai_edge_litert import schema_py_generated as schema

    file = _read(path)
    graphs = map(file.Subgraphs, range(file.SubgraphsLength()))
    tensors = (g.Tensors(i) for g in graphs for i in range(g.TensorsLength()))
    floats = [
        tensor.Name().decode()
        for tensor in tensors
        if tensor.Type() == schema.TensorType.FLOAT32
    ]
    if floats:
        raise Refusal(
            "it has layers without ranges inside, as LayerNormalization, which compute "
            f"{floats[0]!r} in floats",
            remedy="take 'int8', which may compute in floats inside",
        )


def _write_with_own_weights(conversion: Conversion, path: Path) -> None:
    """Write a SavedModel that contains the rounding of the weights as operations.

    If they were rounded constants, the converter would round them again, to 8 bits.
    """
    served = conversion.served
    function = trace(served.call, served.inputs)
    served = dataclasses.replace(served, function=function, raw=None)
    with own_weights():
        saved_model.write(dataclasses.replace(conversion, served=served), path)


def _configure(converter: Any, conversion: Conversion) -> None:
    precision = conversion.precision
    if precision not in FORMAT.precisions:
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision in _STATIC and not _has_own_ranges(conversion):
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]

        def samples() -> Iterator[tuple[str, Arrays]]:
            for batch in conversion.calibration:
                yield saved_model.SIGNATURE, batch

        converter.representative_dataset = samples
    if precision == "integer_only":
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8


def _integers(details: dict[str, Any]) -> dict[str, Any]:
    scale, zero_point = details["quantization"]
    return {"dtype": "int8", "scale": float(scale), "zero_point": int(zero_point)}


def _quantized(
    array: npt.NDArray[Any], integers: dict[str, Any]
) -> npt.NDArray[np.int8]:
    return quantized(array, integers["scale"], integers["zero_point"])


def _dequantized(
    array: npt.NDArray[Any], integers: dict[str, Any]
) -> npt.NDArray[np.float32]:
    steps = array.astype(np.float32) - integers["zero_point"]
    values: npt.NDArray[np.float32] = steps * np.float32(integers["scale"])
    return values


FORMAT = Format(
    name="litert",
    file="model.tflite",
    precisions=("float16", "dynamic_int8", "int8", "integer_only"),
    extra="litert",
    modules={"ai_edge_litert": "ai-edge-litert"},
    write=write,
    load=load,
    weights=weights,
)

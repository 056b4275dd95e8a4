"""Quantisation of ONNX to 16 and 8 bits, with ONNX Runtime's own tools."""

import math
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from keras_distill import standard_error
from keras_distill.export.batches import Arrays
from keras_distill.export.formats import Conversion
from keras_distill.export.onnx_graphs import graphs
from keras_distill.export.quiet import quiet

# The beginning of ONNX Runtime's lines that aren't errors, with or without colours.
LOG_LINES = re.compile(
    rb"(\x1b\[[0-9;]*m)*\d{4}-\d\d-\d\d [0-9:.]+ \[[VIW]:onnxruntime"
)
# Without convolutions, which in dynamic int8 are several times slower than in float32.
_DYNAMIC_OPERATORS = ("MatMul", "Gemm", "Gather", "Attention", "LSTM")
# ONNX Runtime aborts the process if one of these reads the output of an int8 `Gather`.
_HOLDING_GRAPHS = {"If", "Loop", "Scan"}


def write(conversion: Conversion, source: Path, path: Path) -> None:
    """Quantise the ONNX file `source` to the precision of a conversion."""
    if conversion.precision == "float16":
        _write_halves(source, path)
    elif conversion.precision == "int8" and not conversion.calibration:
        # The model contains ranges and rounded weights, and so does its file.
        shutil.copyfile(source, path)
    else:
        _write_integers(conversion, source, path)


def _write_halves(source: Path, path: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet("onnxruntime"):
        half = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    onnx.save(half, path)


def _write_integers(conversion: Conversion, source: Path, path: Path) -> None:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with (
        tempfile.TemporaryDirectory() as scratch,
        quiet("root", "onnxruntime"),
        standard_error.without(LOG_LINES),
    ):
        prepared = Path(scratch, "prepared.onnx")
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        if conversion.precision == "dynamic_int8":
            present = {node.op_type for node in onnx.load(prepared).graph.node}
            operators = {*_DYNAMIC_OPERATORS}
            if present & _HOLDING_GRAPHS:
                operators.remove("Gather")
            quantization.quantize_dynamic(
                prepared,
                path,
                op_types_to_quantize=sorted(operators),
                weight_type=quantization.QuantType.QInt8,
            )
        else:
            quantization.quantize_static(
                prepared,
                path,
                _reader(conversion.calibration),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
            )


def _reader(batches: Iterable[Arrays]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> Arrays | None:
            return next(self._batches, None)

    return Reader()


def weights(path: Path) -> dict[str, int]:
    """Count the values of constants of two axes and more, by type."""
    import onnx

    counted: dict[str, int] = {}
    for graph in graphs(onnx.load(path).graph):
        for tensor in graph.initializer:
            if len(tensor.dims) > 1:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
                size = math.prod(tensor.dims)
                counted[dtype.name] = counted.get(dtype.name, 0) + size
    return counted

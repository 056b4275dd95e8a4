"""The ranges of activations that a full-int8 LiteRT file is made with.

TensorFlow's calibration reads the inputs of each operator once more after the operator
ran. Where the operator computed in place, it then finds the output: the input of an
unfolded BatchNormalization gets the range of its product. Here each tensor is read from
an interpreter that gives every tensor memory of its own.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from keras_distill.export.batches import Arrays
from keras_distill.export.patching import replaced

# What a dataset of TensorFlow's calibration gives: the signature and its inputs.
Samples = Callable[[], Iterable[tuple[str, Arrays]]]


@contextmanager
def exact_ranges() -> Iterator[None]:
    """Calibrate by the values that tensors really have."""
    from tensorflow.lite.python.optimize.calibrator import Calibrator

    def make(original: Any) -> Any:
        # A function, so that it becomes a method.
        def calibrate(self: Any, dataset_gen: Samples) -> bytes:
            return corrected(original(self, dataset_gen), dataset_gen)

        return calibrate

    with replaced(Calibrator, {"calibrate": make}):
        yield


def corrected(file: bytes, samples: Samples) -> bytes:
    """Return a calibrated file with the ranges that its tensors really have.

    Variables and what an operator holds inside, as the gates of an LSTM, keep those
    that TensorFlow recorded. So do tensors of branches.

    Args:
        file: A float model whose tensors have a smallest and a largest value.
        samples: Makes the calibration data.
    """
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(file)
    graph = model.subgraphs[0]
    computed = set(_indices(graph.inputs))
    for node in graph.operators:
        computed.update(_indices(node.outputs))
    calibrated = {
        index: tensor.quantization
        for index, tensor in enumerate(graph.tensors)
        if index in computed and not tensor.isVariable and _has_range(tensor)
    }
    for index, (low, high) in _ranges(file, samples, list(calibrated)).items():
        calibrated[index].min, calibrated[index].max = [low], [high]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _indices(tensors: Any) -> Iterable[int]:
    """Return the tensors of an operator or a graph; the file has None for no tensor."""
    return () if tensors is None else tensors


def _has_range(tensor: Any) -> bool:
    return tensor.quantization is not None and tensor.quantization.min is not None


def _ranges(
    file: bytes, samples: Samples, indices: list[int]
) -> dict[int, tuple[float, float]]:
    """Return the smallest and the largest value of tensors that have any."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=file,
        # Delegates keep what they compute inside to themselves.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    found: dict[int, tuple[float, float]] = {}
    for signature, batch in samples():
        interpreter.get_signature_runner(signature)(**batch)
        for index in indices:
            values = interpreter.get_tensor(index)
            if values.size:
                low, high = found.get(index, (np.inf, -np.inf))
                found[index] = (
                    min(low, float(values.min())),
                    max(high, float(values.max())),
                )
    return found

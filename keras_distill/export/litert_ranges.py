"""The ranges of activations for a LiteRT file in full int8.

TensorFlow's calibration reads the inputs of each operator again after the operator ran.
If the operator computed in place, it reads the output instead: the input of an unfolded
BatchNormalization gets the range of its product. Here, the tensors are read from an
interpreter in which every tensor has its own memory. Before that, the channels of each
tensor are scaled to similar ranges.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from keras_distill.export.litert_equalization import equalized
from keras_distill.export.litert_graphs import Graph, Samples, computed_values
from keras_distill.export.patching import replaced

_HARD_SWISH = 117  # code of the schema
# For smaller inputs, the output of a hard swish is 0.
_HARD_SWISH_LEAST = -3.0


class Calibrated(NamedTuple):
    """A calibrated model.

    Args:
        file: The float file, with ranges.
        samples: Makes the calibration data.
    """

    file: bytes
    samples: Samples


@contextmanager
def exact_ranges() -> Iterator[list[Calibrated]]:
    """Make TensorFlow's calibration use the true values of tensors within this block.

    The models that TensorFlow calibrates in the block are added to the yielded list.
    """
    from tensorflow.lite.python.optimize.calibrator import Calibrator

    calibrated: list[Calibrated] = []

    def make(original: Any) -> Any:
        # A function, so that it becomes a method.
        def calibrate(self: Any, dataset_gen: Samples) -> bytes:
            file = equalized(original(self, dataset_gen), dataset_gen)
            file = corrected(file, dataset_gen)
            calibrated.append(Calibrated(file, dataset_gen))
            return file

        return calibrate

    with replaced(Calibrator, {"calibrate": make}):
        yield calibrated


def corrected(file: bytes, samples: Samples) -> bytes:
    """Return a calibrated file with the true ranges of its tensors.

    Variables, values within an operator (e.g. the gates of an LSTM) and tensors of
    branches keep the ranges that TensorFlow recorded.

    Args:
        file: A float model whose tensors have a smallest and a largest value.
        samples: Makes the calibration data.
    """
    graph = Graph(file)
    computed = graph.computed()
    calibrated = {
        index: tensor.quantization
        for index, tensor in enumerate(graph.tensors)
        if index in computed and not tensor.isVariable and _has_range(tensor)
    }
    ranges: dict[int, tuple[float, float]] = {}
    for index, values in computed_values(file, samples, calibrated):
        low, high = ranges.get(index, (np.inf, -np.inf))
        ranges[index] = min(low, float(values.min())), max(high, float(values.max()))
    for index, (low, high) in ranges.items():
        if _is_read_by_hard_swish(graph, index):
            low = max(low, _HARD_SWISH_LEAST)
        calibrated[index].min, calibrated[index].max = [low], [high]
    return graph.file()


def _is_read_by_hard_swish(graph: Graph, index: int) -> bool:
    """Return whether only a hard swish reads a tensor: values below -3 give 0."""
    readers = graph.readers(index)
    kinds = {None if it is None else graph.kind(it) for it in readers}
    return kinds == {_HARD_SWISH}


def _has_range(tensor: Any) -> bool:
    return tensor.quantization is not None and tensor.quantization.min is not None

"""Graphs of LiteRT files: their operators, constants and computed values."""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_distill.export.batches import Arrays

# Returns the calibration data of TensorFlow: pairs of a signature and its inputs.
Samples = Callable[[], Iterable[tuple[str, Arrays]]]
Array = npt.NDArray[Any]
# An operator as TensorFlow reads it from a file.
Operator = Any

_TYPES = {0: np.float32, 2: np.int32}  # codes of the schema


class Graph:
    """The main graph of a file, whose constants and operators can be changed.

    Args:
        file: A float model.
    """

    def __init__(self, file: bytes) -> None:
        from tensorflow.lite.tools import flatbuffer_utils

        self._model = flatbuffer_utils.convert_bytearray_to_object(file)
        self._graph = self._model.subgraphs[0]
        self.tensors: list[Any] = self._graph.tensors
        self.operators: list[Operator] = self._graph.operators
        every = (tensor for graph in self._model.subgraphs for tensor in graph.tensors)
        self._users = Counter(tensor.buffer for tensor in every)
        # The readers of each tensor. None represents the caller.
        self._readers: dict[int, list[Operator | None]] = {}
        for operator in self.operators:
            for index in inputs(operator):
                self._readers.setdefault(index, []).append(operator)
        for index in _present(self._graph.outputs):
            self._readers.setdefault(index, []).append(None)

    def file(self) -> bytes:
        """Return the file."""
        from tensorflow.lite.tools import flatbuffer_utils

        return bytes(flatbuffer_utils.convert_object_to_bytearray(self._model))

    def kind(self, operator: Operator) -> int:
        """Return the code of an operator in the schema."""
        return int(self._model.operatorCodes[operator.opcodeIndex].builtinCode)

    def shape(self, index: int) -> tuple[int, ...]:
        """Return the shape of a tensor, whose open sizes are 1."""
        shape = self.tensors[index].shape
        return () if shape is None else tuple(map(int, shape))  # None for a scalar

    def channels(self, index: int) -> int:
        """Return the length of a tensor's last axis; 0 for a scalar."""
        shape = self.shape(index)
        return shape[-1] if shape else 0

    def size(self, index: int) -> int:
        """Return the number of values of a tensor, for one example."""
        return math.prod(self.shape(index))

    def scale(self, index: int) -> tuple[float, int]:
        """Return the step of a tensor in int8, and the integer that represents 0."""
        given = self.tensors[index].quantization
        return float(given.scale[0]), int(given.zeroPoint[0])

    def limits(self, index: int) -> tuple[float, float]:
        """Return the smallest and the largest number that a tensor in int8 can have."""
        scale, zero = self.scale(index)
        return (-128 - zero) * scale, (127 - zero) * scale

    def readers(self, index: int) -> list[Operator | None]:
        """Return the operators that read a tensor; None represents the caller."""
        return self._readers.get(index, [])

    def only_reader(self, index: int) -> Operator | None:
        """Return the only operator that reads a tensor; None if none or several do."""
        found = self.readers(index)
        return found[0] if len(found) == 1 else None

    def computed(self) -> set[int]:
        """Return the inputs of the graph and the outputs of operators."""
        return set(_present(self._graph.inputs)).union(*map(outputs, self.operators))

    def is_constant(self, index: int) -> bool:
        """Return whether the file contains the numbers of a tensor."""
        tensor = self.tensors[index]
        data = self._model.buffers[tensor.buffer].data
        return tensor.type in _TYPES and data is not None and len(data) > 0

    def is_own(self, index: int) -> bool:
        """Return whether one operator reads a constant, so that it can be changed."""
        is_shared = self._users[self.tensors[index].buffer] > 1
        return (
            self.is_constant(index) and not is_shared and len(self.readers(index)) < 2
        )

    def constant(self, index: int) -> Array:
        """Return the numbers of a constant."""
        tensor = self.tensors[index]
        data = bytes(self._model.buffers[tensor.buffer].data)
        return np.frombuffer(data, _TYPES[tensor.type]).reshape(self.shape(index))

    def set_constant(self, index: int, values: Array) -> None:
        """Give a constant other numbers."""
        tensor = self.tensors[index]
        data = np.ascontiguousarray(values, _TYPES[tensor.type])
        self._model.buffers[tensor.buffer].data = data.reshape(-1).view(np.uint8)

    def separate(self, operator: Operator, position: int) -> int:
        """Return a constant input that only this operator reads; copy it if necessary.

        The converter stores equal constants, e.g. biases of zeros, once.
        """
        index = int(operator.inputs[position])
        if self.is_own(index):
            return index
        tensor = copy.copy(self.tensors[index])
        buffer = copy.copy(self._model.buffers[tensor.buffer])
        tensor.buffer = len(self._model.buffers)
        self._model.buffers.append(buffer)
        self.tensors.append(tensor)
        own = len(self.tensors) - 1
        self._readers[index].remove(operator)
        self._readers[own] = [operator]
        self._users[tensor.buffer] = 1
        operator.inputs = [*operator.inputs]
        operator.inputs[position] = own
        return own

    def remove(self, operator: Operator, index: int) -> None:
        """Remove an operator; the readers of its output then read tensor `index`."""
        output = int(operator.outputs[0])
        for reader in self.readers(output):
            if reader is None:
                raise ValueError("What the file puts out can't be removed.")
            reader.inputs = [index if it == output else it for it in reader.inputs]
        self.operators.remove(operator)


def inputs(operator: Operator) -> list[int]:
    """Return the tensors that an operator reads, without absent optional ones."""
    return _present(operator.inputs)


def outputs(operator: Operator) -> list[int]:
    """Return the outputs of an operator; one that fills a table has none."""
    return _present(operator.outputs)


def _present(tensors: Any) -> list[int]:
    # In a file, None means no tensors, and -1 an optional tensor that is left out.
    return [] if tensors is None else [int(index) for index in tensors if index >= 0]


def computed_values(
    file: bytes, samples: Samples, tensors: Iterable[int]
) -> Iterator[tuple[int, Array]]:
    """Yield the values of tensors after each batch, unless a tensor is empty.

    Args:
        file: The model. Its inputs may be in int8.
        samples: Makes the batches of floats.
        tensors: The tensors.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    tensors = list(tensors)
    interpreter = Interpreter(
        model_content=file,
        # Values inside of delegates can't be read.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    for signature, batch in samples():
        runner = interpreter.get_signature_runner(signature)
        details = runner.get_input_details()
        runner(**{name: _as_taken(it, details[name]) for name, it in batch.items()})
        for index in tensors:
            values = interpreter.get_tensor(index)
            if values.size:
                yield index, values


def _as_taken(values: Array, details: Mapping[str, Any]) -> Array:
    scale, zero_point = details["quantization"]
    is_int8 = details["dtype"] == np.int8 and scale
    return quantized(values, scale, zero_point) if is_int8 else values


def quantized(values: Array, scale: float, zero_point: int) -> npt.NDArray[np.int8]:
    """Return floats as integers of 8 bits, clipped to their limits."""
    steps = np.round(values / scale) + zero_point
    return np.clip(steps, -128, 127).astype(np.int8)

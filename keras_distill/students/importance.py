"""Measures of the importance of units. The least important ones are cut first."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_distill.students.graph import graph_of, nodes_of
from keras_distill.students.tracing import Trace
from keras_distill.students.units import Labels

Scores = npt.NDArray[np.float64]


class Importance(ABC):
    """Scores the units of a teacher. `slice_widths` keeps those with the best scores.

    The scores of units that are cut together are added.
    """

    @abstractmethod
    def lines(
        self, teacher: keras.Model, trace: Trace
    ) -> Iterator[tuple[Labels, Scores]]:
        """Yield the units along an axis with a score for each of them."""

    def scores(self, teacher: keras.Model, trace: Trace) -> Scores:
        """Return the score of each unit.

        All axes have the same weight: the scores of each are divided by their mean.
        """
        result = np.zeros(len(trace.units))
        for labels, found in self.lines(teacher, trace):
            mean = found.mean()
            if mean > 0:
                np.add.at(result, labels, found / mean)
        return result


class WeightNorm(Importance):
    """The L1 norm of the weights that compute a unit (Li et al. 2017).

    Example:
        >>> import keras
        >>> import keras_distill as kd
        >>> teacher = keras.Sequential(
        ...     [keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)]
        ... )
        >>> _ = teacher.layers[0].kernel.assign([[9.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
        >>> student = kd.students.slice_widths(
        ...     teacher, width=0.5, importance=kd.students.WeightNorm()
        ... )
        >>> student.get_weights()[0].ravel().tolist()
        [9.0, 0.0, 0.0]

    Reference: "Pruning filters for efficient ConvNets", https://arxiv.org/abs/1608.08710
    """

    def lines(
        self, teacher: keras.Model, trace: Trace
    ) -> Iterator[tuple[Labels, Scores]]:
        """Yield the norms of each kernel along the axis of its units."""
        del teacher
        for weight in trace.weights.values():
            labels = None if weight.maker is None else weight.axes[weight.maker]
            if labels is not None and weight.maker is not None:
                value = keras.ops.convert_to_numpy(weight.variable)
                yield labels, _mean_size(value, weight.maker)


class MeanActivation(Importance):
    """The mean absolute value of a unit's outputs on a batch of examples (Minitron).

    Attention heads have no output of their own. They get the scores of `WeightNorm`.

    Args:
        calibration_data: One batch of inputs as the teacher reads them: an array, a
            list of arrays or a dict by the names of the inputs.

    Example:
        >>> import keras
        >>> import keras_distill as kd
        >>> import numpy as np
        >>> teacher = keras.Sequential(
        ...     [keras.Input((3,)), keras.layers.Dense(8), keras.layers.Dense(1)]
        ... )
        >>> examples = np.random.default_rng(0).random((32, 3))
        >>> student = kd.students.slice_widths(
        ...     teacher, width=0.5, importance=kd.students.MeanActivation(examples)
        ... )
        >>> student.layers[0].units
        4

    Reference: "Compact language models via pruning and knowledge distillation",
        https://arxiv.org/abs/2407.14679
    """

    def __init__(self, calibration_data: Any) -> None:
        self.calibration_data = calibration_data

    def lines(
        self, teacher: keras.Model, trace: Trace
    ) -> Iterator[tuple[Labels, Scores]]:
        """Yield the mean absolute values of tensors along the axes that have units."""
        seen: set[int] = set()
        inputs = _checked(self.calibration_data, teacher)
        for tensor, value in _computed(graph_of(teacher), inputs):
            if not trace.knows(tensor):
                continue
            for axis, labels in enumerate(trace.axes_of(tensor)):
                if labels is not None:
                    seen.update(map(int, labels))
                    yield labels, _mean_size(keras.ops.convert_to_numpy(value), axis)
        for labels, found in WeightNorm().lines(teacher, trace):
            if not seen.intersection(map(int, labels)):
                yield labels, found


def _mean_size(value: Any, axis: int) -> Scores:
    others = tuple(other for other in range(value.ndim) if other != axis)
    result: Scores = np.abs(value.astype("float64")).mean(axis=others)
    return result


def _checked(data: Any, teacher: keras.Model) -> list[Any]:
    """Return an array for each input of the teacher."""
    tensors = graph_of(teacher).inputs
    if isinstance(data, dict):
        missing = [tensor.name for tensor in tensors if tensor.name not in data]
        if missing:
            raise ValueError(
                f"`calibration_data` lacks the inputs {missing}. Received: the keys "
                f"{sorted(data)}"
            )
        data = [data[tensor.name] for tensor in tensors]
    arrays = [keras.ops.convert_to_numpy(array) for array in keras.tree.flatten(data)]
    shapes = [array.shape for array in arrays]
    wanted = [tuple(tensor.shape) for tensor in tensors]
    if len(shapes) != len(wanted) or any(
        len(shape) != len(want) for shape, want in zip(shapes, wanted, strict=True)
    ):
        raise ValueError(
            "`calibration_data` must be one batch of the teacher's inputs, of the "
            f"shapes {wanted}. Received: the shapes {shapes}"
        )
    for array, tensor in zip(arrays, tensors, strict=True):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = array[~np.isfinite(array)][0]
            raise ValueError(
                f"`calibration_data` must be finite. Received: {bad} in the input "
                f"{tensor.name!r}"
            )
    if all(len(array) == 0 or (array == array[:1]).all() for array in arrays):
        values = [array.ravel()[:1].tolist() for array in arrays]
        raise ValueError(
            "`calibration_data` must hold different examples: equal ones don't show "
            f"which units matter. Received: {len(arrays[0])} equal rows, which begin "
            f"with {values}"
        )
    return arrays


def _computed(graph: Any, inputs: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the symbolic and the computed tensors of a graph, sub-models included."""
    tensors = {
        id(tensor): keras.ops.convert_to_tensor(value, dtype=tensor.dtype)
        for tensor, value in zip(graph.inputs, inputs, strict=True)
    }
    for node in nodes_of(graph):
        args, kwargs = node.arguments.fill_in(tensors)
        inner = graph_of(node.operation)
        if inner is not None:
            found = {}
            for tensor, value in _computed(inner, keras.tree.flatten(args)):
                found[id(tensor)] = value
                yield tensor, value
            outputs = [found[id(tensor)] for tensor in inner.outputs]
        else:
            outputs = keras.tree.flatten(node.operation(*args, **kwargs))
        for tensor, value in zip(node.outputs, outputs, strict=True):
            tensors[id(tensor)] = value
            yield tensor, value

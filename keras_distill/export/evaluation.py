"""Metrics of artefacts and of their model on held-out data."""

import copy
import dataclasses
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import keras
import numpy as np

from keras_distill.export import parity
from keras_distill.export.batches import Arrays, pieces, size_of, taken
from keras_distill.export.formats import Loaded, Target
from keras_distill.export.parity import ParityError
from keras_distill.export.serving import Served
from keras_distill.export.values import as_float, as_int

_OF_IDS = (
    keras.metrics.SparseCategoricalAccuracy,
    keras.metrics.SparseCategoricalCrossentropy,
    keras.metrics.SparseTopKCategoricalAccuracy,
)
_OTHERS = {
    keras.metrics.IoU,
    keras.metrics.Mean,
    keras.metrics.MeanIoU,
    keras.metrics.MeanMetricWrapper,
    keras.metrics.Metric,
    keras.metrics.Sum,
    *_OF_IDS,
}
# These compare labels and outputs value by value. Broadcasting would invent labels.
# Their subclasses may compute something else.
_OF_VALUES = tuple(
    kind
    for kind in vars(keras.metrics).values()
    if isinstance(kind, type) and issubclass(kind, keras.metrics.Metric)
    if kind not in _OTHERS
)
# These measure nothing with a single unit, which is always the largest.
_OF_CLASSES = (
    *_OF_IDS,
    keras.metrics.CategoricalAccuracy,
    keras.metrics.CategoricalCrossentropy,
    keras.metrics.TopKCategoricalAccuracy,
)


class Evaluation:
    """Held-out data, a task metric, and how much of the metric an artefact may lose.

    The Keras model and every artefact run over the data. If the metric of an artefact
    is worse than the model's by more than `max_drop`, nothing is published. For int8
    artefacts, only the metric decides. Other artefacts must also agree with the model
    value by value.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)` of arrays of shape `(examples, ...)`,
            or an iterable of such batches that can be iterated more than once, e.g. a
            `tf.data.Dataset`. `x` has the form that the model reads, or that its
            preprocessing reads if there is one. `y` has the form that the metric reads,
            or is a dict of labels by output. The model's outputs for all examples are
            kept in memory.
        metric: A `keras.metrics.Metric` that is called with `y` and the output, e.g.
            `keras.metrics.SparseCategoricalAccuracy()` or, for a single logit,
            `keras.metrics.AUC(from_logits=True)`. The object isn't changed.
        max_drop: By how much an artefact's metric may be worse than the model's: 0.01
            is a point of accuracy.
        output: The name of the output that `metric` reads; only a model of several
            outputs needs it.
        mode: `"max"` if a larger metric is better, `"min"` if a smaller one is better;
            `"auto"` for the direction that Keras gives the metric.
        batch_size: How many examples run at once; arrays are cut to it.

    Raises:
        TypeError: `metric` isn't a Keras metric, or an argument isn't a number.
        ValueError: `max_drop`, `batch_size` or `mode` isn't usable.

    Example:
    >>> import keras, numpy as np
    >>> Evaluation(
    ...     (np.zeros((4, 3), "float32"), np.zeros(4, "int64")),
    ...     keras.metrics.SparseCategoricalAccuracy(),
    ...     max_drop=0.01,
    ... ).max_drop
    0.01
    """

    def __init__(
        self,
        data: Any,
        metric: keras.metrics.Metric,
        *,
        max_drop: float,
        output: str | None = None,
        mode: Literal["auto", "max", "min"] = "auto",
        batch_size: int = 256,
    ) -> None:
        if not isinstance(metric, keras.metrics.Metric):
            raise TypeError(
                "`metric` must be a `keras.metrics.Metric`, such as "
                "`keras.metrics.SparseCategoricalAccuracy()`. "
                f"Received: {metric!r} of type {type(metric).__name__}."
            )
        if isinstance(data, Iterator):
            raise ValueError(
                "`data` must be iterable more than once, as every artefact runs over "
                f"it. Received: {type(data).__name__}. Make it a list or a dataset."
            )
        self.data = data
        self.metric = metric
        self.max_drop = _checked_drop(max_drop)
        self.output = output
        self.mode = _checked_mode(mode, metric)
        self.batch_size = _checked_size(batch_size)
        self._select: Callable[[Any], Any] = lambda inputs: inputs

    def batches(self) -> Iterator[tuple[Any, Any, Any]]:
        """Yield `(x, y, sample_weight)`; arrays are cut to `batch_size` examples."""
        if not isinstance(self.data, tuple):
            for batch in self.data:
                yield keras.utils.unpack_x_y_sample_weight(_arrays(batch))
            return
        arrays = _arrays(self.data)
        sizes = [len(array) for array in keras.tree.flatten(arrays)]
        if len(set(sizes)) > 1:
            raise ValueError(
                "`data` must have as many labels and weights as inputs. Received: "
                f"arrays of {sizes} examples."
            )
        total = sizes[0]
        for begin in range(0, total, self.batch_size):
            part = slice(begin, begin + self.batch_size)
            yield keras.utils.unpack_x_y_sample_weight(_cut(arrays, part))

    def selecting(self, select: Callable[[Any], Any]) -> "Evaluation":
        """Return a copy of this evaluation that applies `select` to its inputs.

        A selection that this evaluation has already is applied first.
        """
        selecting, earlier = copy.copy(self), self._select
        selecting._select = lambda inputs: select(earlier(inputs))
        return selecting


def _checked_drop(max_drop: Any) -> float:
    drop = as_float(max_drop)
    if drop is None:
        raise TypeError(
            f"`max_drop` must be a number. Received: max_drop={max_drop!r}."
        )
    if not 0 <= drop < math.inf:
        raise ValueError(
            f"`max_drop` must be finite and at least 0. Received: max_drop={max_drop}."
        )
    return drop


def _checked_mode(mode: str, metric: keras.metrics.Metric) -> str:
    """Return "max" or "min"."""
    # `ModelCheckpoint` reads it too: "up", "down" or None.
    direction = getattr(metric, "_direction", None)
    if mode == "auto" and direction in ("up", "down"):
        mode = "max" if direction == "up" else "min"
    if mode not in ("max", "min"):
        raise ValueError(
            "`mode` must be 'max' or 'min', which can't be told of the metric "
            f"{metric.name!r}. Received: mode={mode!r}."
        )
    return mode


def _checked_size(batch_size: Any) -> int:
    size = as_int(batch_size)
    if size is None:
        raise TypeError(
            f"`batch_size` must be a whole number. Received: batch_size={batch_size!r}."
        )
    if size < 1:
        raise ValueError(
            f"`batch_size` must be at least 1. Received: batch_size={batch_size}."
        )
    return size


class HeldOut:
    """An evaluation's data in the form of the artefacts' inputs.

    Attributes:
        output: The name of the output that the metric reads.
        examples: The number of examples.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        arrays: Callable[[Any, str], Arrays],
        *,
        outputs: Sequence[str],
        batch_size: int | None,
    ) -> None:
        self._evaluation = evaluation
        self._arrays = arrays
        self._batch_size = batch_size
        self.output = _output(evaluation, outputs)
        self.examples = sum(count for *_, count in self._pieces())
        if not self.examples:
            raise ValueError("`data` must hold examples. Received: none.")

    def inputs(self) -> Iterator[Arrays]:
        """Yield the batches of named inputs."""
        return (batch for batch, *_ in self._pieces())

    def metric(self, outputs: Iterable[Arrays]) -> float:
        """Return the metric of a model's or an artefact's outputs for `inputs`."""
        nan = 0
        with _from_zero(self._evaluation.metric) as metric:
            pairs = zip(self._pieces(), outputs, strict=True)
            for (_, y, weight, count), given in pairs:
                labels = y[self.output] if isinstance(y, dict) else y
                predictions = given[self.output][:count]
                nan += _count_nan(labels, weight)
                _update(metric, labels, predictions, weight)
            result = np.asarray(metric.result())
        if result.ndim:
            raise ValueError(
                "`metric` must give one number. Received: "
                f"{metric.name!r}, which gives an array of shape {result.shape}."
            )
        if nan and type(metric) in _OF_VALUES and not np.isnan(result):
            # NaN is below every threshold, so such metrics return a number for it.
            raise ValueError(
                f"`data` must have no NaN among its labels, of which {metric.name!r} "
                f"makes values, or a weight of 0 there. Received: {nan} NaN."
            )
        return float(result)

    def _pieces(self) -> Iterator[tuple[Arrays, Any, Any, int]]:
        for x, y, weight in self._evaluation.batches():
            arrays = self._arrays(self._evaluation._select(x), "evaluation")
            _check_sizes(size_of(arrays), (y, weight))
            if self._batch_size is None:
                yield arrays, y, weight, size_of(arrays)
                continue
            done = 0
            for piece, count in pieces(arrays, self._batch_size):
                part = slice(done, done + count)
                done += count
                yield piece, _cut(y, part), _cut(weight, part), count


class Judge:
    """Runs artefacts over an evaluation, and compares them with the model."""

    def __init__(self, evaluation: Evaluation, served: Served) -> None:
        self._evaluation = evaluation
        self._held_out = HeldOut(
            evaluation,
            served.arrays,
            outputs=list(served.outputs),
            batch_size=served.batch_size,
        )
        with taken("evaluation"):
            self._expected = [
                parity.call(served, batch, "evaluation")
                for batch in self._held_out.inputs()
            ]
        self._keras = self._held_out.metric(self._expected)
        if self._keras == 0 and evaluation.mode == "max":
            raise ValueError(
                "`evaluation` must be one that the model can lose something of. "
                f"Received: data on which Keras has {evaluation.metric.name} 0. Do the "
                "labels belong to these inputs?"
            )

    def score(
        self,
        target: Target,
        loaded: Loaded,
        scales: dict[str, float],
        tolerance: float | None,
    ) -> dict[str, float]:
        """Return an artefact's metric and its largest difference from the model.

        Raises:
            ParityError: The metric dropped by more than `max_drop`, or values differ
                by more than `tolerance`.
        """
        outputs: list[Arrays] = []

        def run(batch: Arrays) -> Arrays:
            outputs.append(loaded.run(batch))
            return outputs[-1]

        recording = dataclasses.replace(loaded, run=run)
        cases = zip(self._held_out.inputs(), self._expected, strict=True)
        difference = parity.compare(target, recording, cases, scales, tolerance)
        value = self._held_out.metric(outputs)
        check_drop(self._evaluation, target.name, before=self._keras, after=value)
        return {
            "metric": value,
            "max_abs_difference": difference.absolute,
            "max_relative_difference": difference.relative,
        }

    def describe(self) -> dict[str, Any]:
        """Return the evaluation's entry of the manifest."""
        evaluation = self._evaluation
        return {
            "metric": evaluation.metric.name,
            "output": self._held_out.output,
            "mode": evaluation.mode,
            "max_drop": evaluation.max_drop,
            "examples": self._held_out.examples,
            "keras": self._keras,
        }


def check_drop(
    evaluation: Evaluation, artefact: str, *, before: float, after: float
) -> None:
    """Raise `ParityError` if an artefact loses more of the metric than it may."""
    drop = before - after if evaluation.mode == "max" else after - before
    # Keras' metrics are float32. The order of the sums can change them by this much.
    rounding = 1e-6 * max(1.0, abs(before))
    if not drop <= evaluation.max_drop + rounding:
        remedy = (
            "Leave its precision out, give more or more typical `calibration_data`, or "
            "raise `max_drop`."
        )
        if np.isnan(before):
            remedy = (
                "NaN can't be compared, and is no fault of the artefact: look for NaN "
                "among the labels and weights, for weights that are all 0, and at the "
                "metric itself."
            )
        raise ParityError(
            f"The {artefact} artefact may lose at most {evaluation.max_drop:g} of the "
            f"model's {evaluation.metric.name}. Received: {after:.6g} where Keras has "
            f"{before:.6g}, a loss of {drop:.6g}. {remedy}"
        )


@contextmanager
def _from_zero(metric: keras.metrics.Metric) -> Iterator[keras.metrics.Metric]:
    """Yield the metric, reset; restore its state afterwards."""
    before = [variable.numpy() for variable in metric.variables]
    metric.reset_state()
    try:
        yield metric
    finally:
        # Some metrics create their variables at the first update.
        metric.reset_state()
        for variable, value in zip(metric.variables, before, strict=False):
            variable.assign(value)


def _check_sizes(examples: int, labels_and_weights: Any) -> None:
    given = [x for x in keras.tree.flatten(labels_and_weights) if x is not None]
    sizes = [len(array) for array in given]
    if set(sizes) - {examples}:
        raise ValueError(
            "`data` must have as many labels and weights as inputs. "
            f"Received: {sizes} for a batch of {examples}."
        )


def _update(
    metric: keras.metrics.Metric, labels: Any, predictions: Any, weight: Any
) -> None:
    if isinstance(metric, _OF_CLASSES) and np.shape(predictions)[-1:] == (1,):
        raise ValueError(
            "`metric` must be one of a single unit, such as BinaryAccuracy (of logits "
            f"with threshold 0) or AUC. Received: {type(metric).__name__}, which "
            "compares classes, and outputs of one unit, of shape "
            f"{np.shape(predictions)}."
        )
    if type(metric) in _OF_IDS:
        _check_ids(metric, labels, predictions, weight)
    elif type(metric) in _OF_VALUES:
        _check_shape(metric, labels, predictions)
    try:
        metric.update_state(labels, predictions, sample_weight=weight)
    except Exception as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise ValueError(
            f"`metric` must fit the labels and the output. Received: {metric.name!r} "
            f"of labels of shape {np.shape(labels)} and outputs of shape "
            f"{np.shape(predictions)} ({reason})."
        ) from error


def _count_nan(labels: Any, weight: Any) -> int:
    """Return the number of labels that are NaN and have a weight other than 0."""
    labels = np.asarray(labels)
    if labels.dtype.kind != "f":
        return 0
    nan = np.isnan(labels)
    if weight is not None:
        nan = nan & (_by_label(weight, labels.ndim) != 0)
    return int(nan.sum())


def _check_shape(metric: keras.metrics.Metric, labels: Any, predictions: Any) -> None:
    """Refuse labels of another shape than the outputs."""
    given, wanted = np.shape(labels), np.shape(predictions)
    # Keras removes or adds a last axis of one.
    if {given, (*given, 1)}.isdisjoint({wanted, (*wanted, 1)}):
        remedy = "Give labels of the output's shape."
        if given in (wanted[:-1], (*wanted[:-1], 1)):
            remedy = (
                "Class ids need `SparseCategoricalAccuracy`, or become labels of the "
                "output's shape by `keras.utils.to_categorical`."
            )
        raise ValueError(
            f"`metric` must fit the labels and the output. Received: {metric.name!r} "
            f"of labels of shape {given} and outputs of shape {wanted}, "
            f"which {type(metric).__name__} compares value by value. {remedy}"
        )


def _check_ids(
    metric: keras.metrics.Metric, labels: Any, predictions: Any, weight: Any
) -> None:
    """Refuse labels that are no class ids, unless their weight is 0."""
    given, wanted = np.shape(labels), np.shape(predictions)
    if given not in (wanted[:-1], (*wanted[:-1], 1)):
        raise ValueError(
            f"`metric` must fit the labels and the output. Received: {metric.name!r} "
            f"of labels of shape {given} and outputs of shape {wanted}, "
            f"for which {type(metric).__name__} takes one class id for each "
            f"{wanted[-1:]}. One-hot labels need `CategoricalAccuracy`."
        )
    ids = np.asarray(labels).reshape(wanted[:-1])
    if ids.dtype.kind not in "biuf":
        return
    # A whole number beyond the classes is an id that counts as wrong for every output.
    wrong = ~((ids >= 0) & (ids == np.floor(ids)))
    if weight is not None:
        wrong &= _by_label(weight, ids.ndim) != 0
    if wrong.any():
        raise ValueError(
            f"`data` must have whole labels from 0 on for {metric.name!r}, or a weight "
            f"of 0 where they don't count. Received: {int(wrong.sum())} others among "
            f"{wrong.size} labels, such as {ids[wrong].flat[0]}."
        )


def _by_label(weight: Any, rank: int) -> Any:
    """Bring weights to the rank of the labels, as Keras does."""
    weight = np.asarray(weight)
    if weight.ndim > rank and weight.shape[-1] == 1:
        return weight[..., 0]
    return weight.reshape(weight.shape + (1,) * (rank - weight.ndim))


def _output(evaluation: Evaluation, names: Sequence[str]) -> str:
    only = names[0] if len(names) == 1 else None
    output = evaluation.output or only
    if output is None or output not in names:
        raise ValueError(
            f"`output` of the evaluation must be one of the model's {list(names)}. "
            f"Received: output={evaluation.output!r}."
        )
    return output


def _arrays(structure: Any) -> Any:
    return keras.tree.map_structure(
        lambda values: None if values is None else np.asarray(values), structure
    )


def _cut(structure: Any, part: slice) -> Any:
    return keras.tree.map_structure(
        lambda array: None if array is None else array[part], structure
    )

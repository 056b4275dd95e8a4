"""Measures of models on one output: intervals, differences, calibration, classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_distill.report import tasks
from keras_distill.report.resampling import Difference, Interval, Resamples, means
from keras_distill.report.tasks import MEASURES, Array, Kind

_BINS = 15
# The most classes whose changes are shown, and the most of a class-by-class matrix.
_CLASSES, _PAIRED = 20, 100
# The temperature at which classes are compared.
SOFT = 4.0


@dataclass
class Answers:
    """A model's outputs, in the forms that measures read.

    Args:
        outputs: The model's outputs.
        log_probs: Log-probabilities; None for a regression.
    """

    outputs: Array
    log_probs: Array | None
    rows: dict[str, Array] = field(default_factory=dict)


@dataclass
class OutputReport:
    """The results of one output.

    Args:
        kind: The kind of task.
        primary: The measure that decides the verdict.
        measures: By model, the measures with their intervals.
        differences: By model, the differences to the baseline's measures.
        reliability: By model, `(mean probability, share that came true, rows)` of each
            bin that isn't empty.
        classes: By model, `(class, difference in accuracy)` for the classes whose
            accuracy differs most from the baseline's.
        confusions: By model, a matrix of shape `(classes, classes)`: for each true
            class, the share of its rows that is predicted as each class, minus that
            share of the baseline.
        similarity: By model, the mean softened probabilities, of shape
            `(classes, classes)`: a row for each true class.
    """

    kind: Kind
    primary: str
    measures: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Difference]]
    reliability: dict[str, list[tuple[float, float, int]]]
    classes: dict[str, list[tuple[int, Interval]]]
    confusions: dict[str, list[list[float]]]
    similarity: dict[str, list[list[float]]]


def measured(
    answers: Mapping[str, Answers],
    labels: Array,
    kind: Kind,
    resamples: Resamples,
    *,
    baseline: str,
    teacher: str | None,
    primary: str,
) -> OutputReport:
    """Measure all models on one output.

    Args:
        answers: The models' outputs by model.
        labels: As `tasks.as_labels` returns them.
        kind: The kind of task.
        resamples: The resamples of the rows.
        baseline: The model that the others are compared with.
        teacher: The teacher's name; None without one.
        primary: The measure that decides the verdict.
    """
    _measure_rows(answers, labels, kind, teacher)
    columns = {
        (name, key): values
        for name, answer in answers.items()
        for key, values in answer.rows.items()
    }
    resampled: dict[Any, Array] = dict(means(resamples, columns))
    values = {key: float(rows.mean()) for key, rows in columns.items()}
    for name, answer in answers.items():
        if answer.log_probs is not None:
            found = _of_sets(kind, labels, answer.log_probs, resamples)
            values |= {(name, key): value for key, (value, _) in found.items()}
            resampled |= {(name, key): drawn for key, (_, drawn) in found.items()}
    in_pairs = {
        name: answer.log_probs
        for name, answer in answers.items()
        if kind == "classes" and answer.outputs.shape[-1] <= _PAIRED
        if answer.log_probs is not None
    }
    return OutputReport(
        kind,
        primary,
        _intervals(answers, values, resampled, resamples),
        _differences(answers, values, resampled, resamples, baseline),
        {n: _reliability(kind, labels, a.log_probs) for n, a in answers.items()},
        _by_class(answers, labels, kind, resamples, baseline),
        _confusions(labels, in_pairs, baseline),
        {name: _similarity(labels, values) for name, values in in_pairs.items()},
    )


def _measure_rows(
    answers: Mapping[str, Answers], labels: Array, kind: Kind, teacher: str | None
) -> None:
    """Measure each row of each model."""
    for name, answer in answers.items():
        answer.rows = tasks.of_rows(kind, labels, answer.outputs, answer.log_probs)
        if teacher not in (None, name):
            of_teacher = answers[teacher].outputs, answers[teacher].log_probs
            answer.rows |= tasks.against_teacher(
                kind, answer.outputs, answer.log_probs, of_teacher
            )


def _intervals(
    answers: Mapping[str, Answers],
    values: Mapping[Any, float],
    resampled: Mapping[Any, Array],
    resamples: Resamples,
) -> dict[str, dict[str, Interval]]:
    return {
        name: {
            key: resamples.interval(values[name, key], resampled[name, key])
            for key in MEASURES
            if (name, key) in values
        }
        for name in answers
    }


def _differences(
    answers: Mapping[str, Answers],
    values: Mapping[Any, float],
    resampled: Mapping[Any, Array],
    resamples: Resamples,
    baseline: str,
) -> dict[str, dict[str, Difference]]:
    found: dict[str, dict[str, Difference]] = {}
    for name, answer in answers.items():
        if name == baseline:
            continue
        for key, measure in MEASURES.items():
            if (name, key) not in values or (baseline, key) not in values:
                continue
            rows = None
            if key in answer.rows and key in answers[baseline].rows:
                rows = answer.rows[key] - answers[baseline].rows[key]
            with np.errstate(invalid="ignore"):  # Some measures have no value.
                value = np.subtract(values[name, key], values[baseline, key])
                drawn = resampled[name, key] - resampled[baseline, key]
            found.setdefault(name, {})[key] = resamples.difference(
                float(value), drawn, is_better=measure.is_better, rows=rows
            )
    return found


def _of_sets(
    kind: Kind, labels: Array, log_probs: Array, resamples: Resamples
) -> dict[str, tuple[float, Array]]:
    """Return the measures that aren't means over rows, with their resamples."""
    predicted, came_true = tasks.confidence(kind, labels, log_probs)
    bins = _bins(predicted)
    gaps = np.zeros((len(predicted), _BINS))
    rows = np.arange(len(predicted))
    for unit in range(predicted.shape[1]):
        gaps[rows, bins[:, unit]] += predicted[:, unit] - came_true[:, unit]
    columns = {str(index): gaps[:, index] for index in range(_BINS)}
    if kind == "binary":
        columns |= {"predicted": predicted[:, 0], "observed": came_true[:, 0]}
    drawn = means(resamples, columns)
    units = predicted.shape[1]

    def ece(parts: Mapping[str, Any]) -> Any:
        return sum(abs(parts[str(index)]) for index in range(_BINS)) / units

    whole = {key: values.mean() for key, values in columns.items()}
    found = {"ece": (float(ece(whole)), np.asarray(ece(drawn)))}
    if kind == "binary":
        auc = _Auc(predicted[:, 0], came_true[:, 0])
        found["auc"] = auc.of(np.ones((1, len(predicted)))).item(), auc.drawn(resamples)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = drawn["predicted"] / drawn["observed"]
            of_all = float(whole["predicted"] / whole["observed"])
        found["predicted_to_observed"] = (of_all, ratio)
    return found


def _bins(predicted: Array) -> Array:
    """Return the bins of probabilities; the first one includes 0."""
    bins: Array = np.clip(np.ceil(predicted * _BINS).astype(int) - 1, 0, _BINS - 1)
    return bins


class _Auc:
    """The area under the ROC curve of weighted rows; ties count one half."""

    def __init__(self, scores: Array, labels: Array) -> None:
        self._order = np.argsort(scores, kind="stable")
        ordered = scores[self._order]
        self._begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self._positive = labels[self._order].astype("float32")

    def of(self, weights: Array) -> Array:
        """Return the area for each row of weights."""
        ordered = weights[:, self._order]
        positive = ordered * self._positive
        if len(self._begins) < len(self._order):  # Rows of one score count together.
            ordered, positive = (
                np.add.reduceat(each, self._begins, axis=1)
                for each in (ordered, positive)
            )
        of_positive = positive.astype("float64")
        of_negative = ordered - of_positive
        below = np.cumsum(of_negative, axis=1) - 0.5 * of_negative
        pairs = of_positive.sum(1) * of_negative.sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((of_positive * below).sum(1) / pairs)

    def drawn(self, resamples: Resamples) -> Array:
        """Return the areas on resamples."""
        return np.concatenate([self.of(weights) for weights in resamples.weights()])


def _reliability(
    kind: Kind, labels: Array, log_probs: Array | None
) -> list[tuple[float, float, int]]:
    if log_probs is None:
        return []
    predicted, came_true = (
        values.ravel() for values in tasks.confidence(kind, labels, log_probs)
    )
    bins = _bins(predicted)
    counts, of_predicted, of_true = (
        np.bincount(bins, weights, _BINS) for weights in (None, predicted, came_true)
    )
    return [
        (float(p / n), float(t / n), int(n))
        for p, t, n in zip(of_predicted, of_true, counts, strict=True)
        if n
    ]


def _by_class(
    answers: Mapping[str, Answers],
    labels: Array,
    kind: Kind,
    resamples: Resamples,
    baseline: str,
) -> dict[str, list[tuple[int, Interval]]]:
    """Return the classes whose accuracy differs most from the baseline's."""
    if kind != "classes":
        return {}
    before = answers[baseline].rows["accuracy"]
    totals = np.bincount(labels)
    found = {}
    for name, answer in answers.items():
        if name == baseline:
            continue
        change = answer.rows["accuracy"] - before
        sums = np.bincount(labels, change, len(totals))
        part = np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)
        largest = np.argsort(-np.abs(part), kind="stable")[:_CLASSES]
        columns = {f"{c} change": change * (labels == c) for c in largest}
        columns |= {f"{c} rows": (labels == c).astype("float64") for c in largest}
        drawn = means(resamples, columns)
        with np.errstate(divide="ignore", invalid="ignore"):
            found[name] = [
                (
                    int(c),
                    resamples.interval(
                        float(part[c]), drawn[f"{c} change"] / drawn[f"{c} rows"]
                    ),
                )
                for c in sorted(largest)
            ]
    return found


def _confusions(
    labels: Array, log_probs: Mapping[str, Array], baseline: str
) -> dict[str, list[list[float]]]:
    """Return how the predicted classes differ from the baseline's, by true class."""
    given = {
        name: _means_by_class(labels, np.eye(values.shape[-1])[values.argmax(-1)])
        for name, values in log_probs.items()
    }
    return {
        name: (means - given[baseline]).tolist()
        for name, means in given.items()
        if name != baseline
    }


def _similarity(labels: Array, log_probs: Array) -> list[list[float]]:
    """Return the mean softened probabilities of the rows of each class."""
    softened = np.exp(log_probs / SOFT)
    softened /= softened.sum(-1, keepdims=True)
    found: list[list[float]] = _means_by_class(labels, softened).tolist()
    return found


def _means_by_class(labels: Array, values: Array) -> Array:
    """Return the mean of the rows of each class; zeros for a class without rows."""
    classes = values.shape[-1]
    totals = np.bincount(labels, minlength=classes)
    sums = np.zeros((classes, classes))
    np.add.at(sums, labels, values)
    means: Array = sums / np.maximum(totals, 1)[:, None]
    return means

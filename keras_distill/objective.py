"""The loss that trains a student, and its logged terms."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import per_output
from keras_distill.batch import Batch, log_batch_mean
from keras_distill.guard import flagged
from keras_distill.labels import OwnLoss
from keras_distill.losses.per_output import PerOutputLoss
from keras_distill.teachers.base import Lesson
from keras_distill.types import Path, Tensor
from keras_distill.values import Value

# A float or a `LearningRateSchedule`.
Alpha = Any

# A step at which schedules have ended.
_LATE = 10**7


class Objective:
    """Adds distillation losses to a student's own loss.

    `loss = own + sum_o alpha_o * (distillation_loss_o - label_loss_o)`, which is
    `(1 - alpha) * label_loss + alpha * distillation_loss + additional losses`. In this
    form, alpha=0 gives Keras' own loss to the last bit.

    It is a plain object, so that a model that holds it doesn't track or save it.

    Args:
        losses: As `distillation_loss` in `Distiller.compile`.
        alpha: As in `Distiller.compile`.
        loss_weights: As `distillation_loss_weights` in `Distiller.compile`.
        output_names: Names of the student's outputs, if it declares any.
        has_labels: Whether there is a label loss.
        members: Names of the teacher's members whose losses are logged.

    Raises:
        ValueError: If `alpha` isn't in [0, 1], or is an empty dict.
    """

    def __init__(
        self,
        losses: Any,
        alpha: Alpha | Mapping[str, Alpha],
        *,
        loss_weights: Any = None,
        output_names: Sequence[str] | None,
        has_labels: bool,
        members: Sequence[str] = (),
    ) -> None:
        self._output_names = output_names
        self._losses = PerOutputLoss(losses, output_names=output_names)
        self._loss_weights = per_output.numbers(
            loss_weights, what="distillation_loss_weights"
        )
        self._alpha = _alphas(alpha, losses, output_names or ())
        self._temperatures = _temperatures(self._losses)
        # Whether the last batch had no labels: then alpha must stay 1.
        self.without_labels = not has_labels
        means = ["student_loss"] * has_labels + ["distillation_loss"]
        self._means = {name: keras.metrics.Mean(name) for name in means}
        self.log_members(members)

    def log_members(self, names: Sequence[str]) -> None:
        """Log the loss against each of a teacher's members from the next step on."""
        names = [member_loss(name) for name in names]
        self._of_members = {name: keras.metrics.Mean(name) for name in names}

    @property
    def metrics(self) -> dict[str, keras.metrics.Metric]:
        """The logged terms and hyperparameters by name."""
        return {**self._means, **self.values, **self._of_members}

    @property
    def values(self) -> dict[str, Value]:
        """Alpha and scheduled temperatures, by the names of their logs."""
        weights = keras.tree.flatten(self._alpha)
        return {weight.name: weight for weight in weights} | self._temperatures

    @property
    def all_values(self) -> list[Value]:
        """Alpha and all temperatures, also those that aren't logged."""
        return [*keras.tree.flatten(self._alpha), *self._losses.values]

    @property
    def state(self) -> list[keras.Variable]:
        """The variables of temperatures that are floats: no metric holds them."""
        return self._losses.state

    @property
    def trains(self) -> list[keras.Variable]:
        """The weights of the student that the losses compute with."""
        return self._losses.trains

    @property
    def alpha(self) -> Any:
        """The weight of the distillation loss, or a dict of weights by output."""
        return keras.tree.map_structure(lambda weight: weight.value, self._alpha)

    @alpha.setter
    def alpha(self, value: Any) -> None:
        if self.without_labels and any(a != 1.0 for a in keras.tree.flatten(value)):
            raise ValueError(
                "`alpha` must stay 1 where there are no labels: the student learns "
                "from the teacher alone. Call `compile` again to go on with labels. "
                f"Received: alpha={value}"
            )
        if not isinstance(self._alpha, dict):
            self._alpha.value = value
            return
        if not isinstance(value, Mapping) or set(value) != set(self._alpha):
            raise ValueError(
                "`alpha` must be a dict of weights for the same outputs as in "
                f"`compile`, {sorted(self._alpha)}. Received: alpha={value}"
            )
        for name, weight in self._alpha.items():
            if value[name] is not weight.value:  # a schedule may stay in its place
                weight.value = value[name]

    def final_alpha(self) -> float:
        """Return the largest weight of a distillation loss late in training."""
        weights = keras.tree.flatten(self.alpha)
        return max(float(w(_LATE)) if callable(w) else w for w in weights)

    @property
    def is_alone(self) -> bool:
        """Whether the student learns from the teacher alone."""
        return all(alpha == 1.0 for alpha in keras.tree.flatten(self.alpha))

    def check_needs_no_labels(self, received: str) -> None:
        """Raise ValueError unless the student learns from the teacher alone."""
        if not self.is_alone:
            raise ValueError(
                "`alpha` must be 1 where there are no labels: the student learns from "
                f"the teacher alone. Received: alpha={self.alpha}, {received}"
            )

    def total(
        self,
        own: OwnLoss,
        lesson: Lesson,
        batch: Batch,
        *,
        is_finite: Tensor | None = None,
    ) -> tuple[Tensor, set[str]]:
        """Return a batch's loss without hints, and the names of what was logged.

        Args:
            own: The loss that would train the student without a teacher.
            lesson: The teacher's outputs.
            batch: The batch, with the student's outputs.
            is_finite: Whether the teacher's outputs were finite; None if the step
                itself raises an error for others.

        Raises:
            ValueError: If there are neither targets nor labels.
        """
        self.without_labels = own.labels is None
        terms, total = {}, own.total
        if own.labels is not None:
            terms["student_loss"] = flagged(own.labels, own.are_valid)
        if lesson.targets is not None:
            losses = self._against(lesson.targets, batch, total.dtype)
            distillation = _sum(losses)
            terms["distillation_loss"] = flagged(distillation, is_finite)
            for name, targets in lesson.members.items():
                of_member = self._against(targets, batch, total.dtype)
                terms[member_loss(name)] = _sum(of_member)
            total = total + self._weighted(losses, own, batch)
        elif own.labels is None:
            raise ValueError(
                "The teacher returned no targets for this batch, and there are no "
                "labels to learn from. Give `fit` labels and `compile` a loss, or use "
                "a teacher that returns targets. Received: None from the teacher"
            )
        _check_scalar(terms)
        self._log(terms, batch)
        # A step whose teacher had no targets logs no hyperparameter of distillation.
        values = self.values if lesson.targets is not None else {}
        for value in values.values():
            value.update_state(value.at(batch.step))
        return total, {*terms, *values}

    def measure(self, lesson: Lesson, batch: Batch) -> tuple[Tensor, set[str]]:
        """Return the distillation loss of a batch without labels, and log it."""
        if lesson.targets is None:
            raise ValueError(
                "The teacher returned no targets for this batch, and there are no "
                "labels to evaluate with. Received: None from the teacher"
            )
        losses = self._against(lesson.targets, batch, keras.config.floatx())
        terms = {"distillation_loss": _sum(losses)}
        _check_scalar(terms)
        self._log(terms, batch)
        return terms["distillation_loss"], set(terms)

    def _against(self, targets: Any, batch: Batch, dtype: Any) -> dict[Path, Tensor]:
        """Return the weighted distillation losses against a teacher's outputs."""
        losses = self._losses(targets, batch)
        weights = per_output.weights_by_path(
            self._loss_weights,
            batch.output,
            names=self._output_names,
            what="distillation_loss_weights",
        )
        return {
            path: ops.cast(loss, dtype) * weights.get(path, 1.0)
            for path, loss in losses.items()
        }

    def _weighted(
        self, losses: dict[Path, Tensor], own: OwnLoss, batch: Batch
    ) -> Tensor:
        """Return `alpha * (distillation_loss - label_loss)`, output by output."""
        if not isinstance(self._alpha, dict):
            loss = _sum(losses)
            if own.labels is not None:
                loss = loss - own.labels
            return ops.cast(self._alpha.at(batch.step), loss.dtype) * loss
        alphas = per_output.by_path(
            self._alpha,
            batch.output,
            names=self._output_names,
            what="`alpha`",
            partial=True,
        )
        if set(alphas) != set(losses):
            raise ValueError(
                "`alpha` must hold a weight for each output that is distilled, and for "
                f"no other. Received: alpha={self.alpha} and distillation losses of "
                f"{[list(path) for path in losses]}"
            )
        weighted = {}
        for path, loss in losses.items():
            if path in own.by_output:
                loss = loss - ops.cast(own.by_output[path], loss.dtype)
            weighted[path] = ops.cast(alphas[path].at(batch.step), loss.dtype) * loss
        return _sum(weighted)

    def _log(self, terms: Mapping[str, Tensor], batch: Batch) -> None:
        for name, value in terms.items():
            log_batch_mean(self.metrics[name], value, batch.output)


def member_loss(name: str) -> str:
    """Return the name under which the loss against a teacher's member is logged."""
    return f"{name}_distillation_loss"


def _alphas(alpha: Any, losses: Any, output_names: Sequence[str]) -> Any:
    """Return alpha as a `Value`, or as a dict of them by output.

    Args:
        alpha: As in `Distiller.compile`; None for outputs that aren't distilled.
        losses: As `distillation_loss` there.
        output_names: Names of the student's outputs in order.
    """
    if isinstance(alpha, list | tuple) and len(alpha) == len(output_names):
        if any(value is None for value in alpha):
            alpha = dict(zip(output_names, alpha, strict=True))
    if not isinstance(alpha, Mapping):
        return _alpha("alpha", alpha)
    undistilled = _undistilled(losses, output_names)
    given = {
        name: value
        for name, value in alpha.items()
        if value is not None or name not in undistilled
    }
    if not given:
        raise ValueError(
            "`alpha` must hold a weight for each output that is distilled. "
            "Received: alpha={}"
        )
    return {name: _alpha(f"{name}_alpha", value) for name, value in given.items()}


def _undistilled(losses: Any, output_names: Sequence[str]) -> Collection[str]:
    """Return the names of the outputs whose distillation loss is None."""
    if isinstance(losses, list | tuple):
        losses = dict(zip(output_names, losses, strict=False))
    if not isinstance(losses, Mapping):
        return []
    return [name for name in output_names if losses.get(name) is None]


def _alpha(name: str, value: Alpha) -> Value:
    return Value(
        name,
        value,
        requirement="in [0, 1]",
        accepts=lambda number: 0.0 <= number <= 1.0,
    )


def _temperatures(losses: PerOutputLoss) -> dict[str, Value]:
    """Return the scheduled temperatures by the names of their logs."""
    scheduled = list(losses.scheduled())
    if len(scheduled) == 1:
        return {"temperature": scheduled[0][1]}
    named = {f"{loss.name}_temperature": value for loss, value in scheduled}
    return {name: value.named(name) for name, value in named.items()}


def _sum(losses: Mapping[Path, Tensor]) -> Tensor:
    values = list(losses.values())
    return sum(values[1:], start=values[0])


def _check_scalar(terms: Mapping[str, Tensor]) -> None:
    for name, value in terms.items():
        if len(value.shape) != 0:
            raise ValueError(
                f"The `{name}` of a batch must be a single number, or it would weigh "
                "as much more as it has elements. Give the loss a `reduction`. "
                f"Received: a `{name}` of shape {tuple(value.shape)}"
            )

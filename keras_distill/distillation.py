"""The distillation term: what `Distiller.compile` adds to a Keras model's loss."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill import per_output
from keras_distill.labels.recorded import RecordedLosses
from keras_distill.losses.per_output import PerOutputLoss
from keras_distill.monitoring import BAD_LOSS, replicas
from keras_distill.per_output import Path
from keras_distill.types import Tensor
from keras_distill.values import Value

Alpha = Any  # a float or a `LearningRateSchedule`

_LATE = 10**7  # a step by which a schedule has come to its end


class Batch(NamedTuple):
    """What a training step knows of a batch once both models have run."""

    inputs: Any
    labels: Any
    label_masks: Mapping[Path, Tensor]  # which rows have one, where some have none
    sample_weight: Any
    teacher_output: Any  # None where the teacher has nothing to say
    member_outputs: Mapping[str, Any]  # of an ensemble's members, by name
    teacher_is_finite: Tensor | None  # what `TeacherGuard.watch` says
    labels_are_valid: Tensor | None  # what is said of them where XLA compiles
    student_output: Any
    masked_output: Any  # the student's, masked where there is no label
    step: Any  # the optimiser's count of updates, which schedules are read at


class DistillationTerm:
    """Distillation losses, their weights, and the metrics that log both.

    A plain object: a model that holds it neither tracks nor saves it.

    Args:
        losses: As `distillation_loss` in `Distiller.compile`.
        alpha: As in `Distiller.compile`.
        label_losses: As `loss` in `keras.Model.compile`, which `alpha` weighs against.
        output_names: Names of the student's outputs, where it declares any.
        members: Names of the teacher's members whose losses are logged.
    """

    def __init__(
        self,
        losses: Any,
        alpha: Alpha | Mapping[str, Alpha],
        *,
        label_losses: Any,
        output_names: Sequence[str] | None,
        members: Sequence[str] = (),
    ) -> None:
        self._output_names = output_names
        self._losses = PerOutputLoss(losses, output_names=output_names)
        self._label_losses: RecordedLosses | None = None
        self._temperatures = _temperatures(self._losses)
        self._undistilled = _undistilled(losses, output_names or ())
        alpha = _without_none(alpha, self._undistilled, output_names or ())
        if isinstance(alpha, Mapping):
            if not alpha:
                raise ValueError(
                    "`alpha` must hold a weight for each output that is distilled. "
                    "Received: alpha={}"
                )
            self._alpha: Any = {
                name: _weight(f"{name}_alpha", value) for name, value in alpha.items()
            }
        else:
            self._alpha = _weight("alpha", alpha)
        self.without_labels = label_losses is None
        means = ["student_loss"] * (label_losses is not None) + ["distillation_loss"]
        self._own_metrics: dict[str, keras.metrics.Metric] = {
            **{name: keras.metrics.Mean(name) for name in means},
            **self.hyperparameters,
        }
        self.log_members(members)

    def record(self, compile_loss: Any) -> None:
        """Weigh the label losses that Keras computes, where `alpha` is by output.

        Args:
            compile_loss: What `keras.Model.compile` makes of `loss`, None without one.
        """
        if compile_loss is not None and isinstance(self._alpha, dict):
            self._label_losses = RecordedLosses(compile_loss)

    def log_members(self, names: Sequence[str]) -> None:
        """Log the loss against each of a teacher's members from the next step on."""
        names = [member_loss(name) for name in names]
        self._member_metrics = {name: keras.metrics.Mean(name) for name in names}

    @property
    def metrics(self) -> dict[str, keras.metrics.Metric]:
        """What is logged beside Keras' own, by name."""
        return {**self._own_metrics, **self._member_metrics}

    @property
    def teacher_metrics(self) -> set[str]:
        """The names of what is logged only where the teacher has spoken."""
        return set(self.metrics) - {"student_loss"}

    @property
    def alpha(self) -> Any:
        """The weight of the distillation loss, or a dict of weights by output."""
        return keras.tree.map_structure(lambda weight: weight.value, self._alpha)

    @alpha.setter
    def alpha(self, value: Any) -> None:
        if isinstance(self._alpha, dict):
            names = self._output_names or ()
            value = _without_none(value, self._undistilled, names)
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

    @property
    def hyperparameters(self) -> dict[str, Value]:
        """Weights and scheduled temperatures, by the names that they're logged by."""
        weights = keras.tree.flatten(self._alpha)
        return {weight.name: weight for weight in weights} | self._temperatures

    def final_alpha(self) -> float:
        """Return the largest weight that is left late in training."""
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

    def add_to(
        self, own_loss: Tensor, student_loss: Tensor | None, batch: Batch
    ) -> Tensor:
        """Return a batch's total loss, and log what it consists of.

        Args:
            own_loss: What the student would be trained with alone: the label loss,
                where there are labels, and what its layers add.
            student_loss: The label loss within it; None where there are no labels.
            batch: Everything else.
        """
        self.without_labels = student_loss is None
        terms, total = {}, own_loss
        if batch.teacher_output is not None:
            losses = self._against(batch.teacher_output, batch, own_loss.dtype)
            terms["distillation_loss"] = _sum(losses)
            for name, output in batch.member_outputs.items():
                of_member = self._against(output, batch, own_loss.dtype)
                terms[member_loss(name)] = _sum(of_member)
            total = own_loss + self._weighted(losses, student_loss, batch)
        elif student_loss is None:
            raise ValueError(
                "The teacher has nothing to say of this batch, and there are no labels "
                "to learn from. Give `fit` labels and `compile` a loss, or a teacher "
                "that answers. Received: None from the teacher"
            )
        if student_loss is not None:
            terms["student_loss"] = student_loss
        _check_scalar(terms)
        for name, is_good in (
            ("distillation_loss", batch.teacher_is_finite),
            ("student_loss", batch.labels_are_valid),
        ):
            if is_good is not None and name in terms:
                terms[name] = ops.where(is_good, terms[name], BAD_LOSS)
        self._log(terms, batch)
        return total

    def _against(self, output: Any, batch: Batch, dtype: Any) -> dict[Path, Tensor]:
        """Return the distillation losses against what a teacher said."""
        losses = self._losses(
            output,
            batch.student_output,
            batch.sample_weight,
            inputs=batch.inputs,
            labels=self._structured(batch.labels, batch),
            label_masks=batch.label_masks,
            step=batch.step,
        )
        return {path: ops.cast(loss, dtype) for path, loss in losses.items()}

    def _weighted(
        self, losses: dict[Path, Tensor], student_loss: Tensor | None, batch: Batch
    ) -> Tensor:
        """Return `alpha * (distillation_loss - student_loss)`, output by output.

        Added to the loss that a student is trained with alone, it makes
        `(1 - alpha) * student_loss + alpha * distillation_loss`, put so that alpha=0
        is Keras' own loss to the last bit.
        """
        if not isinstance(self._alpha, dict):
            loss = _sum(losses)
            if student_loss is not None:
                loss = loss - student_loss
            return ops.cast(self._alpha.at(batch.step), loss.dtype) * loss
        alphas = per_output.by_path(
            self._alpha,
            batch.student_output,
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
        label_losses = {} if student_loss is None else self._label_terms(batch)
        weighted = {}
        for path, loss in losses.items():
            if path in label_losses:
                loss = loss - ops.cast(label_losses[path], loss.dtype)
            weighted[path] = ops.cast(alphas[path].at(batch.step), loss.dtype) * loss
        return _sum(weighted)

    def _label_terms(self, batch: Batch) -> dict[Path, Tensor]:
        """Return each output's part of the label loss."""
        if self._label_losses is None:
            return {}
        return self._label_losses.taken(batch.student_output, self._output_names)

    def _structured(self, structure: Any, batch: Batch) -> Any:
        """Return what is given per output in the structure of the outputs."""
        return per_output.as_structured(
            structure, batch.student_output, self._output_names
        )

    def _log(self, terms: dict[str, Tensor], batch: Batch) -> None:
        rows = ops.shape(keras.tree.flatten(batch.student_output)[0])[0]
        for name, value in terms.items():
            self.metrics[name].update_state(value * replicas(), sample_weight=rows)
        for name, value in self.hyperparameters.items():
            self.metrics[name].update_state(value.at(batch.step))


def member_loss(name: str) -> str:
    """Return the name that the loss against a member of the teacher is logged by."""
    return f"{name}_distillation_loss"


def _without_none(
    alpha: Any, undistilled: Collection[str], output_names: Sequence[str]
) -> Any:
    """Return weights by output without those that are None, of outputs not distilled.

    A list that holds such a None is taken by the order of the outputs.
    """
    if isinstance(alpha, list | tuple) and len(alpha) == len(output_names):
        if any(value is None for value in alpha):
            alpha = dict(zip(output_names, alpha, strict=True))
    if not isinstance(alpha, Mapping):
        return alpha
    return {
        name: value
        for name, value in alpha.items()
        if value is not None or name not in undistilled
    }


def _undistilled(losses: Any, output_names: Sequence[str]) -> list[str]:
    """Return the names of the outputs whose distillation loss is None."""
    if isinstance(losses, list | tuple):
        losses = dict(zip(output_names, losses, strict=False))
    if not isinstance(losses, Mapping):
        return []
    return [name for name in output_names if losses.get(name) is None]


def _weight(name: str, value: Alpha) -> Value:
    return Value(
        name,
        value,
        requirement="in [0, 1]",
        accepts=lambda number: 0.0 <= number <= 1.0,
    )


def _temperatures(losses: PerOutputLoss) -> dict[str, Value]:
    """Return the scheduled temperatures under the names that they're logged by."""
    scheduled = list(losses.scheduled())
    if len(scheduled) == 1:
        return {"temperature": scheduled[0][1]}
    names = [f"{loss.name}_temperature" for loss, _ in scheduled]
    values = [value for _, value in scheduled]
    return {n: v.named(n) for n, v in zip(names, values, strict=True)}


def _sum(losses: dict[Path, Tensor]) -> Tensor:
    values = list(losses.values())
    return sum(values[1:], start=values[0])


def _check_scalar(terms: dict[str, Tensor]) -> None:
    for name, value in terms.items():
        if len(value.shape) != 0:
            raise ValueError(
                f"The `{name}` of a batch must be a single number, or it would weigh "
                "as much more as it has elements. Give the loss a `reduction`. "
                f"Received: a `{name}` of shape {tuple(value.shape)}"
            )

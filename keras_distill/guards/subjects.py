"""The sums over one batch that a look accumulates, and the checks that read them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_distill import backend, per_output
from keras_distill.batch import Batch
from keras_distill.guards import chance, evidence, kinds, pairs
from keras_distill.guards.against_student import AgainstStudent
from keras_distill.guards.harmless import tried
from keras_distill.guards.kinds import Kind
from keras_distill.losses.calling import as_loss
from keras_distill.per_output import of_rank
from keras_distill.types import Nested, Path, Tensor

tree = keras.tree

# A loss, or another object that reads an output, and the kind of values it expects.
Taker = tuple[Any, Kind]


class Check(NamedTuple):
    """A check of one subject's sums, which is made between steps.

    Args:
        warns: Warns if the sums show a mistake; returns whether they do.
        mistake: Identifies the mistake: several checks may find the same one.
        judges_teacher: Whether the check compares the teacher with chance. It then
            needs rows with different labels.
    """

    warns: Callable[[np.ndarray], bool]
    mistake: Any
    judges_teacher: bool = False


class Summed(NamedTuple):
    """The sums of one subject, a vector, and its checks by a key that is unique.

    `against` compares the teacher with a student that has trained. It is None if the
    sums are those that distinguish logits from probabilities.
    """

    sums: Tensor
    checks: Mapping[Any, Check]
    against: AgainstStudent | None = None


class Losses(NamedTuple):
    """The losses of a training, as in `Distiller.compile`."""

    distillation: Any
    label: Any = None
    teacher: Any = None


class Subjects:
    """Computes the sums of a batch: one subject for each output and class axis.

    Args:
        losses: The losses of the training.
        output_names: The names of the student's outputs in order; None if unknown.
        judges_teacher: Whether the teacher is compared with chance.
        peer: The name of the peer that is the student here; None for a student with a
            teacher. A peer's teachers are peers too, so only its own output is read.
        takers: Objects other than losses that read the student's outputs.
        linear: The outputs of `"student"` and `"teacher"` that are known to be logits,
            as `linear_outputs` returns them.
    """

    def __init__(
        self,
        losses: Losses,
        *,
        output_names: Sequence[str] | None,
        judges_teacher: bool,
        peer: str | None,
        takers: Sequence[Taker],
        linear: Mapping[str, Nested],
    ) -> None:
        self._losses, self._names = losses, output_names
        self._linear = linear
        self._judges_teacher = judges_teacher
        self._peer, self._takers = peer, takers
        # They keep the result of the first batches even if the step is traced again.
        self._against: dict[Path, AgainstStudent] = {}

    def of(self, batch: Batch, targets: Nested, raw: Nested) -> list[Summed]:
        """Return the sums of a batch.

        Args:
            batch: The batch, with outputs through which no gradient passes.
            targets: The teacher's outputs.
            raw: The student's outputs as they were computed. Only these have Keras'
                masks and the operation that computed them.
        """
        losses = [
            losses_by_path(loss, batch.output, self._names) for loss in self._losses
        ]
        found = [*self._of_values(losses, batch, targets, raw)]
        if self._judges_teacher and batch.labels is not None:
            distillation, label, _ = losses
            for path in [path for path in distillation if path in label]:
                args = path, distillation[path], label[path], batch, targets, raw
                sums = tried(_sums_of_chance, *args)
                if sums is None:
                    continue
                check = _check_of_chance(label[path], distillation[path], path)
                name = per_output.names_by_path(batch.output, self._names)[path]
                against = self._against.setdefault(
                    path, AgainstStudent(name, check.mistake)
                )
                found.append(Summed(sums, {("chance", path): check}, against))
        return found

    def _of_values(
        self,
        losses: Sequence[Mapping[Path, Any]],
        batch: Batch,
        targets: Nested,
        raw: Nested,
    ) -> list[Summed]:
        """Return the sums that distinguish logits from probabilities."""
        found = []
        for (whose, path, axis), takers in self._takers_of(losses, batch, raw).items():
            if per_output.found(path, self._linear.get(whose)):
                takers = [taker for taker in takers if taker[1].values != "logits"]
            if not takers:
                continue
            student = per_output.found(path, batch.output)
            is_teacher = whose == "teacher"
            output = per_output.found(path, targets) if is_teacher else student
            if output is None or _are_ids(output):
                continue
            sums = tried(evidence.sums, output, axis)
            if sums is None:
                continue
            name = f"peer {self._peer}" if self._peer is not None else whose
            units = _units(student, axis)
            checks = {}
            for number, (loss, kind) in enumerate(takers):
                # If a loss expects probabilities and both models return logits, that is
                # one mistake of the loss. If losses expect logits and a model returns
                # probabilities, that is one mistake of the model for all losses.
                mistake = ("probabilities", kinds.name_of(loss), path)
                if kind.values == "logits":
                    mistake = ("logits", whose, path)
                key = "values", whose, path, axis, number
                checks[key] = Check(_check_of_values(loss, kind, name, units), mistake)
            found.append(Summed(sums, checks))
        return found

    def _takers_of(
        self, losses: Sequence[Mapping[Path, Any]], batch: Batch, raw: Nested
    ) -> dict[tuple[str, Path, int], list[Taker]]:
        """Return the takers of each output, by the model, its path and class axis."""
        distillation, label, of_teacher = losses
        found: dict[tuple[str, Path, int], list[Taker]] = {}
        for whose, of_outputs, kind_of in (
            ("teacher", distillation, kinds.of_teacher),
            ("student", distillation, kinds.of_student),
            ("student", label, kinds.of_labels),
            ("teacher", of_teacher, kinds.of_labels),
        ):
            if whose == "teacher" and self._peer is not None:
                continue
            for path, loss in of_outputs.items():
                output = per_output.found(path, raw)
                kind = tried(kind_of, loss, _units(output, -1))
                if kind is None or output is None:
                    continue
                # If Keras warns, a second warning adds nothing. If the teacher returns
                # probabilities, the check of the distillation loss warns.
                if kind.values == "logits" and (
                    of_outputs is of_teacher
                    or (of_outputs is label and _keras_warns(loss, output, path, batch))
                ):
                    continue
                found.setdefault((whose, path, kind.axis), []).append((loss, kind))
        for path in distillation:
            for taker in self._takers:
                found.setdefault(("student", path, taker[1].axis), []).append(taker)
        return found


def rows_agree(batch: Batch, targets: Nested) -> Tensor:
    """Return whether outputs and labels have the same number of rows.

    Tensors whose rank TensorFlow doesn't know are left out: they aren't compared with
    chance.
    """
    leaves = [
        per_output.found(tuple(path), structure)
        for path, _ in tree.flatten_with_path(batch.output)
        for structure in (batch.output, targets, batch.labels)
    ]
    rows = [ops.shape(leaf)[0] for leaf in leaves if _rank(leaf)]
    agree = ops.convert_to_tensor(True)
    for other in rows[1:]:
        agree = ops.logical_and(agree, ops.equal(rows[0], other))
    return agree


def losses_by_path(losses: Any, student: Nested, names: Any) -> dict[Path, Any]:
    """Return the losses by the path of their output."""
    if losses is None:
        return {}
    try:
        losses = per_output.as_structured(losses, student, names)
        found = tree.map_structure(as_loss, losses)
        return per_output.by_path(
            found, student, names=names, what="the losses", partial=True
        )
    except (ValueError, TypeError):
        # Losses that don't fit the outputs raise an error where they are computed.
        return {}


def _rank(tensor: Any) -> int | None:
    """Return a tensor's rank; None if there is no tensor or its rank isn't known."""
    try:
        return len(tensor.shape)
    except (AttributeError, ValueError):
        return None


def _are_ids(output: Tensor) -> bool:
    """Return whether an output isn't floats: neither logits nor probabilities."""
    dtype = keras.backend.standardize_dtype(getattr(output, "dtype", "float32"))
    return not keras.backend.is_float_dtype(dtype)


def _units(output: Any, axis: int) -> int | None:
    """Return the number of units of an output; None if it isn't known."""
    rank = _rank(output)
    if rank is None:
        return None
    return output.shape[axis] if rank > 1 else 1


def _keras_warns(loss: Any, output: Tensor, path: Path, batch: Batch) -> bool:
    """Return whether Keras itself warns of a student's softmax.

    Keras doesn't find the softmax of an output in which some rows have no label,
    because such an output is copied before the loss.
    """
    return path not in (batch.labelled or {}) and kinds.warns_itself(loss, output)


def _check_of_values(
    loss: Any, kind: Kind, whose: str, units: int | None
) -> Callable[[np.ndarray], bool]:
    return lambda found: evidence.Evidence(found, whose, units).check(loss, kind)


def _check_of_chance(loss: Any, distillation: Any, path: Path) -> Check:
    kind, output = kinds.of_labels(loss), f" of output {list(path)}" if path else ""
    taken = kinds.of_teacher(distillation)
    of_logits = taken is None or taken.values == "logits"
    return Check(
        lambda found: chance.Comparison(
            found, kind, output, of_logits=of_logits
        ).check(),
        mistake=("chance", path),
        judges_teacher=True,
    )


def _sums_of_chance(
    path: Path, distillation: Any, loss: Any, batch: Batch, targets: Nested, raw: Nested
) -> Tensor | None:
    """Return the sums of both label losses; None if they can't be computed."""
    if not (kinds.is_known(distillation) and kinds.may_be_called_again(loss)):
        return None
    labels, teacher, student = (
        per_output.found(path, structure)
        for structure in (batch.labels, targets, batch.output)
    )
    if labels is None or teacher is None or not _is_like(teacher, student):
        return None
    weight = batch.sample_weight
    if tree.is_nested(weight):
        weight = per_output.found(path, weight)
    counts = None if weight is None else ops.not_equal(weight, 0)
    for mask in (
        (batch.labelled or {}).get(path),
        backend.keras_mask(per_output.found(path, raw)),
        backend.keras_mask(teacher),
    ):
        counts = _both(counts, mask)
    kind = kinds.of_labels(loss, _units(student, -1))
    output = kinds.as_students(distillation, teacher)
    return pairs.sums(loss, kind, labels, output, student, counts)


def _is_like(teacher: Tensor, student: Tensor) -> bool:
    """Return whether a teacher's output surely has the shape of its student's.

    If the trace of the step doesn't know the number of rows, the step compares it.
    """
    rows, *axes = teacher.shape
    alike = axes == list(student.shape[1:]) and None not in axes
    return alike and rows in (None, student.shape[0])


def _both(one: Any, other: Any) -> Any:
    """Return where two masks are True. None is a mask that is True everywhere."""
    if one is None or other is None:
        return one if other is None else ops.cast(other, "bool")
    one, other = ops.convert_to_tensor(one), ops.cast(other, "bool")
    if len(one.shape) < len(other.shape):
        one, other = other, one
    return ops.logical_and(one, of_rank(other, one))

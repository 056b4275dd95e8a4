"""A look at the values of the first batches: summed up in the step, read after it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill import outputs
from keras_distill.guards import chance, evidence, kinds
from keras_distill.guards.kinds import Kind
from keras_distill.losses.calling import as_loss, with_known_shape
from keras_distill.outputs import Path, of_rank

Tensor = Any
tree = keras.tree

# What one subject's sums take, and how many subjects there may be.
_SUMS, _SUBJECTS = 9, 32
# Rows after which outputs have shown what they are, and after which labels that don't
# vary, as in sorted data, aren't waited for any longer.
_ROWS, _LAST_ROWS = 1024, 65_536
# Where both kinds of sums have the number of rows.
_ROWS_AT = 5


class Seen(NamedTuple):
    """What a look may read of a step.

    Args:
        student: The student's output.
        teacher: The teacher's, None where it has nothing to say.
        labels: The labels in the structure of the student's output, None where there
            are none.
        label_masks: Which rows have a label, by the path of their output.
        sample_weight: As in `keras.Model.fit`.
    """

    student: Any
    teacher: Any
    labels: Any = None
    label_masks: Mapping[Path, Tensor] = {}
    sample_weight: Any = None


class Look:
    """Warns of outputs that aren't what losses take, and of teachers that know nothing.

    The step adds to sums, so that it can be compiled and run on several devices.
    `watching` reads them after the steps number 1, 2, 4, 8, ... until all is known;
    from then on the step doesn't sum.

    A plain object: a model that holds it neither tracks nor saves it.

    Args:
        distillation_loss: As in `Distiller.compile`.
        label_loss: The `loss` there.
        teacher_loss: As there.
        output_names: The names of the student's outputs in order, where it has any.
        judges_teacher: Whether the teacher is compared to chance.
    """

    def __init__(
        self,
        distillation_loss: Any,
        label_loss: Any = None,
        *,
        teacher_loss: Any = None,
        output_names: Any = None,
        judges_teacher: bool = True,
    ) -> None:
        self._losses = distillation_loss, label_loss, teacher_loss
        self._names = output_names
        self._judges_teacher = judges_teacher and label_loss is not None
        self._sums = _Sums()
        # read in the step, and assigned between steps
        self._closed = keras.Variable(0.0, trainable=False, autocast=False)
        self._is_closed = False
        self._calls = 0
        # each with its subject's place in the sums; written while the step is traced
        self._checks: dict[Any, tuple[int, Callable[[np.ndarray], bool]]] = {}
        self._mistakes: dict[Any, Any] = {}
        self._warned: set[Any] = set()

    def at(self, seen: Seen) -> None:
        """Add a batch to the sums; called in the step."""
        if self._is_closed or seen.teacher is None:
            return

        def add() -> Tensor:
            self._sums.update_state(self._summed(seen))
            return tf.constant(True)

        tf.cond(self._closed.value > 0.0, lambda: tf.constant(False), add)

    def watching(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return a training step followed by a look at what it has summed up."""

        def watched_step(iterator: Any) -> Any:
            logs = step(iterator)
            if not self._is_closed:
                self._calls += 1
                if self._calls & (self._calls - 1) == 0:  # a power of 2
                    self.conclude()
            return logs

        return watched_step

    def conclude(self) -> None:
        """Warn of what is known by now, and stop summing once all is."""
        if self._is_closed or not self._checks:
            return
        found = self._sums.found()
        for key, (place, check) in self._checks.items():
            mistake = self._mistakes.get(key, key)
            if key[0] == "chance" and self._warned:
                continue  # a loss of values that aren't meant says nothing of a teacher
            if mistake not in self._warned and check(found[place]):
                self._warned.add(mistake)
        waiting = [
            key
            for key, (place, _) in self._checks.items()
            if key[0] == "chance" and found[place][0] < chance.ENOUGH
        ]
        rows = found[:, _ROWS_AT].max()
        if rows >= _LAST_ROWS or (rows >= _ROWS and (self._warned or not waiting)):
            self._is_closed = True
            self._closed.assign(1.0)

    def _summed(self, seen: Seen) -> list[Tensor]:
        """Return the sums of a batch by subject, and note how each is checked."""
        summed: list[Tensor] = []
        distillation, label, of_teacher = (
            _by_path(loss, seen.student, self._names) for loss in self._losses
        )
        taken: dict[tuple[str, Path], list[tuple[Any, Kind]]] = {}
        for whose, losses, kind_of in (
            ("teacher", distillation, kinds.of_teacher),
            ("student", distillation, kinds.of_student),
            ("student", label, kinds.of_labels),
            ("teacher", of_teacher, kinds.of_labels),
        ):
            for path, loss in losses.items():
                kind = kind_of(loss)
                # of logits that are probabilities, Keras warns itself
                of_labels = kind_of is kinds.of_labels
                if kind is not None and not (of_labels and kind.values == "logits"):
                    taken.setdefault((whose, path), []).append((loss, kind))
        outputs_of = {"teacher": seen.teacher, "student": seen.student}
        for (whose, path), of_losses in taken.items():
            output = outputs.found(path, outputs_of[whose])
            if output is None or len(summed) >= _SUBJECTS:
                continue
            output = _of_known_shape(output, path, seen)
            for number, (loss, kind) in enumerate(of_losses):
                check = _check_of_values(loss, kind, whose, output)
                # a loss of probabilities on logits is one mistake, of both outputs
                mistake = whose if kind.values == "logits" else "probabilities"
                key = mistake, whose, path, number
                self._checks[key] = len(summed), check
                self._mistakes[key] = mistake, kinds.name_of(loss), path
            summed.append(evidence.sums(output, of_losses[0][1].axis))
        if self._judges_teacher and seen.labels is not None:
            for path in [path for path in distillation if path in label]:
                sums = _chance(seen, path, distillation[path], label[path])
                if sums is not None and len(summed) < _SUBJECTS:
                    check = _check_of_chance(label[path], path)
                    self._checks["chance", path] = len(summed), check
                    summed.append(sums)
        return summed


class _Sums(keras.metrics.Metric):
    """The sums of all batches, of all devices together."""

    def __init__(self) -> None:
        super().__init__(name="look")
        self.sums = self.add_variable((_SUBJECTS, _SUMS), "zeros", name="sums")

    def update_state(self, summed: list[Tensor]) -> None:
        """Add those of a batch."""
        if summed:
            rows = [tf.pad(row, [[0, _SUMS - row.shape[0]]]) for row in summed]
            missing = _SUBJECTS - len(rows)
            self.sums.assign_add(tf.pad(tf.stack(rows), [[0, missing], [0, 0]]))

    def found(self) -> np.ndarray:
        """Return the sums."""
        return np.asarray(tf.convert_to_tensor(self.sums.value))


def _by_path(losses: Any, student: Any, names: Any) -> dict[Path, Any]:
    """Return the losses by the path of their output."""
    if losses is None:
        return {}
    try:
        found = tree.map_structure(as_loss, losses)
        return outputs.by_path(
            found, student, names=names, what="the losses", partial=True
        )
    except (ValueError, TypeError):
        return {}  # losses that don't fit raise where they are computed


def _of_known_shape(output: Any, path: Path, seen: Seen) -> Tensor:
    """Return an output with the shape of the student's where it has none itself."""
    student = ops.convert_to_tensor(outputs.found(path, seen.student))
    return with_known_shape(ops.convert_to_tensor(output), student)


def _check_of_values(
    loss: Any, kind: Kind, whose: str, output: Tensor
) -> Callable[[np.ndarray], bool]:
    units = output.shape[kind.axis] if len(output.shape) > 1 else 1
    return lambda found: evidence.Evidence(found, whose, units).check(loss, kind)


def _check_of_chance(loss: Any, path: Path) -> Callable[[np.ndarray], bool]:
    kind, output = kinds.of_labels(loss), f" of output {list(path)}" if path else ""
    return lambda found: chance.Standing(found, kind, output).check()


def _chance(seen: Seen, path: Path, distillation: Any, loss: Any) -> Any:
    """Return the sums of the teacher's label loss, None where it has none."""
    labels, teacher, student = (
        outputs.found(path, structure)
        for structure in (seen.labels, seen.teacher, seen.student)
    )
    if labels is None or teacher is None:
        return None
    teacher = _of_known_shape(teacher, path, seen)
    if teacher.shape[1:] != student.shape[1:]:
        return None
    weight = seen.sample_weight
    if tree.is_nested(weight):
        weight = outputs.found(path, weight)
    counts = None if weight is None else ops.not_equal(weight, 0)
    for mask in (
        seen.label_masks.get(path),
        getattr(student, "_keras_mask", None),
        getattr(teacher, "_keras_mask", None),
    ):
        counts = _both(counts, mask)
    kind = kinds.of_labels(loss)
    try:
        return chance.sums(
            loss, kind, labels, kinds.as_students(distillation, teacher), counts
        )
    except (ValueError, TypeError, IndexError, tf.errors.InvalidArgumentError):
        # a loss that can't be taken of the teacher's output can't judge it, and one
        # that can't be taken of the student's raises where it is computed
        return None


def _both(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return one if other is None else ops.cast(other, "bool")
    one, other = ops.convert_to_tensor(one), ops.cast(other, "bool")
    if len(one.shape) < len(other.shape):
        one, other = other, one
    return ops.logical_and(one, of_rank(other, one))

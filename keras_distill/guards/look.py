"""A look at the values of the first batches: summed up in the step, read after it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill import per_output
from keras_distill.guards import chance, evidence, kinds
from keras_distill.guards.harmless import tried
from keras_distill.guards.kinds import Kind
from keras_distill.losses.calling import as_loss
from keras_distill.per_output import Path, of_rank
from keras_distill.types import Tensor

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


# What takes an output, and for what.
Taker = tuple[Any, Kind]


class Look:
    """Warns of outputs that aren't what losses take, and of teachers that know nothing.

    The step adds to sums, so that it can be compiled and run on several devices.
    `watching` reads them after the steps number 1, 2, 4, 8, ... until all is known;
    from then on the step doesn't sum.

    A look changes nothing of the training: it calls no loss but Keras' own, and is
    silent about what it can't compute.

    A plain object: a model that holds it neither tracks nor saves it.

    Args:
        distillation_loss: As in `Distiller.compile`.
        label_loss: The `loss` there.
        teacher_loss: As there.
        output_names: The names of the student's outputs in order, where it has any.
        judges_teacher: Whether the teacher is compared to chance.
        peer: The name of a peer, which stands in the student's place; what teaches it
            is then looked at by the looks at the other peers.
        takers: What else takes the student's outputs, and for what.
        afterwards: Called once after the first step, when all models are built.
    """

    def __init__(
        self,
        distillation_loss: Any,
        label_loss: Any = None,
        *,
        teacher_loss: Any = None,
        output_names: Any = None,
        judges_teacher: bool = True,
        peer: str | None = None,
        takers: Sequence[Taker] = (),
        afterwards: Callable[[], Any] | None = None,
    ) -> None:
        self._losses = distillation_loss, label_loss, teacher_loss
        self._names = output_names
        self._judges_teacher = judges_teacher and label_loss is not None
        self._peer, self._takers = peer, takers
        self._afterwards = afterwards
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

        # of values alone, whose rows may be any, less has to be traced
        rows_agree = tried(_have_the_same_rows, seen) if self._judges_teacher else True
        if rows_agree is not None:
            is_due = (self._closed.value <= 0.0) & rows_agree
            tf.cond(is_due, add, lambda: tf.constant(False))

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
        if self._afterwards is not None:
            self._afterwards()
            self._afterwards = None
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
        subjects: dict[tuple[str, Path, int], list[Taker]] = {}
        for whose, losses, kind_of in (
            ("teacher", distillation, kinds.of_teacher),
            ("student", distillation, kinds.of_student),
            ("student", label, kinds.of_labels),
            ("teacher", of_teacher, kinds.of_labels),
        ):
            if whose == "teacher" and self._peer is not None:
                continue
            for path, loss in losses.items():
                output = per_output.found(path, seen.student)
                kind = tried(kind_of, loss, _units(output, -1))
                if kind is None or output is None:
                    continue
                if kind.values == "logits" and (
                    losses is of_teacher
                    or (losses is label and _keras_warns(loss, output, path, seen))
                ):
                    continue
                subjects.setdefault((whose, path, kind.axis), []).append((loss, kind))
        for path in distillation:
            for loss, kind in self._takers:
                key = "student", path, kind.axis
                subjects.setdefault(key, []).append((loss, kind))
        for (whose, path, axis), takers in subjects.items():
            output = per_output.found(
                path, seen.teacher if whose == "teacher" else seen.student
            )
            if _are_ids(output):
                continue
            sums = tried(evidence.sums, output, axis)
            if sums is None or len(summed) >= _SUBJECTS:
                continue
            units = _units(per_output.found(path, seen.student), axis)
            name = f"peer {self._peer}" if self._peer is not None else whose
            for number, (loss, kind) in enumerate(takers):
                # a loss of probabilities on logits is one mistake, of both outputs;
                # and probabilities for logits are one, whichever losses take them
                mistake = ("probabilities", kinds.name_of(loss), path)
                if kind.values == "logits":
                    mistake = ("logits", whose, path)
                use = "values", whose, path, axis, number
                self._checks[use] = len(summed), _check_of(loss, kind, name, units)
                self._mistakes[use] = mistake
            summed.append(sums)
        if self._judges_teacher and seen.labels is not None:
            for path in [path for path in distillation if path in label]:
                sums = tried(_chance, seen, path, distillation[path], label[path])
                if sums is not None and len(summed) < _SUBJECTS:
                    check = _check_of_chance(label[path], distillation[path], path)
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
        losses = per_output.as_structured(losses, student, names)
        found = tree.map_structure(as_loss, losses)
        return per_output.by_path(
            found, student, names=names, what="the losses", partial=True
        )
    except (ValueError, TypeError):
        return {}  # losses that don't fit raise where they are computed


def _have_the_same_rows(seen: Seen) -> Tensor:
    """Return whether the outputs and the labels of a batch have a row of each other."""
    leaves = [
        per_output.found(tuple(path), structure)
        for path, _ in tree.flatten_with_path(seen.student)
        for structure in (seen.student, seen.teacher, seen.labels)
    ]
    shapes = [tf.shape(leaf)[:1] for leaf in leaves if leaf is not None]
    rows = tf.concat(shapes, axis=0)
    return tf.reduce_all(tf.equal(rows, rows[:1]))


def _are_ids(output: Any) -> bool:
    """Return whether an output holds integers: neither logits nor probabilities."""
    dtype = keras.backend.standardize_dtype(getattr(output, "dtype", "float32"))
    return not keras.backend.is_float_dtype(dtype)


def _units(output: Any, axis: int) -> int | None:
    """Return how many units an output has, None where it isn't known."""
    if output is None or output.shape.rank is None:
        return None
    return output.shape[axis] if len(output.shape) > 1 else 1


def _keras_warns(loss: Any, output: Tensor, path: Path, seen: Seen) -> bool:
    """Return whether Keras itself warns of a student's softmax, which it sees."""
    return path not in seen.label_masks and kinds.warns_itself(loss, output)


def _check_of(
    loss: Any, kind: Kind, whose: str, units: int | None
) -> Callable[[np.ndarray], bool]:
    return lambda found: evidence.Evidence(found, whose, units).check(loss, kind)


def _check_of_chance(
    loss: Any, distillation: Any, path: Path
) -> Callable[[np.ndarray], bool]:
    kind, output = kinds.of_labels(loss), f" of output {list(path)}" if path else ""
    taken = kinds.of_teacher(distillation)
    of_logits = taken is None or taken.values == "logits"
    return lambda found: chance.Standing(
        found, kind, output, of_logits=of_logits
    ).check()


def _chance(seen: Seen, path: Path, distillation: Any, loss: Any) -> Any:
    """Return the sums of the teacher's label loss, None where it has none."""
    if not (kinds.is_known(distillation) and kinds.may_be_called_again(loss)):
        return None
    labels, teacher, student = (
        per_output.found(path, structure)
        for structure in (seen.labels, seen.teacher, seen.student)
    )
    if labels is None or teacher is None or not _is_like(teacher, student):
        return None
    weight = seen.sample_weight
    if tree.is_nested(weight):
        weight = per_output.found(path, weight)
    counts = None if weight is None else ops.not_equal(weight, 0)
    for mask in (
        seen.label_masks.get(path),
        getattr(student, "_keras_mask", None),
        getattr(teacher, "_keras_mask", None),
    ):
        counts = _both(counts, mask)
    kind = kinds.of_labels(loss, _units(student, -1))
    return chance.sums(
        loss, kind, labels, kinds.as_students(distillation, teacher), counts
    )


def _is_like(teacher: Tensor, student: Tensor) -> bool:
    """Return whether a teacher's output surely has the shape of its student's.

    The rows are compared in the step, where they aren't known before.
    """
    rows, *axes = teacher.shape
    alike = axes == list(student.shape[1:]) and None not in axes
    return alike and rows in (None, student.shape[0])


def _both(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return one if other is None else ops.cast(other, "bool")
    one, other = ops.convert_to_tensor(one), ops.cast(other, "bool")
    if len(one.shape) < len(other.shape):
        one, other = other, one
    return ops.logical_and(one, of_rank(other, one))

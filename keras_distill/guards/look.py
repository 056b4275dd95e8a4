"""A look at the values of some batches, which are summed in the step and read after."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.batch import Batch
from keras_distill.guards.against_student import AgainstStudent
from keras_distill.guards.harmless import tried
from keras_distill.guards.pairs import ENOUGH, OF_BOTH, OF_TEACHER
from keras_distill.guards.subjects import (
    Check,
    Losses,
    Subjects,
    Summed,
    Taker,
    rows_agree,
)
from keras_distill.types import Nested, Tensor

# The size of one subject's sums, and the largest number of subjects.
_SUMS, _SUBJECTS = OF_TEACHER + OF_BOTH, 32
# The number of rows that is enough to decide, and the number after which the look ends
# even if all labels were equal, as in sorted data.
_ROWS, _LAST_ROWS = 1024, 65_536
# The index of the number of rows in both kinds of sums.
_ROWS_AT = 5
# A student is compared with its teacher after `_STEPS` steps, and at the beginning of
# each epoch from the second to epoch `_EPOCHS`. Later, it may have memorised many rows.
_STEPS, _EPOCHS = 1024, 3


class Look:
    """Warns of outputs of the wrong kind for a loss, and of teachers that fit no label.

    The step adds each batch to sums, so that it can be compiled and run on several
    devices. After steps 1, 2, 4, 8, ..., the look reads the sums and warns, until all
    checks have enough rows. Then the look is closed, and the step computes no sums.
    Once the student has trained, the look opens again, for the same number of rows in
    one epoch, and compares the teacher with the student.

    A look doesn't change the training. It calls only losses of Keras, and leaves out
    what it can't compute.

    It is a plain object: a model that has it as an attribute doesn't track or save it.

    Args:
        distillation_loss: As in `Distiller.compile`.
        label_loss: The `loss` of `Distiller.compile`.
        teacher_loss: As in `Distiller.compile`.
        output_names: The names of the student's outputs in order; None if unknown.
        judges_teacher: Whether the teacher is compared with chance, and later with the
            student.
        peer: The name of the peer that is the student here. Its teachers are peers with
            looks of their own.
        takers: Objects other than losses that read the student's outputs, each with the
            kind of values that it expects.
        linear: As in `Subjects`.
        sync: A function that is called before the sums are read, such as
            `model.jax_state_sync`: while `fit` runs on JAX, variables have no values.
            Defaults to a function that does nothing.
        afterwards: A function that is called once, after the first step, when all
            models are built.
    """

    def __init__(
        self,
        distillation_loss: Any,
        label_loss: Any = None,
        *,
        teacher_loss: Any = None,
        output_names: Sequence[str] | None = None,
        judges_teacher: bool = True,
        peer: str | None = None,
        takers: Sequence[Taker] = (),
        linear: Mapping[str, Nested] = MappingProxyType({}),
        sync: Callable[[], Any] = lambda: None,
        afterwards: Callable[[], Any] | None = None,
    ) -> None:
        self._judges_teacher = judges_teacher and label_loss is not None
        self._subjects = Subjects(
            Losses(distillation_loss, label_loss, teacher_loss),
            output_names=output_names,
            judges_teacher=self._judges_teacher,
            peer=peer,
            takers=takers,
            linear=linear,
        )
        self._sync, self._afterwards = sync, afterwards
        self._sums, self._closed = _variables()
        self._is_closed, self._is_over = False, False
        # Whether the checks of the first batches are finished.
        self._first_is_over = False
        # The numbers of all executions of the step, of those since the look opened, and
        # of epochs. `_before` is the sums when the comparison with the student began.
        self._executions, self._since, self._epochs = 0, 0, 0
        self._before: np.ndarray | None = None
        # The checks with the index of their sums. The trace of the step adds them, when
        # the structure of the outputs is known.
        self._checks: dict[Any, tuple[int, Check]] = {}
        self._against: dict[Any, tuple[int, AgainstStudent]] = {}
        self._warned: set[Any] = set()

    @property
    def state(self) -> Sequence[keras.Variable]:
        """The variables that the step reads and writes."""
        return [self._sums, self._closed]

    @property
    def sums(self) -> np.ndarray:
        """The sums over all batches and devices, a row for each subject."""
        # On several devices, an operation outside of them reads the total.
        return np.asarray(ops.convert_to_numpy(ops.add(self._sums, 0.0)))

    def at(self, batch: Batch, targets: Nested) -> None:
        """Add a batch to the sums. Called in the step.

        Args:
            batch: The batch, with the student's outputs.
            targets: The teacher's outputs. None leaves the batch out.
        """
        if self._is_over or targets is None:
            return
        raw = batch.output
        # The sums are computed within the loss of the step, but have no gradients.
        batch = batch._replace(output=keras.tree.map_structure(ops.stop_gradient, raw))
        # Without the comparison with chance, numbers of rows may differ.
        agree = tried(rows_agree, batch, targets) if self._judges_teacher else True
        if agree is None:
            return
        added = ops.cond(
            ops.logical_and(ops.equal(self._closed, 0.0), agree),
            lambda: self._table(self._subjects.of(batch, targets, raw)),
            lambda: ops.zeros((_SUBJECTS, _SUMS), "float32"),
        )
        # This is outside of the condition: on JAX, its branches can't write variables.
        self._sums.assign_add(added)

    def before_epoch(self) -> None:
        """Begin to compare the teacher with the student, if the student has trained."""
        self._epochs += 1
        if self._before is not None:
            self._read(ends=True)
        if self._executions and self._epochs <= _EPOCHS:
            self._open_again()

    def after_step(self) -> None:
        """Read the sums if this is execution 1, 2, 4, 8, ... since the look opened."""
        if self._is_over:
            return
        self._executions += 1
        self._since += 1
        if self._since & (self._since - 1) == 0:
            self._read()
        if self._executions == _STEPS:
            self._open_again()

    def conclude(self) -> None:
        """Warn of the mistakes that the sums show, at the end of `fit`."""
        self._read(ends=True)

    def _read(self, *, ends: bool = False) -> None:
        """Warn of the mistakes that the sums show, and close if no check needs more.

        Args:
            ends: Whether the epoch has ended. The next epoch has the same rows, so it
                would add nothing to the sums.
        """
        if self._afterwards is not None:
            self._afterwards()
            self._afterwards = None
        if self._is_closed or not self._checks:
            return
        self._sync()
        found = self.sums
        if not self._first_is_over:
            self._first_is_over = self._look_first(found)
        if self._before is not None:
            since = found - self._before
            if ends or since[:, _ROWS_AT].max() >= _ROWS:
                self._look_again(since)
                self._before = None
        if self._first_is_over and self._before is None:
            self._close()

    def _look_first(self, found: np.ndarray) -> bool:
        """Check the sums of the first batches; return whether no check needs more."""
        for row, against in self._against.values():
            against.begin(found[row])
        waiting = False
        for row, check in self._checks.values():
            if check.judges_teacher:
                waiting |= bool(found[row][0] < ENOUGH)
                # A loss of values of the wrong kind doesn't show how good a teacher is.
                if self._warned:
                    continue
            if check.mistake not in self._warned and check.warns(found[row]):
                self._warned.add(check.mistake)
        rows = found[:, _ROWS_AT].max()
        return bool(
            rows >= _LAST_ROWS or (rows >= _ROWS and (self._warned or not waiting))
        )

    def _look_again(self, found: np.ndarray) -> None:
        """Compare the teacher with the student, from the sums since the look reopened.

        Each output is compared separately.
        """
        for row, against in self._unanswered:
            if against.check(found[row]):
                self._warned.add(against.mistake)

    @property
    def _unanswered(self) -> list[tuple[int, AgainstStudent]]:
        """The comparisons for the outputs without a warning about the teacher."""
        # A loss of values of the wrong kind doesn't show how good a teacher is.
        if self._warned - self._against.keys():
            return []
        return [
            compared
            for mistake, compared in self._against.items()
            if mistake not in self._warned
        ]

    def _open_again(self) -> None:
        """Begin to compare the teacher with the student, unless that has begun."""
        if self._is_over or self._before is not None or not self._unanswered:
            return
        self._sync()
        self._before, self._since = self.sums, 0
        self._is_closed = False
        self._closed.assign(0.0)

    def _close(self) -> None:
        self._is_closed = True
        self._is_over = self._epochs >= _EPOCHS or not self._unanswered
        self._closed.assign(1.0)

    def _table(self, summed: Sequence[Summed]) -> Tensor:
        """Return the sums as a table, and note how each of its rows is checked."""
        summed = summed[:_SUBJECTS]
        if not summed:
            return ops.zeros((_SUBJECTS, _SUMS), "float32")
        rows = []
        for row, (sums, checks, against) in enumerate(summed):
            self._checks |= {key: (row, check) for key, check in checks.items()}
            if against is not None:
                self._against[against.mistake] = row, against
            rows.append(ops.pad(sums, [[0, _SUMS - sums.shape[0]]]))
        return ops.pad(ops.stack(rows), [[0, _SUBJECTS - len(rows)], [0, 0]])


def _variables() -> tuple[keras.Variable, keras.Variable]:
    """Return the sums, and whether the look is closed, as variables of the step."""
    # Each device sums its own rows, as in a metric. Autocast in the scope of a float16
    # layer would round the sums.
    sums = keras.Variable(
        "zeros",
        shape=(_SUBJECTS, _SUMS),
        dtype="float32",
        trainable=False,
        autocast=False,
        aggregation="sum",
        synchronization="on_read",
        name="look_sums",
    )
    closed = keras.Variable(
        0.0, dtype="float32", trainable=False, autocast=False, name="look_closed"
    )
    return sums, closed

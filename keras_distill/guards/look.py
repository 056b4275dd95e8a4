"""A look at the values of the first batches: summed in the step, read after it."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.batch import Batch
from keras_distill.guards import chance
from keras_distill.guards.harmless import tried
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
_SUMS, _SUBJECTS = 9, 32
# The number of rows that is enough to decide, and the number after which the look ends
# though labels haven't varied, as in sorted data.
_ROWS, _LAST_ROWS = 1024, 65_536
# The index of the number of rows in both kinds of sums.
_ROWS_AT = 5


class Look:
    """Warns of outputs that losses can't take, and of teachers that know nothing.

    The step adds each batch to sums, so that it can be compiled and run on several
    devices. Between steps, after the steps 1, 2, 4, 8, ..., the sums are read and the
    warnings given, until all checks have enough rows. From then on the step sums
    nothing.

    A look changes nothing of the training. It calls no losses but those of Keras, and
    what it can't compute it leaves out.

    It is a plain object: a model that has it as an attribute doesn't track or save it.

    Args:
        distillation_loss: As in `Distiller.compile`.
        label_loss: The `loss` of `Distiller.compile`.
        teacher_loss: As in `Distiller.compile`.
        output_names: The names of the student's outputs in order; None if unknown.
        judges_teacher: Whether the teacher is compared with chance.
        peer: The name of a peer that is the student here. Its teachers are peers, which
            have looks of their own.
        takers: What takes the student's outputs besides the losses, and the kind of
            values that it takes.
        linear: As for `Subjects`.
        sync: Called before the sums are read, e.g. `model.jax_state_sync`: while `fit`
            runs on JAX, variables have no values of their own. Defaults to nothing.
        afterwards: Called once, after the first step, when all models are built.
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
        # Each device sums its own rows, as in a metric. Autocast would round the sums
        # in the scope of a float16 layer.
        self._sums = keras.Variable(
            "zeros",
            shape=(_SUBJECTS, _SUMS),
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="sum",
            synchronization="on_read",
            name="look_sums",
        )
        self._closed = keras.Variable(
            0.0, dtype="float32", trainable=False, autocast=False, name="look_closed"
        )
        self._is_closed, self._executions = False, 0
        # The checks with the index of their sums. They are noted while the step is
        # traced, when the structure of the outputs is known.
        self._checks: dict[Any, tuple[int, Check]] = {}
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
            targets: The teacher's outputs; None if it has none for this batch, which
                is then left out.
        """
        if self._is_closed or targets is None:
            return
        raw = batch.output
        # The step computes this inside of its loss, of which it isn't a part.
        batch = batch._replace(output=keras.tree.map_structure(ops.stop_gradient, raw))
        # Values alone may be of any number of rows.
        agree = tried(rows_agree, batch, targets) if self._judges_teacher else True
        if agree is None:
            return
        added = ops.cond(
            ops.logical_and(ops.equal(self._closed, 0.0), agree),
            lambda: self._table(self._subjects.of(batch, targets, raw)),
            lambda: ops.zeros((_SUBJECTS, _SUMS), "float32"),
        )
        # Outside of the condition: on JAX, none of its branches can write a variable.
        self._sums.assign_add(added)

    def after_step(self) -> None:
        """Look at the sums, where this is execution 1, 2, 4, 8, ... of the step."""
        if self._is_closed:
            return
        self._executions += 1
        if self._executions & (self._executions - 1) == 0:
            self.conclude()

    def conclude(self) -> None:
        """Warn of the mistakes that the sums show, and end the look if all is known."""
        if self._afterwards is not None:
            self._afterwards()
            self._afterwards = None
        if self._is_closed or not self._checks:
            return
        self._sync()
        found = self.sums
        waiting = False
        for row, check in self._checks.values():
            if check.judges_teacher:
                waiting |= bool(found[row][0] < chance.ENOUGH)
                # A loss of values of the wrong kind says nothing about the teacher.
                if self._warned:
                    continue
            if check.mistake not in self._warned and check.warns(found[row]):
                self._warned.add(check.mistake)
        rows = found[:, _ROWS_AT].max()
        if rows >= _LAST_ROWS or (rows >= _ROWS and (self._warned or not waiting)):
            self._is_closed = True
            self._closed.assign(1.0)

    def _table(self, summed: Sequence[Summed]) -> Tensor:
        """Return the sums as a table, and note how each of its rows is checked."""
        summed = summed[:_SUBJECTS]
        if not summed:
            return ops.zeros((_SUBJECTS, _SUMS), "float32")
        rows = []
        for row, (sums, checks) in enumerate(summed):
            self._checks |= {key: (row, check) for key, check in checks.items()}
            rows.append(ops.pad(sums, [[0, _SUMS - sums.shape[0]]]))
        return ops.pad(ops.stack(rows), [[0, _SUBJECTS - len(rows)], [0, 0]])

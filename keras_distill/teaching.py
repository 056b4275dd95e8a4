"""A trainer that uses a teacher without owning it."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from keras_distill import arguments, backend
from keras_distill.guards.classes import Scores
from keras_distill.guards.models import check_two, warn_if_swapped
from keras_distill.hints import Hint
from keras_distill.hints.taps import Caught
from keras_distill.hints.term import HintTerm
from keras_distill.inputs import check_not_declared, select
from keras_distill.lending import Borrower
from keras_distill.setup import Setup, check_not_shared
from keras_distill.teachers.base import (
    FollowingTeacher,
    Teacher,
    TeacherLike,
    as_teacher,
)
from keras_distill.teachers.joint import TrainingTeacher
from keras_distill.types import Nested, Tensor

# Properties that Keras would save as if they were parts of the model.
_NOT_SAVED = ("teacher", "adapted_teacher")


class _Lent:
    """The objects that a trainer uses, but that Keras doesn't track or save with it."""

    def __init__(self, given: TeacherLike | None, hints: HintTerm) -> None:
        self.given = given
        self.teacher = as_teacher(given)
        self.hints = hints
        self.setup: Setup | None = None
        # The number of batches that JAX's trainer has seen.
        self.batches = keras.Variable(0, dtype="int32", trainable=False)
        self.compared_sizes = False
        # Whether `fit` or `train_on_batch` runs.
        self.fits = False
        # Each device of a strategy traces its step in a thread of its own.
        self.of_step = threading.local()


class Taught(Borrower):
    """A model that holds a student, and borrows a teacher.

    The teacher is neither tracked nor saved, and it isn't changed. Its variables are
    arguments of a compiled step: on JAX, no weight of the teacher is a constant there.

    Args:
        student: As in `Distiller`; so are the other arguments.
    """

    @arguments.explained
    def __init__(
        self,
        student: keras.Model,
        teacher: TeacherLike | None = None,
        *,
        privileged_features: Sequence[str] = (),
        hints: Sequence[Hint] = (),
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        known = arguments.parameters(Taught.__init__, keras.Layer.__init__)
        arguments.check_known("Distiller", kwargs, known)
        if not isinstance(student, keras.Model):
            raise TypeError(
                "`student` must be a `keras.Model`. Received: "
                f"student={student!r} of type {type(student).__name__}"
            )
        if isinstance(privileged_features, str):
            raise TypeError(
                "`privileged_features` must be a list of names. Received: "
                f"privileged_features={privileged_features!r}"
            )
        check_two(student, teacher)
        check_not_declared(student, privileged_features, what="privileged features")
        recorded = getattr(teacher, "reads", ())
        check_not_declared(student, recorded, what="recorded teacher outputs")
        # The student casts its own inputs. The teacher may need them as they come.
        super().__init__(
            name=name,
            **{"dtype": student.dtype_policy, "autocast": False, **kwargs},
        )
        self.student = student
        self.privileged_features = tuple(privileged_features)
        self._lent = _Lent(teacher, HintTerm(student, hints))
        check_not_declared(student, self._lent.hints.reads, what="recorded hints")
        if teacher is not None:
            self._lent.hints.attach(self._lent.teacher)
            self.compare_sizes(stacklevel=6)
        self.projectors = self._lent.hints.projectors
        # All weights of a distiller are those of its student and its projectors.
        self.built = student.built

    @property
    def teacher(self) -> TeacherLike | None:
        """The teacher. Assign one to a distiller that was loaded without a teacher."""
        return self._lent.given

    @teacher.setter
    def teacher(self, teacher: TeacherLike) -> None:
        lent = self._lent
        if self.teacher_in_training is not None:
            raise ValueError(
                "This distiller's teacher trains, so it can't be replaced: files hold "
                "it. Make a new `Distiller`, or `compile` without `teacher_loss` first."
            )
        check_two(self.student, teacher)
        adapted = as_teacher(teacher)
        if lent.setup is not None:
            check_not_shared(teacher, self.student)
        lent.hints.attach(adapted)
        self.projectors = lent.hints.projectors
        if lent.setup is not None:
            lent.setup.take_teacher(adapted)
        lent.given, lent.teacher = teacher, adapted
        # The step was traced with the earlier teacher.
        self.train_function: Any = None
        lent.compared_sizes = False
        self.compare_sizes(stacklevel=5)

    @property
    def adapted_teacher(self) -> Teacher:
        """The teacher as a `Teacher`, also if it is a model or a function."""
        return self._lent.teacher

    @property
    def output_names(self) -> list[str]:
        """Names of the student's outputs, if it declares any."""
        names: list[str] = self.student.output_names
        return names

    def outputs_of_classes(self, outputs: Nested) -> dict[str, Scores]:
        """Return the student's outputs that are scores of classes, by name.

        Raises:
            ValueError: If the losses show no such output.
        """
        setup = self._lent.setup
        found = setup.outputs_of_classes(outputs) if setup else {}
        if not found:
            losses = setup.config["distillation_loss"] if setup else None
            raise ValueError(
                "Outputs of classes are compared, of which the losses of this "
                "distiller show none. Pass a `distillation_loss` such as `ForwardKL` "
                "or `BinarySoftTargets`. A recorded part of an output, as `TopK` "
                f"stores it, isn't enough. Received: distillation_loss={losses}"
            )
        return found

    @property
    def teacher_in_training(self) -> TrainingTeacher | None:
        """The teacher with its optimiser if it trains, else None. Files hold it."""
        return self._lent.setup.joint if self._lent.setup else None

    @property
    def following_teacher(self) -> FollowingTeacher | None:
        """The teacher if its weights follow the student's, else None. Files hold it."""
        teacher = self._lent.teacher
        return teacher if isinstance(teacher, FollowingTeacher) else None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "teacher":
            object.__setattr__(self, name, value)  # This avoids Keras' tracking.
        else:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        # Keras saves the attributes that dir() lists. The teacher must not be saved.
        return [name for name in super().__dir__() if name not in _NOT_SAVED]

    def _follow(self, before: Tensor | None = None) -> None:
        """Let a teacher follow the student, once the optimiser has updated it.

        Args:
            before: The number of updates before this step; None to compute it.
        """
        following = self.following_teacher
        if following is None:
            return
        batches, optimizer = self._lent.batches, self.optimizer
        if before is None:
            before = backend.updates(optimizer, batches, batches_ago=1)
        # Where gradients are accumulated, most steps update nothing.
        updated = ops.not_equal(backend.updates(optimizer, batches), before)
        following.follow(self.student, step=before, updated=updated)

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The weights that a step trains.

        On JAX, the last ones are those of a teacher that trains, so that Keras' trainer
        computes their gradients. `trainable_weights` never holds them.
        """
        own: list[keras.Variable] = super().trainable_variables
        joint = self.teacher_in_training
        # Keras builds an optimiser, here the student's, for what this returns.
        if joint is None or not (backend.is_jax() and self.optimizer.built):
            return own
        return [*own, *joint.trainable_weights]

    @property
    def _borrowed(self) -> Sequence[keras.Variable]:
        """The variables of the teacher, the hints, the guards and hyperparameters."""
        lent = self._lent
        of_setup = lent.setup.state if lent.setup else ()
        return [*lent.teacher.state, *lent.hints.state, lent.batches, *of_setup]

    @property
    def _withheld(self) -> tuple[str, ...]:
        """Inputs that a student without declared inputs doesn't get."""
        lent = self._lent
        masks = lent.setup.label_mask.keys if lent.setup else ()
        recorded = (*lent.teacher.reads, *lent.hints.reads)
        return (*self.privileged_features, *masks, *recorded)

    def _read(self, x: Nested) -> Nested:
        """Return the inputs that the student reads."""
        return select(self.student, x, withheld=self._withheld)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Catch the outputs of the guided layers in a pass of the student."""
        with self._lent.hints.of_student() as caught:
            yield
        self._lent.of_step.guided = caught

    def _guided(self) -> Caught | None:
        """Return and forget the outputs of guided layers in the last training pass."""
        caught: Caught | None = vars(self._lent.of_step).pop("guided", None)
        return caught

    def compare_sizes(self, stacklevel: int = 4) -> None:
        """Warn of models that seem swapped, once both are built."""
        if not self._lent.compared_sizes and self.student.built:
            self._lent.compared_sizes = True
            models = self.student, self._lent.given
            warn_if_swapped(*models, self.privileged_features, stacklevel=stacklevel)

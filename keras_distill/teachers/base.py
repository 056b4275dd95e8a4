"""What may teach, and what it says of a batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill import features
from keras_distill.outputs import Path
from keras_distill.teachers.recorded import Recorded

Tensor = Any
Teacher = Callable[..., Any]


class Step(NamedTuple):
    """What a training step holds when its teacher is asked.

    Args:
        inputs: The batch's inputs, all keys of a dict.
        labels: The labels in the structure of the student's outputs; None where there
            are none.
        label_masks: Boolean, which rows have a label, by the path of outputs where
            some have none.
        withheld: Keys that a teacher without declared inputs isn't given.
        withheld_from_student: Keys that a student without declared inputs isn't given.
    """

    inputs: Any
    labels: Any = None
    label_masks: Mapping[Path, Tensor] = {}
    withheld: Sequence[str] = ()
    withheld_from_student: Sequence[str] = ()


class Lesson(NamedTuple):
    """What a teacher says of a batch.

    Args:
        targets: Its outputs; None where it has nothing to say.
        members: The outputs of each model that it consists of, by name, where their
            losses are to be logged.
    """

    targets: Any
    members: Mapping[str, Any] = {}


class StepTeacher(keras.Model, ABC):
    """A teacher that is asked with more of a step than the inputs that it reads."""

    @abstractmethod
    def teach(self, step: Step) -> Lesson:
        """Return what it says of a batch, as it would when serving."""

    @property
    def reads(self) -> Sequence[str]:
        """Keys of a batch under which recorded answers stand, as in `Recorded`."""
        return ()

    @property
    def declares(self) -> Sequence[str] | None:
        """The names of the inputs that it reads, None where it doesn't tell."""
        return None

    @property
    def logged_members(self) -> Sequence[str]:
        """The names of the members that `teach` returns."""
        return ()


class FollowingTeacher(StepTeacher):
    """A teacher whose weights follow the student's; a distiller's files hold it."""

    @abstractmethod
    def follow(
        self, student: keras.Model, *, step: Any = 0, updated: Any = True
    ) -> None:
        """Take in what an update of the student's weights has brought.

        Args:
            student: The student.
            step: The number of updates before this one.
            updated: Whether there was one in this step, a boolean scalar.
        """


def changes(teacher: Teacher | None) -> bool:
    """Return whether a teacher is one that changes while it teaches."""
    return isinstance(teacher, FollowingTeacher | keras.callbacks.Callback)


def checked(teacher: Teacher | None) -> Teacher | None:
    """Return `teacher`, or raise where it can't teach.

    Raises:
        TypeError: If it can't be called.
        ValueError: If it is a Keras model or layer without weights.
    """
    if teacher is not None and not callable(teacher):
        raise TypeError(
            "`teacher` must be a Keras model or a callable of a batch. Received: "
            f"teacher={teacher!r} of type {type(teacher).__name__}"
        )
    if isinstance(teacher, keras.Layer) and not teacher.built:
        raise ValueError(
            f"The teacher '{teacher.name}' isn't built: it has no weights, let alone "
            "trained ones. Train it, load it, or call it on a batch before it teaches."
        )
    return teacher


def ask(teacher: Teacher | None, step: Step) -> Lesson:
    """Return what a teacher says of a batch, as it would when serving.

    Args:
        teacher: A Keras layer or model, called with `training=False`, or any other
            callable.
        step: What there is to read; of a dict, a model is given the keys that it
            declares.

    Returns:
        The outputs as tensors, with no gradient to the teacher.

    Raises:
        ValueError: If there is no teacher.
    """
    if teacher is None:
        raise ValueError(
            "This distiller has no teacher: files don't hold it. Assign it, "
            "`distiller.teacher = teacher`, or load the file with "
            "`Distiller.load(filepath, teacher=teacher)`."
        )
    if isinstance(teacher, StepTeacher):
        said = teacher.teach(step)
    else:
        said = Lesson(call(teacher, step.inputs, withheld=step.withheld))
    members = {name: as_targets(member) for name, member in said.members.items()}
    return Lesson(as_targets(said.targets), members)


def call(
    teacher: Teacher,
    x: Any,
    *,
    withheld: Sequence[str] = (),
    training: bool | None = False,
) -> Any:
    """Return a teacher's outputs for the part of the inputs that it reads."""
    seen = features.select(teacher, x, withheld=withheld)
    is_layer = isinstance(teacher, keras.Layer)
    return teacher(seen, training=training) if is_layer else teacher(seen)


def as_targets(outputs: Any) -> Any:
    """Return a teacher's outputs as tensors through which no gradient passes."""
    if outputs is None:
        return None
    return keras.tree.map_structure(
        lambda output: ops.stop_gradient(ops.convert_to_tensor(output)), outputs
    )


def targets_read(teacher: Teacher | None) -> tuple[str, ...]:
    """Return the keys of a batch under which the teacher's own answers stand."""
    if isinstance(teacher, Recorded | StepTeacher):
        return tuple(teacher.reads)
    return ()


def declared_names(teacher: Teacher | None) -> list[str] | None:
    """Return the names of a teacher's inputs, None where it doesn't tell them all."""
    if isinstance(teacher, StepTeacher):
        return None if teacher.declares is None else list(teacher.declares)
    return features.declared_names(teacher)


def logged_members(teacher: Teacher | None) -> tuple[str, ...]:
    """Return the names of the members whose losses are logged."""
    return tuple(teacher.logged_members) if isinstance(teacher, StepTeacher) else ()


def supports_jit(teacher: Teacher | None) -> bool:
    """Return whether XLA can compile a teacher, as Keras asks each layer."""
    if not isinstance(teacher, keras.Layer):
        return True
    return all(layer.supports_jit for layer in teacher._flatten_layers())

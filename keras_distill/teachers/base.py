"""The interface of teachers, and the wrapper that makes teachers of other callables."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill import backend, inputs
from keras_distill.batch import Batch
from keras_distill.teachers.reach import reached_variables
from keras_distill.types import Nested

# What users pass as a teacher: a Keras model or layer, a `Teacher`, or any callable
# that takes the inputs of a batch and returns outputs.
TeacherLike = Callable[..., Any]


class Lesson(NamedTuple):
    """The targets that a teacher returns for a batch.

    Args:
        targets: The teacher's outputs. None if it has none for this batch. The student
            then learns from the labels only.
        members: The outputs of the teacher's members by name, if the loss against each
            member is logged.

    Example:
        >>> Lesson(targets=[[0.1, 0.9]]).members
        {}
    """

    targets: Nested
    members: Mapping[str, Nested] = {}


class Teacher(ABC):
    """A source of targets for a student.

    Subclasses implement `teach`. It is called while a step is traced, when tensors have
    no values yet. So it must compute with `keras.ops`.

    `Distiller` doesn't save a teacher in its files.

    Example:
        >>> class Sharper(Teacher):
        ...     def __init__(self, model):
        ...         self.model = model
        ...
        ...     def teach(self, batch):
        ...         return Lesson(2.0 * self.model(batch.inputs, training=False))
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> len(Sharper(model).state)
        2
    """

    @abstractmethod
    def teach(self, batch: Batch) -> Lesson:
        """Return the targets for a batch. The caller stops their gradients.

        Call models with `training=False`.

        Args:
            batch: The record of the step. Its `inputs` have all keys, not only those
                that the teacher declares.
        """

    @property
    def reads(self) -> Sequence[str]:
        """Keys of the inputs that hold recorded outputs, which no model may read."""
        return ()

    @property
    def declares(self) -> Sequence[str] | None:
        """Names of the inputs that the teacher reads; None (default) if unknown."""
        return None

    @property
    def logged_members(self) -> Sequence[str]:
        """Names of the `members` that its lessons hold."""
        return ()

    @property
    def changes(self) -> bool:
        """Whether the teacher changes while it teaches.

        `fit` doesn't compare such a teacher with chance or with the student.
        """
        return False

    @property
    def state(self) -> Sequence[keras.Variable]:
        """The variables that `teach` reads or changes.

        The default finds them in the attributes of the teacher: in models, layers, seed
        generators, lists, dicts and functions. On JAX, a variable that is missing here
        is a constant in the compiled step, and `teach` can't change it.
        """
        found = vars(self) if not isinstance(self, keras.Layer) else self
        return reached_variables(found)

    # Not a property: Keras saves each layer that an attribute returns.
    def as_layer(self) -> keras.Layer | None:
        """Return the layer in which hints look up the teacher's layers, or None."""
        return self if isinstance(self, keras.Layer) else None


class FollowingTeacher(Teacher):
    """A teacher that is updated from the student's weights.

    `Distiller` saves it in its files. Subclasses are Keras models. `state` must hold
    all variables that `follow` assigns.
    """

    @property
    def changes(self) -> bool:
        """Whether the teacher changes while it teaches: always."""
        return True

    @abstractmethod
    def follow(
        self, student: keras.Model, *, step: Any = 0, updated: Any = True
    ) -> None:
        """Update the teacher after a step of the student's optimiser.

        Args:
            student: The student.
            step: The number of the optimiser's updates before this step.
            updated: Whether this step updated the student's weights, a boolean scalar.
        """


class _CalledTeacher(Teacher):
    """A Keras layer or another callable as a teacher."""

    def __init__(self, given: TeacherLike) -> None:
        self.given = given

    def teach(self, batch: Batch) -> Lesson:
        return Lesson(call(self.given, batch.inputs, withheld=batch.withheld))

    @property
    def declares(self) -> Sequence[str] | None:
        return inputs.declared_names(self.given)

    @property
    def state(self) -> Sequence[keras.Variable]:
        return reached_variables(self.given)

    def as_layer(self) -> keras.Layer | None:
        return self.given if isinstance(self.given, keras.Layer) else None


class _Absent(Teacher):
    """The teacher of a distiller that was loaded without one."""

    def teach(self, batch: Batch) -> Lesson:
        raise ValueError(
            "This distiller has no teacher: files don't hold it. Assign it, "
            "`distiller.teacher = teacher`, or load the file with "
            "`Distiller.load(filepath, teacher=teacher)`."
        )


def as_teacher(given: TeacherLike | None) -> Teacher:
    """Return a `Teacher` for the object that a user passed as a teacher.

    Raises:
        TypeError: If the object is neither callable nor a `Teacher`.
        ValueError: If it is a Keras model or layer that isn't built.
    """
    if given is None:
        return _Absent()
    if not callable(given) and not isinstance(given, Teacher):
        raise TypeError(
            "`teacher` must be a Keras model or a callable of a batch. Received: "
            f"teacher={given!r} of type {type(given).__name__}"
        )
    if isinstance(given, keras.Layer) and not given.built:
        raise ValueError(
            f"The teacher '{given.name}' isn't built: it has no weights, let alone "
            "trained ones. Train it, load it, or call it on a batch before it teaches."
        )
    return given if isinstance(given, Teacher) else _CalledTeacher(given)


def ask(teacher: Teacher, batch: Batch) -> Lesson:
    """Return a teacher's lesson as tensors through which no gradient passes."""
    lesson = checked_lesson(teacher, batch)
    members = {name: as_targets(member) for name, member in lesson.members.items()}
    return Lesson(as_targets(lesson.targets), members)


def checked_lesson(teacher: Teacher, batch: Batch) -> Lesson:
    """Return the lesson that a teacher's `teach` returns.

    Raises:
        TypeError: If `teach` returns something else than a `Lesson`.
    """
    with backend.known_writes(_unknown_write(teacher)):
        lesson = teacher.teach(batch)
    if not isinstance(lesson, Lesson):
        raise TypeError(
            "`teach` must return a `keras_distill.teachers.Lesson`: `Lesson(outputs)`, "
            "or `Lesson(None)` for a batch without targets. Received: "
            f"{type(lesson).__name__} from {type(teacher).__name__}.teach"
        )
    return lesson


def _unknown_write(teacher: Teacher) -> str:
    return (
        f"`{type(teacher).__name__}.teach` changes a variable that its `state` doesn't "
        "return. Keras on JAX would drop the change. Return all variables that `teach` "
        "reads or changes from the property `state`, or keep them in attributes of the "
        "teacher, where its default finds them."
    )


def call(
    teacher: TeacherLike | Teacher,
    x: Nested,
    *,
    withheld: Sequence[str] = (),
    training: bool | None = False,
) -> Nested:
    """Return a callable's outputs for the part of the inputs that it reads.

    Args:
        teacher: A Keras layer or model, which is called with `training`; another
            callable; or a `Teacher` that can't be called.
        x: The inputs. If they are a dict, a model gets the keys that it declares.
        withheld: Keys that a callable without declared inputs doesn't get.
        training: As in `keras.Model.call`.
    """
    if not callable(teacher):
        return checked_lesson(teacher, Batch(inputs=x, withheld=withheld)).targets
    seen = inputs.select(teacher, x, withheld=withheld)
    is_layer = isinstance(teacher, keras.Layer)
    return teacher(seen, training=training) if is_layer else teacher(seen)


def as_targets(outputs: Nested) -> Nested:
    """Return a teacher's outputs as tensors through which no gradient passes."""
    if outputs is None:
        return None
    return keras.tree.map_structure(
        lambda output: ops.stop_gradient(ops.convert_to_tensor(output)), outputs
    )


def supports_jit(teacher: TeacherLike | None) -> bool:
    """Return whether XLA can compile a teacher: whether all its layers support it."""
    if not isinstance(teacher, keras.Layer):
        return True
    return all(layer.supports_jit for layer in teacher._flatten_layers())

"""A teacher that returns the mean of several models' outputs."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_distill.batch import Batch
from keras_distill.naming import distinct
from keras_distill.teachers import base, ordering
from keras_distill.teachers.base import (
    FollowingTeacher,
    Lesson,
    Teacher,
    TeacherLike,
    as_teacher,
)
from keras_distill.teachers.combining import alike, check_combination, mean_outputs
from keras_distill.types import Nested


@keras.saving.register_keras_serializable(package="keras_distill")
class Ensemble(keras.Model, Teacher):
    r"""The weighted mean of several models' outputs.

    `t = sum_m w_m t_m`, or `t = log(sum_m w_m softmax(t_m))` with
    `combine="probabilities"`, for the members' outputs `t_m`. The weights `w_m` are
    divided by their sum. Both means are logits. An ensemble is a Keras model. It can
    predict, and can be evaluated, saved and exported like any other. If the inputs are
    a dict, each member reads the keys that it declares.

    Args:
        models: The members, at least one: built Keras models or layers, other
            teachers, or callables that take the inputs of a batch. Their outputs are
            logits of one structure and shape.
        weights: A positive number for each member. Defaults to equal weights.
        combine: Whether to average `"logits"` (default) or `"probabilities"`.
        activation: The function that turns outputs into probabilities, `"softmax"`
            (default) or, unit by unit, `"sigmoid"`.
        axis: The class axis. Defaults to -1.
        log_losses: Whether `fit` also logs the distillation loss against each member,
            as `<name of the member>_distillation_loss`. Members of the same name are
            numbered. Defaults to False.
        name: Name of the model.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        TypeError: If `models` isn't a list of callables, or a member follows a
            student.
        ValueError: If there is no member, a Keras model isn't built, or the weights
            don't fit. When called, if the members' outputs differ in structure or
            shape.

    Example:
        >>> ensemble = Ensemble(
        ...     [lambda x: x, lambda x: 3.0 * x], weights=[3.0, 1.0])
        >>> logits = ensemble(np.array([[2.0, 0.0]], "float32"))
        >>> keras.ops.convert_to_numpy(logits).tolist()
        [[3.0, 0.0]]

    Reference:
        Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network",
        https://arxiv.org/abs/1503.02531, sections 2 and 3.
    """

    def __init__(
        self,
        models: Sequence[TeacherLike],
        weights: Sequence[float] | None = None,
        *,
        combine: str = "logits",
        activation: str = "softmax",
        axis: int = -1,
        log_losses: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_combination(combine, activation)
        _check_members(models)
        # Each member casts its inputs to its own dtype.
        super().__init__(name=name, **{"autocast": False, **kwargs})
        self.models = list(models)
        self.shares = _shares(weights, len(models))
        self.combine = combine
        self.activation = activation
        self.axis = axis
        self.log_losses = log_losses
        self.member_names = distinct([_name(member) for member in models])
        # An ensemble has no weights besides its members'.
        self.built = True

    @property
    def reads(self) -> Sequence[str]:
        """Keys of the inputs that hold outputs recorded for the members."""
        keys = [key for member in self._teachers() for key in member.reads]
        return tuple(dict.fromkeys(keys))

    @property
    def declares(self) -> Sequence[str] | None:
        """Names of the members' inputs; None if they aren't known for every member."""
        names: set[str] = set()
        for member in self._teachers():
            if member.declares is None:
                return None
            names.update(member.declares)
        return sorted(names)

    @property
    def logged_members(self) -> Sequence[str]:
        """Names of the members against which losses are logged."""
        return tuple(self.member_names) if self.log_losses else ()

    @property
    def changes(self) -> bool:
        """Whether a member changes while it teaches."""
        return any(member.changes for member in self._teachers())

    @property
    def state(self) -> Sequence[keras.Variable]:
        """The variables of all members, each once."""
        states = [variable for member in self._teachers() for variable in member.state]
        return list({id(variable): variable for variable in states}.values())

    def call(self, inputs: Nested, training: bool | None = None) -> Nested:
        """Return the mean of the members' outputs."""
        return self.mean(self.member_outputs(inputs, training))

    def teach(self, batch: Batch) -> Lesson:
        """Return the mean of the members' outputs, and those of logged members."""

        def asked(given: TeacherLike, inputs: Nested) -> Nested:
            member = as_teacher(given)
            withheld = (*batch.withheld, *self._withheld_from(member))
            seen = batch._replace(inputs=inputs, withheld=withheld)
            return base.ask(member, seen).targets

        outputs = self._one_by_one(asked, batch.inputs)
        targets = self.combined(outputs, batch)
        members = dict(zip(self.logged_members, outputs, strict=False))
        return Lesson(targets, members)

    def member_outputs(
        self, inputs: Nested, training: bool | None = None
    ) -> list[Nested]:
        """Return the outputs of each member for the inputs of a batch."""

        def called(given: TeacherLike, inputs: Nested) -> Nested:
            withheld = self._withheld_from(as_teacher(given))
            return base.call(given, inputs, withheld=withheld, training=training)

        return self._one_by_one(called, inputs)

    def combined(self, outputs: Sequence[Nested], batch: Batch) -> Nested:
        """Return the targets of a training step, given the members' outputs."""
        return self.mean(outputs)

    def mean(
        self, outputs: Sequence[Nested], shares: Sequence[Any] | None = None
    ) -> Nested:
        """Return the mean of outputs.

        Args:
            outputs: The outputs of each member.
            shares: As in `mean_outputs`. Defaults to the members' own shares.
        """
        return mean_outputs(
            outputs,
            self.shares if shares is None else shares,
            combine=self.combine,
            activation=self.activation,
            axis=self.axis,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments.

        Raises:
            TypeError: If a member isn't a Keras model or layer.
            ValueError: If members share weights.
        """
        self._check_can_be_saved()
        return {
            **super().get_config(),
            "models": [keras.saving.serialize_keras_object(m) for m in self.models],
            "weights": list(self.shares),
            "combine": self.combine,
            "activation": self.activation,
            "axis": self.axis,
            "log_losses": self.log_losses,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "Ensemble":
        """Build the ensemble from `get_config`'s result."""
        models = [
            keras.saving.deserialize_keras_object(model, custom_objects=custom_objects)
            for model in config["models"]
        ]
        return cls(**{**config, "models": models})

    # Not a property: Keras saves each layer that an attribute returns.
    def _teachers(self) -> list[Teacher]:
        return [as_teacher(member) for member in self.models]

    def _one_by_one(
        self, ask: Callable[[TeacherLike, Nested], Nested], inputs: Nested
    ) -> list[Nested]:
        """Return `ask(member, inputs)` for each member, one after the other."""
        outputs: list[Nested] = []
        for name, member in zip(self.member_names, self.models, strict=True):
            if outputs:
                inputs = ordering.after(outputs[-1], inputs)
            outputs.append(ask(member, inputs))
            if outputs[-1] is None:
                raise ValueError(
                    "Every member of an ensemble must return targets for every batch. "
                    f"Received: None from the member '{name}'"
                )
        return alike(outputs)

    def _withheld_from(self, member: Teacher) -> list[str]:
        """Return the keys that hold outputs recorded for other members."""
        return [key for key in self.reads if key not in member.reads]

    def _check_can_be_saved(self) -> None:
        others = [
            name
            for name, member in zip(self.member_names, self.models, strict=True)
            if not isinstance(member, keras.Layer)
        ]
        if others:
            raise TypeError(
                "An ensemble can be saved where all of its members are Keras models or "
                "layers: other callables have no config. Make these members layers, or "
                f"save the models and not the ensemble. Received: members {others}"
            )
        members: list[Any] = self.models
        weights = [id(weight) for member in members for weight in member.weights]
        if len(set(weights)) != len(weights):
            raise ValueError(
                "Files of Keras can't hold an ensemble whose members share weights. "
                "Make one model of these members, with several outputs or their mean, "
                f"or save each apart. Received: {len(weights)} weights of members, "
                f"{len(set(weights))} of them different"
            )


def _check_members(models: Any) -> None:
    if not isinstance(models, list | tuple):
        raise TypeError(
            "`models` must be a list of Keras models or callables. Received: "
            f"models={models!r} of type {type(models).__name__}"
        )
    if not models:
        raise ValueError("`models` must hold at least one model. Received: models=[]")
    for member in models:
        if member is None:
            raise TypeError(
                f"`models` must hold no None. Received: models={list(models)}"
            )
        if isinstance(member, FollowingTeacher):
            raise TypeError(
                "A teacher that follows its student can't be a member of an ensemble, "
                f"where nobody would tell it of updates. Received: {member!r}"
            )
        as_teacher(member)


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return the weights divided by their sum."""
    if weights is None:
        return [1.0 / count] * count
    given = np.asarray(weights, "float64")
    if given.shape != (count,) or not (np.isfinite(given) & (given > 0.0)).all():
        raise ValueError(
            "`weights` must hold a positive number for each model. Received: "
            f"weights={weights} for {count} models"
        )
    return [float(share) for share in given / given.sum()]


def _name(member: TeacherLike) -> str:
    if isinstance(member, keras.Layer):
        return str(member.name)
    name: str = getattr(member, "__name__", type(member).__name__)
    # A lambda is named "<lambda>".
    return name.strip("<>")

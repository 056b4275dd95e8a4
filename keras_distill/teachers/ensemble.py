"""Several models that teach as one."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_distill.naming import distinct
from keras_distill.teachers import base, ordering
from keras_distill.teachers.base import (
    FollowingTeacher,
    Lesson,
    Step,
    StepTeacher,
    Teacher,
)
from keras_distill.teachers.combining import alike, check_combination, mean_outputs


@keras.saving.register_keras_serializable(package="keras_distill")
class Ensemble(StepTeacher):
    r"""The weighted mean of what several models say.

    `t = sum_m w_m t_m`, or `t = log(sum_m w_m softmax(t_m))` with
    `combine="probabilities"`, the weights `w_m` divided by their sum. Both are logits.
    It is a Keras model: it predicts, is evaluated, saved and exported as one. Of a
    dict of inputs each member reads the keys that it declares.

    Args:
        models: The members, at least one: built Keras models or layers, other
            ensembles, or any callables of a batch of inputs, with outputs of one
            structure and shape, in logits.
        weights: A positive number for each member. Defaults to equal weights.
        combine: What is averaged, `"logits"` (default) or `"probabilities"`.
        activation: What makes probabilities of the outputs, `"softmax"` (default) or
            `"sigmoid"` of each unit.
        axis: The class axis. Defaults to -1.
        log_losses: Whether `fit` logs the distillation loss against each member too,
            as `<name of the member>_distillation_loss`, a number added to a name that
            stands for two. Defaults to False.
        name: Name of the model.
        **kwargs: What `keras.Model` takes.

    Raises:
        TypeError: If the members aren't a list of callables, or one follows a
            student.
        ValueError: If there is none, a Keras model isn't built, or the weights don't
            fit; when called, if the members' outputs differ in structure or shape.

    Example:
        >>> ensemble = Ensemble(
        ...     [lambda x: x, lambda x: 3.0 * x], weights=[3.0, 1.0])
        >>> ensemble(np.array([[2.0, 0.0]])).numpy()
        array([[3., 0.]])

    Reference:
        Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network",
        https://arxiv.org/abs/1503.02531, sections 2 and 3.
    """

    def __init__(
        self,
        models: Sequence[Teacher],
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
        # the members cast their own inputs
        super().__init__(name=name, **{"autocast": False, **kwargs})
        self.models = list(models)
        self.shares = _shares(weights, len(models))
        self.combine = combine
        self.activation = activation
        self.axis = axis
        self.log_losses = log_losses
        self.member_names = distinct([_name(member) for member in models])
        self.built = True  # all of its weights are its members'

    @property
    def reads(self) -> Sequence[str]:
        """Keys of a batch that its members read recorded answers from."""
        keys = [key for member in self.models for key in base.targets_read(member)]
        return tuple(dict.fromkeys(keys))

    @property
    def declares(self) -> Sequence[str] | None:
        """The names of its members' inputs, None where one doesn't tell."""
        names: set[str] = set()
        for member in self.models:
            of_member = base.declared_names(member)
            if of_member is None:
                return None
            names.update(of_member)
        return sorted(names)

    @property
    def logged_members(self) -> Sequence[str]:
        """The names of the members, where their losses are logged."""
        return tuple(self.member_names) if self.log_losses else ()

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the mean of the members' outputs."""
        return self.mean(self.member_outputs(inputs, training))

    def teach(self, step: Step) -> Lesson:
        """Return the mean of the members' outputs, with these where they are logged."""

        def said(member: Teacher, inputs: Any) -> Any:
            withheld = (*step.withheld, *self._withheld_from(member))
            asked = step._replace(inputs=inputs, withheld=withheld)
            return base.ask(member, asked).targets

        outputs = self._one_by_one(said, step.inputs)
        targets = self.combined(outputs, step)
        members = dict(zip(self.logged_members, outputs, strict=False))
        return Lesson(targets, members)

    def member_outputs(self, inputs: Any, training: bool | None = None) -> list[Any]:
        """Return what each member says of a batch of inputs."""

        def said(member: Teacher, inputs: Any) -> Any:
            withheld = self._withheld_from(member)
            return base.call(member, inputs, withheld=withheld, training=training)

        return self._one_by_one(said, inputs)

    def combined(self, outputs: Sequence[Any], step: Step) -> Any:
        """Return what the members' outputs come to in a training step."""
        return self.mean(outputs)

    def mean(self, outputs: Sequence[Any], shares: Sequence[Any] | None = None) -> Any:
        """Return the members' mean, of their shares or of others."""
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

    def _one_by_one(
        self, said: Callable[[Teacher, Any], Any], inputs: Any
    ) -> list[Any]:
        """Return `said(member, inputs)` of each member."""
        outputs: list[Any] = []
        for name, member in zip(self.member_names, self.models, strict=True):
            if outputs:
                inputs = ordering.after(outputs[-1], inputs)
            outputs.append(said(member, inputs))
            if outputs[-1] is None:
                raise ValueError(
                    "Every member of an ensemble must say something of every batch. "
                    f"Received: None from the member '{name}'"
                )
        return alike(outputs)

    def _withheld_from(self, member: Teacher) -> list[str]:
        """Return the keys of recorded answers that aren't this member's."""
        own = base.targets_read(member)
        return [key for key in self.reads if key not in own]

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
        held = [id(weight) for member in members for weight in member.weights]
        if len(set(held)) != len(held):
            raise ValueError(
                "Files of Keras can't hold an ensemble whose members share weights. "
                "Make one model of these members, with several outputs or their mean, "
                f"or save each apart. Received: {len(held)} weights of members, "
                f"{len(set(held))} of them different"
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
        base.checked(member)


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


def _name(member: Teacher) -> str:
    if isinstance(member, keras.Layer):
        return str(member.name)
    name: str = getattr(member, "__name__", type(member).__name__)
    return name.strip("<>")  # of a lambda

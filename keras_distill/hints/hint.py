"""A hint: a layer of the teacher that guides a layer of the student."""

from collections.abc import Callable
from typing import Any

import keras

from keras_distill import arguments
from keras_distill.hints.layers import Where
from keras_distill.hints.recorded import Recorded
from keras_distill.losses.calling import as_loss
from keras_distill.values import Value

Projector = Any  # "auto", a Keras layer, or None


@keras.saving.register_keras_serializable(package="keras_distill")
class Hint:
    r"""A loss term that trains a layer of the student to match a layer of the teacher.

    A `Distiller` adds `weight * loss(teacher_layer, projector(student_layer))` to its
    loss. It reads the outputs of both layers while their models run, so no model runs
    twice. `alpha` doesn't apply to hints. A `sample_weight` that is one tensor for all
    outputs applies to hints as it does to the label loss. A `sample_weight` per output
    doesn't.

    Args:
        guided: The student's layer, by its path, such as `"backbone/block3/conv"`: its
            name after the names of the nested models or layers around it. If names
            change, use a function that maps the student to the layer.
        hint: The teacher's layer, given in the same way. If its output was recorded, a
            `Recorded` with the key in the batch.
        loss: A loss from `keras_distill.hints.losses`, or any Keras loss. It is called
            with the teacher's features as `y_true` and the student's as `y_pred`.
            Defaults to `"mse"`, which with a projector is the hint loss of FitNets.
        projector: A Keras layer that maps the student's features to the shape of the
            teacher's, or None. `"auto"`, the default, makes a projector if the loss
            compares element by element and the last axes differ in size: a 1x1
            convolution for images, otherwise a `Dense`. A projector trains with the
            student and is saved with the distiller, but isn't part of the student.
        weight: The weight of the hint in the loss, a float or a schedule, not negative.
            Defaults to 1.
        name: The hint is logged as `<name>_loss`. Defaults to the name of the guided
            layer, followed by `_hint`.

    Raises:
        TypeError: If `guided` is neither a name nor a function, if `hint` is neither of
            them nor a `Recorded`, or if the projector isn't a layer.
        ValueError: If the weight is negative.

    Example:
        >>> import numpy as np
        >>> from keras_distill import Distiller
        >>> def model(width):
        ...     return keras.Sequential(
        ...         [keras.Input((4,)), keras.layers.Dense(width, name="hidden"),
        ...          keras.layers.Dense(3)])
        >>> distiller = Distiller(
        ...     model(8), model(32), hints=[Hint("hidden", "hidden", weight=0.1)])
        >>> distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(
        ...     from_logits=True))
        >>> x, y = np.ones((6, 4)), np.zeros(6)
        >>> sorted(distiller.fit(x, y, verbose=0).history)
        ['alpha', 'distillation_loss', 'hidden_hint_loss', 'loss', 'student_loss']

    Reference:
        Romero et al. 2015, "FitNets: Hints for Thin Deep Nets",
        https://arxiv.org/abs/1412.6550, equation 3.
    """

    @arguments.explained
    def __init__(
        self,
        guided: Where,
        hint: Where | Recorded,
        *,
        loss: Any = "mse",
        projector: Projector = "auto",
        weight: Any = 1.0,
        name: str | None = None,
    ) -> None:
        _check_layer("guided", guided)
        if not isinstance(hint, Recorded):
            _check_layer("hint", hint)
        is_layer = isinstance(projector, keras.Layer)
        if projector not in (None, "auto") and not is_layer:
            raise TypeError(
                '`projector` must be "auto", None or a Keras layer. Received: '
                f"projector={projector!r} of type {type(projector).__name__}"
            )
        self.guided = guided
        self.hint = hint
        self.loss = loss
        self.projector = projector
        self.name = name or f"{_name_of(guided)}_hint"
        self.compared = as_loss(loss)
        if self.compared is None:
            raise TypeError("`loss` must be a loss. Received: loss=None")
        self.weighting = Value(
            f"{self.name}_weight",
            weight,
            requirement="finite and not negative",
            accepts=lambda value: 0.0 <= value < float("inf"),
        )

    @property
    def weight(self) -> Any:
        """The weight. Callbacks may assign a float."""
        return self.weighting.value

    @weight.setter
    def weight(self, value: Any) -> None:
        self.weighting.value = value

    def with_projector(self, projector: Projector) -> "Hint":
        """Return a copy of the hint with another projector."""
        return Hint(
            self.guided,
            self.hint,
            loss=self.loss,
            projector=projector,
            weight=self.weight,
            name=self.name,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        given = {
            "guided": self.guided,
            "hint": self.hint,
            "loss": self.loss,
            "projector": self.projector,
            "weight": self.weight,
        }
        return {
            **{
                name: keras.saving.serialize_keras_object(value)
                for name, value in given.items()
            },
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Hint":
        """Build the hint from `get_config`'s result."""
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(value)
                for name, value in config.items()
            }
        )


def _check_layer(what: str, where: Any) -> None:
    """Raise TypeError if an argument is neither the name of a layer nor a function."""
    if not isinstance(where, str) and (
        isinstance(where, keras.Layer) or not callable(where)
    ):
        raise TypeError(
            f"`{what}` must be the name of a layer, or a function that returns the "
            f"layer of a model. Received: {what}={where!r} of type "
            f"{type(where).__name__}"
        )


def _name_of(where: str | Callable[..., Any]) -> str:
    name = where if isinstance(where, str) else getattr(where, "__name__", "")
    return "layer" if name in ("", "<lambda>") else name.replace("/", "_")

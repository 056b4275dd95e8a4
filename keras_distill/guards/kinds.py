"""Which values a loss takes: logits, probabilities, or any."""

import functools
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill.losses import Standardized, TemperedLoss
from keras_distill.losses.calling import as_loss

_OF_ROWS = (
    "kl_divergence",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
)
_OF_CLASS_IDS = ("sparse_categorical_crossentropy",)
_OF_UNITS = ("binary_crossentropy", "binary_focal_crossentropy", "dice", "tversky")
# Their output is divided by its sum first, so that it may exceed 1.
_NORMALIZING = ("categorical_crossentropy", "categorical_focal_crossentropy")


class Kind(NamedTuple):
    """What a loss takes an output for.

    Args:
        values: `"logits"`, `"probabilities"`, or `"positive"`: a rate, or scores that
            are divided by their sum.
        per_unit: Whether each unit is one of its own, as of a sigmoid; otherwise the
            units of an example belong together, as of a softmax.
        axis: The class axis.
        hint: What a user can do where the output is of the other kind.
    """

    values: str
    per_unit: bool = False
    axis: int = -1
    hint: str = ""


def of_teacher(loss: Any) -> Kind | None:
    """Return what a distillation loss takes the teacher's output for."""
    ours = _of_ours(loss, "teacher")
    if ours is not None:
        return ours
    name, arguments = _function(loss)
    if name in _OF_ROWS or name == "categorical_generalized_cross_entropy":
        return Kind("probabilities", False, arguments.get("axis", -1), _FORWARD_KL)
    if name in _OF_UNITS:
        return Kind("probabilities", True, -1, _BINARY)
    return Kind("positive", True, -1, "") if name == "poisson" else None


def of_student(loss: Any) -> Kind | None:
    """Return what a distillation loss takes the student's output for."""
    ours = _of_ours(loss, "student")
    if ours is not None:
        return ours
    kind = of_labels(loss)
    if kind is None:
        return None
    return kind._replace(hint=_BINARY if kind.per_unit else _FORWARD_KL)


def of_labels(loss: Any) -> Kind | None:
    """Return what a label loss takes a model's output for."""
    name, arguments = _function(loss)
    values = "logits" if arguments.get("from_logits", False) else "probabilities"
    axis = arguments.get("axis", -1)
    if name in _OF_ROWS or name in _OF_CLASS_IDS:
        if values == "probabilities" and name in _NORMALIZING:
            values = "positive"
        hint = _ENDS.format("softmax") if name == "kl_divergence" else _FROM_LOGITS
        return Kind(values, False, axis, hint.format("softmax"))
    if name == "categorical_generalized_cross_entropy":
        return Kind(values, False, -1, _ENDS.format("softmax"))
    if name in ("dice", "tversky"):
        return Kind(values, True, -1, _ENDS.format("sigmoid"))
    if name in _OF_UNITS:
        return Kind(values, True, axis, _FROM_LOGITS.format("sigmoid"))
    if name == "poisson":
        return Kind("positive", True, -1, _ENDS.format("softplus"))
    return None


_FORWARD_KL = (
    "Pass `distillation_loss=keras_distill.losses.ForwardKL(temperature=4.0)`, which "
    "takes logits."
)
_BINARY = (
    "Pass `distillation_loss=keras_distill.losses.BinarySoftTargets()`, which takes "
    "logits."
)
_FROM_LOGITS = (
    "Pass the loss as an object with `from_logits=True`, or end the model in a {}."
)
_ENDS = "End the model in a {}, or choose a loss of logits."


def _of_ours(loss: Any, whose: str) -> Kind | None:
    """Return what one of this package's losses takes, None for another's."""
    loss = tempered(loss)
    if loss is None:
        return None
    logits = loss.takes_logits(whose)
    argument = "from_logits"
    if whose == "teacher" and loss.teacher_from_logits is not None:
        argument = "teacher_from_logits"
    return Kind(
        "logits" if logits else "probabilities",
        loss.activation == "sigmoid",
        loss.axis,
        f"Pass `{argument}=True`.",
    )


def tempered(loss: Any) -> TemperedLoss | None:
    """Return the loss of this package that takes the outputs, None for another's."""
    if isinstance(loss, Standardized):
        loss = loss.loss
    return loss if isinstance(loss, TemperedLoss) else None


def as_students(loss: Any, output: Any) -> Any:
    """Return a teacher's output as what a distillation loss takes the student's for."""
    ours = tempered(loss)
    if ours is None or ours.takes_logits("teacher") == ours.takes_logits("student"):
        return output
    if not ours.takes_logits("teacher"):
        return ours.logits_of_probabilities(output)
    if ours.activation == "sigmoid":
        return ops.sigmoid(output)
    return ops.softmax(output, axis=ours.axis)


def name_of(loss: Any) -> str:
    """Return what messages call a loss."""
    return str(getattr(loss, "name", None) or _function(loss)[0])


def _function(loss: Any) -> tuple[str, dict[str, Any]]:
    """Return the name of Keras' function behind a loss, and its arguments."""
    if isinstance(loss, str):
        loss = as_loss(loss)
    arguments: dict[str, Any] = {}
    if isinstance(loss, keras.losses.Loss):
        arguments = dict(getattr(loss, "_fn_kwargs", {}))
        loss = getattr(loss, "fn", getattr(loss, "function", None))
    while isinstance(loss, functools.partial):
        arguments = {**loss.keywords, **arguments}
        loss = loss.func
    of_keras = getattr(loss, "__module__", "").startswith("keras.src.losses")
    return (loss.__name__ if of_keras else ""), arguments

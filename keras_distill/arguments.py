"""Errors that name the right call and argument in place of an unknown argument.

Users often pass arguments under the names of other libraries.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import keras

Function = TypeVar("Function", bound=Callable[..., Any])

# Names in `keras.distillation`, in the example on keras.io, and common with PyTorch.
_ALIASES = {
    "temperature": ("T", "tau", "temp", "kd_temperature", "distillation_temperature"),
    "distillation_loss": (
        "distillation_loss_fn",
        "distillation_losses",
        "distill_loss",
        "kd_loss",
        "soft_loss",
        "soft_target_loss",
        "strategy",
    ),
    "loss": (
        "student_loss_fn",
        "student_loss",
        "student_criterion",
        "label_loss",
        "hard_loss",
        "task_loss",
        "criterion",
        "loss_fn",
        "ce_loss",
    ),
    "alpha": (
        "student_loss_weight",
        "distillation_loss_weight",
        "distill_weight",
        "distillation_weight",
        "kd_weight",
        "soft_target_loss_weight",
        "lambda_",
        "lambda_kd",
    ),
    "hints": ("feature_losses", "feature_loss", "hint", "hint_losses"),
    "student": ("student_model",),
    "teacher": ("teacher_model", "teachers"),
    "optimizer": ("student_optimizer", "learning_rate", "lr"),
    "from_logits": ("use_logits", "logits"),
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}
_NOTES = {
    "student_loss_fn": (
        "In the keras.io example `alpha` weighs the label loss; here it weighs the "
        "distillation loss, so its alpha=0.1 is 0.9 here."
    ),
    "student_loss_weight": (
        "`alpha` weighs the distillation loss and `1 - alpha` the label loss, so pass "
        "alpha=1 - student_loss_weight."
    ),
    "distillation_losses": (
        "Losses between outputs are `distillation_loss`, those between layers "
        "`Distiller(..., hints=[kd.hints.Hint(...)])`."
    ),
    "strategy": (
        "Losses between outputs are `distillation_loss`, those between layers `hints`. "
        "For a `tf.distribute` strategy, make and compile all models in its scope."
    ),
    "teachers": "Several are one: `kd.teachers.Ensemble(models)`.",
    "learning_rate": "Pass an optimizer: `keras.optimizers.Adam(learning_rate)`.",
    "lr": "Pass an optimizer: `keras.optimizers.Adam(learning_rate)`.",
}
# The remedy for arguments given by position that belong into another call.
_BY_PLACE = {
    "Distiller": (
        " Losses go into `distiller.compile(loss=..., distillation_loss=...)`."
    ),
}
# The arguments of each call, and how the call is written with one of them.
_CALLS = {
    "Distiller": (
        ("student", "teacher", "privileged_features", "hints"),
        "`kd.Distiller(student, teacher, {})`",
    ),
    "compile": (
        (
            "optimizer",
            "loss",
            "distillation_loss",
            "alpha",
            "label_mask",
            "distillation_loss_weights",
            "teacher_loss",
            "teacher_optimizer",
            "teacher_metrics",
            "check_teacher",
            "log_teacher",
            "loss_weights",
            "metrics",
            "weighted_metrics",
            "run_eagerly",
            "steps_per_execution",
            "jit_compile",
        ),
        "`distiller.compile({})`",
    ),
    "fit": (
        (
            "batch_size",
            "epochs",
            "callbacks",
            "validation_data",
            "sample_weight",
            "class_weight",
        ),
        "`distiller.fit({})`",
    ),
    "loss": (
        ("temperature", "from_logits", "teacher_from_logits", "reduction", "beta"),
        "`distiller.compile(distillation_loss=kd.losses.ForwardKL({}))`",
    ),
}
# The arguments for which the call is written in another way.
_CALLS_OF_ONE = {
    "student": "`kd.Distiller(student, teacher)`",
    "teacher": "`kd.Distiller(student, teacher)`",
    "beta": "`kd.losses.GeneralizedJSD({})` or `kd.losses.DecoupledKD({})`",
}


def check_known(call: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise a TypeError for unknown arguments that says where they belong.

    Args:
        call: The name of the called function in the error.
        given: The arguments by name.
        known: The names of the function's arguments.
    """
    names = list(known)
    unknown = {name: value for name, value in given.items() if name not in names}
    if unknown:
        places = " ".join(_place(name, unknown[name], names) for name in unknown)
        received = ", ".join(f"{name}={value!r}" for name, value in unknown.items())
        raise TypeError(
            f"`{call}` doesn't take {_listed(unknown)}. {places} Received: {received}"
        )


def parameters(*functions: Callable[..., Any]) -> list[str]:
    """Return the names of all arguments of the functions."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        parameter.name
        for function in functions
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind not in kinds
    ]


def explained(function: Function) -> Function:
    """Return a constructor or method with helpful errors for wrong arguments.

    An unknown argument raises an error that says where it belongs, unless `function`
    accepts arguments of any name. Too many arguments by position raise an error that
    lists the arguments to pass by name.
    """
    kinds = {
        parameter.name: parameter.kind
        for parameter in inspect.signature(function).parameters.values()
    }
    open_ended = inspect.Parameter.VAR_KEYWORD in kinds.values()
    by_name = [n for n, k in kinds.items() if k is inspect.Parameter.KEYWORD_ONLY]
    by_place = [
        n for n, k in kinds.items() if k is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    names = parameters(function)
    others = "all others" if open_ended else "nothing else"

    @functools.wraps(function)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = function.__name__
        if call == "__init__":
            call = type(self).__name__
        # `self` isn't among `args`.
        left_over = args[len(by_place) - 1 :]
        if left_over:
            raise TypeError(
                f"`{call}` takes {_listed(by_place) or 'nothing'} by position, and by "
                f"name {_listed(by_name) or others}.{_BY_PLACE.get(call, '')} "
                f"Received: {len(args)} by position, the last of them {args[-1]!r}"
            )
        if not open_ended:
            check_known(call, kwargs, names)
        return function(self, *args, **kwargs)

    return checked  # type: ignore[return-value]


def check_distillation_loss(loss: Any) -> None:
    """Raise a TypeError for losses of `keras.distillation` that names ours."""
    for given in keras.tree.flatten(loss):
        if type(given).__module__.startswith("keras.src.distillation"):
            temperature = getattr(given, "temperature", None)
            remedy = (
                "Between layers, pass `Distiller(..., hints=[kd.hints.Hint(guided=..., "
                "hint=...)])`."
                if temperature is None
                else f"Pass `kd.losses.ForwardKL(temperature={temperature})`."
            )
            raise TypeError(
                "`distillation_loss` must be a loss of (teacher output, student "
                "output), and those of `keras.distillation` take models. "
                f"{remedy} Received: distillation_loss={type(given).__name__}"
            )


def _place(name: str, value: Any, own: list[str]) -> str:
    """Return a sentence that says where an unknown argument belongs.

    Args:
        name: Its name.
        value: Its value.
        own: The names of the arguments that the called function has.
    """
    canonical = _CANONICAL.get(name, name)
    note = f" {_NOTES[name]}" if name in _NOTES else ""
    shown = value if isinstance(value, int | float | str) and not note else "..."
    written = f"{canonical}={shown!r}" if shown != "..." else f"{canonical}=..."
    if canonical in own:
        return f"`{name}` is `{written}` here.{note}"
    for of_call, call in _CALLS.values():
        if canonical in of_call:
            call = _CALLS_OF_ONE.get(canonical, call)
            return f"`{name}` goes into {call.replace('{}', written)}.{note}"
    close = difflib.get_close_matches(name, own, n=1)
    if close:
        return f"Did you mean `{close[0]}`?"
    return f"The arguments are {_listed(own)}."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names if name != "self")

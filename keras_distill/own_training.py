"""Methods of training that a model's own class overrides."""

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

# The attributes of a compiled model that Keras' methods read.
_COMPILED = (
    "compiled",
    "loss",
    "optimizer",
    "_compile_loss",
    "_compile_metrics",
    "_loss_tracker",
)

# Methods that a distiller never calls, because it has its own steps.
REFUSED_IN_TRAINING = ("train_step", "make_train_function")
REFUSED = (*REFUSED_IN_TRAINING, "make_test_function", "make_predict_function")
# Methods that a distiller replaces by its own. KerasHub's tasks override them to
# prepare text and images, but a distiller is given prepared data.
UNCALLED_IN_TRAINING = ("compile", "fit", "train_on_batch")
_UNCALLED_IN_USE = ("evaluate", "test_on_batch", "predict", "predict_on_batch")
UNCALLED = (*UNCALLED_IN_TRAINING, *_UNCALLED_IN_USE)
# Methods that are called with labels and weights, but without label masks.
_UNMASKED = ("compute_loss", "compute_metrics", "test_step")


def overrides(model: keras.Model, name: str) -> bool:
    """Return whether a model has its own version of a method of `keras.Model`."""
    of_class = getattr(type(model), name) is not getattr(keras.Model, name)
    return of_class or name in vars(model)


def check_replaced(
    model: keras.Model, whose: str, *, serves: bool = True, stacklevel: int = 5
) -> None:
    """Check that no method that a model overrides is ignored in silence.

    Args:
        model: The model that trains.
        whose: The role of the model in error messages, e.g. `"student"`.
        serves: Whether the object that trains it also evaluates it and predicts
            with it.
        stacklevel: As in `warnings.warn`.

    Raises:
        ValueError: If the model has steps of its own. Other overridden methods that
            would not run cause a warning.
    """
    refused = REFUSED if serves else REFUSED_IN_TRAINING
    uncalled = UNCALLED if serves else UNCALLED_IN_TRAINING
    received = f"{whose} '{model.name}' of type {type(model).__name__}"
    own = [name for name in refused if overrides(model, name)]
    if own:
        raise ValueError(
            f"The {whose} has its own {_listed(own)}, which would not run: the methods "
            "of what trains it take their place. Write what `train_step` computes as "
            "`compute_loss` or `compute_metrics`, which are called; or train the model "
            "without them: `keras.Model(model.inputs, model.outputs)` of a functional "
            f"model, or a subclass with `{own[0]} = keras.Model.{own[0]}`. Received: "
            f"{received}"
        )
    own = [name for name in uncalled if overrides(model, name)]
    if own:
        warnings.warn(
            f"The {whose} has its own {_listed(own)}, which aren't called: what trains "
            "it has its own. Prepare the data as they would. Pass "
            "`keras.Model(model.inputs, model.outputs)` of a functional model to do "
            f"without this warning. Received: {received}",
            stacklevel=stacklevel,
        )


def check_called(
    model: keras.Model, whose: str, *, masks: Sequence[str], alpha: Any = None
) -> None:
    """Raise ValueError if a model overrides methods that would lack arguments.

    Args:
        model: The model that trains.
        whose: The role of the model in error messages, e.g. `"student"`.
        masks: The names of the label masks.
        alpha: As in `Distiller.compile`.
    """
    if overrides(model, "compute_loss") and keras.tree.is_nested(alpha):
        raise ValueError(
            f"The {whose} has its own `compute_loss`, which returns one loss for all "
            f"outputs, so `alpha` must be one weight. Received: {whose} of type "
            f"{type(model).__name__}, alpha={alpha}"
        )
    unmasked = [name for name in _UNMASKED if overrides(model, name)]
    if masks and unmasked:
        raise ValueError(
            f"The {whose} has its own {_listed(unmasked)}, which can't be given a "
            "label mask. Write it as a `keras.losses.Loss` or a `keras.metrics.Metric` "
            "and give these to `compile` as `loss` and `weighted_metrics`; or compile "
            f"without `label_mask`. Received: {whose} of type {type(model).__name__}, "
            f"label masks {list(masks)}"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


@contextmanager
def compiled_as(model: keras.Model, outer: keras.Model) -> Iterator[None]:
    """Lend a model the losses, metrics and optimiser of `outer` during the block.

    The model's own methods read them from `self`.
    """
    earlier = {name: vars(model)[name] for name in _COMPILED if name in vars(model)}
    for name in _COMPILED:
        # Otherwise Keras would track, and so save, the lent objects.
        object.__setattr__(model, name, getattr(outer, name))
    try:
        yield
    finally:
        for name in _COMPILED:
            object.__delattr__(model, name)
        for name, value in earlier.items():
            object.__setattr__(model, name, value)


def all_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """Return a model's metrics, with those that its own `metrics` doesn't list."""
    metrics: list[keras.metrics.Metric] = keras.Model.metrics.fget(model)
    return [*metrics, *model.metrics]


def compiled_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """Return the metrics that Keras made of `compile`'s arguments, without `loss`."""
    metrics = [] if model._compile_metrics is None else [model._compile_metrics]
    return metrics + (model._compile_loss.metrics if model._compile_loss else [])


def logged_names(metrics: Sequence[keras.metrics.Metric]) -> set[str]:
    """Return the names that metrics are logged by, once they have a result."""
    names: set[str] = set()
    for metric in metrics:
        if getattr(metric, "built", True):
            result = metric.result()
            names.update(result if isinstance(result, dict) else [metric.name])
    return names


def check_names(logged: Collection[str], ours: Collection[str]) -> None:
    """Raise ValueError if a metric has a name that distillation logs.

    Args:
        logged: The names of a model's metrics.
        ours: The names that distillation logs.
    """
    taken = sorted(set(logged) & set(ours))
    if taken:
        raise ValueError(
            "A metric must not have the name of what distillation logs, or one would "
            "hide the other. Give it another, e.g. `keras.metrics.Mean(name=...)`. "
            f"Received: metrics named {taken}"
        )


def warn_of_frozen(whose: str, names: Sequence[str]) -> None:
    """Warn, as Keras' own step does, that no weight is trainable."""
    warnings.warn(
        f"There are no trainable weights, so `fit` changes nothing in the {whose}. Set "
        f"`trainable = True` and compile again. Received: {whose} named {list(names)}",
        stacklevel=3,
    )


def own_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """Return the metrics of a model's own class, without compiled ones."""
    if not overrides(model, "metrics"):
        return list(model._metrics)
    compiled = [model._loss_tracker, *compiled_metrics(model)]
    return [m for m in model.metrics if all(m is not other for other in compiled)]

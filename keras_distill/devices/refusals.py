"""Errors for settings that don't work on several devices."""

from collections.abc import Iterator, Mapping
from typing import Any

import keras

# Settings of an optimiser that act on the gradient of one device.
_CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")
# Settings of an optimiser that TensorFlow can't compute on several devices.
_CONDITIONAL = ("gradient_accumulation_steps", "ema_overwrite_frequency")


def check_compile(
    model: keras.Model,
    optimizers: Mapping[str, keras.optimizers.Optimizer | None],
    options: Mapping[str, Any],
) -> None:
    """Raise an error for a setting that is wrong or fails on several devices.

    Args:
        model: The trainer. Without a strategy of `tf.distribute`, or with one device,
            everything is permitted.
        optimizers: Its optimisers by the name of their argument.
        options: The arguments of `keras.Model.compile`.

    Raises:
        ValueError: If there is such a setting. The error names it.
    """
    strategy = getattr(model, "distribute_strategy", None)
    count = 1 if strategy is None else strategy.num_replicas_in_sync
    if count == 1:
        return
    for what, why in _refused(optimizers, options):
        raise ValueError(
            f"{why} Leave it out on several devices, or train on one. Received: {what} "
            f"on {count} devices"
        )


def _refused(
    optimizers: Mapping[str, Any], options: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield settings that can't be used, and why."""
    for argument, outer in optimizers.items():
        optimizer = getattr(outer, "inner_optimizer", outer)
        for name in _CLIPS:
            value = getattr(optimizer, name, None)
            if value is not None:
                why = (
                    f"`{name}` of `{argument}` would clip the gradient of each device "
                    "and not that of the batch."
                )
                yield f"{name}={value}", why
        for name in _CONDITIONAL:
            value = getattr(optimizer, name, None)
            if value is not None:
                why = f"`{name}` of `{argument}` can't be computed by TensorFlow there."
                yield f"{name}={value}", why
    steps = options.get("steps_per_execution") or 1
    if steps > 1:
        why = "`steps_per_execution` must be 1: Keras can't run several steps at once."
        yield f"steps_per_execution={steps}", why
    if options.get("jit_compile") is True:
        yield "jit_compile=True", "`jit_compile` fails: XLA compiles for one device."

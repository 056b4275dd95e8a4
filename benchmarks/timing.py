"""Timing that the benchmarks share: sides in turn, ratios of each round, medians."""

import statistics
import time
from collections.abc import Callable

import keras
import numpy as np


def training_step(model: keras.Model, data: tuple) -> Callable[[], object]:
    """Return one call of the compiled train function, as `fit` makes it.

    The model has been trained on a batch.
    """
    if keras.backend.backend() == "jax":
        return _step_on_jax(model, data)
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensors(data).repeat()
    iterator = iter(dataset)
    model.make_train_function()
    return lambda: model.train_function(iterator)


def _step_on_jax(model: keras.Model, data: tuple) -> Callable[[], object]:
    names = ("trainable", "non_trainable", "optimizer", "metrics")
    state = model._get_jax_state(**{f"{name}_variables": True for name in names})
    # A step uses up the memory of its arguments, which models may share.
    state = keras.tree.map_structure(lambda value: value.copy(), state)
    batch = [keras.tree.map_structure(keras.ops.convert_to_tensor, data)]

    def step() -> object:
        nonlocal state
        logs, state = model.train_function(state, iter(batch))
        return logs

    return step


def forward_pass(model: keras.Model, x: np.ndarray, jit_compile: bool) -> Callable:
    """Return one call of a compiled forward pass of a model in inference."""
    x = keras.ops.convert_to_tensor(x)
    if keras.backend.backend() == "jax":
        import jax

        # Steps of a model that holds this one use up its weights' memory.
        weights = [
            [keras.ops.copy(variable.value) for variable in variables]
            for variables in (model.trainable_variables, model.non_trainable_variables)
        ]
        call = jax.jit(lambda *given: model.stateless_call(*given, training=False)[0])
        return lambda: call(*weights, x)
    import tensorflow as tf

    run = tf.function(lambda x: model(x, training=False), jit_compile=jit_compile)
    return lambda: run(x)


def interleaved(
    calls: dict[str, Callable[[], object]], rounds: int, steps: int
) -> dict[str, list[float]]:
    """Time each side in turn, `steps` calls a round; return ms a call by round."""
    for call in calls.values():
        for _ in range(3):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        names = list(calls)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begin = time.perf_counter()
            for _ in range(steps):
                result = calls[name]()
            keras.tree.map_structure(np.asarray, result)  # wait for the device
            times[name].append((time.perf_counter() - begin) / steps * 1e3)
    return times


def show(title: str, times: dict[str, list[float]], ratios: dict[str, list]) -> None:
    """Print medians, and for each claim the median of the rounds' ratios."""
    print(f"\n{title}")
    for name, values in times.items():
        print(f"  {name:28s} {statistics.median(values):8.3f} ms")
    for claim, values in ratios.items():
        print(f"  {claim:52s} {statistics.median(values):.3f}")


def ratio(numerator: list[float], *denominators: list[float]) -> list[float]:
    """Return the ratio of each round: noise that both sides share cancels."""
    sums = [sum(parts) for parts in zip(*denominators, strict=True)]
    return [n / d for n, d in zip(numerator, sums, strict=True)]

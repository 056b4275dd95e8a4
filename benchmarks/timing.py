"""Timing that the benchmarks share: sides in turn, ratios of each round, medians."""

import statistics
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf


def training_step(model: keras.Model, data: tuple) -> Callable[[], object]:
    """Return one call of the compiled train function, as `fit` makes it."""
    dataset = tf.data.Dataset.from_tensors(data).repeat()
    iterator = iter(dataset)
    model.make_train_function()
    return lambda: model.train_function(iterator)


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

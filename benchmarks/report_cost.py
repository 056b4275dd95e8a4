"""The cost of a comparison beyond the predictions and latency runs in it.

Claim: `report.compare` and its page, of three models and 10,000 images, take at most
1.2 x the time of their three calls of `predict` and their latency runs. The page has
less than 2 MB. Parts and whole are timed in the same comparison, because the same call
of `predict` takes 2.5 to 4 s on a shared machine, and this range exceeds the measured
cost. The control is `predict` by itself, on fresh copies of the models, because it
traces in its first call.

    python benchmarks/report_cost.py [--rounds 5] [--rows 10000]
"""

import argparse
import statistics
import tempfile
import time
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_distill.report import compare, costs

WIDTHS = {"teacher": 48, "student alone": 16, "distilled": 16}
BATCH_SIZES = (1, 8, 64)


def network(width: int) -> keras.Model:
    """A conv net for images of Fashion-MNIST's shape."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(width, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(2 * width, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(2 * width, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )


def networks() -> dict[str, keras.Model]:
    """Return the models, as fresh copies."""
    return {name: network(width) for name, width in WIDTHS.items()}


class Timed:
    """A function that notes how long it takes.

    Args:
        function: The function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        begin = time.perf_counter()
        try:
            return self._function(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - begin


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    timed = Timed(call)
    timed()
    return timed.seconds


def main() -> None:
    """Time both sides in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    x = generator.random((options.rows, 28, 28, 1), dtype="float32")
    y = generator.integers(10, size=options.rows)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            alone = sum(
                seconds(lambda m=model: m.predict(x, batch_size=256, verbose=0))
                for model in networks().values()
            )
            latencies = Timed(costs.latencies)
            with unittest.mock.patch.object(costs, "latencies", latencies):
                begin = time.perf_counter()
                report = compare(networks(), (x, y), batch_sizes=BATCH_SIZES)
                report.write(folder)
                whole = time.perf_counter() - begin
            predicts = sum(model["predict_s"] for model in report.models.values())
            ratios.append(whole / (predicts + latencies.seconds))
            print(
                f"three predicts {predicts:5.1f} s (by themselves {alone:5.1f} s)  "
                f"latency runs {latencies.seconds:5.1f} s  "
                f"comparison and page {whole:5.1f} s  ratio {ratios[-1]:.3f}",
                flush=True,
            )
        size = (Path(folder) / "report.html").stat().st_size
    print(f"comparison / its parts   (<= 1.20)  {statistics.median(ratios):.3f}")
    print(f"page, MB                 (<= 2.00)  {size / 1e6:.3f}")


if __name__ == "__main__":
    main()

"""What a comparison adds to the predictions and latency runs that it consists of.

Claim: `report.compare` and its page, of three models and 10,000 images, take at most
1.2 x the time of three calls of `predict` and the latency runs; the page has less than
2 MB. `predict` is timed on fresh copies of the models, as it traces in its first call.

    python benchmarks/report_cost.py [--rounds 3] [--rows 10000]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers

from keras_distill.report import compare

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


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    """Time both sides in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    x = generator.random((options.rows, 28, 28, 1), dtype="float32")
    y = generator.integers(10, size=options.rows)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:

        def reported(batch_sizes: tuple[int, ...]) -> float:
            models = networks()
            return seconds(
                lambda: compare(models, (x, y), batch_sizes=batch_sizes).write(folder)
            )

        for _ in range(options.rounds):
            models = networks()
            predicts = sum(
                seconds(lambda m=model: m.predict(x, batch_size=256, verbose=0))
                for model in models.values()
            )
            without, whole = reported(()), reported(BATCH_SIZES)
            latencies = whole - without
            ratios.append(whole / (predicts + latencies))
            print(
                f"three predicts {predicts:5.1f} s  latency runs {latencies:5.1f} s  "
                f"comparison and page {whole:5.1f} s",
                flush=True,
            )
        size = (Path(folder) / "report.html").stat().st_size
    print(f"comparison / its parts   (<= 1.20)  {statistics.median(ratios):.3f}")
    print(f"page, MB                 (<= 2.00)  {size / 1e6:.3f}")


if __name__ == "__main__":
    main()

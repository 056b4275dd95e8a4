"""The cost of an ensemble of teachers, compared to the cost of its members.

Claim: one call of an ensemble of 4 costs at most 1.05 x the sum of its members' calls,
and with XLA at most that sum. There are five compiled functions of the same batch: four
call a member each, and one calls the ensemble. They run interleaved in one process. The
result is the median of the rounds' ratios.

    python benchmarks/ensemble_cost.py [--rounds 30] [--steps 20]
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from timing import interleaved, ratio, show

import keras_distill as kd

CLASSES, SIZE, BATCH, MEMBERS = 10, 28, 128, 4
BOUNDS = {False: 1.05, True: 1.0}  # by jit_compile


def convnet(seed: int) -> keras.Model:
    """A conv net on 28x28 images that ends in logits."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES),
        ]
    )


def sides(
    jit_compile: bool, combine: str, images: tf.Tensor
) -> dict[str, Callable[[], object]]:
    """Return one compiled call of each member, and one of their ensemble."""

    def compiled(model: keras.Model) -> Callable[[], object]:
        forward = tf.function(
            lambda x: model(x, training=False), jit_compile=jit_compile
        )
        return lambda: forward(images)

    members = [convnet(seed) for seed in range(MEMBERS)]
    calls = {f"member {n}": compiled(member) for n, member in enumerate(members)}
    calls["ensemble"] = compiled(kd.teachers.Ensemble(members, combine=combine))
    return calls


def main() -> None:
    """Time all sides, print the ratios, and exit with 1 if one is out of bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    images = tf.constant(generator.normal(size=(BATCH, SIZE, SIZE, 1)), tf.float32)
    out_of_bound = False
    for jit_compile, bound in BOUNDS.items():
        for combine in ("logits", "probabilities"):
            calls = sides(jit_compile, combine, images)
            times = interleaved(calls, options.rounds, options.steps)
            of_members = [times[name] for name in calls if name != "ensemble"]
            ratios = ratio(times["ensemble"], *of_members)
            times["sum of members"] = [sum(t) for t in zip(*of_members, strict=True)]
            claim = f"ensemble / sum of {MEMBERS} members (<= {bound:.2f})"
            show(
                f"mean of {combine}, jit_compile={jit_compile}, batch {BATCH}",
                times,
                {claim: ratios},
            )
            out_of_bound |= statistics.median(ratios) > bound
    sys.exit(int(out_of_bound))


if __name__ == "__main__":
    main()

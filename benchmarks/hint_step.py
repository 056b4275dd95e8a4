"""The cost of hints: a step with two hints, compared to a step without.

Claim: a step with two hints costs at most 1.1 x the step without hints, with and
without XLA. One hint is between feature maps of different widths, through a projector;
the other is between maps of attention. A step with one hint is compared with that of
`keras.distillation`. All sides run interleaved in one process. The ratios of the
medians are printed.

    python benchmarks/hint_step.py [--rounds 30] [--steps 10]
"""

import argparse
import sys
from collections.abc import Callable
from statistics import median

import keras
import numpy as np
from timing import interleaved, ratio, show, training_step

import keras_distill as kd

CLASSES, SIZE, BATCH = 10, 28, 128
BOUND = 1.10


def convnet(filters: int, seed: int) -> keras.Model:
    """A conv net on 28x28 images that ends in logits."""
    keras.utils.set_random_seed(seed)
    convolutions = []
    for stage, width in enumerate((filters, 2 * filters, 4 * filters), start=1):
        convolutions += [
            keras.layers.Conv2D(width, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(name=f"stage{stage}"),
        ]
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 1)),
            *convolutions,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(CLASSES),
        ]
    )


def label_loss() -> keras.losses.Loss:
    """Return the label loss of every side."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def with_and_without(jit_compile: bool) -> dict[str, keras.Model]:
    """Return distillers of a narrow student with two hints and with none."""
    hints = [
        kd.hints.Hint("stage2", "stage2"),
        kd.hints.Hint("stage3", "stage3", loss=kd.hints.losses.AttentionTransfer()),
    ]
    distillers = {
        "without hints": kd.Distiller(convnet(8, seed=1), convnet(16, seed=0)),
        "two hints": kd.Distiller(convnet(8, seed=1), convnet(16, seed=0), hints=hints),
    }
    for distiller in distillers.values():
        distiller.compile("adam", label_loss(), jit_compile=jit_compile)
    return distillers


def beside_keras(jit_compile: bool) -> dict[str, keras.Model]:
    """Return distillers with one hint between equal widths: Keras' has no projector."""
    ours = kd.Distiller(
        convnet(8, seed=1),
        convnet(8, seed=0),
        hints=[kd.hints.Hint("stage2", "stage2")],
    )
    rival = keras.distillation.Distiller(
        convnet(8, seed=0),
        convnet(8, seed=1),
        [
            keras.distillation.LogitsDistillation(
                temperature=1.0, loss=keras.losses.KLDivergence()
            ),
            keras.distillation.FeatureDistillation(
                teacher_layer_name="stage2", student_layer_name="stage2"
            ),
        ],
    )
    distillers = {"ours": ours, "keras.distillation": rival}
    for distiller in distillers.values():
        distiller.compile("adam", label_loss(), jit_compile=jit_compile)
    return distillers


def steps(models: dict[str, keras.Model], data: tuple) -> dict[str, Callable]:
    """Return a training step of each model, ready to be timed."""
    for model in models.values():
        model.train_on_batch(*data)  # builds the optimiser
    return {name: training_step(model, data) for name, model in models.items()}


def main() -> int:
    """Time all sides, print the ratios, return whether one is out of bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    data = (
        generator.normal(size=(BATCH, SIZE, SIZE, 1)).astype("float32"),
        generator.integers(CLASSES, size=BATCH),
    )
    kept = True
    for jit_compile in (False, True):
        how = f"jit_compile={jit_compile}, batch {BATCH}"
        times = interleaved(
            steps(with_and_without(jit_compile), data), options.rounds, options.steps
        )
        ratios = ratio(times["two hints"], times["without hints"])
        kept &= median(ratios) <= BOUND
        show(
            f"training step, {how}",
            times,
            {f"two hints / without hints            (<= {BOUND})": ratios},
        )
        times = interleaved(
            steps(beside_keras(jit_compile), data), options.rounds, options.steps
        )
        show(
            f"training step with one hint between equal widths, {how}",
            times,
            {"ours / keras.distillation": ratio(*times.values())},
        )
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())

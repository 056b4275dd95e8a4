"""The cost of a `Distiller` step, compared to the cost of its parts.

Claim: a step costs at most 1.05 x (plain student step + teacher forward), and at most
as much as a step of `keras.distillation.Distiller`, with and without XLA. `evaluate` on
ten thousand rows costs at most 1.05 x the student's own `evaluate`. A part of its cost
doesn't depend on the rows, so a call on few rows is timed too. All sides run
interleaved in one process. The ratios of the medians are printed. KERAS_BACKEND=jax
measures the same on JAX.

If the same model is compiled twice, the times of its steps differ by 1 % and more. So
each side is built several times, and `keras.distillation` twice each time. The ratio of
these two shows the precision of the ratio of ours to it. The timed steps are later ones
of a training, after the checks of the first batches have ended.

    python benchmarks/step_overhead.py [--builds 4] [--rounds 10] [--steps 20]
"""

import argparse
import functools
from collections.abc import Callable

import keras
import numpy as np
from timing import forward_pass, interleaved, ratio, show, training_step

import keras_distill as kd

CLASSES, SIZE, BATCH, TEMPERATURE = 10, 16, 128, 4.0
# After these, a distiller has seen enough rows to judge its teacher.
FIRST_BATCHES = 16
# Of `evaluate`: ten thousand rows, as the test set of MNIST has, and a short call.
WHOLE, SHORT = 78, 20


def convnet(filters: int, seed: int) -> keras.Model:
    """A conv net on 16x16 images that ends in logits."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 1)),
            keras.layers.Conv2D(filters, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(2 * filters, 3, padding="same", activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(CLASSES),
        ]
    )


def label_loss() -> keras.losses.Loss:
    """Return the label loss of every side."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def sides(jit_compile: bool, data: tuple) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name."""
    teacher = convnet(32, seed=0)
    compiled = {"loss": label_loss(), "jit_compile": jit_compile}
    plain = convnet(16, seed=1)
    plain.compile("adam", **compiled)
    ours = {}
    for check in (True, False):
        ours[check] = kd.Distiller(convnet(16, seed=1), teacher)
        loss = kd.losses.ForwardKL(TEMPERATURE)
        ours[check].compile(
            "adam", check_teacher=check, distillation_loss=loss, **compiled
        )
    rivals = [
        keras.distillation.Distiller(
            convnet(32, seed=0),
            convnet(16, seed=1),
            keras.distillation.LogitsDistillation(
                temperature=TEMPERATURE, loss=keras.losses.KLDivergence()
            ),
        )
        for _ in range(2)
    ]
    for rival in rivals:
        rival.compile("adam", **compiled)
    for model in (plain, ours[True], ours[False], *rivals):
        for _ in range(FIRST_BATCHES):
            model.train_on_batch(*data)
    return {
        "student": training_step(plain, data),
        "teacher forward": forward_pass(teacher, data[0], jit_compile),
        "ours": training_step(ours[True], data),
        "ours, check_teacher=False": training_step(ours[False], data),
        "keras.distillation": training_step(rivals[0], data),
        "keras.distillation, again": training_step(rivals[1], data),
    }


def evaluations(data: tuple, batches: int) -> dict[str, Callable[[], object]]:
    """Return `evaluate` of a distiller and of its student."""
    distiller = kd.Distiller(convnet(16, seed=1), convnet(32, seed=0))
    distiller.compile("adam", label_loss(), metrics=["accuracy"])
    student = convnet(16, seed=1)
    student.compile("adam", label_loss(), metrics=["accuracy"])
    x, y = (np.repeat(values, batches, axis=0) for values in data)
    return {
        "student": lambda: student.evaluate(x, y, batch_size=BATCH, verbose=0),
        "ours": lambda: distiller.evaluate(x, y, batch_size=BATCH, verbose=0),
    }


def timed(
    build: Callable[[], dict[str, Callable[[], object]]],
    builds: int,
    rounds: int,
    n: int,
) -> dict[str, list[float]]:
    """Return the rounds of all builds of the sides, `n` calls a round."""
    times: dict[str, list[float]] = {}
    for _ in range(builds):
        for name, values in interleaved(build(), rounds, n).items():
            times.setdefault(name, []).extend(values)
    return times


def main() -> None:
    """Time all sides and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--builds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    data = (
        generator.normal(size=(BATCH, SIZE, SIZE, 1)).astype("float32"),
        generator.integers(CLASSES, size=BATCH),
    )
    on_jax = keras.backend.backend() == "jax"
    for jit_compile in (True,) if on_jax else (False, True):
        build = functools.partial(sides, jit_compile, data)
        times = timed(build, options.builds, options.rounds, options.steps)
        must = (times["student"], times["teacher forward"])
        unchecked = times["ours, check_teacher=False"]
        show(
            f"training step, jit_compile={jit_compile}, batch {BATCH}",
            times,
            {
                "ours / (student + teacher forward)   (<= 1.05)": ratio(
                    times["ours"], *must
                ),
                "ours / keras.distillation            (<= 1.00)": ratio(
                    times["ours"], times["keras.distillation"]
                ),
                "keras.distillation, again / the same": ratio(
                    times["keras.distillation, again"], times["keras.distillation"]
                ),
                "ours / ours without check_teacher": ratio(times["ours"], unchecked),
            },
        )
    for batches, bound in ((WHOLE, "(<= 1.05)"), (SHORT, "")):
        build = functools.partial(evaluations, data, batches)
        times = timed(build, options.builds, options.rounds, 1)
        of_student = ratio(times["ours"], times["student"])
        show(
            f"evaluate, {batches} batches",
            times,
            {f"ours / student                       {bound}": of_student},
        )


if __name__ == "__main__":
    main()

"""The cost of training the teacher in the student's steps, on the click log.

Claims: a synchronous step costs at most 1.1 x (student step + teacher step). If `fit`
reads arrays of a million rows, reading takes less than 10 % of the time. All sides run
interleaved in one process. The medians of the rounds' ratios are printed, with the
paper's measurements.

    python benchmarks/privileged_step.py [--rounds 30] [--steps 10]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from timing import interleaved, ratio, show, training_step

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import click_log  # noqa: E402
import privileged_recommender as recommender  # noqa: E402

import keras_distill as kd  # noqa: E402

BATCH = recommender.PACE[0]
LOSS = dict.fromkeys(
    recommender.TASKS, keras.losses.BinaryCrossentropy(from_logits=True)
)


def distiller(log: click_log.Log, *, shared: bool, trains: bool) -> kd.Distiller:
    """Return a compiled distiller of the example's models."""
    student, teacher = recommender.build(log, log.privileged)
    if not shared:
        teacher = keras.models.clone_model(teacher)  # embeddings of its own
    model = kd.Distiller(student, teacher, privileged_features=log.hidden)
    model.compile(
        "adam",
        LOSS,
        distillation_loss=kd.losses.BinarySoftTargets(),
        teacher_loss=LOSS if trains else None,
    )
    return model


def sides(log: click_log.Log, batch: tuple) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name."""
    x, y, weight = batch
    student, teacher = recommender.build(log, log.privileged)
    models = {"student": student, "teacher": keras.models.clone_model(teacher)}
    calls = {}
    for name, model in models.items():
        model.compile("adam", LOSS)
        read = {key: x[key] for key in model.input}
        calls[name] = read, y, weight
    models["together, shared inputs"] = distiller(log, shared=True, trains=True)
    models["together, independent"] = distiller(log, shared=False, trains=True)
    models["student under a fixed teacher"] = distiller(log, shared=False, trains=False)
    for name, model in models.items():
        data = calls.get(name, batch)
        model.train_on_batch(*data)  # builds the optimiser
        calls[name] = training_step(model, data)
    return calls


class Reader(keras.Model):
    """Takes batches from `fit` and does nothing with them."""

    def train_step(self, data: tuple) -> dict:
        """Look at the batch's size, so that it must be there."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return {"rows": tf.shape(x["user"])[0]}


def reading(log: click_log.Log, rounds: int) -> list[float]:
    """Return by round what `fit` takes to read an epoch, as a share of training one.

    It bounds what a step waits: batches are made while the step before runs.
    """
    weight = {"click": np.ones_like(log.y["click"]), "buy": log.y["click"]}
    reader, model = Reader(), distiller(log, shared=True, trains=True)
    reader.compile()
    shares = []
    for number in range(rounds + 1):  # the first one traces
        times = []
        for fitted in (reader, model):
            begin = time.perf_counter()
            fitted.fit(
                log.x,
                log.y,
                sample_weight=weight,
                batch_size=BATCH,
                verbose=0,
            )
            times.append(time.perf_counter() - begin)
        if number:
            shares.append(times[0] / times[1])
    return shares


def main() -> None:
    """Time all sides and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--impressions", type=int, default=1_000_000)
    options = parser.parse_args()
    log = click_log.generate(options.impressions, seed=0)
    rows = slice(BATCH)
    x, y = (
        {name: c[rows] for name, c in columns.items()} for columns in (log.x, log.y)
    )
    batch = x, y, {"click": np.ones_like(y["click"]), "buy": y["click"]}
    times = interleaved(sides(log, batch), options.rounds, options.steps)
    student, teacher = times["student"], times["teacher"]
    under_fixed = times["student under a fixed teacher"]
    shared, independent = (
        times["together, shared inputs"],
        times["together, independent"],
    )
    first_then = [sum(pair) for pair in zip(teacher, under_fixed, strict=True)]
    show(
        f"training step, batch {BATCH}",
        times,
        {
            "shared inputs / (student + teacher)       (<= 1.1)": ratio(
                shared, student, teacher
            ),
            "independent / (student + teacher)         (<= 1.1)": ratio(
                independent, student, teacher
            ),
        },
    )
    print("\nmore time than the student's own step        here   Xu et al. 2020")
    for name, values, published in (
        ("together, shared inputs", shared, 2.9),
        ("together, independent", independent, 55.0),
        ("one after the other", first_then, 99.5),
    ):
        more = 100.0 * (statistics.median(ratio(values, student)) - 1.0)
        print(f"  {name:38s} {more:+7.1f} %  {published:+7.1f} %")
    share = 100.0 * statistics.median(reading(log, rounds=3))
    print(f"\nreading an epoch / training one            (<= 10 %): {share:.1f} %")


if __name__ == "__main__":
    main()

"""A test of the verdicts of `privileged.audit` on logs whose true verdict is known.

Claims: the verdict is right for 18 or more of 20 generated logs. It is "pays" for at
most one of the logs whose column is shuffled. Sizes, models and settings are the same
for all logs of a head. Each log has a seed of its own. These are the columns:

    pays     dwell time, for the purchases of clicked rows: the student's inputs
             influence them only through it. Twice with a column of noise as well
    doesn't  the dwell time of another row; noise; a coupon that changes purchases, and
             is independent of user and item
    leaks    dwell time for clicks, 0 where there was none; the label with a little
             noise; a refund, which is missing (0) where nothing was bought

    python benchmarks/audit_verdicts.py [--logs 0 7 14]
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers
from scipy.special import expit

import keras_distill as kd

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import click_log  # noqa: E402

IDS = {"user": click_log.USERS, "item": click_log.ITEMS, "category": 20}
# Impressions to draw. About one in seven has a click, and is a row for purchases.
IMPRESSIONS = {"buy": 400_000, "click": 60_000}
BATCH, EPOCHS, FOLDS, SEEDS = 2048, 8, 2, 3
# Best for the student alone among 2e-5, 5e-5, 1e-4 and 2e-4, on three other logs.
PENALTY = 5e-5
FIRST_SEED = 1_000
Columns = dict[str, np.ndarray]


def rows_of(impressions: int, seed: int, head: str) -> tuple[Columns, np.ndarray]:
    """Return the columns and labels of a head; purchases are of clicked rows."""
    log = click_log.generate(impressions, seed)
    kept = np.ones(len(log.y[head]), bool)
    if head == "buy":
        kept = log.y["click"].ravel() == 1
    x = {name: log.x[name][kept] for name in (*IDS, "dwell")}
    return x, log.y[head][kept]


def dwell(x: Columns, y: np.ndarray, rng: np.random.Generator) -> Columns:
    """Return the dwell time."""
    return {"dwell": x["dwell"]}


def dwell_and_noise(x: Columns, y: np.ndarray, rng: np.random.Generator) -> Columns:
    """Return the dwell time, and noise."""
    return dwell(x, y, rng) | noise(x, y, rng)


def shuffled(x: Columns, y: np.ndarray, rng: np.random.Generator) -> Columns:
    """Return the dwell time of another row."""
    return {"shuffled": rng.permutation(x["dwell"])}


def noise(x: Columns, y: np.ndarray, rng: np.random.Generator) -> Columns:
    """Return noise."""
    return {"noise": rng.normal(size=y.shape).astype("float32")}


def coupon(x: Columns, y: np.ndarray, rng: np.random.Generator) -> Columns:
    """Return a column that nothing but the label depends on, and draw labels by it."""
    value = rng.normal(size=y.shape)
    y[:] = rng.random(y.shape) < expit(x["dwell"] - 6.5 + 1.5 * value)
    return {"coupon": value.astype("float32")}


def noisy_label(x: Columns, y: np.ndarray, rng: np.random.Generator) -> Columns:
    """Return the label with a little noise."""
    return {"label_like": (y + rng.normal(0, 0.1, y.shape)).astype("float32")}


def refund(x: Columns, y: np.ndarray, rng: np.random.Generator) -> Columns:
    """Return a sum of money where something was bought, and 0 elsewhere."""
    paid = rng.lognormal(0.0, 0.5, y.shape)
    return {"refund": np.where(y == 1, paid, 0.0).astype("float32")}


LOGS: list[tuple[str, str, Callable[..., Columns]]] = [
    *[("pays", "buy", dwell)] * 5,
    *[("pays", "buy", dwell_and_noise)] * 2,
    *[("doesn't", "buy", shuffled)] * 3,
    *[("doesn't", "buy", noise)] * 2,
    *[("doesn't", "buy", coupon)] * 2,
    *[("leaks", "click", dwell)] * 2,
    *[("leaks", "buy", noisy_label)] * 2,
    *[("leaks", "buy", refund)] * 2,
]


def model(privileged: tuple[str, ...] = ()) -> keras.Model:
    """Build a logistic regression on ids, beside a network of privileged columns."""
    ids = {name: keras.Input((1,), dtype="int32", name=name) for name in IDS}
    more = {name: keras.Input((1,), name=name) for name in privileged}
    seen = [
        layers.Flatten()(
            layers.Embedding(
                count + 1, 1, embeddings_regularizer=keras.regularizers.L2(PENALTY)
            )(ids[name])
        )
        for name, count in IDS.items()
    ]
    for column in more.values():
        seen.append(layers.Dense(16, "relu")(column))
    return keras.Model({**ids, **more}, layers.Dense(1)(layers.Concatenate()(seen)))


def settings() -> dict:
    """Return fresh arguments of `compile` for one fit."""
    return {
        "optimizer": keras.optimizers.Adam(0.02),
        "loss": keras.losses.BinaryCrossentropy(from_logits=True),
        "distillation_loss": kd.losses.BinarySoftTargets(),
        "alpha": 0.9,
        "jit_compile": False,
    }


def audited(number: int, verbose: int) -> kd.privileged.Audit:
    """Draw a log, and audit its column."""
    _, head, column = LOGS[number]
    seed = FIRST_SEED + number
    x, y = rows_of(IMPRESSIONS[head], seed, head)
    privileged = column(x, y, np.random.default_rng(seed))
    x = {**{name: x[name] for name in IDS}, **privileged}
    return kd.privileged.audit(
        model,
        lambda: model(tuple(privileged)),
        (x, y),
        privileged_features=list(privileged),
        compile=settings,
        epochs=EPOCHS,
        batch_size=BATCH,
        groups=x["user"],
        folds=FOLDS,
        seeds=SEEDS,
        verbose=verbose,
    )


def main() -> None:
    """Audit all logs; print their table, and how many verdicts are right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logs", type=int, nargs="*", default=range(len(LOGS)))
    parser.add_argument("--verbose", type=int, default=0)
    options = parser.parse_args()
    heads = "over alone", "over control"
    print(f"{'log':27s} {'truth':8s} {'verdict':8s} explained", end="")
    print("".join(f"  {head:27s}" for head in heads), "seconds")
    right, shuffled_pays, begin = 0, 0, time.monotonic()
    for number in options.logs:
        truth, head, column = LOGS[number]
        start = time.monotonic()
        found = audited(number, options.verbose)
        right += found.verdict == truth
        shuffled_pays += column is shuffled and found.verdict == "pays"
        gains = "".join(
            f"  {it.mean:+.5f} [{it.low:+.5f}, {it.high:+.5f}]"
            for it in (found.gain, found.over_control)
        )
        name = f"{number:2d} {column.__name__} for {head}"
        print(
            f"{name:27s} {truth:8s} {found.verdict:8s} {found.explained:9.2f}{gains} "
            f"{time.monotonic() - start:7.0f}",
            flush=True,
        )
    seconds = time.monotonic() - begin
    print(
        f"right: {right} of {len(options.logs)}; a shuffled column pays: "
        f"{shuffled_pays}; {seconds / 60:.0f} minutes"
    )


if __name__ == "__main__":
    main()

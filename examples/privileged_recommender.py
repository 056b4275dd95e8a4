"""Clicks and purchases: a teacher reads privileged columns of a log, a student serves.

The student scores an item for a user from ids and the user's last clicks, by attention
of the item to the clicks (as in Zhou et al. 2018, "Deep Interest Network"). The teacher
trains in the same steps, and shares all embeddings but the users'. It also reads
columns of the log. In the generated log, these are the position of each impression,
which explains clicks, and the dwell time of each click, which explains purchases.
Purchases are rare. The teacher's output for a clicked row is similar to the label, but
with less noise.

Only the purchase head reads the dwell time. Rows without a click have none, so it
almost contains the label of the click head, and such a head would teach nothing. In
KuaiRand, a log of short videos, both heads read what the user did afterwards: follow,
comment, forward.

The control is the same training with a teacher that reads only what the student reads
("student, self"). The table has scores on test rows. Its ONNX file and its teacher are
those of the privileged student.
"""

import argparse
import tempfile
from collections.abc import Mapping

import click_log
import keras
import keras_rs
import numpy as np
import onnxruntime
from keras import layers
from logs import Log
from sklearn.metrics import log_loss, roc_auc_score

import keras_distill as kd

TASKS = ("click", "buy")
Reads = Mapping[str, tuple[str, ...]]  # what a teacher reads for each task
Pace = tuple[int, int, float]  # rows a step, epochs, Adam's first rate; it falls to 0
PACE, KUAIRAND = (2048, 2, 1e-2), (1024, 4, 3e-3)  # KuaiRand has few rows


def build(log: Log, teacher_reads: Reads) -> tuple[keras.Model, keras.Model]:
    """Build a student and a teacher that share all embeddings but the users'."""
    items = layers.Embedding(log.sizes["item"], 16, name="items")
    others = [name for name in log.known if name not in ("user", "item", "history")]
    tables = {
        name: layers.Embedding(log.sizes[name], 8, name=f"{name}_embedding")
        for name in others
    }

    def model(name: str, reads: Reads) -> keras.Model:
        ids = {
            key: keras.Input(log.x[key].shape[1:], dtype="int32", name=key)
            for key in log.known
        }
        read = dict.fromkeys(sum(reads.values(), ()))
        from_log = {key: keras.Input((1,), name=key) for key in read}
        users = layers.Embedding(log.sizes["user"], 16, name=f"{name}_users")
        user, item = users(ids["user"]), items(ids["item"])
        clicked = items(ids["history"])
        held = keras.ops.not_equal(ids["history"], 0)
        interest = layers.Attention(use_scale=True)([item, clicked], mask=[None, held])
        parts = [user, item, interest, user * item, item * interest]
        parts += [table(ids[key]) for key, table in tables.items()]
        seen = layers.Flatten()(layers.Concatenate()(parts))
        logits = {}
        for task in TASKS:
            hidden = layers.Dense(64, "relu", name=f"{name}_{task}_64")(seen)
            if task in reads:
                more = [from_log[key] for key in reads[task]]
                hidden = layers.Concatenate()([hidden, *more])
            hidden = layers.Dense(32, "relu", name=f"{name}_{task}_32")(hidden)
            logits[task] = layers.Dense(1, name=task)(hidden)
        return keras.Model({**ids, **from_log}, logits, name=name)

    return model("student", {}), model("teacher", teacher_reads)


def train(
    log: Log, variant: str, seed: int, pace: Pace = PACE
) -> tuple[keras.Model, keras.Model | None]:
    """Train a student and, unless it's "alone", its teacher in the same steps.

    Args:
        log: The impressions to train on.
        variant: "alone"; "self", the control, whose teacher reads what the student
            reads; or "privileged".
        seed: The seed of weights and batches.
        pace: Rows a step, epochs, Adam's first rate. The default is for a million rows.
    """
    keras.utils.set_random_seed(seed)
    student, teacher = build(log, {} if variant == "self" else log.privileged)
    batch, epochs, first_rate = pace
    steps = epochs * -(-log.size // batch)
    rate = keras.optimizers.schedules.PolynomialDecay(first_rate, steps, 0.0)
    loss = dict.fromkeys(TASKS, keras.losses.BinaryCrossentropy(from_logits=True))
    # rows without a click have no purchase to predict, so their weight is 0
    weight = {"click": np.ones_like(log.y["click"]), "buy": log.y["click"]}
    x, trainer = log.x, student
    if variant == "alone":
        x, teacher = {name: x[name] for name in log.known}, None
        student.compile(keras.optimizers.Adam(rate), loss)
    else:
        trainer = kd.Distiller(student, teacher, privileged_features=log.hidden)
        trainer.compile(
            keras.optimizers.Adam(rate),
            loss,
            distillation_loss=kd.losses.BinarySoftTargets(),
            alpha={"click": 0.5, "buy": kd.schedules.LateStart(steps // 10, 0.9)},
            teacher_loss=loss,
        )
    batches = {"batch_size": batch, "epochs": epochs, "verbose": 0}
    trainer.fit(x, log.y, sample_weight=weight, **batches)
    return student, teacher


def predict(model: keras.Model, log: Log) -> dict[str, np.ndarray]:
    """Return a model's logits by task."""
    x = {name: log.x[name] for name in model.input}
    return model.predict(x, batch_size=8192, verbose=0)


def measure(logits: dict[str, np.ndarray], log: Log) -> dict[str, float]:
    """Score a log: clicks over all impressions, purchases over the clicked ones."""
    p = {task: (1.0 / (1.0 + np.exp(-logits[task]))).ravel() for task in TASKS}
    click, user = log.y["click"].ravel(), log.x["user"].ravel()
    clicked = click == 1
    buy, p_buy = log.y["buy"].ravel()[clicked], p["buy"][clicked]
    labels, scores, mask = kd.metrics.by_group(user, click, p["click"])
    ndcg, mrr = keras_rs.metrics.NDCG(k=10), keras_rs.metrics.MeanReciprocalRank()
    for metric in (ndcg, mrr):
        metric.update_state({"labels": labels, "mask": mask}, scores)
    calibration = kd.metrics.ExpectedCalibrationError()
    calibration.update_state(buy, p_buy)
    return {
        "click AUC": roc_auc_score(click, p["click"]),
        "by user": kd.metrics.group_auc(click, p["click"], user),
        "NDCG@10": float(ndcg.result()),
        "MRR": float(mrr.result()),
        "buy AUC": roc_auc_score(buy, p_buy),
        "log-loss": log_loss(buy, p_buy),
        "ECE": float(calibration.result()),
        "pred/obs": p_buy.sum() / buy.sum(),
    }


def main() -> None:
    """Train the student alone, as the control, and with the teacher; export it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--impressions", type=int, default=1_000_000)
    parser.add_argument("--movielens", metavar="SIZE", help="100k, 1m, 20m, 25m")
    parser.add_argument("--kuairand", metavar="DIR", help="the folder of its log")
    parser.add_argument("--smoke", action="store_true", help="20,000 impressions")
    options = parser.parse_args()
    if options.kuairand:
        log, pace = click_log.kuairand(options.kuairand), KUAIRAND
        train_log, test_log = log.split_at(click_log.KUAIRAND_TEST)
    else:
        pace, name = PACE, options.movielens
        rows = 20_000 if options.smoke else options.impressions
        log = click_log.movielens(name) if name else click_log.generate(rows, seed=0)
        train_log, test_log = log.split(0.9)
    table = {}
    for variant in ("alone", "self", "privileged"):
        student, teacher = train(train_log, variant, 0, pace)
        table[f"student, {variant}"] = measure(predict(student, test_log), test_log)
    with tempfile.TemporaryDirectory() as folder:
        served = {name: test_log.x[name] for name in log.known}
        batch = {name: column[:32] for name, column in served.items()}
        kd.export.export(
            student, f"{folder}/student", formats=("onnx",), example_batch=batch
        )
        session = onnxruntime.InferenceSession(f"{folder}/student/model.onnx")
        scores = dict(zip(TASKS, session.run(list(TASKS), served), strict=True))
    table["its ONNX file"] = measure(scores, test_log)
    table["its teacher"] = measure(predict(teacher, test_log), test_log)
    print(f"{'':20s}", *(f"{name:>9s}" for name in table["its teacher"]))
    for name, row in table.items():
        print(f"{name:20s}", *(f"{value:9.4f}" for value in row.values()))
    if options.smoke:
        print("A smoke run: its numbers mean nothing.")


if __name__ == "__main__":
    main()

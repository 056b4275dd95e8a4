"""Clicks and purchases: a teacher that reads what the log knows, a student that serves.

The student scores an item for a user from ids, a category and the user's last clicks,
which the item attends to (as in Zhou et al. 2018, "Deep Interest Network"). The teacher
trains in the same steps and on the same embeddings, the users' apart, and reads more:
the position of each impression, which explains clicks, and the dwell time of each
click, which explains purchases. Purchases are rare; what the teacher says of a clicked
row is what the label says, with much of the luck taken out.

Dwell goes to the purchase head alone. It is there only where a click was: a click head
that read it would all but see its label, and teach nothing.

The control is the same pipeline with a teacher that reads what the student reads.
"""

import argparse
import tempfile
from collections.abc import Sequence

import click_log
import keras
import keras_rs
import numpy as np
import onnxruntime
from click_log import HISTORY, PRIVILEGED, Log
from keras import layers
from sklearn.metrics import log_loss, roc_auc_score

import keras_distill as kd

BATCH, EPOCHS = 2048, 2
IDS = {"user": 1, "item": 1, "category": 1, "history": HISTORY}
TASKS = {"click": "position", "buy": "dwell"}  # and what the teacher reads for each


def build(log: Log, teacher_reads: Sequence[str]) -> tuple[keras.Model, keras.Model]:
    """Build a student and a teacher that share all embeddings but the users'."""
    rows = {name: int(log.x[name].max()) + 1 for name in IDS}
    items = layers.Embedding(max(rows["item"], rows["history"]), 16, name="items")
    categories = layers.Embedding(rows["category"], 8, name="categories")

    def model(name: str, reads: Sequence[str]) -> keras.Model:
        ids = {
            key: keras.Input((length,), dtype="int32", name=key)
            for key, length in IDS.items()
        }
        from_log = {key: keras.Input((1,), name=key) for key in reads}
        user = layers.Embedding(rows["user"], 16, name=f"{name}_users")(ids["user"])
        item, clicked = items(ids["item"]), items(ids["history"])
        held = keras.ops.not_equal(ids["history"], 0)
        interest = layers.Attention(use_scale=True)([item, clicked], mask=[None, held])
        parts = [user, item, interest, user * item, item * interest]
        parts.append(categories(ids["category"]))
        seen = layers.Flatten()(layers.Concatenate()(parts))
        logits = {}
        for task, feature in TASKS.items():
            hidden = layers.Dense(64, "relu", name=f"{name}_{task}_64")(seen)
            if feature in from_log:
                hidden = layers.Concatenate()([hidden, from_log[feature]])
            hidden = layers.Dense(32, "relu", name=f"{name}_{task}_32")(hidden)
            logits[task] = layers.Dense(1, name=task)(hidden)
        return keras.Model({**ids, **from_log}, logits, name=name)

    return model("student", ()), model("teacher", teacher_reads)


def train(log: Log, variant: str, seed: int) -> tuple[keras.Model, keras.Model | None]:
    """Train a student and, unless it's "alone", its teacher in the same steps.

    Args:
        log: The impressions to train on.
        variant: "alone"; "self", the control, whose teacher reads what the student
            reads; or "privileged".
        seed: Of weights and batches.
    """
    keras.utils.set_random_seed(seed)
    student, teacher = build(log, () if variant == "self" else PRIVILEGED)
    steps = EPOCHS * -(-len(log.x["user"]) // BATCH)
    rate = keras.optimizers.schedules.PolynomialDecay(1e-2, steps, 0.0)
    loss = dict.fromkeys(TASKS, keras.losses.BinaryCrossentropy(from_logits=True))
    # where there was no click there is no purchase to predict: such rows weigh 0
    weight = {"click": np.ones_like(log.y["click"]), "buy": log.y["click"]}
    x, trainer = log.x, student
    if variant == "alone":
        x, teacher = {name: x[name] for name in IDS}, None
        student.compile(keras.optimizers.Adam(rate), loss)
    else:
        trainer = kd.Distiller(student, teacher, privileged_features=PRIVILEGED)
        trainer.compile(
            keras.optimizers.Adam(rate),
            loss,
            distillation_loss=kd.losses.BinarySoftTargets(),
            alpha={"click": 0.5, "buy": kd.schedules.LateStart(steps // 10, 0.9)},
            teacher_loss=loss,
        )
    batches = {"batch_size": BATCH, "epochs": EPOCHS, "verbose": 0}
    trainer.fit(x, log.y, sample_weight=weight, **batches)
    return student, teacher


def measure(model: keras.Model, log: Log) -> dict[str, float]:
    """Score a log: clicks over all impressions, purchases over the clicked ones."""
    x = {name: log.x[name] for name in model.input}
    logits = model.predict(x, batch_size=8192, verbose=0)
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
    """Train the student alone, under the control and under the teacher; export it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--impressions", type=int, default=1_000_000)
    parser.add_argument("--movielens", metavar="SIZE", help="100k, 1m, 20m, 25m")
    parser.add_argument("--smoke", action="store_true", help="20,000 impressions")
    options = parser.parse_args()
    if options.movielens:
        log = click_log.movielens(options.movielens)
    else:
        rows = 20_000 if options.smoke else options.impressions
        log = click_log.generate(rows, seed=0)
    train_log, test_log = log.split(0.9)
    table = {}
    for variant in ("alone", "self", "privileged"):
        student, teacher = train(train_log, variant, seed=0)
        table[f"student, {variant}"] = measure(student, test_log)
    table["its teacher"] = measure(teacher, test_log)
    print(f"{'':20s}", *(f"{name:>9s}" for name in table["its teacher"]))
    for name, row in table.items():
        print(f"{name:20s}", *(f"{value:9.4f}" for value in row.values()))
    with tempfile.TemporaryDirectory() as folder:
        batch = {name: test_log.x[name][:32] for name in IDS}
        served = f"{folder}/student"
        kd.export.export(student, served, formats=("onnx",), example_batch=batch)
        session = onnxruntime.InferenceSession(f"{served}/model.onnx")
        scores = dict(zip(TASKS, session.run(list(TASKS), batch), strict=True))
        print("from the ONNX file, 3 items' click logits:", scores["click"][:3].ravel())
    if options.smoke:
        print("A smoke run: its numbers mean nothing.")


if __name__ == "__main__":
    main()

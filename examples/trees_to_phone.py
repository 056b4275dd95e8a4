"""Boosted trees teach a small network that a phone can run, on a real table.

The models predict whether a bank's customer agrees. The trees are scikit-learn's, on
all columns of UCI Bank Marketing that are known when the model serves. `duration` is
known only after the call. The student reads the same raw columns, including text, and
is exported as a LiteRT file. It learns from the trees' log-odds and from no label, on
the rows that the trees were fitted on, and on rows that MUNGE makes from these.

There are two controls: the same network trained on the labels, and a network that
learns from that one. All networks of a seed begin with the same weights and make the
same number of steps. Each keeps the weights that were best on the validation labels.
"""

import argparse
import pickle
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tabular
import tensorflow as tf
from scipy.stats import ttest_rel
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OrdinalEncoder

import keras_distill as kd
from keras_distill.export.latency import measure

Arrays = dict[str, np.ndarray]
ALONE, PHONE, CHECKS = "network alone", "taught on made rows too", 20
LOSS = keras.losses.BinaryCrossentropy(from_logits=True)


def grow(x: Arrays, y: np.ndarray, seed: int) -> Pipeline:
    """Fit the trees."""
    words = [i for i, values in enumerate(x.values()) if values.dtype == object]
    boosting = HistGradientBoostingClassifier(
        max_leaf_nodes=15,
        early_stopping=True,
        categorical_features=range(len(words)),
        random_state=seed,
    )
    coded = make_column_transformer((OrdinalEncoder(), words), remainder="passthrough")
    return make_pipeline(coded, boosting).fit(np.hstack(list(x.values())), y[:, 0])


def log_odds(trees: Pipeline, x: Arrays) -> np.ndarray:
    """Return the trees' outputs for columns of numbers or of `str`."""
    return trees.decision_function(np.hstack([it.astype(object) for it in x.values()]))


def train(trainer: Any, data: Any, valid: Any, steps: int) -> None:
    """Train for the same number of steps in each case, and keep the best weights."""
    best = keras.callbacks.EarlyStopping("val_loss", patience=CHECKS, mode="min")
    best.restore_best_weights = True
    trainer.fit(
        data.cache().shuffle(500).repeat(),
        validation_data=tf.data.Dataset.from_tensor_slices(valid).batch(1000),
        epochs=(checks := min(CHECKS, steps)),
        steps_per_epoch=steps // checks,
        callbacks=[best],
        verbose=0,
        shuffle=False,
    )


def run(splits: Any, seed: int, copies: int, steps: int) -> dict[str, Any]:
    """Return all models of a seed."""
    (x, y), valid = splits
    trees = grow(x, y, seed)
    numbers = [name for name, values in x.items() if values.dtype != object]
    more = kd.targets.augment_rows(x, copies=copies, integer=numbers, seed=seed)
    order = np.random.default_rng(seed).permutation(len(y) * (1 + copies))
    more = {name: np.concatenate([x[name], more[name]])[order] for name in x}

    def batches(*parts: Any) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(parts).batch(256)

    def teach(teacher: Any, data: tf.data.Dataset) -> keras.Model:
        student = tabular.network(x, seed)
        distiller = kd.Distiller(student, teacher)
        soft = kd.losses.BinarySoftTargets()  # at temperature 1 it stays calibrated
        distiller.compile("adam", LOSS, distillation_loss=soft, alpha=1.0)
        train(distiller, data, valid, steps)
        return student

    taught = partial(
        kd.targets.from_function, partial(log_odds, trees), outputs="log_odds"
    )
    said = kd.teachers.Recorded("teacher")
    alone = tabular.network(x, seed)
    alone.compile("adam", LOSS)
    train(alone, batches(x, y), valid, steps)
    return {
        "trees": trees,
        ALONE: alone,
        "taught by that network": teach(alone, batches(x)),
        "taught by the trees": teach(said, taught(batches(x))),
        PHONE: teach(said, taught(batches(more))),
    }


def measured(model: Any, x: Arrays, y: np.ndarray) -> tuple[float, float]:
    """Return AUC and log-loss."""
    if isinstance(model, Pipeline):
        logits = log_odds(model, x)
    else:
        rows = tf.data.Dataset.from_tensor_slices(x).batch(2000)
        logits = model.predict(rows, verbose=0)[:, 0].astype("float64")
    return roc_auc_score(y, logits), log_loss(y, 1 / (1 + np.exp(-logits)))


def shipped(model: Any, x: Arrays) -> tuple[float, float]:
    """Return kB and the median milliseconds for one row; networks are LiteRT files."""
    if isinstance(model, Pipeline):
        times, row = [time.perf_counter()], {name: it[:1] for name, it in x.items()}
        for _ in range(50):
            log_odds(model, row)
            times.append(time.perf_counter())
        return len(pickle.dumps(model)) / 1e3, 1e3 * statistics.median(np.diff(times))
    with tempfile.TemporaryDirectory() as folder:
        rows = {name: it[:32] for name, it in x.items()}
        kd.export.export(model, Path(folder, "phone"), ["litert"], example_batch=rows)
        (speed,) = measure(Path(folder, "phone"), batch_sizes=[1], threads=1)
        return Path(folder, "phone/model.tflite").stat().st_size / 1e3, speed["p50_ms"]


def main() -> None:
    """Train everything for each seed, and print means and paired tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a size for CI")
    parser.add_argument("--seeds", type=int, default=5, help="how many splits")
    parser.add_argument("--data-dir", help="default: see tabular.py")
    arguments = parser.parse_args()
    sizes, copies, steps = [8000, 2000, 20_000], 4, 1000
    if arguments.smoke:
        arguments.seeds, sizes, copies, steps = 2, [500, 200, 1000], 1, 2
    task, scores = tabular.TASKS["bank"], {}
    table = tabular.read(task, arguments.data_dir)
    for seed in range(arguments.seeds):
        keras.utils.clear_session()
        *splits, test = tabular.deal(task, table, seed, sizes)
        models = run(splits, seed, copies, steps)
        for name, model in models.items():
            scores.setdefault(name, []).append(measured(model, *test))
            print(seed, name, *(f"{score:.4f}" for score in scores[name][-1]))
    files = {name: shipped(models[name], test[0]) for name in ("trees", PHONE)}
    print("\nAUC (sd), log-loss (sd); AUC minus alone, t, p; kB, ms for one row")
    for name, values in scores.items():
        auc, nll = np.array(values).T
        cells = [f"{it.mean():.4f} ({it.std(ddof=1):.4f})" for it in (auc, nll)]
        if name != ALONE:
            other = np.array(scores[ALONE])[:, 0]
            t, p = ttest_rel(auc, other)
            cells.append(f"{np.mean(auc - other):+.4f} {t:+.1f} {p:.2g}")
        print(f"{name:24s}", *cells, *(f"{it:.3g}" for it in files.get(name, ())))
    if arguments.smoke:
        print("A smoke run: its numbers mean nothing.")


if __name__ == "__main__":
    main()

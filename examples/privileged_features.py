"""Columns that exist in training only, on two real tables, beside the honest control.

TODO
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tabular
import tensorflow as tf
from scipy.stats import ttest_rel
from sklearn.metrics import roc_auc_score

import keras_distill as kd

Arrays = dict[str, np.ndarray]
Key = tuple[str, str, str]  # which rows were taught on, in which way, by whom
ALPHA, CONTROL = 0.9, "self-distilled"
READS = {CONTROL: ("x",), "privileged": ("x", "privileged")}  # what teachers read
ALONE, TEACHER = ("labelled", "labels", "alone"), ("labelled", "labels", "privileged")
PAIRS = kd.losses.PairwiseSoftTargets(group="group")


class Recipe(NamedTuple):
    """How a task's models are trained; `decay / rows` is the penalty on weights."""

    loss: keras.losses.Loss
    distillation_loss: keras.losses.Loss
    learning_rate: float
    decay: float
    steps: int = 1000


MSE = keras.losses.MeanSquaredError()
CROSS_ENTROPY = keras.losses.BinaryCrossentropy(from_logits=True)
RECIPES = {
    "students": Recipe(MSE, MSE, learning_rate=0.05, decay=50.0),
    "bank": Recipe(CROSS_ENTROPY, kd.losses.BinarySoftTargets(), 1.0, decay=1.0),
}


def linear(x: Arrays, names: Sequence[str], penalty: float) -> keras.Model:
    """Build a linear model of the inputs `names`, its weights zero."""
    inputs = {name: keras.Input(x[name].shape[1:], name=name) for name in names}
    seen = keras.ops.concatenate(list(inputs.values()), axis=-1)
    decay = keras.regularizers.L2(penalty)
    layer = keras.layers.Dense(1, kernel_initializer="zeros", kernel_regularizer=decay)
    return keras.Model(inputs, layer(seen))


def fit(
    recipe: Recipe, trainer: keras.Model, x: Arrays, y: np.ndarray, **terms: Any
) -> None:
    """Fit a model or a Distiller by full-batch gradient descent."""
    optimizer = keras.optimizers.SGD(recipe.learning_rate)
    trainer.compile(optimizer, recipe.loss, steps_per_execution=recipe.steps, **terms)
    batches = tf.data.Dataset.from_tensors((x, y)).repeat(recipe.steps)
    trainer.fit(batches, steps_per_epoch=recipe.steps, shuffle=False, verbose=0)


def on_labels(
    recipe: Recipe, names: Sequence[str], x: Arrays, y: np.ndarray
) -> keras.Model:
    """Return a model of the inputs `names`, trained on labels."""
    model = linear(x, names, recipe.decay / len(y))
    fit(recipe, model, {name: x[name] for name in names}, y)
    return model


def distilled(
    recipe: Recipe, teacher: Any, x: Arrays, y: np.ndarray, **terms: Any
) -> keras.Model:
    """Return a student of a teacher and of the labels that there are."""
    student = linear(x, ["x"], recipe.decay / len(y))
    distiller = kd.Distiller(student, teacher, privileged_features=["privileged"])
    terms = {"distillation_loss": recipe.distillation_loss, **terms}
    fit(recipe, distiller, x, y, alpha=ALPHA, label_mask="labelled", **terms)
    return student


def train(recipe: Recipe, task: tabular.Task, data: Arrays) -> dict[Key, keras.Model]:
    """Return the models of a split."""
    rows = task.labelled + task.unlabelled
    labelled = np.arange(rows) < task.labelled
    y = np.where(labelled[:, None], data["y"][:rows], 0.0)  # nobody knows the others
    x = {name: data[name][:rows] for name in ("x", "privileged")}
    x |= {"labelled": labelled, "group": np.zeros(rows, "int32")}
    models, teachers = {}, {}
    for name, reads in READS.items():
        teach = partial(on_labels, recipe, reads)
        x["said"] = kd.teachers.cross_fit(teach, (x, y), labelled=labelled)
        recorded = kd.teachers.Recorded("said")
        for place, size in {"labelled": task.labelled, "all": rows}.items():
            batch = {key: values[:size] for key, values in x.items()}, y[:size]
            if place == "labelled":
                models[place, "labels", name] = teacher = teach(*batch)
            models[place, "teacher first", name] = distilled(recipe, teacher, *batch)
            models[place, "together", name] = distilled(
                recipe,
                linear(x, reads, recipe.decay / task.labelled),
                *batch,
                teacher_loss=recipe.loss,
            )
            models[place, "cross-fitted", name] = distilled(recipe, recorded, *batch)
            if place == "labelled" and recipe.loss is CROSS_ENTROPY:
                models[place, "cross-fitted pairs", name] = distilled(
                    recipe, recorded, *batch, distillation_loss=PAIRS
                )
    return models


def measure(recipe: Recipe, model: keras.Model, test: Arrays) -> dict[str, float]:
    """Return scores on the test rows; the first is the one to compare by."""
    y, output = test["y"], model({name: test[name] for name in model.input}).numpy()
    if recipe.loss is MSE:
        return {"MSE": float(MSE(y, output))}
    calibration = kd.metrics.PredictedOverObserved(from_logits=True)
    return {
        "AUC": roc_auc_score(y, output),
        "log-loss": float(CROSS_ENTROPY(y, output)),
        "pred/obs": float(calibration(y, output)),
    }


def print_table(scores: dict[Key, list[dict[str, float]]]) -> None:
    """Print mean and sd of each score, and paired differences in the first."""
    alone, *_ = scores
    names = list(scores[alone][0])
    versus = [f"{f'minus {other}':>19s}      t       p" for other in ("alone", CONTROL)]
    print(f"{'taught on, how, by whom':46s}", *(f"{n:>17s}" for n in names), *versus)
    first = {key: np.array([s[names[0]] for s in runs]) for key, runs in scores.items()}
    for key, runs in sorted(scores.items(), key=lambda item: item[0][:2]):
        values = [[score[name] for score in runs] for name in names]
        cells = [f"{np.mean(v):9.4f} ± {np.std(v, ddof=1):.4f}" for v in values]
        for other in (alone, (*key[:2], CONTROL)):
            if key != other and key != TEACHER:
                t, p = ttest_rel(first[key], first[other])
                difference = np.mean(first[key] - first[other])
                cells.append(f"{difference:+19.4f} {t:+6.1f} {p:7.4f}")
        print(f"{key[0]:9s}{key[1]:20s}{key[2]:16s}", *cells)


def main() -> None:
    """Train every variant on every split, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a size for CI")
    parser.add_argument("--seeds", type=int, default=10, help="how many splits")
    parser.add_argument("--task", choices=RECIPES, help="default: both")
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    for name in [arguments.task] if arguments.task else RECIPES:
        task, recipe = tabular.TASKS[name], RECIPES[name]
        table = tabular.read(task, arguments.data_dir)
        if arguments.smoke:
            recipe = recipe._replace(steps=20)
        scores: dict[Key, list[dict[str, float]]] = {}
        for seed in range(2 if arguments.smoke else arguments.seeds):
            keras.utils.clear_session()
            data = tabular.split(task, table, seed)
            test = {k: v[task.labelled + task.unlabelled :] for k, v in data.items()}
            for key, model in train(recipe, task, data).items():
                scores.setdefault(key, []).append(measure(recipe, model, test))
        print(f"\n{name}: ...")
        print_table(scores)


if __name__ == "__main__":
    main()

"""Labels of the last days haven't arrived, but other events of these days have.

A model is trained today. The last third of its days has no labels yet: flights have
left but not arrived, or clicks aren't counted yet. The columns that the teacher reads
have arrived. So the teacher learns from the earlier days and returns soft targets for
the last days, and the student learns from all rows.

There are two controls: the same training with a teacher that reads only what the
student reads, and with a teacher that reads the columns of other rows. The oracle is a
student with all labels. Its lead in AUC over the student alone, which has the labelled
rows only, is the gain from all labels. "Share of lead" is the part of it that a student
reaches.

On KuaiRand, the student reads the videos that a user clicked last, on all days: an app
knows these clicks at once, but its training data get them as labels later.
"""

import argparse

import click_log
import flights
import keras
import numpy as np
from log_models import CROSS_ENTROPY, Recipe, build, fit, measure
from logs import Log

import keras_distill as kd

# The best settings on the last training days, found by benchmarks/privileged_logs.py.
RECIPES = {
    "flights": Recipe(1e-3, epochs=2, dropout=0.0, alpha=0.3, batch=2048),
    "kuairand": Recipe(3e-3, epochs=4, dropout=0.2, alpha=0.3),
}
ALONE, ORACLE, FOLDS = "student alone", "oracle: all labels", 5
VARIANTS = {  # what the teacher reads, and how it teaches
    "self-distilled, first": ("known", "first"),
    "shuffled columns, first": ("shuffled", "first"),
    "privileged, first": ("privileged", "first"),
    "privileged, together": ("privileged", "together"),
    "privileged, cross-fitted": ("privileged", "cross-fitted"),
}


def has_label(day: np.ndarray) -> np.ndarray:
    """Return which rows are from before the last third of the days."""
    days = np.unique(day)
    return day < days[-(len(days) // 3)]


def by_day(day: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return folds of whole days, because rows of one day are alike."""
    fold = np.unique(day, return_inverse=True)[1] % FOLDS
    return [
        (np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(FOLDS)
    ]


def train_alone(log: Log, task: str, recipe: Recipe, seed: int) -> keras.Model:
    """Return a student that learned from labels only."""
    keras.utils.set_random_seed(seed)
    student = build(log, log.known, recipe)
    return fit(student, log.x, log.y[task], recipe, seed)


def train_taught(
    log: Log,
    task: str,
    labelled: np.ndarray,
    variant: tuple[str, str],
    recipe: Recipe,
    seed: int,
    *,
    loss: keras.losses.Loss | None = None,
    lists: np.ndarray | None = None,
) -> keras.Model:
    """Return a student that learned from a teacher, and from labels if a row has one.

    Args:
        log: All rows.
        task: The label.
        labelled: Which rows have the label.
        variant: What the teacher reads, and how it teaches, as in `VARIANTS`.
        recipe: How both models are trained.
        seed: The seed of weights, batches and shuffled columns.
        loss: The distillation loss. Defaults to `BinarySoftTargets`.
        lists: The number of each row's list, for a loss whose `group` is "list".
    """
    keras.utils.set_random_seed(seed)
    student = build(log, log.known, recipe)
    reads, way = variant
    columns = log.known if reads == "known" else (*log.known, *log.privileged[task])
    log = log.shuffled(seed) if reads == "shuffled" else log
    # A label that hasn't arrived is NaN, so that nothing can learn from it.
    y = np.where(labelled[:, None], log.y[task], np.nan).astype("float32")
    x, alpha = {**log.x, "labelled": labelled}, recipe.alpha
    if lists is not None:
        x["list"] = lists

    def taught(x: dict[str, np.ndarray], y: np.ndarray) -> keras.Model:
        return fit(build(log, columns, recipe), x, y, recipe, seed)

    terms = {}
    if way == "first":
        teacher = taught({name: it[labelled] for name, it in x.items()}, y[labelled])
    elif way == "together":
        teacher, terms["teacher_loss"] = build(log, columns, recipe), CROSS_ENTROPY
        steps = recipe.epochs * -(-log.size // recipe.batch)
        alpha = kd.schedules.LateStart(steps // 10, recipe.alpha)
    else:
        folds = by_day(log.day[labelled])
        x["taught"] = kd.cross_fit(taught, (x, y), folds=folds, labelled=labelled)
        teacher = kd.teachers.Recorded("taught")
    distiller = kd.Distiller(student, teacher, privileged_features=log.hidden)
    terms |= {"distillation_loss": loss or kd.losses.BinarySoftTargets()}
    terms |= {"alpha": alpha, "label_mask": "labelled"}
    fit(distiller, x, y, recipe, seed, lists=lists, **terms)
    return student


def print_table(found: dict[str, list[tuple[float, float, float]]]) -> None:
    """Print means over seeds, and paired differences in AUC to the student alone."""
    scores = {name: np.array(of_seeds) for name, of_seeds in found.items()}
    gains = {name: (it - scores[ALONE])[:, 0] for name, it in scores.items()}
    lead = gains[ORACLE].mean()
    print(f"{'':25s}    AUC  log-loss  pred/obs  AUC minus alone (sd)  share of lead")
    for name, it in scores.items():
        auc, loss, calibration = it.mean(axis=0)
        gain = f"{gains[name].mean():+.4f} ({gains[name].std():.4f})"
        share = gains[name].mean() / lead
        print(f"{name:25s} {auc:.4f}  {loss:.4f}  {calibration:8.3f}", end="")
        print(f"  {gain:>20s}  {share:13.0%}")


def main() -> None:
    """Train every variant at every seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kuairand", metavar="DIR", help="its folder; default: flights"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="few rows, one seed")
    options = parser.parse_args()
    if options.kuairand:
        log, test_from = click_log.kuairand(options.kuairand), click_log.KUAIRAND_TEST
        task, recipe = "click", RECIPES["kuairand"]
    else:
        log, test_from = flights.load(), flights.TEST
        task, recipe = flights.TASK, RECIPES["flights"]
    if options.smoke:
        options.seeds, log = 1, log.rows(slice(None, None, 50))
        recipe = recipe._replace(epochs=1)
    train, test = log.split_at(test_from)
    labelled = has_label(train.day)
    print(f"{labelled.sum()} of {train.size} rows have their label", flush=True)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(options.seeds):
        alone = train_alone(train.rows(labelled), task, recipe, seed)
        found.setdefault(ALONE, []).append(measure(alone, test, task))
        for name, variant in VARIANTS.items():
            student = train_taught(train, task, labelled, variant, recipe, seed)
            found.setdefault(name, []).append(measure(student, test, task))
        oracle = train_alone(train, task, recipe, seed)
        found.setdefault(ORACLE, []).append(measure(oracle, test, task))
    print_table(found)
    if options.smoke:
        print("A smoke run: its numbers mean nothing.")


if __name__ == "__main__":
    main()

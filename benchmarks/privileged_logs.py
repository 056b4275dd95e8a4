"""The gain from privileged features on two real logs, compared to that of controls.

Each variant has its own hyperparameters. They are the recipe with the lowest log-loss
on the last training days, of `--budget` recipes that are the same for all variants.
Nothing is chosen by test days. Intervals are from a bootstrap over users (KuaiRand) or
days (flights), and over seeds.

Claims: if the labels of the last third of the training days are missing, the privileged
student is better than the student alone on one of the logs, by an interval that
excludes zero, and the control isn't. Reading an epoch of all flights takes at most 10 %
of the time of a training epoch. The gains with all labels are printed without a claim.

    python benchmarks/privileged_logs.py [--kuairand DIR] [--data flights] [--seeds 5]
        [--budget 6] [--results DIR] [--smoke]

Every fit is kept in the folder of the results, from which a stopped run resumes.
"""

import argparse
import functools
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from log_scores import SCORES, Bootstrap, difference, scores
from results import Results

import keras_distill as kd

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
import click_log  # noqa: E402
import delayed_labels  # noqa: E402
import flights  # noqa: E402
import logs  # noqa: E402
from delayed_labels import train_alone, train_taught  # noqa: E402
from log_models import CROSS_ENTROPY, Recipe, build, fit, predict  # noqa: E402

BESIDE = pathlib.Path(__file__).resolve().parents[2] / "shared"
ALONE, CONTROL, ORACLE = "student alone", "self-distilled, first", "oracle: all labels"
TEACHER = "the privileged teacher itself"


class Variant(NamedTuple):
    """A way to train a student: what its teacher reads, how it teaches, by what loss.

    `leak`: whether the teacher reads `play_time_ms` too.
    """

    reads: str
    way: str
    loss: Callable[[], keras.losses.Loss] = kd.losses.BinarySoftTargets
    by_list: bool = False
    leak: bool = False


FIRST = Variant("privileged", "first")
VARIANTS = {
    CONTROL: Variant("known", "first"),
    "shuffled columns, first": Variant("shuffled", "first"),
    "privileged, first": FIRST,
    "privileged, together, late start": Variant("privileged", "together"),
    "privileged, cross-fitted": Variant("privileged", "cross-fitted"),
    "privileged, first, MSE of logits": FIRST._replace(
        loss=keras.losses.MeanSquaredError
    ),
}
BY_LIST = {
    "privileged, first, list-wise": FIRST._replace(
        loss=functools.partial(kd.losses.ListwiseSoftTargets, group="list"),
        by_list=True,
    ),
    "privileged, first, pair-wise": FIRST._replace(
        loss=functools.partial(kd.losses.PairwiseSoftTargets, group="list"),
        by_list=True,
    ),
    "leak: play_time_ms too, first": FIRST._replace(leak=True),
}


class Data(NamedTuple):
    """A log and its days. The search trains before `validate_from`.

    `cluster` is the column of users, or "day".
    """

    load: Callable[..., logs.Log]
    task: str
    validate_from: int
    test_from: int
    batch: int
    cluster: str
    variants: dict[str, Variant]


def data_sets(kuairand: str | None) -> dict[str, Data]:
    """Return the data sets that are at hand."""
    found = {
        "flights": Data(
            flights.load,
            flights.TASK,
            validate_from=20130801,
            test_from=flights.TEST,
            batch=2048,
            cluster="day",
            variants=VARIANTS,
        )
    }
    if kuairand:
        found["kuairand"] = Data(
            functools.partial(click_log.kuairand, kuairand),
            "click",
            validate_from=20220416,
            test_from=click_log.KUAIRAND_TEST,
            batch=1024,
            cluster="user",
            variants=VARIANTS | BY_LIST,
        )
    return found


def recipes(budget: int, batch: int) -> list[Recipe]:
    """Return the recipes of the search, the same for all variants."""
    rng = np.random.default_rng(0)
    drawn: dict[Recipe, None] = {}
    while len(drawn) < budget:
        rate, epochs, dropout, alpha = (
            rng.choice(values)
            for values in ((1e-3, 3e-3), (2, 4, 6), (0.0, 0.2, 0.4), (0.3, 0.5, 0.8))
        )
        drawn[Recipe(float(rate), int(epochs), float(dropout), float(alpha), batch)] = (
            None
        )
    return list(drawn)


def lists_of(log: logs.Log, cluster: str) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's cluster, and its list: the rows of a cluster on one day."""
    named = log.day if cluster == "day" else log.x[cluster].ravel()
    pairs = np.stack([named, log.day])
    return named, np.unique(pairs, axis=1, return_inverse=True)[1].ravel()


class Study:
    """The fits of one data set, each made once and kept.

    Args:
        name: The data set's name.
        data: The data set.
        folder: Where predictions and results are kept.
        budget: The recipes that each variant is tried with.
        every: Reads every so manyth row only.
    """

    def __init__(
        self, name: str, data: Data, folder: pathlib.Path, budget: int, every: int
    ) -> None:
        size = {"budget": budget, "every": every}
        self.name, self.data, self.every = name, data, every
        self.recipes = recipes(budget, data.batch)
        self.folder = folder / f"{name}-{budget}-{every}"
        self.search = Results(self.folder / "search.jsonl", size, "log_loss_x_100")
        self._splits: dict[tuple[int, bool], tuple[logs.Log, logs.Log]] = {}
        self._best: dict[str, Recipe] = {}

    def split(self, at: int, leak: bool = False) -> tuple[logs.Log, logs.Log]:
        """Return the rows before a day, and those from it on that are scored."""
        if (at, leak) not in self._splits:
            log = self.data.load(test_from=at, **({"leak": True} if leak else {}))
            log = log.rows(slice(None, None, self.every))
            before, after = log.split_at(at)
            if at < self.data.test_from:
                after = after.split_at(self.data.test_from)[0]
            self._splits[at, leak] = before, after
        return self._splits[at, leak]

    def trained(
        self, name: str, log: logs.Log, labelled: np.ndarray, recipe: Recipe, seed: int
    ) -> keras.Model:
        """Return a student, or the teacher, that learned from a log."""
        keras.backend.clear_session()
        task = self.data.task
        if name in (ALONE, ORACLE):
            rows = log.rows(labelled) if name == ALONE else log
            return train_alone(rows, task, recipe, seed)
        if name == TEACHER:
            keras.utils.set_random_seed(seed)
            columns = (*log.known, *log.privileged[task])
            return fit(build(log, columns, recipe), log.x, log.y[task], recipe, seed)
        variant = self.data.variants[name]
        lists = lists_of(log, self.data.cluster)[1] if variant.by_list else None
        teaching = variant.reads, variant.way
        terms = {"loss": variant.loss(), "lists": lists}
        return train_taught(log, task, labelled, teaching, recipe, seed, **terms)

    def is_leaky(self, name: str) -> bool:
        """Return whether a variant's teacher reads the column that leaks."""
        return name in self.data.variants and self.data.variants[name].leak

    def best(self, name: str) -> Recipe:
        """Return the recipe with the least log-loss on the days of the validation."""
        name = ALONE if name == ORACLE else name
        if name not in self._best:
            self._best[name] = self._searched(name)
        return self._best[name]

    def _searched(self, name: str) -> Recipe:
        log, held_out = self.split(self.data.validate_from, self.is_leaky(name))
        y = held_out.y[self.data.task].ravel()
        everything = np.ones(log.size, bool)

        def measure(recipe: Recipe) -> float:
            model = self.trained(name, log, everything, recipe, 0)
            p = predict(model, held_out)
            return float(-100.0 * np.log(np.where(y == 1, p, 1.0 - p)).mean())

        losses = {}
        for number, recipe in enumerate(self.recipes):
            method = f"{self.name}, {name}, recipe {number}"
            found = self.search.add(method, 0, functools.partial(measure, recipe))
            losses[recipe] = found
        return min(losses, key=lambda recipe: losses[recipe])

    def predictions(self, name: str, seed: int, delayed: bool) -> np.ndarray:
        """Return what a student predicts on the test days."""
        kind = "delayed" if delayed else "all labels"
        path = self.folder / f"{kind}, {name}, {seed}.npy".replace(":", "")
        if not path.exists():
            log, test = self.split(self.data.test_from, self.is_leaky(name))
            labelled = delayed_labels.has_label(log.day) if delayed else log.day > 0
            model = self.trained(name, log, labelled, self.best(name), seed)
            unfinished = path.with_suffix(".unfinished.npy")
            np.save(unfinished, predict(model, test))
            unfinished.rename(path)
            print(f"seed {seed}  {self.name}, {kind}: {name}", flush=True)
        return np.load(path)

    def times(self, names: list[str], rounds: int) -> dict[str, float]:
        """Return the median time of training, all with the recipe of the student alone.

        The rounds are interleaved. The first one warms up and isn't counted.
        """
        log, _ = self.split(self.data.test_from)
        everything, recipe = np.ones(log.size, bool), self.best(ALONE)
        found: dict[str, list[float]] = {name: [] for name in names}
        for seed in range(rounds + 1):
            for name in names:
                begin = time.perf_counter()
                self.trained(name, log, everything, recipe, seed)
                found[name].append(time.perf_counter() - begin)
        return {name: statistics.median(it[1:]) for name, it in found.items()}

    def show(self, names: list[str], seeds: int, *, delayed: bool) -> None:
        """Train what isn't kept yet, and print a table with paired differences."""
        test = self.split(self.data.test_from)[1]
        y = test.y[self.data.task].ravel()
        cluster, lists = lists_of(test, self.data.cluster)
        by_seed = {
            name: [self.predictions(name, seed, delayed) for seed in range(seeds)]
            for name in names
        }
        resamples = Bootstrap(y, cluster, seeds)
        auc = {name: resamples.auc(it) for name, it in by_seed.items()}
        loss = {name: resamples.log_loss(it) for name, it in by_seed.items()}
        labels = (
            "labels of the last third of the days missing" if delayed else "all labels"
        )
        print(f"\n{self.name}, {labels}, {seeds} seeds; clusters: {self.data.cluster}")
        heads = ("AUC minus alone", "AUC minus control", "log-loss minus alone")
        print(f"{'':33s}", *(f"{head:>9s}" for head in SCORES), *heads)
        for name, predicted in by_seed.items():
            rows = [scores(y, p, cluster, lists) for p in predicted]
            cells = [f"{np.mean([row[head] for row in rows]):9.4f}" for head in SCORES]
            cells.append(str(difference(auc[name], auc[ALONE])))
            cells.append(str(difference(auc[name], auc[CONTROL])))
            cells.append(str(difference(loss[name], loss[ALONE])))
            print(f"{name:33s}", *cells)
        if delayed:
            lead = (auc[ORACLE] - auc[ALONE])[0]
            for name in names[1:]:
                share = (auc[name] - auc[ALONE])[0] / lead
                print(f"of the oracle's lead in AUC, {name} recovers {share:.0%}")


def reading(study: Study) -> float:
    """Return the time to read all rows once, by the time of a training epoch.

    Both read within TensorFlow, as `fit` does with several steps per execution.
    """
    log = study.data.load().rows(slice(None, None, study.every))
    recipe = study.recipes[0]._replace(epochs=1)
    student, y = build(log, log.known, recipe), log.y[study.data.task]
    teacher = build(log, (*log.known, *log.privileged[study.data.task]), recipe)
    distiller = kd.Distiller(student, teacher, privileged_features=log.hidden)
    loss = kd.losses.BinarySoftTargets()
    terms = {"distillation_loss": loss, "teacher_loss": CROSS_ENTROPY}
    fit(distiller, log.x, y, recipe, 0, **terms)  # traces
    data = logs.batches(log.x, y, recipe.batch, 0)
    shares = []
    for _ in range(15):
        begin = time.perf_counter()
        steps = int(data.reduce(0, lambda count, batch: count + 1))
        read = time.perf_counter() - begin
        begin = time.perf_counter()
        distiller.fit(data, shuffle=False, verbose=0)
        shares.append(read / (time.perf_counter() - begin))
    print(f"\n{study.name}: {log.size} rows in {steps} batches")
    return statistics.median(shares)


def main() -> None:
    """Search, train and print the tables of each data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    prepared = pathlib.Path(os.environ.get("KERAS_DISTILL_DATA", BESIDE))
    found = prepared / "data" / "kuairand"
    given = {"default": found} if found.exists() else {}
    parser.add_argument(
        "--kuairand", metavar="DIR", help="without it, flights only", **given
    )
    parser.add_argument("--data", help="only this data set: flights, kuairand")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=6)
    parser.add_argument("--every", type=int, default=1, help="read every so manyth row")
    kept = pathlib.Path("build/privileged_logs")
    parser.add_argument("--results", type=pathlib.Path, default=kept)
    parser.add_argument("--smoke", action="store_true", help="every 50th row")
    options = parser.parse_args()
    if options.smoke:
        options.seeds, options.budget, options.every = 2, 1, 50
    for name, data in data_sets(options.kuairand).items():
        if options.data in (None, name):
            size = options.budget, options.every
            study = Study(name, data, options.results, *size)
            names = [ALONE, *data.variants, TEACHER]
            study.show(names, options.seeds, delayed=False)
            names = [ALONE, *list(VARIANTS)[:5], ORACLE]
            study.show(names, options.seeds, delayed=True)
            rounds = 1 if options.smoke else 3
            seconds = study.times([ALONE, *VARIANTS], rounds)
            for name, taken in seconds.items():
                ratio = taken / seconds[ALONE]
                print(f"training time / the student's alone: {name:33s} {ratio:.1f}")
            share = 100.0 * reading(study)
            print(f"reading an epoch / training one (<= 10 %): {share:.1f} %")


if __name__ == "__main__":
    main()

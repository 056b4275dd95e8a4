"""A search for the default loss, temperature and alpha over eight tasks.

Small students learn eight tasks: Fashion-MNIST and MNIST with all labels and with few,
for few and for many epochs, with students that underfit and students that don't, and
two tables whose teachers read columns that the students don't. Each student is trained
alone, and with its teacher in each setting, for the same number of steps. The printed
tables have the gains over the student alone, in points of test accuracy (of AUC for the
tables of two classes), with the 95 % interval of paired differences over seeds. The
last table has the gains of each setting over all tasks.

The best setting has the largest mean gain among the settings whose intervals show no
loss on any task. If each setting loses on a task, the best one has the least loss. It
becomes the default if the default loses on a task, or if the interval of their
difference over tasks shows that it is better than the default.

    python benchmarks/defaults.py [--seeds 5] [--only TEXT] [--data-dir DIR] [--smoke]

The measured values are kept in `--results`, from which a stopped run resumes.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import layers
from quality_vs_keras import student_model, teacher_model, trained
from results import Results, quick
from scipy.stats import ttest_1samp
from sklearn.metrics import roc_auc_score

import keras_distill as kd

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
import tabular
from data import load_images

ALONE = "alone"
ALPHAS = (0.1, 0.5, 0.9)
# The name of a loss, and how it is made. A default must take two classes, which
# `DecoupledKD` doesn't.
LOSSES: dict[str, Callable[[], keras.losses.Loss]] = {
    **{
        f"forward KL, T={t}": functools.partial(kd.losses.ForwardKL, float(t))
        for t in (1, 2, 4, 8)
    },
    "standardised forward KL, T=2": lambda: kd.losses.Standardized(
        kd.losses.ForwardKL(2.0)
    ),
}
SETTINGS = {
    f"{name}, alpha {alpha}": (make, alpha)
    for name, make in LOSSES.items()
    for alpha in ALPHAS
}
# That of `Distiller.compile`.
DEFAULT = "forward KL, T=1, alpha 0.5"
# The name of the teacher's outputs in the data.
TEACHER = "teacher_logits"


class Task(NamedTuple):
    """What is trained on, for one seed. `x` holds the teacher's logits by `TEACHER`."""

    x: dict[str, np.ndarray]
    y: np.ndarray
    test: dict[str, np.ndarray]
    test_y: np.ndarray


class Case(NamedTuple):
    """A task, its student, and how it is trained."""

    task: Callable[[int], Task]
    student: Callable[[Mapping[str, np.ndarray]], keras.Model]
    epochs: int
    batch_size: int = 256
    rate: float = 2e-3


def perceptron(x: Mapping[str, np.ndarray], *units: int) -> keras.Model:
    """Return a multilayer perceptron of images or of rows."""
    (name,) = set(x) - {TEACHER}
    inputs = keras.Input(x[name].shape[1:], name=name)
    hidden = layers.Flatten()(inputs)
    for count in units:
        hidden = layers.Dense(count, activation="relu")(hidden)
    return keras.Model(inputs, layers.Dense(x[TEACHER].shape[-1])(hidden))


def of_quality_vs_keras(x: Mapping[str, np.ndarray]) -> keras.Model:
    """Return the student of `quality_vs_keras.py`."""
    del x
    inputs = hidden = keras.Input((28, 28, 1), name="image")
    for layer in student_model().layers:
        hidden = layer(hidden)
    return keras.Model(inputs, hidden)


def conv_net(x: Mapping[str, np.ndarray]) -> keras.Model:
    """Return a conv net of 10 thousand parameters."""
    del x
    inputs = keras.Input((28, 28, 1), name="image")
    hidden = inputs
    for filters in (8, 16):
        hidden = layers.Conv2D(filters, 3, padding="same", activation="relu")(hidden)
        hidden = layers.MaxPooling2D()(hidden)
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(hidden)))


@functools.cache
def taught_images(name: str, data_dir: str | None, teacher_epochs: int) -> tuple:
    """Return the images with the logits of a teacher that learned all labels."""
    train, test = load_images(name, data_dir)
    keras.utils.set_random_seed(0)
    steps = -(-len(train[0]) // 256)
    teacher = trained(teacher_model(), {"train": train}, teacher_epochs, steps)
    logits = teacher.predict(train[0], batch_size=1000, verbose=0)
    print(f"{name}: teacher {accuracy(teacher, *test):.2f}", flush=True)
    return train, test, logits


def images(
    name: str, count: int, seed: int, *, data_dir: str | None, teacher_epochs: int
) -> Task:
    """Return `count` training images, which the seed draws."""
    (x, y), test, logits = taught_images(name, data_dir, teacher_epochs)
    rows = np.random.default_rng(seed).permutation(len(x))[:count]
    given = {"image": x[rows], TEACHER: logits[rows]}
    return Task(given, y[rows], {"image": test[0]}, test[1])


@functools.cache
def table(name: str, rows: int, seed: int, data_dir: str | None) -> Task:
    """Return rows of a table, and the logits of a teacher that reads all columns."""
    task = tabular.TASKS[name]._replace(labelled=rows, unlabelled=0)
    x, y, test = tabular.split(task, tabular.read(task, data_dir), seed)
    # A yes, or a grade that passes.
    least = 1 if name == "bank" else 10
    y, test_y = ((given >= least).astype("int32")[:, 0] for given in (y, test["y"]))
    both = {"x": np.hstack([x["x"], x["privileged"]])}
    keras.utils.set_random_seed(seed)
    teacher = perceptron({**both, TEACHER: np.zeros((1, 2))}, 32)
    fit(teacher, both, y, 20, 64, 2e-3)
    given = {"x": x["x"], TEACHER: teacher.predict(both, verbose=0)}
    return Task(given, y, {"x": test["x"]}, test_y)


def fit(
    model: keras.Model,
    x: object,
    y: np.ndarray,
    epochs: int,
    batch_size: int,
    rate: float,
    **compiled: object,
) -> None:
    """Compile and fit a student or a distiller in the way that all share."""
    steps = -(-len(y) // batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(schedule)
    model.compile(optimizer, loss, **quick(steps), **compiled)
    model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=0)


def accuracy(model: keras.Model, x: object, y: np.ndarray) -> float:
    """Return the accuracy in percent; the AUC for two classes."""
    scores = model.predict(x, batch_size=1000, verbose=0)
    if scores.shape[-1] == 2:
        return 100.0 * float(roc_auc_score(y, scores[:, 1] - scores[:, 0]))
    return 100.0 * float(np.mean(scores.argmax(-1) == y))


def measured(case: Case, setting: str, seed: int) -> float:
    """Train a student of one seed in one setting; return its test accuracy."""
    task = case.task(seed)
    keras.utils.set_random_seed(seed)
    student = case.student(task.x)
    how = case.epochs, case.batch_size, case.rate
    if setting == ALONE:
        own = {name: it for name, it in task.x.items() if name != TEACHER}
        fit(student, own, task.y, *how)
    else:
        make, alpha = SETTINGS[setting]
        distiller = kd.Distiller(student, kd.teachers.Recorded(TEACHER))
        fit(distiller, task.x, task.y, *how, distillation_loss=make(), alpha=alpha)
    return accuracy(student, task.test, task.test_y)


def cases(options: argparse.Namespace) -> dict[str, Case]:
    """Return the tasks by name."""
    given = {"data_dir": options.data_dir, "teacher_epochs": options.teacher_epochs}

    def fashion(count: int) -> Callable[[int], Task]:
        return functools.partial(images, "fashion_mnist", count, **given)

    def mnist(count: int) -> Callable[[int], Task]:
        return functools.partial(images, "mnist", count, **given)

    def rows(name: str, count: int) -> Callable[[int], Task]:
        return lambda seed: table(name, count, seed, options.data_dir)

    return {
        "Fashion-MNIST, all labels, perceptron, 8 epochs": Case(
            fashion(60_000), of_quality_vs_keras, 8
        ),
        "Fashion-MNIST, 10,000 labels, conv net, 30 epochs": Case(
            fashion(10_000), conv_net, 30
        ),
        "Fashion-MNIST, 1,000 labels, perceptron, 50 epochs": Case(
            fashion(1_000), of_quality_vs_keras, 50, 64
        ),
        "MNIST, all labels, perceptron, 2 epochs": Case(
            mnist(60_000), of_quality_vs_keras, 2
        ),
        "MNIST, 10,000 labels, 8 units, 10 epochs": Case(
            mnist(10_000), lambda x: perceptron(x, 8), 10
        ),
        "MNIST, 500 labels, conv net, 60 epochs": Case(mnist(500), conv_net, 60, 64),
        "Bank Marketing, 2,000 rows, 20 epochs": Case(
            rows("bank", 2_000), lambda x: perceptron(x, 16), 20, 64
        ),
        "pupils, 300 rows, 30 epochs": Case(
            rows("students", 300), lambda x: perceptron(x, 16), 30, 64
        ),
    }


class Gain(NamedTuple):
    """A mean of paired differences with its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: np.ndarray) -> "Gain":
        """Return the mean of paired differences and its t interval."""
        interval = ttest_1samp(differences, 0.0).confidence_interval()
        low, high = float(interval.low), float(interval.high)
        return cls(float(differences.mean()), low, high)

    def __str__(self) -> str:
        """Return the mean, and a star where the interval doesn't hold zero."""
        star = "*" if self.low > 0 or self.high < 0 else " "
        return f"{self.mean:+6.2f}{star}"


def gain(results: Results, case: str, setting: str, seeds: int) -> Gain:
    """Return what a setting gains over the student alone."""
    ours, alone = (
        np.array([results.found[f"{case}: {it}", seed] for seed in range(seeds)])
        for it in (setting, ALONE)
    )
    return Gain.of(ours - alone)


def show(results: Results, names: Sequence[str], seeds: int) -> None:
    """Print the gains by task, and over all tasks."""
    found = {
        setting: [gain(results, name, setting, seeds) for name in names]
        for setting in SETTINGS
    }
    print("\nGains in points; * where the 95 % interval excludes zero.")
    for number, name in enumerate(names, 1):
        alone = np.mean([results.found[f"{name}: {ALONE}", s] for s in range(seeds)])
        print(f"({number}) {name}: alone {alone:.2f}")
    heads = "".join(f"({number})    " for number in range(1, len(names) + 1))
    print(f"\n{'setting':42s} {heads} mean   least  better worse")
    for setting, gains in found.items():
        means = [it.mean for it in gains]
        better, worse = (
            sum(it.low > 0 for it in gains),
            sum(it.high < 0 for it in gains),
        )
        print(
            f"{setting:42s} {''.join(str(it) for it in gains)} "
            f"{np.mean(means):+6.2f} {min(means):+6.2f} {better:5d} {worse:5d}"
        )
    harmless = {
        setting: np.mean([it.mean for it in gains])
        for setting, gains in found.items()
        if all(it.high >= 0 for it in gains)
    }
    if harmless:
        best = max(harmless, key=lambda setting: harmless[setting])
        print(f"\nlargest mean gain among those that lose nowhere: {best}")
    else:
        best = max(found, key=lambda setting: min(it.mean for it in found[setting]))
        print(f"\neach setting loses somewhere; the least loss: {best}")
    if len(names) > 1 and best != DEFAULT:
        means = [[it.mean for it in found[setting]] for setting in (best, DEFAULT)]
        mean, low, high = Gain.of(np.subtract(*means))
        print(
            f"minus the default, {DEFAULT}: {mean:+.2f}, 95 % interval over tasks "
            f"{low:+.2f} to {high:+.2f}"
        )


def main() -> None:
    """Measure what isn't known yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--only", default="", help="tasks whose names hold this text")
    kept = pathlib.Path("build/defaults.jsonl")
    parser.add_argument("--results", type=pathlib.Path, default=kept)
    parser.add_argument("--smoke", action="store_true", help="two seeds of the tables")
    options = parser.parse_args()
    if options.smoke:
        options.seeds, options.only = 2, "rows"
    chosen = {name: it for name, it in cases(options).items() if options.only in name}
    results = Results(options.results, {"teacher_epochs": options.teacher_epochs})
    for seed in range(options.seeds):
        for name, case in chosen.items():
            for setting in (ALONE, *SETTINGS):
                measure = functools.partial(measured, case, setting, seed)
                results.add(f"{name}: {setting}", seed, measure)
    show(results, list(chosen), options.seeds)


if __name__ == "__main__":
    main()

"""Two public tables with columns that exist in training only, for the examples.

Both tables are from UCI. TensorFlow Datasets doesn't have them.
"""

import csv
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

Arrays = dict[str, np.ndarray]
BESIDE = Path(__file__).resolve().parents[2] / "shared"


class Task(NamedTuple):
    """What to predict from which table, and how many rows are trained on.

    The download `url` is an archive with the archive `archive`, which has the table
    `file`. `logged` names a column of which `log(1 + value)` is used.
    """

    url: str
    archive: str
    file: str
    target: str
    privileged: tuple[str, ...]
    logged: str | None
    labelled: int
    unlabelled: int


TASKS = {
    "students": Task(
        url="https://archive.ics.uci.edu/static/public/320/student+performance.zip",
        archive="student.zip",
        file="student-por.csv",
        target="G3",
        privileged=("G1", "G2"),
        logged=None,
        labelled=50,
        unlabelled=300,
    ),
    "bank": Task(
        url="https://archive.ics.uci.edu/static/public/222/bank+marketing.zip",
        archive="bank.zip",
        file="bank-full.csv",
        target="y",
        privileged=("duration",),
        logged="duration",
        labelled=300,
        unlabelled=10_000,
    ),
}


def read(task: Task, data_dir: str | Path | None = None) -> Arrays:
    """Read a task's table: columns of numbers or of strings, by name.

    Args:
        task: One of `TASKS`.
        data_dir: The folder of `task.file` or `task.archive`, or the folder of that
            folder. Default: `data` in `KERAS_DISTILL_DATA`, else in `shared` beside the
            project. If neither file is there, the table is downloaded.

    Raises:
        ConnectionError: If `task.url` can't be reached to download the table.
    """
    prepared = Path(os.environ.get("KERAS_DISTILL_DATA", BESIDE)) / "data"
    folder = Path(data_dir or prepared)
    found = [
        path
        for name in (task.file, task.archive)
        for path in [*folder.glob(name), *folder.glob(f"*/{name}")]
    ]
    path = found[0] if found else _downloaded(task, folder)
    opened = path if path.name == task.file else zipfile.Path(path, task.file)
    names, *rows = csv.reader(opened.read_text("utf-8").splitlines(), delimiter=";")
    table = {}
    for name, values in zip(names, np.array(rows).T, strict=True):
        numeric = np.char.isdigit(np.char.lstrip(values, "-")).all()
        column = values.astype("float32") if numeric else values
        table[name] = np.log1p(column) if name == task.logged else column
    return table


def _downloaded(task: Task, folder: Path) -> Path:
    """Return the path of `task.archive` in Keras' folder of downloads."""
    try:
        extracted = keras.utils.get_file(origin=task.url, extract=True)
    except Exception as error:  # Keras raises no class of its own
        raise ConnectionError(
            f"`{task.file}` is neither in {folder} nor in a folder of it, and "
            f"{task.url} can't be reached to download it. Give the folder that has it "
            "with `--data-dir FOLDER`, or put it into the folder `data` of the folder "
            "that `KERAS_DISTILL_DATA` names."
        ) from error
    return Path(extracted) / task.archive


def split(task: Task, table: Arrays, seed: int) -> tuple[Arrays, np.ndarray, Arrays]:
    """Split the rows at random into labelled, unlabelled and test rows.

    The rows to train on determine the scales of numbers and the one-hot encoding of
    strings.

    Returns:
        The inputs `x`, `privileged` and `labelled` of the rows to train on, labelled
        rows first; their labels `y` of shape `(rows, 1)`, with 1 for "yes" and 0 for
        rows without a label; and `x`, `privileged` and `y` of the test rows.
    """
    order = np.random.default_rng(seed).permutation(len(table[task.target]))
    rows = task.labelled + task.unlabelled

    def encoded(names: Sequence[str]) -> np.ndarray:
        columns = np.array([table[name][order] for name in names], object).T
        words = [i for i, name in enumerate(names) if table[name].dtype.kind == "U"]
        one_hot = OneHotEncoder(
            drop="if_binary", handle_unknown="ignore", sparse_output=False
        )
        encoder = ColumnTransformer(
            [("words", one_hot, words)], remainder=StandardScaler()
        )
        return encoder.fit(columns[:rows]).transform(columns).astype("float32")

    y = table[task.target][order, None]
    y = (y == "yes" if y.dtype.kind == "U" else y).astype("float32")
    regular = [name for name in table if name not in (task.target, *task.privileged)]
    inputs = {"x": encoded(regular), "privileged": encoded(task.privileged)}
    x = {name: values[:rows] for name, values in inputs.items()}
    x["labelled"] = np.arange(rows) < task.labelled
    test = {name: values[rows:] for name, values in {**inputs, "y": y}.items()}
    return x, np.where(x["labelled"][:, None], y[:rows], 0.0), test


def deal(
    task: Task, table: Arrays, seed: int, sizes: Sequence[int]
) -> list[tuple[Arrays, np.ndarray]]:
    """Split the rows at random into parts of these sizes, with unchanged columns.

    Returns:
        For each part, the columns by name, without the privileged ones, and whether the
        target is "yes", all of shape `(rows, 1)`. Text is of Python's `str`.
    """
    order = np.random.default_rng(seed).permutation(len(table[task.target]))
    regular = {
        name: values.astype(object) if values.dtype.kind == "U" else values
        for name, values in table.items()
        if name not in (task.target, *task.privileged)
    }
    y = (table[task.target] == "yes").astype("float32")
    return [
        ({name: it[rows, None] for name, it in regular.items()}, y[rows, None])
        for rows in np.split(order, np.cumsum(sizes))[: len(sizes)]
    ]


def network(x: Arrays, seed: int) -> keras.Model:
    """Build a network that reads columns as `deal` returns them.

    The network includes the preprocessing, with the words and the scales of `x`. It
    also reads the logarithms of numbers.
    """
    keras.utils.set_random_seed(seed)
    inputs, seen = {}, []
    for name, values in x.items():
        kind = "string" if values.dtype == object else "float32"
        column = inputs[name] = keras.Input((1,), dtype=kind, name=name)
        if kind == "string":
            words = {"vocabulary": sorted(set(values.flat)), "output_mode": "one_hot"}
            seen.append(keras.layers.StringLookup(**words)(column))
            continue
        log = keras.ops.sign(column) * keras.ops.log1p(keras.ops.abs(column))
        both = np.hstack([values, np.sign(values) * np.log1p(abs(values))])
        scale = keras.layers.Normalization(mean=both.mean(0), variance=both.var(0))
        seen.append(scale(keras.layers.Concatenate()([column, log])))
    hidden = keras.layers.Concatenate()(seen)
    for units in (64, 32):
        hidden = keras.layers.Dense(units, "relu")(hidden)
    return keras.Model(inputs, keras.layers.Dense(1, name="logit")(hidden))

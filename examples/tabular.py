"""Two public tables with columns that exist in training only, for the examples."""

import csv
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

BESIDE = Path(__file__).resolve().parents[2] / "shared"


class Task(NamedTuple):
    """What to predict from which table, and how many rows are trained on.

    `url` has the file, `member` is the table in it where it's an archive. `logged`
    names a column that counts by `log(1 + value)`.
    """

    url: str
    file: str
    member: str | None
    target: str
    privileged: tuple[str, ...]
    logged: str | None
    labelled: int
    unlabelled: int


TASKS = {
    "students": Task(
        url="https://archive.ics.uci.edu/dataset/320/student+performance",
        file="student_performance/student-por.csv",
        member=None,
        target="G3",
        privileged=("G1", "G2"),
        logged=None,
        labelled=50,
        unlabelled=300,
    ),
    "bank": Task(
        url="https://archive.ics.uci.edu/dataset/222/bank+marketing",
        file="bank_marketing/bank.zip",
        member="bank-full.csv",
        target="y",
        privileged=("duration",),
        logged="duration",
        labelled=300,
        unlabelled=10_000,
    ),
}


def read(task: Task, data_dir: str | Path | None = None) -> dict[str, np.ndarray]:
    """Read a task's table: columns of numbers or of strings, by name.

    Args:
        task: One of `TASKS`.
        data_dir: The folder of `task.file`, or of that file by its bare name. Default:
            `data` in `KERAS_DISTILL_DATA`, else in `shared` beside the project.

    Raises:
        FileNotFoundError: If it isn't there; nothing is downloaded.
    """
    prepared = Path(os.environ.get("KERAS_DISTILL_DATA", BESIDE)) / "data"
    path = Path(data_dir or prepared) / task.file
    bare = Path(data_dir or prepared) / path.name
    if not path.is_file() and not bare.is_file():
        raise FileNotFoundError(
            f"`{path}` doesn't exist. Download it from {task.url} and give the folder "
            f"that holds `{path.name}` with `--data-dir FOLDER`, or set "
            f"`KERAS_DISTILL_DATA` to a folder that holds `data/{task.file}`."
        )
    path = path if path.is_file() else bare
    opened = zipfile.Path(path, task.member) if task.member else path
    names, *rows = csv.reader(opened.read_text("utf-8").splitlines(), delimiter=";")
    table = {}
    for name, values in zip(names, np.array(rows).T, strict=True):
        numeric = np.char.isdigit(np.char.lstrip(values, "-")).all()
        column = values.astype("float32") if numeric else values
        table[name] = np.log1p(column) if name == task.logged else column
    return table


def split(task: Task, table: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Shuffle the rows: labelled ones first, then unlabelled ones, then those to test.

    Numbers are scaled and strings made one-hot by what the rows before the test's hold.

    Returns:
        float32 arrays of all rows: the inputs `x` and `privileged`, and `y` of shape
        `(rows, 1)`, numbers as they are, "yes" as 1.
    """
    order = np.random.default_rng(seed).permutation(len(table[task.target]))

    def encoded(names: list[str]) -> np.ndarray:
        columns = np.array([table[name][order] for name in names], object).T
        words = [i for i, name in enumerate(names) if table[name].dtype.kind == "U"]
        one_hot = OneHotEncoder(
            drop="if_binary", handle_unknown="ignore", sparse_output=False
        )
        encoder = ColumnTransformer([("words", one_hot, words)], StandardScaler())
        encoder.fit(columns[: task.labelled + task.unlabelled])
        return encoder.transform(columns).astype("float32")

    y = table[task.target][order, None]
    regular = [name for name in table if name not in (task.target, *task.privileged)]
    return {
        "x": encoded(regular),
        "privileged": encoded(list(task.privileged)),
        "y": (y == "yes" if y.dtype.kind == "U" else y).astype("float32"),
    }

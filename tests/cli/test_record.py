"""`record` as scripts use it: files in, a recording and an exit code out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_distill import targets
from keras_distill.cli import main, pipelines

COMMAND = str(Path(sys.executable).with_name("keras-distill"))
ROWS = 300
# The data as a function, in the directory of the call.
MODULE = """
import numpy as np, tensorflow as tf

def train(start=0, stop=None):
    x = np.load("data.npz")["x"][start:stop]
    return tf.data.Dataset.from_tensor_slices(x).batch(128)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, and the same data in three forms."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("record")
    teacher = keras.Sequential([keras.Input((4,)), layers.Dense(5)])
    teacher.save(folder / "teacher.keras")
    x = np.random.default_rng(0).normal(size=(ROWS, 4)).astype("float32")
    np.savez(folder / "data.npz", x=x, labels=np.arange(ROWS))
    tf.data.Dataset.from_tensor_slices(x).batch(128).save(str(folder / "saved"))
    (folder / "own_data.py").write_text(MODULE)
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))


def shards(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(directory.glob("*.tfrecord"))]


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[bytes]:
    """The shards of 256 rows that the library writes."""
    teacher = keras.saving.load_model(folder / "teacher.keras")
    x = np.load(folder / "data.npz")["x"]
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(128)
    targets.record(teacher, dataset, folder / "expected", rows_per_shard=256)
    return shards(folder / "expected")


LINE = "record teacher.keras --rows-per-shard 256 --out"


@pytest.mark.parametrize("data", ["data.npz", "saved", "own_data:train"])
def test_each_form_of_data(
    data: str, expected: list[bytes], tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "recorded"
    assert main([*LINE.split(), str(out), "--data", data]) == 0
    assert shards(out) == expected
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[1].split(maxsplit=2)[0] == "output"
    assert lines[1].endswith("LogProbabilities(dtype='float32')")
    assert lines[-1] == f"recorded {out}: 300 rows in 2 shards, 0.0 MB"
    assert printed.err == ""


@pytest.mark.parametrize(
    ("options", "stored"),
    [
        ("", targets.LogProbabilities()),
        ("--dtype float16", targets.LogProbabilities("float16")),
        ("--top-k 2", targets.TopK(2)),
        ("--top-k 2 --dtype float32", targets.TopK(2, "float32")),
        ("--samples 8 --sample-seed 3", targets.Sampled(8, 3)),
        ("--values --dtype float16", targets.Values("float16")),
    ],
)
def test_what_is_stored(
    options: str, stored: targets.Format, tmp_path: Path, capsys: Any
) -> None:
    line = [*LINE.split(), str(tmp_path), "--data", "data.npz", *options.split()]
    assert main([*line, "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["outputs"][0]["stored"] == stored.get_config()
    assert (manifest["rows"], manifest["complete"]) == (ROWS, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data data.npz --top-k 6", "--top-k 6"),
        ("--data data.npz --ids y", "Received: --ids ['y'], a data set without ['y']"),
        ("--data data.npz --batch-size 100", "`--rows-per-shard` must be a multiple"),
        ("--data own_data:test", "`--data` must be a function that each worker can"),
    ],
)
def test_errors_name_options(
    options: str, message: str, tmp_path: Path, capsys: Any
) -> None:
    assert main([*LINE.split(), str(tmp_path), *options.split(), "--json"]) == 1
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert message in error
    assert printed.err == f"keras-distill: error: {error}\n"
    assert not list(tmp_path.iterdir())


def test_another_recording_is_kept(
    expected: list[bytes], folder: Path, capsys: Any
) -> None:
    line = [*LINE.split(), "expected", "--data", "data.npz", "--top-k", "2"]
    assert main(line) == 1
    assert "`--out` holds another recording" in capsys.readouterr().err
    assert shards(folder / "expected") == expected


def test_without_beam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    line = [*LINE.split(), str(tmp_path), "--data", "data.npz"]
    assert main([*line, "--runner", "DirectRunner"]) == 1
    assert "pip install '.[beam]'" in capsys.readouterr().err


def test_two_worker_processes(expected: list[bytes], tmp_path: Path) -> None:
    pytest.importorskip("apache_beam")
    out = tmp_path / "recorded"
    line = [COMMAND, *LINE.split(), str(out), "--data", "own_data:train", "--json"]
    line += ["--runner", "DirectRunner", "--num-workers", "2"]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert shards(out) == expected
    assert json.loads(done.stdout)["rows"] == ROWS
    assert done.stderr == ""


WORKER = """Traceback (most recent call last):
  File "begin.py", line 1, in begin
ValueError: `dataset` must have rows
During handling of the above exception, another exception occurred:
Traceback (most recent call last):
  File "begin.py", line 2, in begin
{raised}: `dataset` must have rows.
Received: none [while running 'Record/Begin']

"""


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        ("ValueError", "RuntimeError"),
        ("OSError", "RuntimeError"),
        ("tensorflow.python.framework.errors_impl.InternalError", "InternalError"),
    ],
)
def test_errors_of_workers_are_told_without_their_traceback(
    raised: str, kind: str
) -> None:
    error = pipelines._cause(WORKER.format(raised=raised))
    assert str(error) == "`dataset` must have rows.\nReceived: none"
    assert type(error).__name__ == kind


def test_a_worker_that_died_has_no_traceback() -> None:
    error = pipelines._cause("Channel closed prematurely.")
    assert str(error).startswith("The pipeline failed. Shards that are whole remain")
    assert str(error).endswith("Received: Channel closed prematurely.")

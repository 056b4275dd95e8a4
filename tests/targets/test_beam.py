"""Pipelines of Beam write what one process writes, and only what is missing."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from keras_distill import atomic, targets
from tests.targets import beaming
from tests.targets.recordings import ROWS, files, model

beam = pytest.importorskip("apache_beam")

ROOT = Path(__file__).parents[2]


def run(teacher: Any, dataset: Any, directory: Path, **options: Any) -> None:
    """Run a pipeline in this process."""
    options = {"rows_per_shard": 24, **options}
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = pipeline | targets.beam.Record(teacher, dataset, directory, **options)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one process writes: 5 shards, the last of 4 rows."""
    directory = tmp_path_factory.mktemp("expected") / "recorded"
    targets.record(model(), beaming.whole(), directory, rows_per_shard=24)
    return files(directory)


@pytest.fixture(autouse=True)
def nothing_loaded() -> None:
    beaming.LOADED.clear()


@pytest.mark.parametrize(
    "dataset", [beaming.by_range, "tests.targets.beaming:whole"], ids=["range", "whole"]
)
def test_the_files_are_those_of_one_process(
    dataset: Any, expected: dict[str, bytes], tmp_path: Path
) -> None:
    run(beaming.teacher, dataset, tmp_path / "recorded")
    assert files(tmp_path / "recorded") == expected
    assert beaming.LOADED.count("teacher") == 1


def test_a_shard_reads_its_own_rows(tmp_path: Path) -> None:
    run(beaming.teacher, beaming.by_range, tmp_path / "recorded")
    ranges = [name for name in beaming.LOADED if name != "teacher"]
    assert sorted(ranges) == ["0:24", "0:None", "24:48", "48:72", "72:96", "96:144"]


def test_a_teacher_in_a_file(tmp_path: Path) -> None:
    teacher = model()
    teacher.save(tmp_path / "teacher.keras")
    run(tmp_path / "teacher.keras", beaming.whole, tmp_path / "piped")
    targets.record(teacher, beaming.whole(), tmp_path / "here", rows_per_shard=24)
    assert files(tmp_path / "piped") == files(tmp_path / "here")


def test_options_are_those_of_record(tmp_path: Path) -> None:
    options = {
        "stored": targets.TopK(2),
        "from_logits": False,
        "augment": beaming.augment,
        "views": 2,
        "seed": 3,
        "batch_size": 12,
        "rows_per_shard": 36,
    }
    run(probable, beaming.by_range, tmp_path / "piped", **options)
    targets.record(probable(), beaming.whole(), tmp_path / "here", **options)
    assert files(tmp_path / "piped") == files(tmp_path / "here")


def probable() -> Callable[[Any], Any]:
    return tf.nn.softmax


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "unfinished"])
def test_only_missing_and_damaged_shards_are_made(
    complete: bool, expected: dict[str, bytes], tmp_path: Path
) -> None:
    directory = tmp_path / "recorded"
    run(beaming.teacher, beaming.by_range, directory)
    if not complete:
        begun = targets.Manifest.read(directory)
        for number, (name, shard) in enumerate(begun.shards.items()):
            note = targets.recording.shards.note_of(directory / name)
            atomic.replace_text(note, json.dumps(shard))
            assert number < 5
        changed = {"complete": False, "rows": 0, "shards": {}}
        targets.recording.replace(begun, **changed).write(directory)
    (directory / "shard-00001.tfrecord").unlink()
    damaged = directory / "shard-00004.tfrecord"
    damaged.write_bytes(bytes(len(damaged.read_bytes())))
    beaming.LOADED.clear()
    with pytest.warns(UserWarning, match="Shards are made again: .*00004"):
        run(beaming.teacher, beaming.by_range, directory)
    assert files(directory) == expected
    assert sorted(beaming.LOADED)[1:3] == ["24:48", "96:120" if complete else "96:144"]
    assert len(beaming.LOADED) == 4


@pytest.mark.parametrize(
    ("teacher", "dataset", "message"),
    [
        ("m.py", beaming.whole, "`teacher` must be the path of a `.keras` file, `mod"),
        (model, "data", "`dataset` must be `module:function`, or a fun.*='data'"),
        (model, 3, "Received: dataset=an object of int"),
        (model(), beaming.whole, "an object of Sequential"),
        (model, beaming.whole(), "an object of _BatchDataset"),
    ],
    ids=["text", "name", "number", "model", "dataset"],
)
def test_references_are_checked_at_once(
    teacher: Any, dataset: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        targets.beam.Record(teacher, dataset, tmp_path)


@pytest.mark.parametrize(
    ("teacher", "dataset", "message"),
    [
        ("no.keras", "tests.targets.beaming:whole", "where there is no file"),
        (beaming.teacher, beaming.of_unknown_length, "assert_cardinality"),
        (beaming.teacher, beaming.uneven, "as many rows as the first"),
        (beaming.teacher, "tests.targets.no:whole", "each worker can import"),
        (beaming.teacher, "tests.targets.beaming:no", "has no attribute 'no'"),
        (beaming.teacher, "tests.targets.beaming:not_a_function", "an object of int"),
    ],
    ids=["file", "length", "batches", "module", "function", "number"],
)
def test_workers_say_what_is_wrong(
    teacher: Any, dataset: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=message):
        run(teacher, dataset, tmp_path / "recorded", rows_per_shard=8)


def test_without_beam(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ImportError, match=r"Install it with .*\[beam\]"):
        targets.beam.Record(beaming.teacher, beaming.whole, tmp_path)


KILLED = """
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from keras_distill import targets
from tests.targets import beaming

options = PipelineOptions(
    ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
)
with beam.Pipeline("FnApiRunner", options=options) as pipeline:
    _ = pipeline | targets.beam.Record(
        "tests.targets.beaming:teacher",
        "tests.targets.beaming:deadly",
        "recorded",
        rows_per_shard=24,
    )
"""


@pytest.mark.slow("two pipelines of two processes each start five times TensorFlow")
def test_a_killed_worker_and_the_next_run(
    expected: dict[str, bytes], tmp_path: Path
) -> None:
    mark, directory = tmp_path / "kill", tmp_path / "recorded"
    mark.touch()
    environment = os.environ | {beaming.KILL: str(mark), "PYTHONPATH": str(ROOT)}

    def pipeline() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    assert pipeline().returncode != 0
    assert not mark.exists()
    assert not targets.Manifest.read(directory).complete
    before = {path: path.stat().st_mtime_ns for path in directory.glob("*.tfrecord")}
    assert 0 < len(before) < 5
    done = pipeline()
    assert done.returncode == 0, done.stderr
    assert files(directory) == expected
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before
    assert targets.Manifest.read(directory).rows == ROWS

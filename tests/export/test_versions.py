"""Versions beside each other: none is changed, none is half there."""

import threading
from pathlib import Path

import numpy as np
import pytest

from keras_distill.export import export, manifest
from keras_distill.export.publish import place, replacing


def publish(parent, version, word="x"):
    directory, check = place(parent, version)
    with replacing(directory, check) as scratch:
        (scratch / "word").write_text(word)
    return directory


def contents(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in Path(directory).rglob("*")
        if path.is_file()
    }


def test_next_is_after_the_highest_and_the_earlier_stay(dense_model, floats, tmp_path):
    parent = tmp_path / "student"
    batch = floats(3, 4)
    first = export(dense_model, parent, ["onnx"], example_batch=batch, version="next")
    export(dense_model, parent, ["onnx"], example_batch=batch, version=7)
    before = contents(parent / "1") | contents(parent / "7")
    last = export(dense_model, parent, ["litert"], example_batch=batch, version="next")
    assert (first["version"], last["version"]) == (1, 8)
    assert {path.name for path in parent.iterdir()} == {"1", "7", "8"}
    assert contents(parent / "1") | contents(parent / "7") == before
    assert manifest.read(parent / "8")["version"] == 8


def test_a_published_version_is_never_replaced(tmp_path):
    publish(tmp_path / "student", 3, "old")
    for taken in (3, np.int64(3).item()):
        with pytest.raises(FileExistsError, match="3', which exists.*'next'"):
            publish(tmp_path / "student", taken, "new")
    assert (tmp_path / "student" / "3" / "word").read_text() == "old"
    assert [path.name for path in (tmp_path / "student").iterdir()] == ["3"]


def test_a_version_that_came_meanwhile_is_not_replaced(tmp_path):
    directory, check = place(tmp_path, 1)
    with pytest.raises(FileExistsError, match="which exists"):
        with replacing(directory, check) as scratch:
            (scratch / "word").write_text("slow")
            directory.mkdir()
            (directory / "word").write_text("fast")
    assert (tmp_path / "1" / "word").read_text() == "fast"


def test_exports_at_the_same_time_get_numbers_of_their_own(tmp_path):
    barrier = threading.Barrier(3)
    directory, check = place(tmp_path, "next")
    with replacing(directory, check) as running:
        # The first one isn't published yet, and has its number.
        assert publish(tmp_path, "next").name == "2"
        (running / "word").write_text("x")
    found = []

    def run():
        barrier.wait()
        try:
            found.append(publish(tmp_path, "next").name)
        except FileExistsError:
            found.append("told")

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = [name for name in found if name != "told"]
    assert len(numbers) == len(set(numbers)) >= 1
    whole = {path.name for path in tmp_path.iterdir()}
    assert whole == {"1", "2", *numbers}
    assert all((tmp_path / name / "word").exists() for name in whole)


def test_what_a_killed_run_left_is_neither_counted_nor_kept(tmp_path):
    left = tmp_path / ".9.keras-distill-0badf00d"
    left.mkdir()
    (left / "half").write_text("x")
    assert publish(tmp_path, "next").name == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_other_files_are_no_versions(tmp_path):
    for name in ("12-old", "notes.txt", "latest"):
        (tmp_path / name).write_text("mine")
    assert publish(tmp_path, "next").name == "1"
    assert (tmp_path / "latest").read_text() == "mine"


def test_an_export_by_itself_takes_no_versions(dense_model, floats, tmp_path):
    batch = floats(3, 4)
    export(dense_model, tmp_path / "out", ["onnx"], example_batch=batch)
    with pytest.raises(FileExistsError, match="one of versions.*by itself"):
        export(dense_model, tmp_path / "out", ["onnx"], example_batch=batch, version=2)
    export(dense_model, tmp_path / "all", ["onnx"], example_batch=batch, version=1)
    with pytest.raises(FileExistsError, match="absent, empty or an earlier export"):
        export(dense_model, tmp_path / "all", ["onnx"], example_batch=batch)


@pytest.mark.parametrize("version", [0, -1, 1.5, True, "latest", "3", "../1"])
def test_bad_versions(tmp_path, version):
    with pytest.raises(ValueError, match="`version` must be a number from 1 on"):
        publish(tmp_path / "student", version)
    assert list(tmp_path.iterdir()) == []

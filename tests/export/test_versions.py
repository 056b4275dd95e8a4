"""Versions beside each other: none is changed, none is half there."""

import threading
from pathlib import Path

import numpy as np
import pytest

from keras_distill.export import export, manifest
from keras_distill.export.publish import publishing


def publish(parent, version, word="x"):
    with publishing(parent, version) as (directory, scratch):
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
    with pytest.raises(FileExistsError, match="which exists"):
        with publishing(tmp_path, 1) as (directory, scratch):
            (scratch / "word").write_text("slow")
            directory.mkdir()
            (directory / "word").write_text("fast")
    assert (tmp_path / "1" / "word").read_text() == "fast"


def test_a_number_that_is_under_way_is_taken(tmp_path):
    with publishing(tmp_path, "next") as (first, running):
        assert publish(tmp_path, "next").name == "2"
        with pytest.raises(FileExistsError, match="no other export is about .*/1'"):
            publish(tmp_path, 1, "another")
        (running / "word").write_text("x")
    assert first.name == "1"
    assert (tmp_path / "1" / "word").read_text() == "x"
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}


@pytest.mark.parametrize("attempt", range(5))
def test_exports_at_the_same_time_get_numbers_of_their_own(tmp_path, attempt):
    barrier = threading.Barrier(6)
    found = {}

    def run(word):
        barrier.wait()
        found[word] = publish(tmp_path, "next", word).name

    threads = [threading.Thread(target=run, args=[str(i)]) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found.values()) == list("123456")
    for word, name in found.items():
        assert (tmp_path / name / "word").read_text() == word
    assert {path.name for path in tmp_path.iterdir()} == set("123456")


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

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from keras_distill.export import export, manifest, publish
from keras_distill.export.publish import replacing


def fill(directory, word):
    """Write the smallest directory that counts as an export."""
    (directory / "model.onnx").write_text(word)
    files = [{"path": "model.onnx"}]
    manifest.write(
        {"kind": "keras_distill.export", "artefacts": {"onnx": {"files": files}}},
        directory,
    )


def publish_word(directory, word):
    with replacing(directory) as scratch:
        fill(scratch, word)


def word_in(directory):
    return (directory / "model.onnx").read_text()


@pytest.fixture(params=["exchange", "two renames"])
def swapping(request, monkeypatch):
    """With the system call, and on file systems that lack it."""
    if request.param == "two renames":
        monkeypatch.setattr(publish, "_exchange", lambda first, second: False)
    return request.param


def test_new_and_replaced(tmp_path, swapping):
    out = tmp_path / "deep" / "out"
    publish_word(out, "old")
    assert word_in(out) == "old"
    publish_word(out, "new")
    assert word_in(out) == "new"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_empty_directory_is_taken(tmp_path, swapping):
    publish_word(tmp_path, "first")
    assert word_in(tmp_path) == "first"


def test_others_may_read_it(tmp_path):
    umask = os.umask(0o022)
    try:
        publish_word(tmp_path / "out", "x")
    finally:
        os.umask(umask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_one(tmp_path, error):
    publish_word(tmp_path / "out", "old")
    with pytest.raises(error), replacing(tmp_path / "out") as scratch:
        fill(scratch, "new")
        raise error
    assert word_in(tmp_path / "out") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_rename_that_fails_puts_the_old_one_back(tmp_path, monkeypatch):
    publish_word(tmp_path / "out", "old")
    monkeypatch.setattr(publish, "_exchange", lambda first, second: False)
    with pytest.raises(OSError), replacing(tmp_path / "out") as scratch:
        fill(scratch, "new")
        real = type(scratch).rename

        def rename(path, target):
            if path == scratch:
                raise OSError(5, "Input/output error")
            return real(path, target)

        monkeypatch.setattr(type(scratch), "rename", rename)
    assert word_in(tmp_path / "out") == "old"


@pytest.mark.parametrize("ours", [False, True])
def test_what_is_not_an_export_is_never_touched(tmp_path, ours):
    out = tmp_path / "out"
    out.mkdir()
    if ours:
        fill(out, "old")
    (out / "thesis.txt").write_text("ten years")
    with pytest.raises(FileExistsError, match="out', which holds thesis.txt. Choose"):
        publish_word(out, "new")
    assert (out / "thesis.txt").read_text() == "ten years"


def test_what_came_in_during_the_conversion_is_kept(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileExistsError, match="thesis.txt"):
        with replacing(out) as scratch:
            fill(scratch, "new")
            out.mkdir()
            (out / "thesis.txt").write_text("ten years")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_file_is_not_a_directory(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(NotADirectoryError, match="out', which is a file"):
        publish_word(tmp_path / "out", "new")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("parent", ["file", "/proc/self"])
def test_where_nothing_can_be_written(tmp_path, parent):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="where this process can write.*out'") as caught:
        publish_word(tmp_path / parent / "out", "new")
    assert caught.value.errno


def test_leftovers_of_killed_runs_are_cleaned(tmp_path):
    out = tmp_path / "out"
    leftover = tmp_path / ".out.keras-distill-0badf00d"
    of_another = tmp_path / ".out2.keras-distill-0badf00d"
    others = [tmp_path / name for name in ("out2", ".out", ".out.keras-distill-old")]
    for path in (leftover, of_another, *others):
        path.mkdir()
        (path / "half").write_text("x")
    publish_word(out, "new")
    assert not leftover.exists()
    assert not of_another.exists()
    assert all((path / "half").exists() for path in others)


def test_a_running_export_keeps_its_scratch_directory(tmp_path):
    out = tmp_path / "out"
    with replacing(out) as running:
        fill(running, "slow")
        publish_word(out, "fast")
        assert word_in(out) == "fast"
        assert running.exists()
    assert word_in(out) == "slow"


def test_an_export_inside_of_what_will_be_published(tmp_path):
    with replacing(tmp_path / "out", lambda directory: None) as scratch:
        publish_word(scratch / "student", "x")
        publish_word(scratch / "student", "y")
    assert word_in(tmp_path / "out" / "student") == "y"


def test_exports_to_one_place_at_the_same_time(tmp_path, swapping):
    """One of them stays, whole; none is disturbed and nothing is left over."""
    barrier, done = threading.Barrier(6), []

    def run(word):
        barrier.wait()
        for _ in range(10):
            publish_word(tmp_path / "out", word)
        done.append(word)

    threads = [threading.Thread(target=run, args=[str(i)]) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list("012345")
    assert word_in(tmp_path / "out") in done
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_killed_between_two_renames_the_old_one_comes_back(tmp_path):
    out = tmp_path / "out"
    aside = tmp_path / ".out.keras-distill-0badf00d.old"
    aside.mkdir()
    fill(aside, "old")
    with pytest.raises(RuntimeError), replacing(out):
        assert word_in(out) == "old"
        raise RuntimeError
    assert word_in(out) == "old"
    assert not aside.exists()


EXPORTING = """
    import os, signal, sys
    import numpy as np
    import keras
    from keras_distill.export import export, publish

    directory, moment = sys.argv[1:]
    layers = [keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")]
    model = keras.Sequential(layers, name="new")

    formats = ["saved_model", "onnx", "litert"]
    swap = publish._swap

    def die(*paths):
        if moment == "after the swap":
            swap(*paths)
        os.kill(os.getpid(), signal.SIGKILL)

    if "the swap" in moment:
        formats = formats[:1]
        publish._swap = die
    print("ready", flush=True)
    sys.stdin.readline()
    export(model, directory, formats, example_batch=np.ones((2, 4)))
"""

# Files of an unfinished export: the process is killed as soon as the parent sees one.
SIGHTS = ["saved_model/saved_model.pb", "model.onnx", "manifest.json"]


def start(directory, moment):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(EXPORTING), str(directory), moment],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def kill_at(process, directory, sight):
    """Let the export begin; kill it when `sight` is there; wait for its end."""
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()
    while process.poll() is None:
        scratch = directory.parent.glob(".out.keras-distill-*")
        if any((path / sight).exists() for path in scratch):
            process.kill()
            process.wait()
        time.sleep(0.001)
    process.stdin.close()
    process.stdout.close()
    return process.returncode


def name_of_whole_export(directory):
    """Check every file against the manifest; return the name of the model."""
    described = json.loads((directory / "manifest.json").read_text())
    for artefact in described["artefacts"].values():
        for file in artefact["files"]:
            data = (directory / file["path"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
    return described["model"]


def test_sigkill_at_any_moment_leaves_one_whole_export(dense_model, tmp_path):
    out = tmp_path / "out"
    export(dense_model, out, ["saved_model"], example_batch=np.ones((2, 4)))
    # TensorFlow takes seconds to import: all at once.
    points = [*SIGHTS, "before the swap", "after the swap"]
    processes = {point: start(out, point) for point in points}
    for sight in SIGHTS:
        assert kill_at(processes[sight], out, sight) == -signal.SIGKILL
        # Sight and kill are a moment apart; the manifest is the last file there is.
        allowed = ["dense_model"] + ["new"] * (sight == "manifest.json")
        assert name_of_whole_export(out) in allowed
    before = name_of_whole_export(out)
    assert kill_at(processes["before the swap"], out, "-") == -signal.SIGKILL
    assert name_of_whole_export(out) == before
    assert len(list(tmp_path.iterdir())) == 2  # and what the killed process left
    assert kill_at(processes["after the swap"], out, "-") == -signal.SIGKILL
    assert name_of_whole_export(out) == "new"
    publish_word(out, "last")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

"""An export replaces an earlier export, and nothing else."""

import hashlib
import json
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from keras_distill.atomic import replacing
from keras_distill.export import export, manifest
from keras_distill.export.publish import check_replaceable


def fill(directory, word):
    """Write the smallest directory that counts as an export."""
    (directory / "model.onnx").write_text(word)
    files = [{"path": "model.onnx"}]
    manifest.write(
        {"kind": "keras_distill.export", "artefacts": {"onnx": {"files": files}}},
        directory,
    )


def publish_word(directory, word):
    with replacing(directory, check_replaceable) as scratch:
        fill(scratch, word)


def word_in(directory):
    return (directory / "model.onnx").read_text()


def test_an_empty_directory_and_an_earlier_export_are_replaced(tmp_path):
    for word in ("first", "second"):
        publish_word(tmp_path, word)
        assert word_in(tmp_path) == word


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
        with replacing(out, check_replaceable) as scratch:
            fill(scratch, "new")
            out.mkdir()
            (out / "thesis.txt").write_text("ten years")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_file_is_not_a_directory(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(NotADirectoryError, match="out', which is a file"):
        publish_word(tmp_path / "out", "new")
    assert (tmp_path / "out").read_text() == "mine"


EXPORTING = """
    import os, signal, sys
    import numpy as np
    import keras
    from keras_distill import atomic
    from keras_distill.export import export

    directory, moment = sys.argv[1:]
    layers = [keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")]
    model = keras.Sequential(layers, name="new")

    formats = ["saved_model", "onnx", "litert"]
    swap = atomic._swap

    def die(*paths):
        if moment == "after the swap":
            swap(*paths)
        os.kill(os.getpid(), signal.SIGKILL)

    if "the swap" in moment:
        formats = formats[:1]
        atomic._swap = die
    print("ready", flush=True)
    sys.stdin.readline()
    export(model, directory, formats, example_batch=np.ones((2, 4)))
"""

# Files of an unfinished export. The process is killed as soon as the parent sees one.
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

"""An export that is killed leaves the old one or the new one, whole."""

import time

import keras
import numpy as np
import pytest

from keras_distill.export import export, manifest, verify
from tests.export.exporting import exporting

# In every run of the tests, and in the slow ones.
FEW, MANY = 4, 20


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("models") / "student.keras"
    keras.Sequential(
        [
            keras.Input((28, 28, 1), name="image"),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, name="logits"),
        ]
    ).save(path)
    return path


def duration(model, directory):
    with exporting(model, directory, None, "whole") as (_, connection):
        begin = time.monotonic()
        assert connection.recv() == "done"
        return time.monotonic() - begin


def killed_after(seconds, *arguments):
    """Start an export and kill it; tell whether it had finished before."""
    with exporting(*arguments) as (process, connection):
        time.sleep(seconds)
        process.kill()
        process.join()
        try:
            return connection.recv() == "done"
        except EOFError:
            return False


def mark(directory):
    report = verify(directory, run=False)
    assert report["ok"], report
    return manifest.read(directory)["provenance"]["mark"]


@pytest.mark.parametrize(
    "kills", [FEW, pytest.param(MANY, marks=pytest.mark.slow("kills many exports"))]
)
def test_killed_at_random_moments(model, kills, tmp_path):
    replaced, versions = tmp_path / "replaced", tmp_path / "student"
    seconds = duration(model, replaced)
    batch = np.ones((4, 28, 28, 1), "float32")
    for directory, version in ((replaced, None), (versions, 1)):
        export(
            model,
            directory,
            example_batch=batch,
            version=version,
            provenance={"mark": "old"},
        )
    known = {"1": "old"}
    seen = "old"
    moments = np.random.default_rng()
    for number in range(kills):
        moment = moments.uniform(0, 1.1 * seconds)
        new = f"{number} at {moment:.3f} s of {seconds:.3f}"
        if number % 2:
            finished = killed_after(moment, model, replaced, None, new)
            # Killed after the swap and before the end, it is the new one already.
            assert mark(replaced) in ({new} if finished else {seen, new})
            seen = mark(replaced)
            continue
        finished = killed_after(moment, model, versions, "next", new)
        published = {
            path.name: mark(path)
            for path in versions.iterdir()
            if not path.name.startswith(".")
        }
        added = {name: published.pop(name) for name in set(published) - set(known)}
        assert published == known, new
        assert list(added.values()) in ([[new]] if finished else [[], [new]]), new
        known |= added
    # What the killed left behind goes with the next export.
    latest = export(model, versions, example_batch=batch, version="next")["version"]
    assert latest == len(known) + 1
    assert {path.name for path in versions.iterdir()} == {*known, str(latest)}
    export(model, replaced, example_batch=batch)
    assert {path.name for path in tmp_path.iterdir()} == {"replaced", "student"}
    assert verify(replaced)["ok"]
    assert verify(versions / str(latest))["ok"]

"""Killed at any moment, recordings and trainings end as if nothing had happened."""

import signal
from pathlib import Path

import numpy as np

from keras_distill import targets
from tests.targets import killable
from tests.targets.recordings import dataset, files, model


def test_a_killed_recording_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    targets.record(model(), dataset(), whole, rows_per_shard=24)
    # The manifest and each shard are flushed in several steps. Each number is another
    # of them, and each call goes on where the last was killed.
    for last in (0, 1, 3, 4, 5, 7):
        assert killable.run(killable.record, killed, last) == -signal.SIGKILL
    assert killable.run(killable.record, killed, None) == 0
    assert files(killed) == files(whole)


def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    recorded = tmp_path / "recorded"
    targets.record(model(), dataset(), recorded)
    trained = []
    for name, moments in (("whole", ()), ("killed", (5, killable.BATCHES + 4))):
        directory = tmp_path / name
        directory.mkdir()
        for after in moments:
            ended = killable.run(killable.train, directory, recorded, after)
            assert ended == -signal.SIGKILL
        assert killable.run(killable.train, directory, recorded, None) == 0
        with np.load(directory / "weights.npz") as weights:
            trained.append([weights[name] for name in weights.files])
    for first, second in zip(*trained, strict=True):
        np.testing.assert_array_equal(first, second)

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
    for last in (3, 4, 9):
        assert killable.run(killable.record, killed, last) == -signal.SIGKILL
    assert killable.run(killable.record, killed, None) == 0
    assert files(killed) == files(whole)


def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    recorded = tmp_path / "recorded"
    targets.record(model(), dataset(), recorded)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    killable.train(tmp_path / "whole", recorded, None)
    moment = killable.BATCHES + 4  # In the second epoch.
    ended = killable.run(killable.train, tmp_path / "killed", recorded, moment)
    assert ended == -signal.SIGKILL
    killable.train(tmp_path / "killed", recorded, None)
    first, second = (
        np.load(tmp_path / name / "weights.npz") for name in ("whole", "killed")
    )
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])

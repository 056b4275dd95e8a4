"""A training that was interrupted ends where it would have ended."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import keras_distill as kd
from tests import slow
from tests.distiller.models import assert_same_weights
from tests.distiller.resumable import EPOCHS, STEPS_PER_EPOCH, At, train

ROOT = Path(__file__).parents[2]
HALFWAY = 2 * STEPS_PER_EPOCH + 1  # in the third epoch, past alpha's start
Uninterrupted = tuple[str, kd.Distiller, dict[str, Any]]


# What the teacher does.
KINDS = slow.but(["following"], ["fixed", "trained", "following"], "kills a process")


@pytest.fixture(scope="module", params=KINDS)
def uninterrupted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Uninterrupted:
    kind: str = request.param
    return kind, *train(str(tmp_path_factory.mktemp("whole")), kind)


def check_resumed(directory: Path, uninterrupted: Uninterrupted) -> None:
    kind, expected, whole_history = uninterrupted
    resumed, history = train(str(directory), kind)
    assert len(history["loss"]) == EPOCHS - 2
    for name, values in history.items():
        assert values == whole_history[name][2:], name
    assert history["alpha"][-1] == pytest.approx(0.7)
    assert_same_weights(resumed.student, expected.student)
    assert_same_weights(resumed.teacher, expected.teacher)


def test_after_an_exception(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    def fail() -> None:
        raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError, match="the power is gone"):
        train(str(tmp_path), uninterrupted[0], [At(HALFWAY, fail)])
    check_resumed(tmp_path, uninterrupted)


def test_after_the_process_was_killed(
    tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    command = [sys.executable, "-m", "tests.distiller.resumable"]
    killed = subprocess.run(
        [*command, tmp_path, str(HALFWAY), uninterrupted[0]], cwd=ROOT, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL
    check_resumed(tmp_path, uninterrupted)

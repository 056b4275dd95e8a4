"""Two workers, each in a process of its own, train as one process does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.devices.running import run
from tests.devices.worker import FITS

FIRST = ["hints", "privileged", "average", "predict"]
# Two devices of one process do these in `tests/distiller/test_mirrored.py`.
OTHERS = [name for name in FITS if name not in ("keras", *FIRST)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    """What two workers find. The last fit fails."""
    return run([*FIRST, "keras"], tmp_path_factory.mktemp("two"), workers=2)


def check_alike(fits: list[str], folder: Path, found: list[dict[str, Any]]) -> None:
    """Check that workers found what one process does."""
    (whole,) = run(fits, folder, workers=1)
    for each in found:
        for name, expected in whole.items():
            is_weight = "/weight/" in name
            bounds = {"atol": 1e-5} if is_weight else {"rtol": 1e-4}
            np.testing.assert_allclose(each[name], expected, err_msg=name, **bounds)


def test_two_workers_train_as_one(two: list[dict[str, Any]], tmp_path: Path) -> None:
    check_alike(FIRST, tmp_path, two)


@pytest.mark.slow
def test_they_train_the_others_as_one(tmp_path: Path) -> None:
    check_alike(OTHERS, tmp_path, run(OTHERS, tmp_path, workers=2))


def test_keras_still_needs_the_work_around(two: list[dict[str, Any]]) -> None:
    # Once it doesn't, `keras_distill/devices/workers.py` can go.
    assert all("Error" in str(each["keras/log/error"]) for each in two)

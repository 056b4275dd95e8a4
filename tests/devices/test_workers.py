"""Two workers, each in a process of its own, train as one process does."""

from pathlib import Path

import numpy as np
import pytest

from tests.devices.running import run
from tests.devices.worker import FITS

FIRST = ["hints", "privileged", "average", "predict"]
# Two devices of one process do these in `tests/distiller/test_mirrored.py`.
OTHERS = [name for name in FITS if name not in ("keras", *FIRST)]


@pytest.mark.parametrize("fits", [FIRST, pytest.param(OTHERS, marks=pytest.mark.slow)])
def test_two_workers_train_as_one(fits: list[str], tmp_path: Path) -> None:
    (whole,) = run(fits, tmp_path, workers=1)
    first, second = run(fits, tmp_path, workers=2)
    for name, expected in whole.items():
        for found in (first, second):
            is_weight = "/weight/" in name
            bounds = {"atol": 1e-5} if is_weight else {"rtol": 1e-4}
            np.testing.assert_allclose(found[name], expected, err_msg=name, **bounds)


def test_keras_still_needs_the_work_around(tmp_path: Path) -> None:
    # Once it doesn't, `keras_distill/devices/workers.py` can go.
    with pytest.raises(RuntimeError, match="Error"):
        run(["keras"], tmp_path, workers=2)

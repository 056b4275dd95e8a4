"""A worker is killed, all start again, and the training ends as if none had been."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.devices.running import ROOT

LAUNCH = [Path(sys.executable).with_name("keras-distill"), "launch", "--workers", "2"]


def weights(path: Path) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


def test_a_killed_worker(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    program = [sys.executable, "-m", "tests.devices.resuming"]
    subprocess.run([*program, alone], cwd=ROOT, check=True)
    command = [*LAUNCH, "--restarts", "1", "--", *program, together]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "worker 1 was ended by SIGKILL" in done.stderr
    assert (together / "killed").exists()
    for index in range(2):
        found = weights(together / f"weights_{index}.npz")
        for weight, expected in zip(
            found, weights(alone / "weights_0.npz"), strict=True
        ):
            np.testing.assert_allclose(weight, expected, atol=1e-5)

"""Several devices of JAX, by `keras.distribution`, train as one does."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_distill.devices.launching import HOST, free_ports
from tests.devices.running import ROOT

pytest.importorskip("jax")


def run(
    how: str, folder: Path, *, processes: int = 1, devices: int = 1
) -> list[dict[str, np.ndarray]]:
    """Return what each process found; raise an error with what it printed."""
    (port,) = free_ports(1)
    environment = os.environ | {
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "SHARDED_PROCESSES": str(processes),
        "SHARDED_COORDINATOR": f"{HOST}:{port}",
    }
    files = [folder / f"{processes}_{devices}_{it}.npz" for it in range(processes)]
    with contextlib.ExitStack() as stack:
        running = []
        for index, file in enumerate(files):
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.devices.sharded", how, file],
                cwd=ROOT,
                env=environment | {"SHARDED_PROCESS": str(index)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            running.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in running:
            printed, _ = process.communicate(timeout=300)
            if process.returncode:
                raise RuntimeError(printed[-5000:])
    return [dict(np.load(file)) for file in files]


def check_alike(found: list[dict[str, np.ndarray]], whole: dict[str, Any]) -> None:
    """Check that processes found what one device did."""
    assert whole["devices"] == 1
    for each in found:
        assert each["devices"] == 2
        assert each.keys() == whole.keys()
        for name in whole.keys() - {"devices"}:
            is_weight = "/weight/" in name
            bounds = {"atol": 1e-5} if is_weight else {"rtol": 1e-4}
            np.testing.assert_allclose(each[name], whole[name], err_msg=name, **bounds)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What one device finds."""
    (found,) = run("data", tmp_path_factory.mktemp("whole"))
    return found


def test_each_device_has_a_part_of_the_batch(whole: Any, tmp_path: Path) -> None:
    check_alike(run("data", tmp_path, devices=2), whole)


@pytest.mark.slow
def test_each_process_has_a_part_of_the_batch(whole: Any, tmp_path: Path) -> None:
    check_alike(run("data", tmp_path, processes=2), whole)


def test_each_device_has_a_part_of_the_teacher(tmp_path: Path) -> None:
    (whole,) = run("model", tmp_path)
    check_alike(run("model", tmp_path, devices=2), whole)

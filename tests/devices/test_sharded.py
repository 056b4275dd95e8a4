"""Several devices of JAX, by `keras.distribution`, train as one does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_distill.devices.launching import HOST, free_ports
from tests.devices.running import run_together

pytest.importorskip("jax")


def run(
    how: str, folder: Path, *, processes: int = 1, devices: int = 1
) -> list[dict[str, np.ndarray]]:
    """Return what each process found; raise an error with what it printed.

    Args:
        how: What is divided among the devices: `"data"`, or `"data,model"` in turn.
        folder: A directory for their results.
        processes: How many processes train together.
        devices: The number of devices of each.
    """
    (port,) = free_ports(1)
    shared = {
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "SHARDED_PROCESSES": str(processes),
        "SHARDED_COORDINATOR": f"{HOST}:{port}",
    }
    environments = {
        folder / f"{processes}_{devices}_{index}.npz": (
            shared | {"SHARDED_PROCESS": str(index)}
        )
        for index in range(processes)
    }
    return run_together("tests.devices.sharded", how, environments)


def check_alike(
    found: list[dict[str, np.ndarray]], whole: dict[str, Any], how: str
) -> None:
    """Check that processes found what one device did."""
    assert whole["devices"] == 1
    names = {name for name in whole if name.startswith(f"{how}/")}
    assert names
    for each in found:
        assert each["devices"] == 2
        assert {name for name in each if name.startswith(f"{how}/")} == names
        for name in names:
            is_weight = "/weight/" in name
            bounds = {"atol": 1e-5} if is_weight else {"rtol": 1e-4}
            np.testing.assert_allclose(each[name], whole[name], err_msg=name, **bounds)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What one device finds."""
    (found,) = run("data,model", tmp_path_factory.mktemp("whole"))
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    """What two devices of one process find."""
    return run("data,model", tmp_path_factory.mktemp("two"), devices=2)


def test_each_device_has_a_part_of_the_batch(whole: Any, two: Any) -> None:
    check_alike(two, whole, "data")


@pytest.mark.slow
def test_each_process_has_a_part_of_the_batch(whole: Any, tmp_path: Path) -> None:
    check_alike(run("data", tmp_path, processes=2), whole, "data")


def test_each_device_has_a_part_of_the_teacher(whole: Any, two: Any) -> None:
    check_alike(two, whole, "model")

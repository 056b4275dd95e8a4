"""The example of several workers, and its manifests for clusters."""

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from keras_distill.devices.launching import HOST
from tests.devices.running import ROOT

EXAMPLE = ROOT / "examples/several_workers.py"
CLUSTER = ROOT / "examples/cluster"
PORTS = (8888, 8889)  # of SlurmClusterResolver


def example(folder: Path) -> list[str]:
    return [sys.executable, str(EXAMPLE), "--smoke", "--directory", str(folder)]


def is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server((HOST, port)):
        return True
    return False


def test_workers_need_a_teacher(tmp_path: Path) -> None:
    launch = [Path(sys.executable).with_name("keras-distill"), "launch"]
    command = [*launch, "--workers", "2", "--restarts", "0", "--", *example(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "run this program alone first" in done.stderr


@pytest.mark.slow
def test_workers_of_slurm(tmp_path: Path) -> None:
    if not all(map(is_free, PORTS)):
        pytest.skip("something listens on the ports of SlurmClusterResolver")
    subprocess.run(example(tmp_path), cwd=ROOT, check=True)
    # The backup would be complete.
    for file in (tmp_path / "backup").iterdir():
        file.unlink()
    step = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }
    running = [
        subprocess.Popen(
            example(tmp_path),
            cwd=ROOT,
            env=os.environ | step | {"SLURM_PROCID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    for process in running:
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed[-3000:]
        assert "2 worker(s): test accuracy" in printed


def test_kubernetes_gives_each_pod_its_place() -> None:
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    shell, flag, script = pod["containers"][0]["command"]
    script = script.replace("exec python", "true python") + "\necho $TF_CONFIG"
    done = subprocess.run(
        [shell, flag, script],
        env=os.environ | {"JOB_COMPLETION_INDEX": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    config = json.loads(done.stdout)
    assert config["task"] == {"type": "worker", "index": 3}
    name = job["metadata"]["name"]
    assert config["cluster"]["worker"] == [
        f"{name}-{index}.{pod['subdomain']}:2222"
        for index in range(spec["completions"])
    ]
    assert spec["completions"] == spec["parallelism"]


@pytest.mark.parametrize(
    ("code", "restarts", "again"), [(0, "0", False), (75, "0", True), (1, "9", False)]
)
def test_slurm_queues_a_job_again(
    code: int, restarts: str, again: bool, tmp_path: Path
) -> None:
    for name, body in {
        "srun": f"exit {code}",
        "scontrol": f'echo "$@" > {tmp_path}/asked',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "17",
        "SLURM_RESTART_COUNT": restarts,
    }
    done = subprocess.run([CLUSTER / "slurm.sh"], env=os.environ | variables)
    assert done.returncode == code
    asked = tmp_path / "asked"
    assert asked.exists() == again
    if again:
        assert asked.read_text() == "requeue 17\n"

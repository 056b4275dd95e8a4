"""Runs a test program in several workers, or in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.e2e.services import HOST, free_ports

ROOT = Path(__file__).parents[2]


def run(fits: list[str], directory: Path, workers: int) -> list[dict[str, np.ndarray]]:
    """Return what each worker found; raise an error with what it printed."""
    hosts = [f"{HOST}:{port}" for port in free_ports(workers)]
    running = []
    for index in range(workers):
        task = {
            "cluster": {"worker": hosts},
            "task": {"type": "worker", "index": index},
        }
        given = {"TF_CONFIG": json.dumps(task)} if workers > 1 else {}
        file = directory / f"{workers}_{index}.npz"
        command = [sys.executable, "-m", "tests.devices.worker", ",".join(fits), file]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append((process, file))
    found = []
    try:
        for process, file in running:
            printed, _ = process.communicate(timeout=300)
            if process.returncode:
                raise RuntimeError(printed[-5000:])
            with np.load(file) as arrays:
                found.append(dict(arrays))
    finally:
        for process, _ in running:
            process.kill()
            process.communicate()
    return found

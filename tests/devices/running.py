"""Runs a test program in several workers, or in one process."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from keras_distill.devices.launching import HOST, free_ports

ROOT = Path(__file__).parents[2]


def run(fits: list[str], directory: Path, workers: int) -> list[dict[str, np.ndarray]]:
    """Return what each worker found; raise an error with what it printed."""
    hosts = [f"{HOST}:{port}" for port in free_ports(workers)]
    files = [directory / f"{workers}_{index}.npz" for index in range(workers)]
    with contextlib.ExitStack() as stack:
        running = []
        for index, file in enumerate(files):
            task = {"type": "worker", "index": index}
            config = json.dumps({"cluster": {"worker": hosts}, "task": task})
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.devices.worker", ",".join(fits), file],
                cwd=ROOT,
                env=os.environ | ({"TF_CONFIG": config} if workers > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            running.append(stack.enter_context(process))
            stack.callback(process.kill)  # Before its exit, which waits for its end.
        for process in running:
            printed, _ = process.communicate(timeout=600)
            if process.returncode:
                raise RuntimeError(printed[-5000:])
    return [dict(np.load(file)) for file in files]

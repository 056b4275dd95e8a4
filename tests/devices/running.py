"""Runs a test program in several workers, or in one process."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keras_distill.devices.launching import HOST, free_ports

ROOT = Path(__file__).parents[2]


def run(fits: list[str], directory: Path, workers: int) -> list[dict[str, np.ndarray]]:
    """Return what each worker found; raise an error with what it printed."""
    hosts = [f"{HOST}:{port}" for port in free_ports(workers)]
    tasks = [{"type": "worker", "index": index} for index in range(workers)]
    configs = [{"cluster": {"worker": hosts}, "task": task} for task in tasks]
    environments = {
        directory / f"{workers}_{index}.npz": (
            {"TF_CONFIG": json.dumps(config)} if workers > 1 else {}
        )
        for index, config in enumerate(configs)
    }
    return run_together("tests.devices.worker", ",".join(fits), environments)


def run_together(
    module: str, argument: str, environments: Mapping[Path, Mapping[str, str]]
) -> list[dict[str, np.ndarray]]:
    """Run a test program in processes at the same time, and return what each found.

    Args:
        module: The program's module. It writes an `.npz` file.
        argument: Its argument before the file.
        environments: For each process, its file and what its environment has beside
            this process's own.

    Raises:
        RuntimeError: A process fails. The message is what it printed.
    """
    with contextlib.ExitStack() as stack:
        running = []
        for file, environment in environments.items():
            process = subprocess.Popen(
                [sys.executable, "-m", module, argument, file],
                cwd=ROOT,
                env=os.environ | environment,
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
    return [dict(np.load(file)) for file in environments]

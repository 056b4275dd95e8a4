"""Several devices, in a process of their own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_two_devices_train_as_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.distiller.mirrored"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.endswith("two devices train as one\n")

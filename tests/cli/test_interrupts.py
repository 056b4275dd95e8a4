"""Ctrl-C at any moment, as real signals to real processes."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_distill.cli.interrupts import Interrupts
from tests import slow

COMMAND = str(Path(sys.executable).with_name("keras-distill"))
ENVIRONMENT = os.environ | {"PYTHONUNBUFFERED": "1"}


@pytest.fixture(autouse=True)
def interrupted_by_default():
    """A shell starts what it runs in the background with Ctrl-C ignored."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.fixture(autouse=True)
def without_pauses():
    """A process that has run many tests collects its memory for seconds."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "interrupts"
    folder.mkdir()
    # So many that the export takes seconds after its first file, on a busy machine too.
    hidden = [keras.layers.Dense(4, "gelu") for _ in range(60)]
    model = keras.Sequential([keras.Input((4,), name="x"), *hidden])
    model.save(folder / "m.keras")
    np.savez(folder / "d.npz", x=np.zeros((2, 4), "float32"))
    return folder


def loaded(process, module):
    """Whether a library of this name is in the memory of a process."""
    return module in Path(f"/proc/{process.pid}/maps").read_text()


def scratch(folder):
    return any("keras-distill" in path.name for path in folder.iterdir())


MOMENTS = {
    "importing": (
        "export m.keras --examples d.npz --out out",
        lambda process, folder: loaded(process, "_multiarray_umath"),
    ),
    "converting": (
        "export m.keras --examples d.npz --out out",
        lambda process, folder: scratch(folder),
    ),
    "training": (
        "demo --seeds 0 --out out",
        lambda process, folder: b"training" in (folder / "printed").read_bytes(),
    ),
}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    "moment", slow.but(["importing", "converting"], MOMENTS, "starts the demo")
)
@pytest.mark.parametrize("presses", [2])
def test_no_traceback_and_nothing_half_written(folder, moment, presses):
    line, begun = MOMENTS[moment]
    with (folder / "printed").open("wb") as printed:
        process = subprocess.Popen(
            [COMMAND, *line.split()],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=printed,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + 120
            while not begun(process, folder):
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.01)
            for _ in range(presses):  # one that is held down too long
                os.killpg(process.pid, signal.SIGINT)
                time.sleep(0.02)
            _, error = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, error) == (130, b"")
    left = {path.name for path in folder.iterdir()}
    assert left == {"m.keras", "d.npz", "printed"}


def test_once_is_once():
    """A second press doesn't break off what the first has begun to clean up."""
    cleaned = False
    with pytest.raises(KeyboardInterrupt), Interrupts(restore=True) as interrupts:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            cleaned = True
    assert cleaned and interrupts.seen
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_python_drops_is_raised_again():
    class Dying:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), Interrupts(restore=True):
        Dying()
        time.sleep(10)


def test_what_a_library_drops_is_raised_again():
    dropped = 0
    with pytest.raises(KeyboardInterrupt), Interrupts(restore=True):
        while dropped < 2:
            try:
                if not dropped:
                    signal.raise_signal(signal.SIGINT)
                time.sleep(10)
            except BaseException:
                dropped += 1
        time.sleep(10)
    assert dropped == 2


@pytest.mark.parametrize("translate", [False, True])
def test_what_cleans_up_for_longer_is_left_alone(translate):
    """Not the first interrupt alone, also an error that a library makes of it."""
    cleaned = False
    expected = RuntimeError if translate else KeyboardInterrupt
    with pytest.raises(expected), Interrupts(restore=True):
        try:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                if translate:
                    raise RuntimeError("of a library") from None
                raise
        finally:
            time.sleep(0.5)
            cleaned = True
    assert cleaned


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_others_keep_their_handlers(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with Interrupts(restore=True):
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_changes():
    seen = []

    def run():
        with Interrupts(restore=True):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_what_a_library_prints_of_an_interrupt_is_dropped():
    """As a traceback of C++ that was called back when the signal came."""
    code = """
import os, signal
from keras_distill.cli.interrupts import Interrupts
os.write(2, b"before")
with Interrupts(restore=False):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        os.write(2, b"Traceback (most recent call last)")
"""
    # under the command's name, which keeps TensorFlow from being imported
    code = f"import sys; sys.argv = ['keras-distill']\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"before")

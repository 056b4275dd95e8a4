"""Processes that codistil through a directory, one of which is killed."""

import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.online.codistilling import NAMES

ROOT = Path(__file__).parents[2]
EPOCHS = 30
SECONDS = 400


class Peer:
    """A process, and what it has said."""

    def __init__(self, directory: Path, name: str, life: int = 1) -> None:
        self.out, self.err = (
            directory / f"{name}{life}.{end}" for end in ("out", "err")
        )
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.online.codistilling"),
                    *(directory / "peers", name, directory / name, str(EPOCHS)),
                ],
                cwd=ROOT,
                stdout=out,
                stderr=err,
            )

    @property
    def lines(self) -> list[list[str]]:
        """The words of each line that is complete."""
        return [line.split() for line in self.out.read_text().split("\n")[:-1]]

    @property
    def epochs(self) -> list[int]:
        return [int(first) for first, *_ in self.lines if first.isdigit()]

    def wait_for_epochs(self, count: int) -> None:
        end = time.monotonic() + SECONDS
        while len(self.epochs) < count:
            assert self.process.poll() is None, self.err.read_text()[-3000:]
            assert time.monotonic() < end, self.lines
            time.sleep(0.005)

    def accuracy(self) -> float:
        """Wait for the end, and return the test accuracy."""
        assert self.process.wait(SECONDS) == 0, self.err.read_text()[-3000:]
        return float(self.lines[-1][1])


class Watch(threading.Thread):
    """Reads every file of a directory again and again: each must be whole."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.directory = directory
        self.reads = 0
        self.broken: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            for path in self.directory.glob("[!.]*.keras"):
                try:
                    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                        if archive.testzip() is not None:
                            raise zipfile.BadZipFile("a wrong checksum")
                except zipfile.BadZipFile as error:
                    self.broken.append(f"{path.name}: {error}")
                self.reads += 1
            time.sleep(0.01)


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    watching = Watch(tmp_path / "peers")
    watching.start()
    yield watching
    watching.over.set()
    watching.join()


@pytest.mark.slow("three processes train side by side")
def test_the_others_go_on_when_one_is_killed(tmp_path: Path, watch: Watch) -> None:
    peers = {name: Peer(tmp_path, name) for name in NAMES}
    victim = peers["bob"]
    moments = np.random.default_rng()
    victim.wait_for_epochs(2)
    time.sleep(moments.uniform(0.0, 0.3))  # within a write, too
    victim.process.kill()
    assert victim.process.wait(SECONDS) == -signal.SIGKILL
    earlier, again = victim.epochs[-1], Peer(tmp_path, "bob", life=2)
    again.wait_for_epochs(1)
    assert again.epochs[0] > earlier  # what was finished isn't trained again
    _, *teaching = again.lines[0]
    assert teaching == ["ann", "eve", "taught"]  # by the others, at once
    peers["bob"] = again
    accuracies = {name: peer.accuracy() for name, peer in peers.items()}
    for name, peer in peers.items():
        others = [other for other in NAMES if other != name]
        assert peer.lines[-2] == [str(EPOCHS - 1), *others, "taught"]
        assert accuracies[name] > 0.85, accuracies
    assert watch.reads > 50
    assert watch.broken == []
    left = {path.name for path in (tmp_path / "peers").glob("[!.]*")}
    assert left == {f"{name}.keras" for name in NAMES}
    for name in NAMES:
        model = keras.saving.load_model(tmp_path / "peers" / f"{name}.keras")
        assert model.name == name

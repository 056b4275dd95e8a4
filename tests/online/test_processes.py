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
EPOCHS = 60
SECONDS = 240


class Peer:
    """A process, and what it has said."""

    def __init__(self, directory: Path, name: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.online.codistilling"),
                *(str(directory / "peers"), name, str(directory / name), str(EPOCHS)),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())

    @property
    def epochs(self) -> list[int]:
        return [int(line.split()[0]) for line in self.lines if line[:1].isdigit()]

    def wait_for_epoch(self, epoch: int) -> None:
        end = time.monotonic() + SECONDS
        while not self.epochs or self.epochs[-1] < epoch:
            assert self.process.poll() is None, self.errors()
            assert time.monotonic() < end, self.lines
            time.sleep(0.005)

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()[-3000:]

    def accuracy(self) -> float:
        """Wait for the end, and return the test accuracy."""
        code = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        assert code == 0, self.errors()
        return float(self.lines[-1].removeprefix("accuracy "))


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


def test_the_others_go_on_when_one_is_killed(tmp_path: Path, watch: Watch) -> None:
    peers = {name: Peer(tmp_path, name) for name in NAMES}
    victim = peers.pop("bob")
    moments = np.random.default_rng()
    killed = 0
    for _ in range(2):
        victim.wait_for_epoch((victim.epochs or [0])[-1] + 2)
        time.sleep(moments.uniform(0.0, 0.3))  # within a write, too
        victim.process.kill()
        assert victim.process.wait(SECONDS) == -signal.SIGKILL
        killed, earlier = killed + 1, victim.epochs[-1]
        victim = Peer(tmp_path, "bob")
        victim.wait_for_epoch(0)
        assert victim.epochs[0] >= earlier  # goes on, and learns from others at once
        first = victim.lines[0].split()
        assert set(first[1:-1]) == {"ann", "eve"} and first[-1] == "taught"
    assert killed == 2
    peers["bob"] = victim
    accuracies = {name: peer.accuracy() for name, peer in peers.items()}
    for name, peer in peers.items():
        others = [other for other in NAMES if other != name]
        assert peer.lines[-2].split() == [str(EPOCHS - 1), *others, "taught"]
        assert accuracies[name] > 0.85, accuracies
    assert watch.reads > 50
    assert watch.broken == []
    left = {path.name for path in (tmp_path / "peers").glob("[!.]*")}
    assert left == {f"{name}.keras" for name in NAMES}
    for name in NAMES:
        model = keras.saving.load_model(tmp_path / "peers" / f"{name}.keras")
        assert model.name == name

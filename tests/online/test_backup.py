"""Backups of `fit`: two of them, checked, and the end that SIGTERM asks for."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import pytest

from keras_distill.devices.launching import SAVED
from keras_distill.online import Backup
from tests.distiller.models import assert_same_weights, crossentropy, data, mlp

ROOT = Path(__file__).parents[2]


def fit(directory: Path, epochs: int, *callbacks: Any) -> tuple[keras.Model, list[int]]:
    model = mlp()
    model.compile("adam", crossentropy())
    backup = Backup(directory)
    history = model.fit(
        *data(24),
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[backup, *callbacks],
    )
    return model, history.epoch


def straight(epochs: int) -> keras.Model:
    model = mlp()
    model.compile("adam", crossentropy())
    model.fit(*data(24), batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return model


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir(), key=lambda path: path.name)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_two_are_kept(tmp_path: Path) -> None:
    fit(tmp_path, 4)
    assert [path.name[:8] for path in files(tmp_path)] == ["epoch_3.", "epoch_4."]


@pytest.mark.parametrize("spoil", [damage, lambda path: path.write_bytes(b"half")])
def test_a_damaged_file_is_passed_over(spoil: Any, tmp_path: Path) -> None:
    fit(tmp_path, 3)
    spoil(files(tmp_path)[-1])
    with pytest.warns(UserWarning, match="epoch_3.* is damaged.*after epoch 2"):
        model, epochs = fit(tmp_path, 4)
    assert epochs == [2, 3]
    assert_same_weights(model, straight(4))


def test_all_are_damaged(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    for path in files(tmp_path):
        damage(path)
    with pytest.raises(ValueError, match=r"must have the bytes.*'epoch_2.*'epoch_1"):
        fit(tmp_path, 3)
    assert len(files(tmp_path)) == 2


def test_files_of_earlier_versions(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    earlier, last = files(tmp_path)
    earlier.unlink()
    last.rename(tmp_path / "epoch_2.weights.h5")
    model, epochs = fit(tmp_path, 3)
    assert epochs == [2]
    assert_same_weights(model, straight(3))


class At(keras.callbacks.Callback):
    def __init__(self, step: int, number: int) -> None:
        super().__init__()
        self.step, self.number = step, number

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations) == self.step:
            os.kill(os.getpid(), self.number)


def test_sigterm_ends_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.online.test_backup", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == SAVED, done.stderr
    assert "Traceback" not in done.stderr
    model, epochs = fit(tmp_path, 4)
    assert epochs == [2, 3]
    assert_same_weights(model, straight(4))


def test_handlers_of_sigterm_are_left_alone(tmp_path: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    fit(tmp_path, 1)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        _, epochs = fit(tmp_path, 3, At(7, signal.SIGTERM))
        assert epochs == [1, 2]
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if __name__ == "__main__":
    fit(Path(sys.argv[1]), 4, At(7, signal.SIGTERM))

"""A process that codistils on digits: `python -m tests.online.codistilling DIRECTORY
NAME BACKUP EPOCHS`. A name has an architecture and a third of the data of its own."""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_distill as kd
from tests.distiller.models import crossentropy

NAMES = ("ann", "bob", "eve")
EVERY = 5


def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    loaded = load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.target))
    x = loaded.data[order].astype("float32") / 16.0
    return x, loaded.target[order]


def student(name: str) -> keras.Model:
    keras.utils.set_random_seed(NAMES.index(name))
    hidden = [layers.Dense(16 + 8 * NAMES.index(name), "relu"), layers.Dropout(0.1)]
    return keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10)], name=name)


class Says(keras.callbacks.Callback):
    """Prints who taught in an epoch, so that whoever started the process knows."""

    def __init__(self, peers: kd.online.SharedPeers) -> None:
        super().__init__()
        self.peers = peers

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        taught = "distillation_loss" in logs
        print(epoch, *self.peers.teaching, "taught" if taught else "", flush=True)


def main(directory: Path, name: str, backup: Path, epochs: int) -> None:
    x, y = digits()
    own = slice(NAMES.index(name), 1200, 3)
    peers = kd.online.SharedPeers(directory, name, every=EVERY)
    distiller = kd.Distiller(student(name), peers)
    distiller.compile(keras.optimizers.Adam(5e-3), crossentropy(), alpha=0.5)
    callbacks = [kd.online.Backup(backup), peers, Says(peers)]
    distiller.fit(x[own], y[own], epochs=epochs, verbose=0, callbacks=callbacks)
    logits = distiller.student.predict(x[1200:], verbose=0)
    print("accuracy", float((logits.argmax(-1) == y[1200:]).mean()), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))

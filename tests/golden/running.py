"""Runs golden fits; as a module, writes what they must give.

`python -m tests.golden.running` writes `golden.npz` beside this file. Run it on code
that is known to be right, and name in CHANGELOG what differs from the file before. A
new loss, schedule or teacher needs no golden fit: they guard the steps that all share.
"""

import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np

from tests.golden.cases import BATCH_SIZE, CASES, EPOCHS, Fit

FILE = Path(__file__).with_name("golden.npz")


def results(fit: Fit) -> dict[str, np.ndarray]:
    """Run a fit and return its history and the weights that it leaves.

    Returns:
        `history/<log>`, a value for each epoch, and `weights/<model>/<number>`.
    """
    histories = [_fitted(fit)]
    if fit.resumed:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "trainer.keras")
            fit.trainer.save(path)
            fit.trainer = type(fit.trainer).load(path, fit.teacher)
        fit.models = {"student": fit.trainer.student}
        histories.append(_fitted(fit))
    found = {
        f"history/{name}": np.concatenate([history[name] for history in histories])
        for name in histories[0]
    }
    for name, model in fit.models.items():
        for number, weight in enumerate(model.weights):
            found[f"weights/{name}/{number}"] = keras.ops.convert_to_numpy(weight)
    return {name: np.asarray(value, "float32") for name, value in found.items()}


def _fitted(fit: Fit) -> dict[str, list[float]]:
    given = {"batch_size": BATCH_SIZE, "epochs": EPOCHS, "shuffle": False, "verbose": 0}
    history = fit.trainer.fit(**given, callbacks=list(fit.callbacks), **fit.given)
    logs: dict[str, list[float]] = history.history
    return logs


def main() -> None:
    """Write the results of all cases."""
    warnings.simplefilter("ignore")
    found = {}
    for name, make in CASES.items():
        for key, value in results(make()).items():
            found[f"{name}/{key}"] = value
    np.savez_compressed(FILE, **found)
    print(f"{len(CASES)} fits, {len(found)} arrays, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()

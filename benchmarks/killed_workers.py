"""A test of two workers that train together while one of them is killed repeatedly.

Claim: if either worker is killed by SIGKILL at any moment, even the first one while it
writes its backup, `keras-distill launch` restarts all workers. The training ends with
the weights of one that wasn't killed, to 1e-5. In the last test, a training is stopped
by SIGTERM, as clusters do it, and started again.

    python benchmarks/killed_workers.py [--kills 20] [--seed 0]
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

from keras_distill.devices.launching import SAVED, launch

EPOCHS, STEPS, WORKERS = 10, 12, 2
KILLS_A_RUN = 2
BOUND = 1e-5


def train(directory: pathlib.Path, index: int) -> None:
    """Train as one of the workers, or alone, and be killed as `plan.json` says."""
    import tensorflow as tf

    is_alone = "TF_CONFIG" not in os.environ
    strategy = (
        tf.distribute.get_strategy()
        if is_alone
        else tf.distribute.MultiWorkerMirroredStrategy()
    )
    import keras

    import keras_distill as kd

    class Doomed(keras.callbacks.Callback):
        """Kills this process some time after a step, or after a backup has begun."""

        def __init__(self, kills: list[dict]) -> None:
            super().__init__()
            self.kills = kills

        def set_model(self, model: keras.Model) -> None:
            super().set_model(model)
            save = model.save_weights

            def save_weights(*args: object, **options: object) -> None:
                self.kill("backup", int(model.optimizer.iterations.numpy()) // STEPS)
                save(*args, **options)

            model.save_weights = save_weights

        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            self.kill("step", int(self.model.optimizer.iterations.numpy()))

        def kill(self, when: str, number: int) -> None:
            for place, it in enumerate(self.kills):
                marker = directory / f"killed_{place}"
                is_due = (it["when"], it["number"]) == (when, number)
                if it["worker"] == index and is_due and not marker.exists():
                    marker.touch()
                    end = os.getpid(), signal.SIGKILL
                    threading.Timer(it["seconds"], os.kill, end).start()

    def network(seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        image = keras.Input((8,))
        hidden = keras.layers.Dense(16, "relu", name="hidden")(image)
        return keras.Model(image, keras.layers.Dense(4)(hidden))

    with strategy.scope():
        hint = kd.hints.Hint("hidden", "hidden")
        distiller = kd.Distiller(network(1), network(0), hints=[hint])
        distiller.compile(
            keras.optimizers.SGD(0.05, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            alpha=kd.schedules.LinearWarmup(40),
        )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16 * STEPS, 8)).astype("float32")
    y = rng.integers(0, 4, 16 * STEPS)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    backup = kd.online.Backup(directory / "backup")
    plan = directory / "plan.json"
    kills = json.loads(plan.read_text()) if plan.exists() else []
    callbacks = [backup, Doomed(kills)]
    distiller.fit(batches, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks)
    np.savez(directory / f"weights_{index}.npz", *distiller.student.get_weights())


def planned(rng: np.random.Generator) -> dict:
    """Draw a kill: after a step of any worker, or in a backup of the first worker."""
    seconds = rng.uniform(0, 0.02)  # writing takes about 0.01
    if rng.random() < 0.4:
        number = int(rng.integers(1, EPOCHS))
        return {"worker": 0, "when": "backup", "number": number, "seconds": seconds}
    worker, number = int(rng.integers(WORKERS)), int(rng.integers(1, EPOCHS * STEPS))
    return {"worker": worker, "when": "step", "number": number, "seconds": seconds}


def weights(file: pathlib.Path) -> list[np.ndarray]:
    """Return the weights that a worker ended with."""
    with np.load(file) as found:
        return [found[name] for name in found.files]


def apart(directory: pathlib.Path, expected: list[np.ndarray]) -> float:
    """Return the largest difference of all workers' weights."""
    return max(
        float(np.max(np.abs(ours - theirs)))
        for index in range(WORKERS)
        for ours, theirs in zip(
            weights(directory / f"weights_{index}.npz"), expected, strict=True
        )
    )


def killed(directory: pathlib.Path, kills: list[dict], expected: list) -> float:
    """Train once with kills; return how far the weights are."""
    directory.mkdir()
    (directory / "plan.json").write_text(json.dumps(kills))
    code = launch(command(directory), WORKERS, restarts=len(kills))
    if code or not all((directory / f"killed_{i}").exists() for i in range(len(kills))):
        raise RuntimeError(f"{directory.name} ended with {code}: {kills}")
    difference = apart(directory, expected)
    for it in kills:
        print(
            f"{directory.name}: worker {it['worker']}, {it['when']} {it['number']}, "
            f"after {1e3 * it['seconds']:.0f} ms; weights {difference:.1e} apart",
            flush=True,
        )
    shutil.rmtree(directory)
    return difference


def command(directory: pathlib.Path) -> list[str]:
    """Return the command of a worker."""
    return [sys.executable, __file__, "--worker", str(directory)]


def preempted(root: pathlib.Path, expected: list[np.ndarray]) -> None:
    """Ask a training to end, and start it again."""
    directory = root / "preempted"
    directory.mkdir()
    script = pathlib.Path(sys.executable).with_name("keras-distill")
    whole = [script, "launch", "--workers", str(WORKERS), "--", *command(directory)]
    running = subprocess.Popen(whole)  # noqa: S603 - this file itself
    while not any((directory / "backup").glob("epoch_*")):
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    code = running.wait()
    if code != SAVED:
        raise RuntimeError(f"SIGTERM gave {code}, not {SAVED}")
    subprocess.run(whole, check=True)  # noqa: S603 - this file itself
    print(f"SIGTERM: exit code {code}; weights {apart(directory, expected):.1e} apart")


def main() -> None:
    """Train alone, then together with kills, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        config = json.loads(os.environ.get("TF_CONFIG", "{}"))
        train(options.worker, config.get("task", {}).get("index", 0))
        return
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        subprocess.run(command(root), check=True)  # noqa: S603 - this file itself
        expected = weights(root / "weights_0.npz")
        found = []
        for number in range(options.kills // KILLS_A_RUN):
            kills = [planned(rng) for _ in range(KILLS_A_RUN)]
            found.append(killed(root / f"run {number}", kills, expected))
        preempted(root, expected)
    print(f"{options.kills} kills in {len(found)} runs: {max(found):.1e} apart at most")
    sys.exit(max(found) > BOUND)


if __name__ == "__main__":
    main()

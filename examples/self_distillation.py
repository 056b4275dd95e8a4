"""Distillation without a larger model: from models of the student's own kind.

On a part of Fashion-MNIST, one architecture is trained alone; in generations, each
taught by the one before and the first by a model that was trained alone (Furlanello et
al. 2018, "Born-Again Neural Networks", https://arxiv.org/abs/1805.04770); and as two
peers that teach each other from the start (Zhang et al. 2018, "Deep Mutual Learning",
https://arxiv.org/abs/1706.00384). An ensemble of generations serves several models, so
compare it with the ensemble of as many models that were trained alone. The last columns
are the gains over the model alone, one for each seed.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from data import Arrays, load_images

import keras_distill as kd

GENERATIONS = 2
BATCH = 128
ALPHA = 0.5


def build_model() -> keras.Model:
    """Build a small convolutional classifier, in logits."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, "relu"),
            layers.Dropout(0.3),
            layers.Dense(10),
        ]
    )


class Trainer:
    """Compiles and fits all models in the same way on the same batches.

    Args:
        train: Images and labels.
        epochs: The number of epochs.
        seed: The seed by which the batches are shuffled.
    """

    def __init__(self, train: Arrays, epochs: int, seed: int) -> None:
        examples = tf.data.Dataset.from_tensor_slices(train)
        shuffled = examples.shuffle(len(train[0]), seed=seed)
        self.batches = shuffled.batch(BATCH, drop_remainder=True).prefetch(2)
        self.epochs = epochs

    def fit(self, model: keras.Model, callbacks: Any = (), **losses: Any) -> None:
        """Fit by Adam, its learning rate falling to zero."""
        steps = self.epochs * len(self.batches)
        model.compile(
            keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            steps_per_execution=10,
            **losses,
        )
        model.fit(
            self.batches,
            epochs=self.epochs,
            callbacks=list(callbacks),
            shuffle=False,
            verbose=0,
        )

    def teach(self, model: keras.Model, callbacks: Any = ()) -> None:
        """Fit a model that also learns from others: a distiller or peers."""
        loss = kd.losses.ForwardKL(temperature=2.0)
        self.fit(model, callbacks, distillation_loss=loss, alpha=ALPHA)


def accuracy(model: keras.Model, test: Arrays) -> float:
    """Return the share of test images that a model classifies correctly, in percent."""
    logits = model.predict(test[0], batch_size=1000, verbose=0)
    return float(100.0 * (logits.argmax(axis=-1) == test[1]).mean())


def run(train: Arrays, test: Arrays, epochs: int, seed: int) -> dict[str, float]:
    """Train everything once, and return the test accuracies."""
    keras.utils.set_random_seed(seed)
    trainer = Trainer(train, epochs, seed)
    alone = [build_model() for _ in range(GENERATIONS)]
    for model in alone:
        trainer.fit(model)
    with tempfile.TemporaryDirectory() as directory:  # keep it for longer runs
        born = kd.online.born_again(
            build_model, alone[0], GENERATIONS, fit=trainer.teach, directory=directory
        )
    mutual = kd.online.MutualLearning([build_model(), build_model()])
    trainer.teach(mutual)
    measured = {
        "alone": np.mean([accuracy(model, test) for model in alone]),
        **{
            f"generation {number}": accuracy(student, test)
            for number, student in enumerate(born.students, 1)
        },
        "one of two peers": np.mean([accuracy(peer, test) for peer in mutual.peers]),
        f"ensemble of {GENERATIONS} alone": accuracy(kd.teachers.Ensemble(alone), test),
        f"ensemble of {GENERATIONS} generations": accuracy(born.ensemble(), test),
        "ensemble of both peers": accuracy(mutual, test),
    }
    return {name: float(value) for name, value in measured.items()}


def main() -> None:
    """Run every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="a TensorFlow Datasets folder")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, default=10_000, help="to train on")
    parser.add_argument("--smoke", action="store_true", help="a size for CI")
    arguments = parser.parse_args()
    train, test = load_images("fashion_mnist", arguments.data_dir)
    seeds, epochs, images = arguments.seeds, arguments.epochs, arguments.images
    if arguments.smoke:
        seeds, epochs, images = 1, 2, 1280
    train = train[0][:images], train[1][:images]
    runs = []
    for seed in range(seeds):
        runs.append(run(train, test, epochs, seed))
        print(f"seed {seed}: alone {runs[-1]['alone']:.2f} %", flush=True)
    print(f"test accuracy in %, mean and standard deviation of {seeds} seeds")
    for name in runs[0]:
        values = [row[name] for row in runs]
        gains = [row[name] - row["alone"] for row in runs]
        spread = f"± {np.std(values, ddof=1):.2f}" if seeds > 1 else ""
        print(
            f"{name:28}{np.mean(values):7.2f} {spread}, over alone "
            + " ".join(f"{gain:+.2f}" for gain in gains)
        )
    if arguments.smoke:
        print("A smoke run: its numbers mean nothing.")


if __name__ == "__main__":
    main()

"""The test accuracy of a small student: alone, by `keras.distillation`, and by ours.

Both distillers run with their defaults: `keras.distillation` with temperature 3, its
string loss `"kl_divergence"` and weight 0.5; this package with `ForwardKL()`, at
temperature 1, and alpha 0.5. The data are Fashion-MNIST. Teacher, images, batches,
steps, optimiser and, for each seed, initial weights are the same. `--search` instead
searches for a setting that is better than the student alone, on 10,000 images held out
of the training images.

    python benchmarks/quality_vs_keras.py [--data-dir DIR] [--seeds 5] [--epochs 8]
        [--search] [--directory DIR]
"""

import argparse
import pathlib
import statistics
import sys
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

import keras_distill as kd

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
from data import load_images

BATCH = 256
HELD_OUT = 10_000


def teacher_model() -> keras.Model:
    """A conv net of 0.4 million parameters."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(256, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10),
        ],
        name="teacher",
    )


def student_model() -> keras.Model:
    """A multilayer perceptron of 26 thousand parameters."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(32, activation="relu"),
            layers.Dense(10),
        ],
        name="student",
    )


def alone(teacher: keras.Model) -> keras.Model:
    """Return the student itself."""
    del teacher
    return student_model()


def theirs(teacher: keras.Model) -> keras.Model:
    """Return Keras' distiller with Keras' defaults."""
    copy = keras.models.clone_model(teacher)  # it freezes the teacher it is given
    copy.set_weights(teacher.get_weights())
    return keras.distillation.Distiller(
        copy, student_model(), keras.distillation.LogitsDistillation()
    )


def ours(teacher: keras.Model) -> keras.Model:
    """Return this package's distiller with its defaults."""
    return kd.Distiller(student_model(), teacher)


METHODS: dict[str, Callable[[keras.Model], keras.Model]] = {
    "student alone": alone,
    "keras.distillation, defaults": theirs,
    "keras_distill, defaults": ours,
}


def trained(model: keras.Model, images: dict, epochs: int, steps: int) -> keras.Model:
    """Compile and fit a model in the way that all share."""
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(2e-3, epochs * steps)
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=20,
    )
    model.fit(*images["train"], batch_size=BATCH, epochs=epochs, verbose=0)
    return model


def accuracy(model: keras.Model, images: dict) -> float:
    """Return the test accuracy of a model, or of the student in a distiller."""
    x, y = images["test"]
    scores = getattr(model, "student", model).predict(x, batch_size=1000, verbose=0)
    return float(np.mean(scores.argmax(-1) == y))


def search(
    teacher: keras.Model, train: tuple, options: argparse.Namespace
) -> kd.tuning.Answer:
    """Search on 50,000 images, judged on the other 10,000; return the answer."""
    images, labels = train
    epochs = options.epochs
    steps = -(-(len(images) - HELD_OUT) // BATCH)

    def compile() -> dict:
        schedule = keras.optimizers.schedules.CosineDecay(2e-3, epochs * steps)
        return {
            "optimizer": keras.optimizers.Adam(schedule),
            "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "metrics": ["accuracy"],
            "steps_per_execution": 20,
        }

    return kd.tuning.search(
        student_model,
        teacher,
        (images[:-HELD_OUT], labels[:-HELD_OUT]),
        (images[-HELD_OUT:], labels[-HELD_OUT:]),
        compile=compile,
        epochs=epochs,
        batch_size=BATCH,
        directory=options.directory,
    )


def main() -> None:
    """Train the teacher, then each method at each seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--directory", help="where a search keeps its results")
    options = parser.parse_args()
    train, test = load_images("fashion_mnist", options.data_dir)
    images = {"train": train, "test": test}
    if options.search:
        # The teacher must not have learned the labels of the held-out images.
        images["train"] = train[0][:-HELD_OUT], train[1][:-HELD_OUT]
    steps = -(-len(images["train"][0]) // BATCH)
    keras.utils.set_random_seed(0)
    teacher = trained(teacher_model(), images, options.teacher_epochs, steps)
    print(f"teacher: {accuracy(teacher, images):.4f}", flush=True)

    if options.search:
        print(search(teacher, train, options))
        return
    scores: dict[str, list[float]] = {name: [] for name in METHODS}
    for seed in range(options.seeds):
        for name, build in METHODS.items():
            keras.utils.set_random_seed(seed)
            model = trained(build(teacher), images, options.epochs, steps)
            scores[name].append(accuracy(model, images))
            print(f"seed {seed}  {name:30s} {scores[name][-1]:.4f}", flush=True)
    print(f"\n{'':30s} mean    sd      wins over alone")
    for name, values in scores.items():
        wins = sum(a > b for a, b in zip(values, scores["student alone"], strict=True))
        print(
            f"{name:30s} {statistics.mean(values):.4f}  {statistics.stdev(values):.4f}"
            f"  {wins}/{len(values)}"
        )


if __name__ == "__main__":
    main()

"""A search that shows whether distillation helps a digit classifier with few labels.

A convolutional teacher learns from 10,000 labelled digits. The student has 1,000 of
them. The control is alpha 0: the student alone, with the same initial weights and
batches. The answer is measured on digits that weren't used to choose the setting.
"""

import argparse

import keras
from data import load_images

import keras_distill as kd

LABELS = 1_000


def build_teacher() -> keras.Model:
    """Build a small convolutional network."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.Conv2D(64, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def build_student() -> keras.Model:
    """Build a perceptron with one narrow hidden layer."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(32, "relu"),
            keras.layers.Dense(10),
        ]
    )


def settings() -> dict:
    """Return fresh arguments of `compile` for one fit."""
    return {
        "optimizer": keras.optimizers.Adam(2e-3),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": ["accuracy"],
    }


def main() -> None:
    """Train the teacher, search, and print the answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="a TensorFlow Datasets folder")
    parser.add_argument("--directory", help="where a stopped search goes on")
    parser.add_argument("--smoke", action="store_true", help="a size for CI")
    arguments = parser.parse_args()
    (x, y), held_out = load_images("mnist", arguments.data_dir)
    size = {"epochs": 20, "temperatures": (1.0, 2.0, 4.0)}
    if arguments.smoke:
        size = {"epochs": 1, "temperatures": (2.0,), "alphas": (0.5,), "seeds": 2}
        size["max_seeds"] = 2
    keras.utils.set_random_seed(0)
    teacher = build_teacher()
    teacher.compile(**settings())
    epochs = 1 if arguments.smoke else 10
    teacher.fit(x[:10_000], y[:10_000], epochs=epochs, verbose=0)
    answer = kd.tuning.search(
        build_student,
        teacher,
        (x[:LABELS], y[:LABELS]),
        held_out,
        compile=settings,
        batch_size=64,
        directory=arguments.directory,
        **size,
    )
    print(answer)
    if arguments.smoke:
        print("A smoke run: its numbers mean nothing.")


if __name__ == "__main__":
    main()

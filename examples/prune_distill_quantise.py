"""Cut a student from its teacher, distil it, train it with rounding, and export it.

The teacher is a residual network on Fashion-MNIST. The student has half its widths and
half its blocks. It begins with the remaining weights of the teacher, and
learns from the teacher only. Then it is trained with rounded weights, and exported as a
LiteRT file of integers.

The controls are the same architecture with new weights, trained on the labels or
distilled in the same number of steps; and the same student, rounded without training.
Accuracies, sizes and times are those of the LiteRT files.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np
from data import load_images
from keras import layers

import keras_distill as kd
from keras_distill.export import Evaluation, export
from keras_distill.export.latency import measure

RATE, BATCH, CALIBRATION = 3e-3, 64, 300


def network() -> keras.Model:
    """Return the teacher: six residual blocks in three stages."""

    def convolved(x: Any, filters: int, size: int, strides: int = 1) -> Any:
        convolution = layers.Conv2D(filters, size, strides, "same", use_bias=False)
        return layers.BatchNormalization(momentum=0.9)(convolution(x))

    x = image = keras.Input((28, 28, 1), name="image")
    x = layers.ReLU()(convolved(x, 16, 3, 2))
    for filters in (16, 16, 32, 32, 64, 64):
        strides = 1 if x.shape[-1] == filters else 2
        y = convolved(layers.ReLU()(convolved(x, filters, 3, strides)), filters, 3)
        x = x if strides == 1 else convolved(x, filters, 1, 2)
        x = layers.ReLU()(layers.Add()([x, y]))
    logits = layers.Dense(10, name="logits")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, logits, name="teacher")


def fit(model: keras.Model, data: tuple, rate: float, epochs: int, **loss: Any) -> None:
    """Train with a learning rate that falls to zero."""
    steps = epochs * -(-len(data[0]) // BATCH)
    rates = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(rates), **loss)
    model.fit(*data, batch_size=BATCH, epochs=epochs, verbose=0)


def run(x: np.ndarray, y: np.ndarray, seed: int, epochs: int) -> dict[str, keras.Model]:
    """Return the models of a seed by name. Files of names with `int` are rounded."""
    keras.utils.set_random_seed(seed)
    labels = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    soft = kd.losses.ForwardKL(temperature=4.0)
    teacher = network()
    fit(teacher, (x, y), RATE, 2 * epochs, loss=labels)

    def cut() -> keras.Model:
        shallow = kd.students.drop_layers(teacher, keep=[0])
        return kd.students.slice_widths(shallow, 0.5)

    def fresh() -> keras.Model:
        return keras.models.clone_model(cut())

    def taught(student: keras.Model, rate: float = RATE) -> keras.Model:
        distiller = kd.Distiller(student, teacher)
        fit(distiller, (x,), rate, epochs, distillation_loss=soft, alpha=1.0)
        return student

    def rounded(weights: str) -> keras.Model:
        aware = kd.students.quantization_aware
        return aware(student, weights, calibration_data=x[:CALIBRATION])

    student, alone = taught(cut()), fresh()
    fit(alone, (x, y), RATE, epochs, loss=labels)
    return {
        "teacher": teacher,
        "fresh, on labels": alone,
        "fresh, distilled": taught(fresh()),
        "cut": cut(),
        "cut, distilled": student,
        "int8": rounded("int8"),
        "int8, trained": taught(rounded("int8"), RATE / 3),
        "int4 weights": rounded("int4"),
        "int4 weights, trained": taught(rounded("int4"), RATE / 3),
    }


def shipped(model: keras.Model, name: str, x: np.ndarray, test: tuple) -> list[float]:
    """Return a LiteRT file's accuracy in percent, kB and milliseconds per image."""
    metric = keras.metrics.SparseCategoricalAccuracy()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "phone")
        described = export(
            model,
            folder,
            ["litert"],
            example_batch=x[:32],
            quantize="int8" if name.startswith("int") else None,
            evaluation=Evaluation(test, metric, max_drop=1.0),  # any drop is allowed
        )
        side, file = list(described["artefacts"].items())[-1]
        rows = measure(folder, batch_sizes=[1], threads=1)
    speed = next(row["p50_ms"] for row in rows if row["side"] == side)
    return [100 * file["evaluation"]["metric"], file["bytes"] / 1e3, speed]


def multiplications(model: keras.Model) -> float:
    """Return the millions of multiplications with kernels for one image."""
    kernels = [layer for layer in model.layers if hasattr(layer, "kernel")]
    counts = [np.size(it.kernel) * np.prod(it.output.shape[1:-1]) for it in kernels]
    return float(sum(counts)) / 1e6


def draw(table: dict[str, np.ndarray], path: str) -> None:
    """Draw size against accuracy."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    sizes = set()
    for name, values in table.items():
        (hits, size, _), deviation = values.mean(0), values[:, 0].std(ddof=1)
        axes.errorbar(size, hits, yerr=deviation, fmt="o", capsize=3, label=name)
        sizes.add(round(size))
    axes.set(xscale="log", xlabel="LiteRT file, kB", ylabel="test accuracy, %")
    axes.set_xticks(sorted(sizes), sorted(sizes))
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train everything for each seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a size for CI")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-dir", help="a TensorFlow Datasets folder")
    parser.add_argument("--picture", help="a file for the plot, such as sizes.png")
    given = parser.parse_args()
    (x, y), test = load_images("fashion_mnist", given.data_dir)
    size, epochs = 20_000, 3
    if given.smoke:
        size, epochs, given.seeds, test = 640, 1, 1, [it[:500] for it in test]
    found: dict[str, list[list[float]]] = {}
    for seed in range(given.seeds):
        keras.utils.clear_session()
        models = run(x[:size], y[:size], seed, epochs)
        for name, model in models.items():
            found.setdefault(name, []).append(shipped(model, name, x, tuple(test)))
            print(seed, name, f"{found[name][-1][0]:.2f}", flush=True)
    table = {name: np.array(values) for name, values in found.items()}
    print("\n| | accuracy, % | parameters | multiplications, M | kB | ms |")
    print("| --- |" + " --- |" * 5)
    for name, values in table.items():
        model = models["teacher" if name == "teacher" else "cut"]
        cost = f"{model.count_params():,} | {multiplications(model):.2f}"
        hits, kilobytes, speed = values.T
        accuracy = f"{hits.mean():.2f} ± {hits.std(ddof=min(1, given.seeds - 1)):.2f}"
        sizes = f"{np.median(kilobytes):.0f} | {np.median(speed):.3f}"
        print(f"| {name} | {accuracy} | {cost} | {sizes} |")
    if given.picture:
        draw({name: it for name, it in table.items() if name != "cut"}, given.picture)
    if given.smoke:
        print("A smoke run: its numbers mean nothing.")


if __name__ == "__main__":
    main()

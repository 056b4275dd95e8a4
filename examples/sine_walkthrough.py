"""The smallest example of distillation: a coin whose bias is a sine.

`P(y = 1) = 0.4 sin(x) + 0.5`, with `x ~ 10 N(0, 1)`. The teacher is a logistic model of
`sin(x)`. The student doesn't read this feature. It is a logistic model of a cubic in x.

A label is a coin flip, predictable with 90% at best. A cubic can overfit the flips:
after a fit to ten of them, its wrong predictions are too certain, which raises the
log-loss much. The teacher has one slope and the right feature, so few points bring it
near the true P. Its logits teach P to the student; labels would teach the flips. The x,
the optimiser and the steps are the same, but most of the noise is gone.

No target can teach the sine to a cubic. For new x, its best log-loss is about log 2,
that of a fair coin. So distillation only reduces overfitting here. The gain is largest
at n = 10, and falls with n, because the noise of more labels averages out.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import keras_distill as kd

Inputs = dict[str, np.ndarray]
MODELS = {"student": "tab:red", "teacher": "tab:gray", "distilled": "tab:blue"}


def draw(rng: np.random.Generator, count: int) -> tuple[Inputs, np.ndarray]:
    """Draw the labels and both models' inputs. The cubic's columns are orthonormal."""
    z = rng.standard_normal(count)
    cubic = np.stack([z, (z**2 - 1) / 2**0.5, (z**3 - 3 * z) / 6**0.5], axis=1)
    sine = np.sin(10.0 * z)[:, None]
    y = rng.random((count, 1)) < 0.4 * sine + 0.5
    return {"cubic": cubic, "sine": sine}, y.astype("float32")


def logistic(name: str, size: int) -> keras.Model:
    """Build a logistic model of the features called `name`; it returns logits."""
    return keras.Sequential([keras.Input((size,), name=name), keras.layers.Dense(1)])


def compile_alike(trainer: keras.Model, **losses: object) -> None:
    """Compile a model or a Distiller with the optimiser that all of them get."""
    # SGD without momentum has no state, so zero weights are enough for a fresh start.
    optimizer = keras.optimizers.SGD(0.1)
    trainer.compile(optimizer=optimizer, steps_per_execution=100, **losses)


def fit(
    trainer: keras.Model, model: keras.Model, x: Inputs, y: np.ndarray, steps: int
) -> None:
    """Fit `model` from zero weights by full-batch gradient descent."""
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    batches = tf.data.Dataset.from_tensors((x, y)).repeat(steps)
    trainer.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)


def log_loss(model: keras.Model, x: Inputs, y: np.ndarray) -> float:
    """Return the mean log-loss of a model on labels."""
    logits = model(x[model.inputs[0].name])
    return float(keras.losses.BinaryCrossentropy(from_logits=True)(y, logits))


def run(sizes: Sequence[int], trials: int, steps: int, seed: int) -> np.ndarray:
    """Fit the three models in every trial.

    Returns:
        Log-losses of shape `(2, 3, sizes, trials)`: train and test, then `MODELS`.
    """
    rng = np.random.default_rng(seed)
    student, teacher, distilled = (
        logistic("cubic", 3),
        logistic("sine", 1),
        logistic("cubic", 3),
    )
    distiller = kd.Distiller(distilled, teacher, privileged_features=["sine"])
    label_loss = keras.losses.BinaryCrossentropy(from_logits=True)
    compile_alike(student, loss=label_loss)
    compile_alike(teacher, loss=label_loss)
    soft_targets = kd.losses.BinarySoftTargets(temperature=1.0)
    compile_alike(distiller, distillation_loss=soft_targets, alpha=1.0)  # no labels

    losses = np.zeros((2, 3, len(sizes), trials))
    for i, size in enumerate(sizes):
        for j in range(trials):
            x, y = draw(rng, size)
            fit(student, student, x["cubic"], y, steps)
            fit(teacher, teacher, x["sine"], y, steps)
            fit(distiller, distilled, x, y, steps)
            for k, data in enumerate(((x, y), draw(rng, 10_000))):
                models = (student, teacher, distilled)
                losses[k, :, i, j] = [log_loss(model, *data) for model in models]
    return losses


def print_table(sizes: Sequence[int], losses: np.ndarray) -> None:
    """Print mean log-losses, and by how much distillation lowers the test loss."""
    print("mean log-loss     train                        test")
    print("   n" + 2 * "  student teacher distilled" + "   gain (standard error)")
    gain = losses[1, 0] - losses[1, 2]
    for i, size in enumerate(sizes):
        means = losses[:, :, i].mean(axis=-1).ravel()
        error = gain[i].std(ddof=1) / gain.shape[1] ** 0.5
        cells = ("{:9.3f}{:8.3f}{:10.3f}" * 2).format(*means)
        print(f"{size:4d}{cells}   {gain[i].mean():.3f} ({error:.3f})")
    better = (gain.mean(axis=-1) > 0).sum()
    print(f"distilled beats student on test at {better} of {len(sizes)} sizes")


def plot(sizes: Sequence[int], losses: np.ndarray, path: Path) -> None:
    """Plot mean log-losses with one standard error on either side."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for axis, split, title in zip(axes, losses, ("train", "test"), strict=True):
        axis.axhline(np.log(2), color="black", lw=0.8, ls=":", label="fair coin")
        for values, (name, colour) in zip(split, MODELS.items(), strict=True):
            mean = values.mean(axis=-1)
            half = values.std(axis=-1, ddof=1) / values.shape[-1] ** 0.5
            axis.plot(sizes, mean, marker="o", color=colour, label=name)
            low, high = mean - half, mean + half
            axis.fill_between(sizes, low, high, color=colour, alpha=0.2)
        axis.set(title=title, xlabel="n, training points")
    axes[0].set_ylabel("mean log-loss")
    axes[1].legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Fit, print the table, write the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a size for CI")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("sine_walkthrough.png"))
    arguments = parser.parse_args()
    # the teacher reads only the sine; the library warns of such teachers
    warnings.filterwarnings("ignore", "The teacher reads privileged features alone")
    sizes = (10, 25) if arguments.smoke else range(10, 50, 5)
    losses = run(sizes, 3 if arguments.smoke else 15, 500, arguments.seed)
    print_table(sizes, losses)
    plot(sizes, losses, arguments.out)
    print(f"plot: {arguments.out}")
    if arguments.smoke:
        print("A smoke run: its numbers mean nothing.")


if __name__ == "__main__":
    main()

"""The errors of loss and gradient from recorded forms of a teacher's outputs.

The logits are real: a conv net that is trained on Fashion-MNIST teaches a perceptron in
the middle of its training. For each form, the loss and its gradient with respect to the
student's weights are compared with those of the whole logits in float32, batch by batch
of the test images. The package refuses the last form, a top k that both models
renormalise.

    python benchmarks/recorded_precision.py [--data-dir DIR] [--epochs 2]
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
from data import load_images
from quality_vs_keras import student_model, teacher_model

BATCH, CLASSES = 250, 10
TOP, DRAWS = (2, 4, 8), (10, 50)
TEMPERATURES = (1.0, 4.0)

Loss = Callable[[np.ndarray, tf.Tensor], tf.Tensor]


def log_softmax(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities and the logsumexp, in float64."""
    logits = logits.astype("float64")
    total = np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return logits - total, total


def float16(logits: np.ndarray) -> np.ndarray:
    """Return the logits that are read back from float16 log-probabilities."""
    log_p, total = log_softmax(logits)
    return (log_p.astype("float16") + total).astype("float32")


def top_k(logits: np.ndarray, k: int, dtype: str = "float16") -> np.ndarray:
    """Return the record of the k likeliest classes, as `TopKForwardKL` reads it."""
    log_p, total = log_softmax(logits)
    ids = np.argsort(-log_p, axis=-1)
    kept = np.take_along_axis(log_p, ids, axis=-1)
    rest = np.logaddexp.reduce(kept[:, k:], axis=-1, keepdims=True)
    numbers = np.concatenate([kept[:, :k], rest], axis=-1).astype(dtype)
    return np.concatenate([ids[:, :k], numbers, total], axis=-1).astype("float32")


def sampled(logits: np.ndarray, draws: int, seed: int = 0) -> np.ndarray:
    """Return a record of draws, as `SampledSoftTargets` reads it."""
    p = np.exp(log_softmax(logits)[0])
    counts = np.random.default_rng(seed).multinomial(draws, p / p.sum(-1)[:, None])
    ids = np.broadcast_to(np.arange(CLASSES), p.shape)
    return np.concatenate([ids, counts / draws], axis=-1).astype("float32")


def renormalised(temperature: float, k: int) -> Loss:
    """Return the loss of both models' shares within the k classes, which is refused."""

    def loss(packed: np.ndarray, logits: tf.Tensor) -> tf.Tensor:
        ids = packed[:, :k].astype("int32")
        student = tf.gather(logits, ids, batch_dims=1)
        return kd.losses.ForwardKL(temperature)(packed[:, k : 2 * k], student)

    return loss


def forms(temperature: float) -> Iterator[tuple[str, Callable, Loss, Loss]]:
    """Yield the name of each form, its recorder, its loss, and the exact loss."""
    exact = kd.losses.ForwardKL(temperature)
    yield "float16 log-probabilities", float16, exact, exact
    for k in TOP:
        yield (
            f"top {k}, float16",
            lambda logits, k=k: top_k(logits, k),
            kd.losses.TopKForwardKL(temperature),
            exact,
        )
    if temperature == 1.0:
        for draws in DRAWS:
            yield (
                f"{draws} samples",
                lambda logits, draws=draws: sampled(logits, draws),
                kd.losses.SampledSoftTargets(),
                kd.losses.SoftTargets(temperature),
            )
    for k in TOP[:2]:
        yield (
            f"top {k} renormalised (refused)",
            lambda logits, k=k: top_k(logits, k),
            renormalised(temperature, k),
            exact,
        )


def measured(
    student: keras.Model, loss: Loss, record: np.ndarray, images: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return a batch's loss, and its gradient in the student's weights as a vector."""
    with tf.GradientTape() as tape:
        value = loss(record, student(images, training=False))
    gradients = tape.gradient(value, [w.value for w in student.trainable_weights])
    return float(value), np.concatenate([np.ravel(g) for g in gradients])


def compared(
    student: keras.Model,
    logits: np.ndarray,
    images: np.ndarray,
    recorder: Callable[[np.ndarray], np.ndarray],
    losses: tuple[Loss, Loss],
) -> tuple[float, float, float, float]:
    """Return the mean exact loss, and means over batches of the three comparisons."""
    rows = []
    for begin in range(0, len(images), BATCH):
        part = slice(begin, begin + BATCH)
        record = recorder(logits[part])
        value, gradient = measured(student, losses[0], record, images[part])
        exact, right = measured(student, losses[1], logits[part], images[part])
        size = np.linalg.norm(right)
        rows.append(
            (
                exact,
                abs(value - exact) / exact,
                np.linalg.norm(gradient - right) / size,
                gradient @ right / (np.linalg.norm(gradient) * size),
            )
        )
    return tuple(np.mean(rows, axis=0).tolist())


def trained(model: keras.Model, images: dict, epochs: int) -> keras.Model:
    """Train a model on the labels."""
    model.compile(
        keras.optimizers.Adam(2e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(*images["train"], batch_size=256, epochs=epochs, verbose=0)
    accuracy = model.evaluate(*images["test"], verbose=0, return_dict=True)["accuracy"]
    print(f"{model.name}: test accuracy {accuracy:.3f}", flush=True)
    return model


def main() -> None:
    """Train both models, and print a table for each temperature."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--epochs", type=int, default=2, help="of the teacher")
    parser.add_argument("--rows", type=int, default=10_000, help="test images compared")
    options = parser.parse_args()
    train, test = load_images("fashion_mnist", options.data_dir)
    images = {"train": train, "test": test}
    keras.utils.set_random_seed(0)
    teacher = trained(teacher_model(), images, options.epochs)
    student = trained(student_model(), images, 1)
    pictures = test[0][: options.rows]
    logits = teacher.predict(pictures, batch_size=BATCH, verbose=0)
    for temperature in TEMPERATURES:
        print(
            f"\nT = {temperature:g}{'':25s} exact loss  loss error  gradient error  "
            "cosine"
        )
        for name, recorder, loss, exact in forms(temperature):
            found = compared(student, logits, pictures, recorder, (loss, exact))
            print(
                f"{name:30s} {found[0]:10.4f} {found[1]:11.2e} {found[2]:15.2e} "
                f"{found[3]:8.5f}"
            )


if __name__ == "__main__":
    main()

"""A comparison of losses and gradients with the papers' formulas in PyTorch.

The environment with PyTorch needs only PyTorch and NumPy. This one needs no PyTorch:

    python -m venv /tmp/pytorch && /tmp/pytorch/bin/pip install torch numpy
    python benchmarks/against_pytorch.py --torch /tmp/pytorch/bin/python

This script computes in float32 and writes inputs, values and gradients to a file. In
the other environment, `formulas_in_pytorch.py` reads the file, computes in float64 and
compares. To compare another loss, add an entry here and one of the same name there: in
`FORMULAS` for a loss of logits, in `FORMULAS_OF_FEATURES` for one of two layers'
outputs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_distill import losses
from keras_distill.hints import losses as hint_losses

SHAPES = [(64, 10), (32, 100), (8, 1000)]  # (batch, classes)
TEMPERATURES = [1.0, 4.0]
POSITIONS, WIDTH, STUDENT_WIDTH = (3, 3), 6, 4  # of features


def compared(temperature: float, labels: np.ndarray) -> dict[str, keras.losses.Loss]:
    """Return the losses of logits by the names of their formulas."""
    decoupled = losses.DecoupledKD(temperature, alpha=1.0, beta=8.0)
    decoupled = decoupled.with_labels(labels)
    return {
        "KD": losses.ForwardKL(temperature),
        "reverse KL": losses.ReverseKL(temperature),
        "Jeffreys": losses.Jeffreys(temperature),
        "JSD(0.1)": losses.GeneralizedJSD(0.1, temperature),
        "JSD(0.5)": losses.GeneralizedJSD(0.5, temperature),
        "DKD": decoupled,
        "DIST": losses.DIST(temperature, beta=1.0, gamma=2.0),
        "standardised KD": losses.Standardized(losses.ForwardKL(temperature)),
        "standardised DKD": losses.Standardized(decoupled),
    }


def compared_features() -> dict[str, keras.losses.Loss]:
    """Return the losses between layers by the names of their formulas."""
    return {
        "FitNets": hint_losses.FeatureMSE(),
        "attention transfer": hint_losses.AttentionTransfer(),
        "RKD distance": hint_losses.RelationalDistance(),
        "RKD angle": hint_losses.RelationalAngle(),
        "similarity preserving": hint_losses.SimilarityPreserving(),
    }


def inputs(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return what a teacher says and what a student says that knows some of it."""
    rng = np.random.default_rng(shape[1])
    labels = rng.integers(0, shape[1], shape[0])
    teacher = 2.0 * rng.standard_normal(shape)
    teacher[np.arange(shape[0]), labels] += 4.0
    student = 0.5 * teacher + rng.standard_normal(shape)
    features = rng.standard_normal((shape[0], *POSITIONS, WIDTH))
    projected = 0.5 * features + rng.standard_normal(features.shape)
    logits_and_features = {
        "teacher": teacher,
        "student": student,
        "teacher features": features,
        "projected features": projected,
        "student features": projected[..., :STUDENT_WIDTH],
    }
    return {
        "labels": labels,
        **{
            name: array.astype("float32") for name, array in logits_and_features.items()
        },
    }


def said(
    key: str, loss: keras.losses.Loss, teacher: np.ndarray, student: np.ndarray
) -> dict[str, np.ndarray]:
    """Return a loss's value and its gradient by their names in the file."""
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        value = loss(teacher, variable)
    gradient = tape.gradient(value, variable)
    return {f"{key}/value": value.numpy(), f"{key}/gradient": gradient.numpy()}


def write(path: Path) -> None:
    """Write the inputs, what our losses say of them, and the gradients."""
    arrays = {}
    for shape in SHAPES:
        given = inputs(shape)
        batch = "x".join(map(str, shape))
        arrays |= {f"{batch}/{name}": array for name, array in given.items()}
        for temperature in TEMPERATURES:
            for name, loss in compared(temperature, given["labels"]).items():
                arrays |= said(
                    f"{batch}/{temperature}/{name}",
                    loss,
                    given["teacher"],
                    given["student"],
                )
        for name, loss in compared_features().items():
            of_student = "projected" if loss.needs_equal_widths else "student"
            arrays |= said(
                f"{batch}/{of_student} features/{name}",
                loss,
                given["teacher features"],
                given[f"{of_student} features"],
            )
    np.savez(path, **arrays)


def main() -> int:
    """Compute here and compare there; return whether anything is off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", required=True, help="a Python that has PyTorch")
    arguments = parser.parse_args()
    formulas = Path(__file__).with_name("formulas_in_pytorch.py")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "losses.npz"
        write(path)
        command = [arguments.torch, str(formulas), str(path)]
        return subprocess.run(command, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())

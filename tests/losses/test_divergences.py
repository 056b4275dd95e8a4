"""Value and gradient of every loss against float64, on logits that are hard."""

from functools import partial

import ml_dtypes
import numpy as np
import pytest
from keras import ops

from keras_distill import losses
from tests.losses import cases, neutral, reference

BATCHES = cases.batches()
TEMPERATURES = [0.5, 1.0, 4.0, 20.0, 50.0]
DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


def jsd(beta, normalize=False):
    return (
        partial(losses.GeneralizedJSD, beta, normalize=normalize),
        partial(reference.generalized_jsd, beta=beta, normalize=normalize),
    )


LOSSES = {
    "SoftTargets": (losses.SoftTargets, reference.soft_targets),
    "ForwardKL": (losses.ForwardKL, reference.forward_kl),
    "ReverseKL": (losses.ReverseKL, reference.reverse_kl),
    "Jeffreys": (losses.Jeffreys, reference.jeffreys),
    "TotalVariation": (losses.TotalVariation, reference.total_variation),
    "JSD(0)": jsd(0.0),
    "JSD(0.1)": jsd(0.1),
    "JSD(0.5)": jsd(0.5),
    "JSD(0.9)": jsd(0.9),
    "JSD(1)": jsd(1.0),
    "JSD(0.001, normalize)": jsd(0.001, normalize=True),
    "JSD(0.1, normalize)": jsd(0.1, normalize=True),
    "JSD(0.5, normalize)": jsd(0.5, normalize=True),
    "JSD(0.999, normalize)": jsd(0.999, normalize=True),
    "BinarySoftTargets": (losses.BinarySoftTargets, reference.binary_cross_entropy),
    "BinarySoftTargets(subtract_entropy)": (
        partial(losses.BinarySoftTargets, subtract_entropy=True),
        reference.binary_kl,
    ),
}


def test_every_divergence_is_tried():
    cases.assert_all_divergences(make(temperature=1.0) for make, _ in LOSSES.values())


def value_and_gradient(loss, teacher, student):
    teacher = ops.convert_to_tensor(teacher)
    value, gradient = neutral.value_and_gradient(lambda s: loss(teacher, s), student)
    return value, gradient.astype("float64")


def assert_close(got, expected, *, relative, absolute, what):
    error = np.abs(got - expected)
    allowed = np.maximum(relative * np.abs(expected), absolute)
    bad = ~(error <= allowed)  # NaN is bad
    assert not bad.any(), (
        f"{what}: {bad.sum()} wrong, at {np.argwhere(bad)[:8].tolist()}\n"
        f"got {got[bad][:8]}\nexpected {expected[bad][:8]}"
    )


def undecided(teacher, student, temperature):
    """How far the gradient of |p - q| may be off for p and q a rounding apart."""
    p = np.exp(reference.tempered(teacher, temperature))
    q = np.exp(reference.tempered(student, temperature))
    near = np.abs(p - q) < 1e-5 * np.maximum(p, q)
    return (near * q * (1 - q)).sum(-1, keepdims=True) / temperature


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", LOSSES)
def test_agrees_with_float64(name, temperature, dtype):
    make_loss, make_reference = LOSSES[name]
    loss = make_loss(temperature=temperature, reduction="none")
    # the gradient comes back in the dtype of the student's logits
    rounding = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for batch, (teacher, student) in BATCHES.items():
        teacher, student = teacher.astype(DTYPES[dtype]), student.astype(DTYPES[dtype])
        value, gradient = value_and_gradient(loss, teacher, student)
        teacher, student = teacher.astype("float64"), student.astype("float64")
        expected_value, expected_gradient = make_reference(
            teacher, student, temperature
        )
        absolute = 1e-6 * temperature**2
        assert_close(
            value,
            expected_value,
            relative=1e-5,
            absolute=absolute,
            what=f"value, {batch}",
        )
        if name == "TotalVariation":
            absolute = absolute + undecided(teacher, student, temperature)
        assert_close(
            gradient,
            expected_gradient,
            relative=1e-5 + rounding,
            absolute=absolute,
            what=f"gradient, {batch}",
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_logit_mse_agrees_with_float64(dtype):
    loss = losses.LogitMSE(reduction="none")
    rounding = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for batch, (teacher, student) in BATCHES.items():
        teacher, student = teacher.astype(DTYPES[dtype]), student.astype(DTYPES[dtype])
        value, gradient = value_and_gradient(loss, teacher, student)
        expected_value, expected_gradient = reference.logit_mse(
            teacher.astype("float64"), student.astype("float64")
        )
        assert_close(
            value, expected_value, relative=1e-5, absolute=1e-6, what=f"value, {batch}"
        )
        assert_close(
            gradient,
            expected_gradient,
            relative=1e-5 + rounding,
            absolute=1e-6,
            what=f"gradient, {batch}",
        )


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_the_reference_are_its_finite_differences(name):
    rng = np.random.default_rng(2)
    teacher, student = 2.0 * rng.standard_normal((2, 5, 4))
    _, make_reference = LOSSES[name]
    _, gradient = make_reference(teacher, student, 3.0)
    for index in range(4):
        step = 1e-6 * np.eye(4)[index]
        above, _ = make_reference(teacher, student + step, 3.0)
        below, _ = make_reference(teacher, student - step, 3.0)
        np.testing.assert_allclose(
            (above - below) / 2e-6, gradient[:, index], rtol=1e-5, atol=1e-6
        )

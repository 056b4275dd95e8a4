"""What the mathematics says of the divergences, whatever the implementation."""

from functools import partial

import keras
import numpy as np
import pytest
from keras import ops

from keras_distill import losses
from tests.losses import cases, neutral, reference

RNG = np.random.default_rng(3)
TEACHER, STUDENT = (3.0 * RNG.standard_normal((2, 16, 6))).astype("float32")

ZERO_AT_EQUALITY = {
    "ForwardKL": losses.ForwardKL,
    "ReverseKL": losses.ReverseKL,
    "Jeffreys": losses.Jeffreys,
    "TotalVariation": losses.TotalVariation,
    "JSD(0.1)": partial(losses.GeneralizedJSD, 0.1),
    "JSD(0.5)": partial(losses.GeneralizedJSD, 0.5),
    "JSD(0.999, normalize)": partial(losses.GeneralizedJSD, 0.999, normalize=True),
    "BinarySoftTargets": partial(losses.BinarySoftTargets, subtract_entropy=True),
}


def test_every_divergence_is_tried():
    made = [make(temperature=1.0) for make in ZERO_AT_EQUALITY.values()]
    # Its value at equality is the teacher's entropy.
    cases.assert_all_divergences([*made, losses.SoftTargets()])


def per_example(loss_class, *args, **kwargs):
    return loss_class(*args, reduction=None, **kwargs)


def value_and_gradient(loss, teacher, student):
    teacher = ops.convert_to_tensor(teacher)
    return neutral.value_and_gradient(lambda s: loss(teacher, s), student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 50.0])
@pytest.mark.parametrize("name", ZERO_AT_EQUALITY)
def test_zero_with_zero_gradient_at_equality(name, temperature):
    loss = per_example(ZERO_AT_EQUALITY[name], temperature=temperature)
    for teacher, student in cases.batches().values():
        for logits in (teacher.astype("float32"), student.astype("float32")):
            value, gradient = value_and_gradient(loss, logits, logits)
            assert np.abs(value).max() == 0.0, (
                "sum terms that are each 0 where p == q: see losses/divergences.py"
            )
            # a rounding of float32 in sums that JAX takes in another order
            rounding = 0.0 if neutral.IS_TENSORFLOW else 2.0**-23
            np.testing.assert_allclose(
                gradient, 0.0, atol=max(1e-7 * temperature, rounding)
            )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 50.0])
def test_soft_targets_has_zero_gradient_at_equality(temperature):
    loss = per_example(losses.SoftTargets, temperature)
    for teacher, _ in cases.batches().values():
        logits = teacher.astype("float32")
        value, gradient = value_and_gradient(loss, logits, logits)
        assert (value >= 0.0).all()
        np.testing.assert_allclose(gradient, 0.0, atol=2e-7 * temperature)


@pytest.mark.parametrize("name", ZERO_AT_EQUALITY)
def test_never_negative(name):
    loss = per_example(ZERO_AT_EQUALITY[name], temperature=2.0)
    nearly = STUDENT + 1e-3 * RNG.standard_normal(STUDENT.shape).astype("float32")
    for student in (STUDENT, nearly):
        assert np.min(loss(student, TEACHER)) > 0.0
        # rounding alone may go below 0
        assert np.min(loss(student, student + 1e-6)) > -1e-6


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_is_forward_kl_plus_entropy(temperature):
    value, gradient = value_and_gradient(
        per_example(losses.SoftTargets, temperature), TEACHER, STUDENT
    )
    kl, kl_gradient = value_and_gradient(
        per_example(losses.ForwardKL, temperature), TEACHER, STUDENT
    )
    log_p = reference.tempered(TEACHER.astype("float64"), temperature)
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    np.testing.assert_allclose(value, kl + temperature**2 * entropy, rtol=1e-5)
    np.testing.assert_allclose(gradient, kl_gradient, rtol=1e-5, atol=1e-6)


def test_binary_soft_targets_is_binary_kl_plus_entropy():
    cross_entropy = per_example(losses.BinarySoftTargets, 2.0)
    kl = per_example(losses.BinarySoftTargets, 2.0, subtract_entropy=True)
    entropy = cross_entropy(TEACHER, TEACHER)
    np.testing.assert_allclose(
        cross_entropy(TEACHER, STUDENT), kl(TEACHER, STUDENT) + entropy, rtol=1e-5
    )


@pytest.mark.parametrize("loss_class", [losses.ForwardKL, losses.ReverseKL])
def test_hot_kl_tends_to_half_the_variance_of_the_difference(loss_class):
    def centred(x):
        return x - x.mean(-1, keepdims=True)

    limit = 0.5 * np.square(centred(TEACHER) - centred(STUDENT)).mean(-1)
    loss = per_example(loss_class, 1000.0, dtype="float64")
    mse = per_example(losses.LogitMSE, dtype="float64")
    with neutral.float64():
        value = loss(TEACHER, STUDENT)
        squares = 0.5 * mse(centred(TEACHER), centred(STUDENT))
    np.testing.assert_allclose(value, limit, rtol=0.01)
    np.testing.assert_allclose(value, squares, rtol=0.01)


@pytest.mark.parametrize("normalize", [False, True])
def test_jsd_at_its_ends_is_forward_and_reverse_kl(normalize):
    for beta, kl in ((0.0, losses.ForwardKL), (1.0, losses.ReverseKL)):
        jsd = per_example(losses.GeneralizedJSD, beta, 2.0, normalize=normalize)
        np.testing.assert_array_equal(
            jsd(TEACHER, STUDENT), per_example(kl, 2.0)(TEACHER, STUDENT)
        )


@pytest.mark.parametrize("distance", [1e-3, 1e-5, 1e-7])
def test_normalized_jsd_is_continuous_towards_both_ends(distance):
    for beta, kl in (
        (distance, losses.ForwardKL),
        (1.0 - distance, losses.ReverseKL),
    ):
        jsd = per_example(losses.GeneralizedJSD, beta, 4.0, normalize=True)
        value, gradient = value_and_gradient(jsd, TEACHER, STUDENT)
        limit, limit_gradient = value_and_gradient(
            per_example(kl, 4.0), TEACHER, STUDENT
        )
        # the distance from the limit is of the order of `distance` times p/q
        tolerance = max(20.0 * distance, 1e-5)
        np.testing.assert_allclose(value, limit, rtol=tolerance)
        np.testing.assert_allclose(
            gradient, limit_gradient, rtol=tolerance, atol=tolerance
        )


def test_plain_jsd_is_smaller_by_beta_times_its_complement():
    plain = per_example(losses.GeneralizedJSD, 0.25)(TEACHER, STUDENT)
    normal = per_example(losses.GeneralizedJSD, 0.25, normalize=True)(TEACHER, STUDENT)
    np.testing.assert_allclose(plain, 0.25 * 0.75 * normal, rtol=1e-6)


def test_jsd_gradient_where_some_classes_agree():
    """Autodiff through logaddexp is wrong for classes of equal probability."""
    loss = per_example(losses.GeneralizedJSD, 0.5)
    _, gradient = value_and_gradient(
        loss,
        np.array([[0.0, 1.0, 2.0]], "float32"),
        np.array([[0.0, 2.0, 1.0]], "float32"),
    )
    _, expected = reference.generalized_jsd(
        np.array([[0.0, 1.0, 2.0]]), np.array([[0.0, 2.0, 1.0]]), 1.0, beta=0.5
    )
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_jsd_is_symmetric_and_bounded(temperature):
    loss = per_example(losses.GeneralizedJSD, 0.5, temperature)
    np.testing.assert_allclose(
        loss(TEACHER, STUDENT), loss(STUDENT, TEACHER), rtol=1e-5
    )
    bound = np.log(2.0) * temperature**2
    for teacher, student in cases.batches().values():
        values = np.asarray(loss(teacher, student))
        assert values.max() <= bound * (1.0 + 1e-6)
        assert values.max() > 0.99 * bound  # opposite one-hots attain it
        assert values.min() > -1e-6 * bound


def test_jsd_swaps_with_its_complement():
    forth = per_example(losses.GeneralizedJSD, 0.2)(TEACHER, STUDENT)
    back = per_example(losses.GeneralizedJSD, 0.8)(STUDENT, TEACHER)
    np.testing.assert_allclose(forth, back, rtol=1e-5)


def test_reverse_kl_is_forward_kl_with_roles_swapped():
    np.testing.assert_allclose(
        per_example(losses.ReverseKL, 2.0)(TEACHER, STUDENT),
        per_example(losses.ForwardKL, 2.0)(STUDENT, TEACHER),
        rtol=1e-5,
    )


def test_jeffreys_is_the_sum_and_symmetric():
    jeffreys = per_example(losses.Jeffreys, 2.0)
    np.testing.assert_allclose(
        jeffreys(TEACHER, STUDENT),
        per_example(losses.ForwardKL, 2.0)(TEACHER, STUDENT)
        + per_example(losses.ReverseKL, 2.0)(TEACHER, STUDENT),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        jeffreys(TEACHER, STUDENT), jeffreys(STUDENT, TEACHER), rtol=1e-5
    )


@pytest.mark.parametrize("temperature", [1.0, 50.0])
def test_total_variation_lies_in_the_unit_interval(temperature):
    loss = per_example(losses.TotalVariation, temperature)
    for teacher, student in cases.batches().values():
        values = np.asarray(loss(teacher, student))
        assert values.min() >= 0.0
        assert values.max() <= 1.0 + 1e-6
        assert values.max() > 0.99


def test_infinite_where_the_teacher_masks_what_the_student_believes_in():
    """One-sided masks: bounded divergences stay exact, no divergence is NaN."""
    teacher = np.array([[-np.inf, 0.0, 1.0]], "float32")
    student = np.array([[0.5, 0.0, 1.0]], "float32")
    for loss, expected in (
        (losses.ForwardKL(), reference.forward_kl),
        (losses.TotalVariation(), reference.total_variation),
        (losses.GeneralizedJSD(0.3), partial(reference.generalized_jsd, beta=0.3)),
    ):
        value, gradient = value_and_gradient(loss, teacher, student)
        expected_value, expected_gradient = expected(
            teacher.astype("float64"), student.astype("float64"), 1.0
        )
        np.testing.assert_allclose(value, expected_value[0], rtol=1e-5)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
    for loss in (losses.ReverseKL(), losses.Jeffreys()):
        value, gradient = value_and_gradient(loss, teacher, student)
        assert value > 1e29
        assert np.isfinite(gradient).all()
        assert gradient[0, 0] > 0.0  # descent takes belief from the masked class


def test_nan_is_not_hidden():
    for loss in (losses.ForwardKL(), losses.ReverseKL(), losses.GeneralizedJSD()):
        assert np.isnan(loss(TEACHER, np.full_like(TEACHER, np.nan)))
        assert np.isnan(loss(np.full_like(TEACHER, np.nan), STUDENT))


def test_an_offset_in_common_changes_nothing():
    # multiples of 1/64 stay exact at an offset of 1000
    teacher, student = np.round(TEACHER * 64) / 64, np.round(STUDENT * 64) / 64
    for loss_class in (losses.ForwardKL, losses.ReverseKL, losses.GeneralizedJSD):
        loss = per_example(loss_class, temperature=3.0)
        np.testing.assert_array_equal(
            loss(teacher + 1000.0, student - 1000.0), loss(teacher, student)
        )


def test_one_unit_names_the_loss_to_use_instead():
    one_unit = keras.ops.zeros((4, 1))
    with pytest.raises(ValueError, match=r"BinarySoftTargets.*\(4, 1\), axis=-1"):
        losses.ForwardKL()(one_unit, one_unit)


@pytest.mark.parametrize("beta", [-0.1, 1.5, float("nan")])
def test_beta_out_of_range(beta):
    with pytest.raises(ValueError, match=rf"`beta` must be in \[0, 1\].*beta={beta}"):
        losses.GeneralizedJSD(beta)

"""Standardized: any loss of class logits, on logits of mean 0 and deviation 1."""

import json
import re
from functools import partial

import keras
import numpy as np
import pytest
from keras.optimizers.schedules import PolynomialDecay

import keras_distill as kd
from keras_distill import losses
from keras_distill.losses import DecoupledKD, ForwardKL, LogitMSE, Standardized
from tests.distiller.models import crossentropy, data, label_loss, mlp
from tests.losses import cases, neutral, reference
from tests.losses.test_divergences import DTYPES, assert_close, value_and_gradient

RNG = np.random.default_rng(13)
TEACHER, STUDENT = (3.0 * RNG.standard_normal((2, 16, 6))).astype("float32")
LABELS = RNG.integers(0, 6, 16)
HEATING = PolynomialDecay(1.0, 10, 5.0)

WRAPPED = {
    "SoftTargets": (losses.SoftTargets, reference.soft_targets),
    "ForwardKL": (ForwardKL, reference.forward_kl),
    "ReverseKL": (losses.ReverseKL, reference.reverse_kl),
    "Jeffreys": (losses.Jeffreys, reference.jeffreys),
    "JSD(0.3)": (
        partial(losses.GeneralizedJSD, 0.3),
        partial(reference.generalized_jsd, beta=0.3),
    ),
}


def z(x):
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


def expected(loss, teacher, student, temperature, **arguments):
    return reference.standardized(
        loss,
        teacher.astype("float64"),
        student.astype("float64"),
        temperature,
        **arguments,
    )


class TestValue:
    def test_by_hand(self):
        """Deviations of 1, 0, -1 and of 0, 1, -1 from the mean; std sqrt(2/3)."""
        loss = Standardized(LogitMSE())
        value = loss([[5.0, 3.0, 1.0]], [[0.0, 10.0, -10.0]])
        np.testing.assert_allclose(value, 2 / 3 / (2 / 3), rtol=1e-6)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
    @pytest.mark.parametrize("name", WRAPPED)
    def test_agrees_with_float64(self, name, temperature, dtype):
        make_loss, make_reference = WRAPPED[name]
        loss = Standardized(make_loss(temperature=temperature, reduction="none"))
        rounding = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
        for batch, (teacher, student) in cases.batches().items():
            teacher = teacher.astype(DTYPES[dtype])
            student = student.astype(DTYPES[dtype])
            value, gradient = value_and_gradient(loss, teacher, student)
            right, right_gradient = expected(
                make_reference, teacher, student, temperature
            )
            absolute = 2e-6 * temperature**2 + np.zeros_like(right)
            assert_close(
                value,
                right,
                relative=2e-5,
                absolute=absolute,
                what=f"value, {batch}",
            )
            # what cancels in the gradient is as large as what it's divided by is small
            finite = np.where(np.isfinite(student), student, np.nan).astype("float64")
            spread = np.nanstd(finite, axis=-1, keepdims=True)
            absolute = absolute[:, None] * (1.0 + 1.0 / np.where(spread, spread, 1.0))
            assert_close(
                gradient,
                right_gradient,
                relative=2e-5 + rounding,
                absolute=absolute,
                what=f"gradient, {batch}",
            )

    def test_gradient_of_the_reference_is_its_finite_difference(self):
        at = partial(expected, reference.forward_kl, TEACHER, temperature=3.0)
        student = STUDENT.astype("float64")
        _, gradient = at(student)
        for index in range(6):
            step = 1e-6 * np.eye(6)[index]
            difference = at(student + step)[0] - at(student - step)[0]
            np.testing.assert_allclose(
                difference / 2e-6, gradient[:, index], rtol=1e-5, atol=1e-7
            )

    @pytest.mark.parametrize("name", WRAPPED)
    def test_neither_scale_nor_level_matter(self, name):
        loss = Standardized(WRAPPED[name][0](temperature=2.0, reduction="none"))
        value, gradient = value_and_gradient(loss, TEACHER, STUDENT)
        shifted, of_shifted = value_and_gradient(
            loss, 4.0 * TEACHER - 3.0, 0.25 * STUDENT + 7.0
        )
        np.testing.assert_allclose(shifted, value, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(of_shifted, 4.0 * gradient, rtol=1e-3, atol=1e-5)

    def test_gradient_goes_through_the_statistics(self):
        """So there is none along what standardisation takes away."""
        loss = Standardized(ForwardKL(2.0, reduction="none"))
        _, gradient = value_and_gradient(loss, TEACHER, STUDENT)
        assert np.abs(gradient).max() > 0.1
        np.testing.assert_allclose(gradient.sum(-1), 0.0, atol=1e-6)
        np.testing.assert_allclose((gradient * STUDENT).sum(-1), 0.0, atol=1e-5)

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 50.0])
    def test_zero_with_zero_gradient_at_equality(self, temperature):
        loss = Standardized(ForwardKL(temperature, reduction="none"))
        for teacher, student in cases.batches().values():
            for logits in (teacher.astype("float32"), student.astype("float32")):
                value, gradient = value_and_gradient(loss, logits, logits)
                assert np.abs(value).max() == 0.0
                np.testing.assert_array_equal(gradient, 0.0)


class TestEqualLogits:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("level", [0.0, 0.1, 1 / 3, 1e4])
    def test_of_the_student(self, level, dtype):
        """They are 0, and so is their deviation, which the gradient takes for 1."""
        student = np.full_like(STUDENT, level).astype(DTYPES[dtype])
        teacher = TEACHER.astype(DTYPES[dtype])
        loss = Standardized(ForwardKL(2.0, reduction="none"))
        value, gradient = value_and_gradient(loss, teacher, student)
        right, right_gradient = reference.forward_kl(
            z(teacher.astype("float64")), np.zeros_like(STUDENT, "float64"), 2.0
        )
        np.testing.assert_allclose(value, right, rtol=1e-5)
        np.testing.assert_allclose(gradient, right_gradient, rtol=1e-2, atol=1e-5)

    @pytest.mark.parametrize("level", [0.0, 0.1, 1e4])
    def test_of_the_teacher(self, level):
        loss = Standardized(ForwardKL(2.0, reduction="none"))
        value, gradient = value_and_gradient(
            loss, np.full_like(TEACHER, level), STUDENT
        )
        right, _ = reference.forward_kl(
            np.zeros_like(TEACHER, "float64"), z(STUDENT.astype("float64")), 2.0
        )
        np.testing.assert_allclose(value, right, rtol=1e-5)
        assert np.isfinite(gradient).all()

    def test_nearly(self):
        student = np.float32(1.0) + np.float32(1e-7) * RNG.integers(0, 3, (16, 6))
        loss = Standardized(ForwardKL())
        value, gradient = value_and_gradient(loss, TEACHER, student.astype("float32"))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


class TestMaskedClasses:
    def test_count_nowhere(self):
        keep = [0, 2, 3, 5]
        masked = [np.where(np.isin(range(6), keep), x, -np.inf)
                  for x in (TEACHER, STUDENT)]  # fmt: skip
        loss = Standardized(ForwardKL(2.0, reduction="none"))
        value, gradient = value_and_gradient(loss, *masked)
        right, right_gradient = value_and_gradient(
            loss, TEACHER[:, keep], STUDENT[:, keep]
        )
        np.testing.assert_allclose(value, right, rtol=1e-5)
        np.testing.assert_allclose(gradient[:, keep], right_gradient, atol=1e-6)
        np.testing.assert_array_equal(gradient[:, [1, 4]], 0.0)

    def test_all(self):
        nothing = np.full_like(STUDENT, -np.inf)
        value, gradient = value_and_gradient(
            Standardized(ForwardKL()), nothing, nothing
        )
        assert value == 0.0
        np.testing.assert_array_equal(gradient, 0.0)


class TestTheLossInside:
    def test_may_be_logit_mse(self):
        loss = Standardized(LogitMSE(reduction="none"))
        right, right_gradient = expected(
            lambda t, s, temperature: reference.logit_mse(t, s), TEACHER, STUDENT, 1.0
        )
        value, gradient = value_and_gradient(loss, TEACHER, STUDENT)
        np.testing.assert_allclose(value, right, rtol=1e-5)
        np.testing.assert_allclose(gradient, right_gradient, rtol=1e-4, atol=1e-6)

    def test_may_read_labels(self):
        inside = DecoupledKD(2.0, reduction="none").with_labels(LABELS)
        value, gradient = value_and_gradient(Standardized(inside), TEACHER, STUDENT)
        right, right_gradient = expected(
            partial(reference.decoupled, labels=LABELS, alpha=1.0, beta=8.0),
            TEACHER,
            STUDENT,
            2.0,
        )
        np.testing.assert_allclose(value, right, rtol=1e-5)
        np.testing.assert_allclose(gradient, right_gradient, rtol=1e-4, atol=1e-5)

    def test_may_read_labels_of_a_batch(self):
        loss = Standardized(DecoupledKD(2.0))
        record = losses.BatchContext(labels=LABELS, labelled=LABELS > 2)
        right, _ = expected(
            partial(reference.decoupled, labels=LABELS, alpha=1.0, beta=8.0),
            TEACHER,
            STUDENT,
            2.0,
        )
        np.testing.assert_allclose(
            loss.for_batch(record)(TEACHER, STUDENT),
            right[LABELS > 2].mean(),
            rtol=1e-5,
        )
        with pytest.raises(ValueError, match="needs the label of each example"):
            loss(TEACHER, STUDENT)

    def test_may_read_weights(self):
        weight = RNG.random(16).astype("float32")
        loss = Standardized(losses.DIST(2.0))
        value, _ = reference.dist(
            z(TEACHER.astype("float64")),
            z(STUDENT.astype("float64")),
            2.0,
            beta=1.0,
            gamma=1.0,
            weight=weight,
        )
        np.testing.assert_allclose(
            loss(TEACHER, STUDENT, weight), (value * weight).mean(), rtol=1e-5
        )

    def test_may_take_probabilities(self):
        """Logarithms of them are logits but for their level."""
        p, q = neutral.softmax(TEACHER), neutral.softmax(STUDENT)
        np.testing.assert_allclose(
            Standardized(ForwardKL(2.0, from_logits=False))(p, q),
            Standardized(ForwardKL(2.0))(TEACHER, STUDENT),
            rtol=1e-4,
        )

    def test_warns_of_probabilities(self):
        loss = Standardized(ForwardKL(name="kd"))
        with pytest.warns(match="The student's .* `kd` was told `from_logits=True`"):
            loss(TEACHER, neutral.softmax(STUDENT))

    @pytest.mark.parametrize(
        "inside",
        [
            losses.BinarySoftTargets(),
            losses.ListwiseSoftTargets(),
            keras.losses.MeanSquaredError(),
            "mse",
            ForwardKL,
        ],
    )
    def test_must_be_of_class_logits(self, inside):
        message = re.escape(f"of type {type(inside).__name__}")
        with pytest.raises(TypeError, match=f"over a class axis.*{message}"):
            Standardized(inside)

    @pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "none"])
    def test_reduces_and_weighs(self, reduction):
        weight = RNG.random(16).astype("float32")
        right, _ = expected(reference.forward_kl, TEACHER, STUDENT, 2.0)
        right = {
            "sum_over_batch_size": (weight * right).mean(),
            "sum": (weight * right).sum(),
            "none": weight * right,
        }[reduction]
        loss = Standardized(ForwardKL(2.0, reduction=reduction))
        assert loss.reduction == reduction
        np.testing.assert_allclose(loss(TEACHER, STUDENT, weight), right, rtol=1e-5)

    def test_is_masked(self):
        steps = RNG.random((4, 4)) < 0.6
        student = STUDENT.reshape(4, 4, 6)
        masked = keras.layers.Masking()(student * steps[..., None])
        right, _ = expected(reference.forward_kl, TEACHER, STUDENT, 2.0)
        np.testing.assert_allclose(
            Standardized(ForwardKL(2.0))(TEACHER.reshape(4, 4, 6), masked),
            right[steps.ravel()].mean(),
            rtol=1e-5,
        )

    def test_has_its_axis_and_dtype(self):
        loss = Standardized(ForwardKL(2.0, axis=1, dtype="float64", reduction="none"))
        teacher, student = (
            x.reshape(4, 4, 6).swapaxes(1, 2) for x in (TEACHER, STUDENT)
        )
        with neutral.float64():
            value = loss(teacher, student)
        assert value.dtype == "float64"
        right, _ = expected(reference.forward_kl, TEACHER, STUDENT, 2.0)
        np.testing.assert_allclose(np.ravel(value), right, rtol=1e-10)


class TestTemperature:
    def test_divides_standardised_logits_and_is_squared_once(self):
        for temperature in (0.5, 4.0):
            np.testing.assert_allclose(
                Standardized(ForwardKL(temperature))(TEACHER, STUDENT),
                ForwardKL(temperature)(z(TEACHER), z(STUDENT)),
                rtol=1e-5,
            )

    def test_is_that_of_the_loss_inside(self):
        inside = ForwardKL(1.0)
        loss = Standardized(inside)
        loss.temperature = 3.0
        assert inside.temperature == 3.0
        inside.temperature = 4.0
        assert loss.temperature == 4.0
        np.testing.assert_allclose(
            loss(TEACHER, STUDENT), ForwardKL(4.0)(z(TEACHER), z(STUDENT)), rtol=1e-5
        )
        with pytest.raises(ValueError, match="`temperature` must be positive"):
            loss.temperature = 0.0

    def test_may_be_a_schedule(self):
        loss = Standardized(ForwardKL(HEATING))
        loss.step = 5
        assert loss.step == 5
        np.testing.assert_allclose(
            loss(TEACHER, STUDENT), ForwardKL(3.0)(z(TEACHER), z(STUDENT)), rtol=1e-5
        )

    def test_of_a_loss_without(self):
        loss = Standardized(LogitMSE(name="mse"), name="kd")
        message = "`mse`, which `kd` standardises logits for, has no temperature"
        with pytest.raises(AttributeError, match=message):
            loss.temperature = 2.0
        assert not hasattr(loss, "temperature")
        assert not hasattr(loss, "step")


class TestArguments:
    @pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan")])
    def test_epsilon_is_positive(self, epsilon):
        message = f"`epsilon` must be positive. Received: epsilon={epsilon}"
        with pytest.raises(ValueError, match=message):
            Standardized(ForwardKL(), epsilon=epsilon)

    def test_epsilon_is_added_to_the_deviation(self):
        right, right_gradient = expected(
            reference.forward_kl, TEACHER, STUDENT, 2.0, epsilon=0.5
        )
        loss = Standardized(ForwardKL(2.0, reduction="none"), epsilon=0.5)
        value, gradient = value_and_gradient(loss, TEACHER, STUDENT)
        np.testing.assert_allclose(value, right, rtol=1e-5)
        np.testing.assert_allclose(gradient, right_gradient, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("inside", [ForwardKL, LogitMSE, DecoupledKD])
    def test_one_unit(self, inside):
        with pytest.raises(ValueError, match=r"one unit .* \(16, 1\), axis=-1"):
            Standardized(inside())(TEACHER[:, :1], STUDENT[:, :1])

    def test_round_trip(self):
        inside = losses.GeneralizedJSD(
            0.2, HEATING, axis=1, reduction="sum", name="jsd", dtype="float64"
        )
        loss = Standardized(inside, epsilon=1e-3, name="kd")
        serialised = json.dumps(keras.saving.serialize_keras_object(loss))
        again = keras.saving.deserialize_keras_object(json.loads(serialised))
        assert isinstance(again, Standardized)
        assert again.get_config() == loss.get_config()
        assert again.loss.get_config() == inside.get_config()
        assert (again.name, again.epsilon, again.reduction) == ("kd", 1e-3, "sum")
        with neutral.float64():
            assert again(TEACHER, STUDENT) == loss(TEACHER, STUDENT)

    def test_empty_batch(self):
        loss = Standardized(ForwardKL(reduction="none"))
        assert loss(TEACHER[:0], STUDENT[:0]).shape == (0,)


X, Y = data()


@pytest.mark.parametrize(
    ("inside", "jit_compile"),
    [
        (ForwardKL(HEATING), False),
        (DecoupledKD(HEATING), False),
        pytest.param(ForwardKL(HEATING), True, marks=pytest.mark.slow("XLA")),
        pytest.param(DecoupledKD(HEATING), True, marks=pytest.mark.slow("XLA")),
    ],
)
def test_in_fit(inside, jit_compile, tmp_path):
    distiller = kd.Distiller(mlp(0), mlp(1))
    distiller.compile(
        keras.optimizers.SGD(0.5),
        crossentropy(),
        distillation_loss=Standardized(inside),
        alpha=0.7,
        jit_compile=jit_compile,
    )
    of_inside = {
        "ForwardKL": reference.forward_kl,
        "DecoupledKD": partial(reference.decoupled, labels=Y, alpha=1.0, beta=8.0),
    }[type(inside).__name__]
    t = np.asarray(mlp(1)(X))
    for temperature in (1.0, 1.4):
        s = np.asarray(distiller.student(X))
        before = distiller.student.get_weights()
        logs = distiller.fit(X, Y, batch_size=24, verbose=0).history
        value, gradient = expected(of_inside, t, s, temperature)
        soft, hard = value.mean(), label_loss(Y, s).mean()
        np.testing.assert_allclose(logs["distillation_loss"], soft, rtol=1e-5)
        np.testing.assert_allclose(logs["loss"], 0.3 * hard + 0.7 * soft, rtol=1e-5)
        np.testing.assert_allclose(logs["temperature"], temperature, rtol=1e-6)
        q = np.exp(s - s.max(-1, keepdims=True))
        toward_labels = q / q.sum(-1, keepdims=True) - np.eye(3)[Y]
        step = (0.7 * gradient + 0.3 * toward_labels).mean(0)
        after = distiller.student.get_weights()
        np.testing.assert_allclose(before[-1] - after[-1], 0.5 * step, atol=1e-5)
    distiller.save(tmp_path / "run.keras")
    loaded = kd.Distiller.load(tmp_path / "run.keras", teacher=distiller.teacher)
    logs = [d.train_on_batch(X, Y, return_dict=True) for d in (distiller, loaded)]
    np.testing.assert_allclose(
        logs[1]["distillation_loss"], logs[0]["distillation_loss"], rtol=1e-5
    )

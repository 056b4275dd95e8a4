"""DIST: correlations over the classes and over the batch."""

import json
from functools import partial

import keras
import numpy as np
import pytest
from keras import ops

import keras_distill as kd
from keras_distill.losses import DIST
from keras_distill.losses.correlations import pearson_distance
from tests.distiller.models import crossentropy, data, label_loss, mlp
from tests.losses import cases, neutral, reference
from tests.losses.test_divergences import DTYPES, value_and_gradient

RNG = np.random.default_rng(12)
TEACHER, STUDENT = (2.0 * RNG.standard_normal((2, 16, 6))).astype("float32")
WEIGHT = RNG.random(16).astype("float32")
EACH = {"reduction": "none"}


def expected(teacher, student, temperature, *, beta=1.0, gamma=1.0, weight=None):
    return reference.dist(
        teacher.astype("float64"),
        student.astype("float64"),
        temperature,
        beta=beta,
        gamma=gamma,
        weight=weight,
    )


class TestCorrelation:
    def distance(self, x, y, weight=None, axis=-1):
        x, y = np.asarray(x, "float32"), np.asarray(y, "float32")
        weight = np.ones_like(x) if weight is None else weight
        x, weight = ops.convert_to_tensor(x), ops.convert_to_tensor(weight)
        return neutral.value_and_gradient(
            lambda y: pearson_distance(x, y, weight, axis), y
        )

    @pytest.mark.parametrize("axis", [0, 1])
    def test_is_that_of_numpy(self, axis):
        value, _ = self.distance(TEACHER, STUDENT, axis=axis)
        rows = (TEACHER, STUDENT) if axis == 1 else (TEACHER.T, STUDENT.T)
        right = [1.0 - np.corrcoef(t, s)[0, 1] for t, s in zip(*rows, strict=True)]
        np.testing.assert_allclose(value, right, rtol=1e-5)

    @pytest.mark.parametrize("scale", [1e-25, 1e-3, 1e3])
    def test_neither_scale_nor_level_matter(self, scale):
        value, _ = self.distance(TEACHER, STUDENT)
        scaled, gradient = self.distance(scale * TEACHER, scale * (STUDENT + 1.0))
        np.testing.assert_allclose(scaled, value, rtol=1e-4)
        assert np.isfinite(gradient).all()

    @pytest.mark.parametrize("level", [0.0, 0.1, 1 / 3, 1e-30, 7e8])
    def test_of_what_does_not_vary(self, level):
        same, varying = np.full((3, 6), level), TEACHER[:3]
        value, gradient = self.distance(same, same)
        np.testing.assert_array_equal(value, 0.0)
        np.testing.assert_array_equal(gradient, 0.0)
        value, gradient = self.distance(same, varying)
        np.testing.assert_array_equal(value, 0.0)
        np.testing.assert_array_equal(gradient, 0.0)
        value, gradient = self.distance(varying, same)
        np.testing.assert_allclose(value, 1.0, rtol=1e-6)
        deviation = varying - varying.mean(-1, keepdims=True)
        toward_teacher = deviation / varying.std(-1, keepdims=True) / 6
        np.testing.assert_allclose(gradient, -toward_teacher, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_rounding_is_no_variation(self, dtype):
        below, above = (np.nextafter(np.array(0.1, dtype), np.array(to, dtype))
                        for to in (0.0, 1.0))  # fmt: skip
        nearly = np.array([[below, above, 0.1]], dtype)
        varying = TEACHER[:1, :3].astype(dtype)
        with neutral.float64():
            nearly, varying = map(ops.convert_to_tensor, (nearly, varying))
            one = ops.ones_like(varying)
            assert pearson_distance(nearly, varying, one, -1) == 0.0
            distance = pearson_distance(varying, nearly, one, -1)
        np.testing.assert_allclose(distance, 1.0, atol=1e-5)

    def test_weights_count_repetitions(self):
        counts = np.array([1, 0, 3, 2] * 4)
        rows = np.repeat(np.arange(16), counts)
        weight = counts.astype("float32")[:, None]
        value, gradient = self.distance(TEACHER, STUDENT, weight, axis=0)
        right, right_gradient = self.distance(TEACHER[rows], STUDENT[rows], axis=0)
        np.testing.assert_allclose(value, right, rtol=1e-5)
        summed = np.zeros_like(gradient)
        np.add.at(summed, rows, right_gradient)
        np.testing.assert_allclose(gradient, summed, rtol=1e-4, atol=1e-7)
        np.testing.assert_array_equal(gradient[counts == 0], 0.0)


class TestValue:
    def test_by_hand(self):
        """Of two examples, r over the batch is the product of two signs."""
        p = np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]])
        q = np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]])
        loss = DIST(beta=2.0, gamma=3.0, from_logits=False, **EACH)
        rows = [1.0 - np.corrcoef(*pair)[0, 1] for pair in zip(p, q, strict=True)]
        of_classes = (2.0 + 0.0 + 2.0) / 3  # nothing varies in the middle
        np.testing.assert_allclose(
            loss(p, q), 2.0 * np.array(rows) + 3.0 * of_classes, rtol=1e-5
        )

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
    @pytest.mark.parametrize(("beta", "gamma"), [(1, 0), (0, 1), (2, 3)])
    def test_agrees_with_float64(self, beta, gamma, temperature):
        value, gradient = expected(
            TEACHER, STUDENT, temperature, beta=beta, gamma=gamma
        )
        loss = DIST(temperature, beta=beta, gamma=gamma, **EACH)
        np.testing.assert_allclose(loss(TEACHER, STUDENT), value, rtol=1e-5)
        mean, of_mean = value_and_gradient(
            DIST(temperature, beta=beta, gamma=gamma), TEACHER, STUDENT
        )
        np.testing.assert_allclose(mean, value.mean(), rtol=1e-5)
        np.testing.assert_allclose(of_mean, gradient, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("weight", [None, WEIGHT.astype("float64")])
    def test_gradient_of_the_reference_is_its_finite_difference(self, weight):
        at = partial(expected, TEACHER, temperature=3.0, gamma=2.0, weight=weight)
        share = np.ones(16) if weight is None else weight
        share = share / share.sum()
        student = STUDENT.astype("float64")
        _, gradient = at(student)
        for row, column in np.ndindex(student.shape):
            step = np.zeros_like(student)
            step[row, column] = 1e-6
            difference = at(student + step)[0] - at(student - step)[0]
            np.testing.assert_allclose(
                (share * difference).sum() / 2e-6,
                gradient[row, column],
                rtol=1e-4,
                atol=1e-7,
            )

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 50.0])
    def test_zero_with_zero_gradient_at_equality(self, temperature):
        for teacher, student in cases.batches().values():
            for logits in (teacher.astype("float32"), student.astype("float32")):
                loss = DIST(temperature)
                value, gradient = value_and_gradient(loss, logits, logits)
                assert value == 0.0
                np.testing.assert_array_equal(gradient, 0.0)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 50.0])
    def test_hard_logits(self, temperature, dtype):
        """Bounded, and finite in whatever dtype the gradient comes back."""
        for teacher, student in cases.batches().values():
            pair = teacher.astype(DTYPES[dtype]), student.astype(DTYPES[dtype])
            value, gradient = value_and_gradient(DIST(temperature, **EACH), *pair)
            assert np.isfinite(value).all() and np.isfinite(gradient).all()
            assert value.min() >= 0.0
            assert value.max() <= 4.0 * temperature**2 * (1.0 + 1e-5)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("level", [0.0, 0.1, 1e4])
    def test_equal_logits(self, level, dtype):
        """A head of zeros is taught, by gradients of ordinary size."""
        equal = np.full_like(STUDENT, level).astype(DTYPES[dtype])
        teacher = TEACHER.astype(DTYPES[dtype])
        value, gradient = value_and_gradient(DIST(), teacher, equal)
        np.testing.assert_allclose(value, 2.0, rtol=1e-5)
        assert np.isfinite(gradient).all()
        assert 1e-4 < np.abs(gradient).max() < 1.0
        value, gradient = value_and_gradient(DIST(), equal, STUDENT)
        assert value == 0.0
        np.testing.assert_array_equal(gradient, 0.0)

    def test_only_relations_matter(self):
        """Other probabilities in the same proportions of deviations."""
        p = neutral.softmax(TEACHER)
        nearer = 0.5 / 6 + 0.5 * p
        value = DIST(from_logits=False, **EACH)(p, nearer)
        np.testing.assert_allclose(value, 0.0, atol=1e-6)
        assert kd.losses.ForwardKL(from_logits=False)(p, nearer) > 0.01


class TestBatch:
    def test_of_one_example(self):
        value, gradient = value_and_gradient(
            DIST(2.0, gamma=5.0), TEACHER[:1], STUDENT[:1]
        )
        alone = DIST(2.0, gamma=0.0)
        right, right_gradient = value_and_gradient(alone, TEACHER[:1], STUDENT[:1])
        np.testing.assert_allclose(value, right, rtol=1e-6)
        np.testing.assert_allclose(gradient, right_gradient, rtol=1e-6)
        assert value > 0.0

    def test_of_none(self):
        value, gradient = value_and_gradient(DIST(**EACH), TEACHER[:0], STUDENT[:0])
        assert value.shape == (0,)
        assert gradient.shape == (0, 6)

    def test_of_equal_examples(self):
        teacher, student = np.repeat(TEACHER[:1], 4, 0), np.repeat(STUDENT[:1], 4, 0)
        value, gradient = value_and_gradient(DIST(beta=0.0), teacher, student)
        assert value == 0.0
        np.testing.assert_array_equal(gradient, 0.0)
        value, gradient = value_and_gradient(DIST(beta=0.0), TEACHER[:4], student)
        np.testing.assert_allclose(value, 1.0, rtol=1e-6)
        assert np.isfinite(gradient).all()

    def test_all_positions_are_examples(self):
        value, _ = expected(TEACHER, STUDENT, 2.0)
        shape = (2, 4, 2, 6)
        loss = DIST(2.0, **EACH)
        np.testing.assert_allclose(
            loss(TEACHER.reshape(shape), STUDENT.reshape(shape)),
            value.reshape(shape[:-1]),
            rtol=1e-5,
        )
        first = DIST(2.0, axis=1, **EACH)
        np.testing.assert_allclose(
            first(*(x.reshape(shape).swapaxes(1, 3) for x in (TEACHER, STUDENT))),
            value.reshape(shape[:-1]).swapaxes(1, 2),
            rtol=1e-5,
        )

    @neutral.only_tensorflow
    def test_unknown_dimensions(self):
        import tensorflow as tf

        loss = DIST(2.0)
        unknown = tf.TensorSpec((None, None), tf.float32)
        value = tf.function(loss.__call__, input_signature=[unknown] * 2)
        np.testing.assert_allclose(
            value(TEACHER, STUDENT), loss(TEACHER, STUDENT), rtol=1e-6
        )

    def test_order_of_the_examples(self):
        order = RNG.permutation(16)
        np.testing.assert_allclose(
            DIST(**EACH)(TEACHER[order], STUDENT[order]),
            np.asarray(DIST(**EACH)(TEACHER, STUDENT))[order],
            rtol=1e-5,
        )


class TestWeights:
    @pytest.mark.parametrize("shape", [(16,), (16, 1)])
    @pytest.mark.parametrize("times", [1.0, 4.0])
    def test_count_in_the_correlations_too(self, shape, times):
        weight = times * WEIGHT
        value, gradient = expected(TEACHER, STUDENT, 2.0, weight=weight)
        right = {
            "sum_over_batch_size": (value * weight).mean(),
            "sum": (value * weight).sum(),
            "mean_with_sample_weight": (value * weight).sum() / weight.sum(),
            "none": value * weight,
        }
        for reduction, reduced in right.items():
            loss = DIST(2.0, reduction=reduction)
            value = loss(TEACHER, STUDENT, weight.reshape(shape))
            np.testing.assert_allclose(np.ravel(value), np.ravel(reduced), rtol=1e-5)
        loss = DIST(2.0, reduction="mean_with_sample_weight")
        _, got = value_and_gradient(
            lambda t, s: loss(t, s, weight.reshape(shape)), TEACHER, STUDENT
        )
        np.testing.assert_allclose(got, gradient, rtol=1e-4, atol=1e-6)

    def test_whole_weights_are_repetitions(self):
        counts = np.array([1, 0, 3, 2] * 4)
        rows = np.repeat(np.arange(16), counts)
        loss = DIST(2.0, reduction="sum")
        np.testing.assert_allclose(
            loss(TEACHER, STUDENT, counts.astype("float32")),
            loss(TEACHER[rows], STUDENT[rows]),
            rtol=1e-5,
        )

    def test_examples_of_no_weight_might_not_be_there(self):
        weight = (np.arange(16) < 10).astype("float32")
        other = np.where(weight[:, None] > 0, STUDENT, 1e4)
        loss = DIST(2.0, reduction="sum")
        right = loss(TEACHER[:10], STUDENT[:10])
        for student in (STUDENT, other):
            np.testing.assert_allclose(loss(TEACHER, student, weight), right, rtol=1e-5)
        value, gradient = value_and_gradient(
            lambda t, s: loss(t, s, np.zeros(16, "float32")), TEACHER, STUDENT
        )
        assert value == 0.0
        np.testing.assert_array_equal(gradient, 0.0)

    def test_nor_may_masked_ones(self):
        teacher, student = TEACHER.reshape(4, 4, 6), STUDENT.reshape(4, 4, 6)
        steps = RNG.random((4, 4)) < 0.6
        masked = keras.layers.Masking()(student * steps[..., None])
        value, _ = expected(teacher[steps], student[steps], 2.0)
        np.testing.assert_allclose(DIST(2.0)(teacher, masked), value.mean(), rtol=1e-5)
        weight = RNG.random((4, 4)).astype("float32")
        value, _ = expected(teacher[steps], student[steps], 2.0, weight=weight[steps])
        np.testing.assert_allclose(
            DIST(2.0)(teacher, masked, weight),
            (value * weight[steps]).mean(),
            rtol=1e-5,
        )

    def test_leave_the_loss_as_it_was(self):
        loss = DIST(2.0)
        before = loss(TEACHER, STUDENT)
        loss(TEACHER, STUDENT, WEIGHT)
        assert loss(TEACHER, STUDENT) == before


class TestArguments:
    @pytest.mark.parametrize("argument", ["beta", "gamma"])
    def test_weights_are_checked(self, argument):
        message = f"`{argument}` must be finite and not negative. Received: {argument}="
        for value in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=message + str(value)):
                DIST(**{argument: value})

    def test_one_unit(self):
        with pytest.raises(ValueError, match=r"one unit .* \(16, 1\), axis=-1"):
            DIST()(TEACHER[:, :1], STUDENT[:, :1])

    def test_round_trip(self):
        arguments = {
            "temperature": 2.5,
            "beta": 0.5,
            "gamma": 2.0,
            "from_logits": False,
            "axis": 1,
            "reduction": "sum",
            "name": "kd",
            "dtype": "float64",
        }
        loss = DIST(**arguments)
        serialised = json.dumps(keras.saving.serialize_keras_object(loss))
        again = keras.saving.deserialize_keras_object(json.loads(serialised))
        assert again.get_config() == loss.get_config() == arguments
        p, q = (neutral.softmax(x) for x in (TEACHER, STUDENT))
        with neutral.float64():
            assert again(p, q, WEIGHT) == loss(p, q, WEIGHT)


X, Y = data()


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("weight", [None, np.linspace(0.0, 2.0, 24, dtype="float32")])
def test_in_fit(weight, jit_compile):
    distiller = kd.Distiller(mlp(0), mlp(1))
    distiller.compile(
        keras.optimizers.SGD(0.5),
        crossentropy(),
        distillation_loss=DIST(2.0, beta=2.0, gamma=3.0),
        alpha=1.0,
        jit_compile=jit_compile,
    )
    before = distiller.student.get_weights()
    s = np.asarray(distiller.student(X))
    history = distiller.fit(
        X, Y, batch_size=24, sample_weight=weight, verbose=0
    ).history
    value, gradient = expected(
        np.asarray(mlp(1)(X)), s, 2.0, beta=2.0, gamma=3.0, weight=weight
    )
    weight = np.ones(24) if weight is None else weight
    np.testing.assert_allclose(
        history["distillation_loss"], (weight * value).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        history["student_loss"], (weight * label_loss(Y, s)).mean(), rtol=1e-5
    )
    step = (gradient * weight.mean()).sum(0)
    after = distiller.student.get_weights()
    # The gradients of the rows nearly cancel, and JAX rounds each otherwise.
    on_jax = keras.backend.backend() == "jax"
    rounding = 1e-6 * np.abs(gradient * weight.mean()).sum(0) if on_jax else 0.0
    np.testing.assert_array_less(
        np.abs(before[-1] - after[-1] - 0.5 * step),
        0.5 * (1e-5 * np.abs(step) + rounding),
    )

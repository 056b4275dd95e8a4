"""Losses between layers: values, gradients, hard features, weights and masks."""

import json
from functools import partial

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from keras_distill.backend import widest_float
from keras_distill.hints import losses
from keras_distill.hints.losses.within_examples import FeatureMSE
from tests.hints import reference
from tests.losses import neutral

RNG = np.random.default_rng(5)
N = 7
TEACHER = RNG.standard_normal((N, 3, 2, 5)).astype("float32")
STUDENT = RNG.standard_normal((N, 3, 2, 3)).astype("float32")
SAME_WIDTH = RNG.standard_normal(TEACHER.shape).astype("float32")
WEIGHT = np.array([0.0, 1.0, 2.0, 0.5, 0.0, 1.5, 0.3], "float32")

LOSSES = {
    "FeatureMSE": (losses.FeatureMSE, reference.feature_mse),
    "AttentionTransfer": (losses.AttentionTransfer, reference.attention_transfer),
    "AttentionTransfer(1)": (
        partial(losses.AttentionTransfer, 1.0),
        partial(reference.attention_transfer, power=1.0),
    ),
    "AttentionTransfer(3.5)": (
        partial(losses.AttentionTransfer, 3.5),
        partial(reference.attention_transfer, power=3.5),
    ),
    "RelationalDistance": (losses.RelationalDistance, reference.relational_distance),
    "RelationalDistance(0.2)": (
        partial(losses.RelationalDistance, 0.2),
        partial(reference.relational_distance, delta=0.2),
    ),
    "RelationalAngle": (losses.RelationalAngle, reference.relational_angle),
    "RelationalAngle(0.2)": (
        partial(losses.RelationalAngle, 0.2),
        partial(reference.relational_angle, delta=0.2),
    ),
    "SimilarityPreserving": (
        losses.SimilarityPreserving,
        reference.similarity_preserving,
    ),
}
RELATIONS = [
    name for name in LOSSES if name.startswith("Relational") or "Simil" in name
]
DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}
each_loss = pytest.mark.parametrize("name", LOSSES)
each_relation = pytest.mark.parametrize("name", RELATIONS)


def made(name, /, **arguments):
    return LOSSES[name][0](**arguments)


def expected(name, *arguments):
    return LOSSES[name][1](*arguments)


def student_for(name):
    return SAME_WIDTH if name == "FeatureMSE" else STUDENT


def value_and_gradient(loss, teacher, student, weight=None):
    teacher = ops.convert_to_tensor(teacher)
    value, gradient = neutral.value_and_gradient(
        lambda s: loss(teacher, s, weight), student
    )
    return value, gradient.astype("float64")


def finite_difference(function, student, step=1e-6):
    student = student.astype("float64")
    gradient = np.zeros_like(student)
    for index in np.ndindex(student.shape):
        change = np.zeros_like(student)
        change[index] = step
        difference = function(student + change) - function(student - change)
        gradient[index] = difference / (2.0 * step)
    return gradient


class TestValue:
    @each_loss
    @pytest.mark.parametrize("scale", [1.0, 0.1, 30.0])
    def test_agrees_with_float64(self, name, scale):
        student = scale * student_for(name)
        right = expected(name, TEACHER, student)
        value = made(name, reduction="none")(TEACHER, student)
        assert value.shape == (N,)
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-7)
        assert right.min() > 1e-4

    @each_loss
    @pytest.mark.parametrize("weight", [None, WEIGHT])
    def test_gradient_is_the_finite_difference(self, name, weight):
        student = student_for(name)
        each = np.ones(N) if weight is None else weight
        right = finite_difference(
            lambda s: (each * expected(name, TEACHER, s, weight)).mean(), student
        )
        _, gradient = value_and_gradient(made(name), TEACHER, student, weight)
        np.testing.assert_allclose(
            gradient, right, rtol=1e-4, atol=1e-5 * np.abs(right).max()
        )

    @each_loss
    def test_zero_with_zero_gradient_at_equality(self, name):
        value, gradient = value_and_gradient(made(name), TEACHER, TEACHER)
        # the gradient's operations of JAX round float32 otherwise than the value's
        assert value <= (0.0 if widest_float() == "float64" else 1e-14)
        np.testing.assert_allclose(gradient, 0.0, atol=1e-7)

    @each_loss
    def test_no_gradient_reaches_the_teacher(self, name):
        _, (of_teacher, of_student) = neutral.value_and_gradient(
            made(name), TEACHER, student_for(name)
        )
        assert neutral.is_stopped(of_teacher)
        assert np.abs(of_student).max() > 0.0

    @each_relation
    def test_only_relations_matter(self, name):
        """Neither scale nor, of distances and angles, level and rotation."""
        flat = TEACHER.reshape(N, -1)
        rotation, _ = np.linalg.qr(RNG.standard_normal((flat.shape[1],) * 2))
        moved = 7.0 * flat @ rotation
        if name != "SimilarityPreserving":
            moved = moved + 3.0
        value = made(name)(TEACHER, moved.astype("float32"))
        np.testing.assert_allclose(value, 0.0, atol=1e-9)

    def test_angles_by_hand(self):
        """A right angle between equal sides, and three points on a line."""
        teacher = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
        student = [[0.0], [1.0], [2.0]]
        value = losses.RelationalAngle(reduction="none")(teacher, student)
        root = np.sqrt(0.5)
        right = [0.5, 1.0 + root - 0.5, 0.5 * (1.0 - root) ** 2]
        np.testing.assert_allclose(value, right, rtol=1e-6)

    def test_attention_of_other_channels_and_axes(self):
        value = losses.AttentionTransfer()(TEACHER, STUDENT)
        first = losses.AttentionTransfer(axis=1)(
            np.moveaxis(TEACHER, -1, 1), np.moveaxis(STUDENT, -1, 1)
        )
        np.testing.assert_allclose(first, value, rtol=1e-6)
        scaled = losses.AttentionTransfer()(TEACHER, 1e3 * STUDENT)
        np.testing.assert_allclose(scaled, value, rtol=1e-5)

    def test_authors_attention_is_the_mean_over_positions(self):
        maps = [np.square(x).mean(-1).reshape(N, -1) for x in (TEACHER, STUDENT)]
        t, s = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in maps)
        value = losses.AttentionTransfer()(TEACHER, STUDENT)
        np.testing.assert_allclose(value / 6, np.square(t - s).mean(), rtol=1e-5)


class TestHardFeatures:
    @each_loss
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
    def test_finite_in_any_dtype(self, name, dtype, scale):
        teacher, student = (
            (scale * x).astype(DTYPES[dtype]) for x in (TEACHER, student_for(name))
        )
        loss = made(name, reduction="none", dtype=widest_float())
        value, gradient = value_and_gradient(loss, teacher, student)
        assert np.isfinite(value).all()
        assert np.isfinite(gradient).all()
        right = expected(name, teacher, student)
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-7)

    @each_loss
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_computes_in_float32_whatever_its_dtype(self, name, dtype):
        """A result of half precision, not maths in it."""
        teacher, student = (
            x.astype(DTYPES[dtype]) for x in (TEACHER, student_for(name))
        )
        value = made(name, dtype=dtype)(teacher, student)
        assert value.dtype == dtype
        right = expected(name, teacher, student).mean()
        np.testing.assert_allclose(float(value), right, rtol=1e-2)

    @each_loss
    @pytest.mark.parametrize("who", ["teacher", "student", "both"])
    @pytest.mark.parametrize("level", [0.0, 0.1, 1e4])
    def test_equal_throughout(self, name, who, level):
        teacher, student = TEACHER, student_for(name)
        if who != "student":
            teacher = np.full_like(teacher, level)
        if who != "teacher":
            student = np.full_like(student, level)
        loss = made(name, reduction="none")
        value, gradient = value_and_gradient(loss, teacher, student)
        right = expected(name, teacher, student)
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-7)
        assert np.isfinite(gradient).all()
        if "Relational" in name:
            np.testing.assert_array_equal(gradient, 0.0)
            assert (value == 0.0).all() or who == "student"

    @each_loss
    def test_two_equal_examples(self, name):
        student = student_for(name).copy()
        student[1] = student[0]
        loss = made(name, reduction="none")
        value, gradient = value_and_gradient(loss, TEACHER, student)
        right = expected(name, TEACHER, student)
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-7)
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() < 10.0
        teacher = TEACHER.copy()
        teacher[1] = teacher[0]
        value, gradient = value_and_gradient(loss, teacher, student)
        right = expected(name, teacher, student)
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-7)
        assert np.isfinite(gradient).all()

    @pytest.mark.parametrize("gap", [1e-3, 1e-2])
    @pytest.mark.parametrize("name", [n for n in RELATIONS if "Relational" in n])
    def test_close_examples_far_from_zero(self, name, gap):
        """Where squares of float32 would hold nothing of the distances."""
        student = (100.0 + gap * STUDENT).astype("float32")
        loss = made(name)
        value, gradient = value_and_gradient(loss, TEACHER, student)
        right = expected(name, TEACHER, student).mean()
        np.testing.assert_allclose(value, right, rtol=1e-5)
        right = finite_difference(
            lambda s: expected(name, TEACHER, s).mean(), student, step=1e-4 * gap
        )
        np.testing.assert_allclose(gradient, right, atol=1e-4 * np.abs(right).max())

    @each_relation
    @pytest.mark.parametrize("examples", [1, 2])
    def test_small_batches(self, name, examples):
        student = STUDENT[:examples]
        loss = made(name, reduction="none")
        value, gradient = value_and_gradient(loss, TEACHER[:examples], student)
        right = expected(name, TEACHER[:examples], student)
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-12)
        assert np.isfinite(gradient).all()
        if examples == 1 or "Angle" in name:
            np.testing.assert_array_equal(value, 0.0)
        if "Relational" in name:
            np.testing.assert_allclose(value, 0.0, atol=1e-12)
            np.testing.assert_allclose(gradient, 0.0, atol=1e-7)

    @each_loss
    def test_batch_of_none(self, name):
        loss = made(name, reduction="none")
        value, gradient = value_and_gradient(loss, TEACHER[:0], student_for(name)[:0])
        assert value.shape == (0,)
        assert gradient.size == 0

    @each_loss
    def test_order_of_the_examples(self, name):
        order = RNG.permutation(N)
        loss, student = made(name, reduction="none"), student_for(name)
        np.testing.assert_allclose(
            loss(TEACHER[order], student[order]),
            np.asarray(loss(TEACHER, student))[order],
            rtol=1e-5,
        )


class TestGraphs:
    @neutral.only_tensorflow
    @each_loss
    def test_unknown_dimensions(self, name):
        import tensorflow as tf

        loss, student = made(name), student_for(name)
        unknown = tf.TensorSpec((None, None, None, None), tf.float32)
        compiled = tf.function(loss.__call__, input_signature=[unknown] * 2)
        right = loss(TEACHER, student)
        np.testing.assert_allclose(compiled(TEACHER, student), right, rtol=1e-5)

    @each_loss
    def test_compiled_by_xla(self, name):
        loss = made(name)
        eager = value_and_gradient(loss, TEACHER, student_for(name), WEIGHT)

        def called(teacher, student, weight):
            function = neutral.differentiated(lambda s: loss(teacher, s, weight))
            value, (gradient,) = function(student)
            return value, gradient

        *_, by_xla = neutral.compilers().values()
        given = map(ops.convert_to_tensor, (TEACHER, student_for(name), WEIGHT))
        for x, y in zip(by_xla(called)(*given), eager, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


class TestWeights:
    @each_loss
    @pytest.mark.parametrize("shape", [(N,), (N, 1)])
    @pytest.mark.parametrize("times", [1.0, 4.0])
    def test_every_reduction(self, name, shape, times):
        student, weight = student_for(name), times * WEIGHT
        value = expected(name, TEACHER, student, weight)
        right = {
            "sum_over_batch_size": (value * weight).mean(),
            "sum": (value * weight).sum(),
            "mean_with_sample_weight": (value * weight).sum() / weight.sum(),
            "none": value * weight,
        }
        for reduction, reduced in right.items():
            loss = made(name, reduction=reduction)
            got = loss(TEACHER, student, weight.reshape(shape))
            np.testing.assert_allclose(np.ravel(got), np.ravel(reduced), rtol=1e-5)

    @each_loss
    def test_one_weight_for_all(self, name):
        student = student_for(name)
        right = 3.0 * made(name)(TEACHER, student)
        for weight in (3.0, 3, np.full(N, 3.0), np.full(N, 3), [3] * N):
            got = made(name)(TEACHER, student, weight)
            np.testing.assert_allclose(got, right, rtol=1e-5)

    @each_loss
    @pytest.mark.parametrize("junk", [1e4, np.nan, np.inf])
    def test_examples_of_no_weight_might_not_be_there(self, name, junk):
        counted = (np.arange(N) % 3 > 0).astype("float32")
        teacher, student = TEACHER.copy(), student_for(name).copy()
        loss = made(name, reduction="sum")
        there = counted > 0.0
        right, right_gradient = value_and_gradient(loss, teacher[there], student[there])
        teacher[~there] = junk
        student[~there] = junk
        value, gradient = value_and_gradient(loss, teacher, student, counted)
        np.testing.assert_allclose(value, right, rtol=1e-5)
        np.testing.assert_allclose(gradient[there], right_gradient, atol=1e-6)
        np.testing.assert_array_equal(gradient[~there], 0.0)

    @each_loss
    def test_none_that_counts(self, name):
        value, gradient = value_and_gradient(
            made(name), TEACHER, student_for(name), np.zeros(N, "float32")
        )
        assert value == 0.0
        np.testing.assert_array_equal(gradient, 0.0)

    @each_loss
    def test_leave_the_loss_as_it_was(self, name):
        loss, student = made(name), student_for(name)
        before = loss(TEACHER, student)
        loss(TEACHER, student, WEIGHT)
        assert loss(TEACHER, student) == before

    @each_loss
    def test_by_position(self, name):
        message = r"\(batch,\) or \(batch, 1\).* sample_weight of shape \(7, 3\)"
        with pytest.raises(ValueError, match=message):
            made(name)(TEACHER, student_for(name), np.ones((N, 3)))


class TestMasks:
    """Of sequences, `(batch, time, width)`."""

    TEACHER = RNG.standard_normal((6, 4, 5)).astype("float32")
    STUDENT = RNG.standard_normal((6, 4, 5)).astype("float32")
    MASK = np.array(
        [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [0] * 4, [1, 1, 1, 0], [0, 1, 1, 1]],
        "bool",
    )

    def masked(self, mask):
        return neutral.masked(self.STUDENT, mask)

    @each_loss
    def test_of_examples(self, name):
        kept = self.MASK.any(-1)
        loss = made(name)
        right = loss(self.TEACHER[kept], self.STUDENT[kept])
        teacher = np.where(kept[:, None, None], self.TEACHER, np.nan)
        value = loss(teacher, self.masked(kept))
        np.testing.assert_allclose(value, right, rtol=1e-5)
        weight = np.array([1.0, 0.0, 2.0, 5.0, 0.5, 1.0], "float32")
        right = loss(self.TEACHER[kept], self.STUDENT[kept], weight[kept])
        value = loss(teacher, self.masked(kept), weight)
        np.testing.assert_allclose(value, right, rtol=1e-5)

    @each_loss
    def test_of_positions(self, name):
        """Those left out are as if both models were silent there."""
        kept = self.MASK.any(-1)
        silent = [
            np.where(self.MASK[..., None], x, 0.0)[kept]
            for x in (self.TEACHER, self.STUDENT)
        ]
        right = expected(name, *silent)
        if name == "FeatureMSE":  # a mean over what is there
            right = right / self.MASK[kept].mean(-1)
        teacher = np.where(self.MASK[..., None], self.TEACHER, np.nan)
        value = made(name)(teacher, self.masked(self.MASK))
        np.testing.assert_allclose(value, right.mean(), rtol=1e-5)

    @each_relation
    def test_of_positions_that_the_teacher_has_not(self, name):
        kept = self.MASK.any(-1)
        silent = np.where(self.MASK[..., None], self.STUDENT, 0.0)[kept]
        pooled = self.TEACHER.reshape(6, -1)[:, :7]
        right = expected(name, pooled[kept], silent).mean()
        value = made(name)(pooled, self.masked(self.MASK))
        np.testing.assert_allclose(value, right, rtol=1e-5)

    def test_of_a_layer_in_a_graph(self):
        student = np.where(self.MASK[..., None], self.STUDENT, 0.0).astype("float32")

        def value(teacher, features):
            return FeatureMSE()(teacher, keras.layers.Masking()(features))

        right = FeatureMSE()(self.TEACHER, self.masked(self.MASK))
        for compiled in neutral.compilers().values():
            given = map(ops.convert_to_tensor, (self.TEACHER, student))
            np.testing.assert_allclose(compiled(value)(*given), right, rtol=1e-6)


class TestShapes:
    FITTING = {
        "FeatureMSE": [((None, 8, 8, 4), (None, 8, 8, 4)), ((3, None), (None, 5))],
        "AttentionTransfer": [
            ((None, 8, 8, 4), (None, 8, 8, 2)),
            ((None, None, None, 4), (None, 8, 8, 2)),
            ((None, 5, 4), (None, 5, 1)),
        ],
        "SimilarityPreserving": [
            ((None, 8, 8, 4), (None, 7)),
            ((3, 2), (None, None, 1)),
        ],
    }
    UNFIT = {
        "FeatureMSE": [
            ((None, 8, 8, 4), (None, 8, 8, 2)),
            ((None, 8, 8, 4), (None, 4)),
        ],
        "AttentionTransfer": [
            ((None, 8, 8, 4), (None, 4, 4, 4)),
            ((None, 8, 8, 4), (None, 8, 4)),
            ((None, 8), (None, 8)),
        ],
        "SimilarityPreserving": [((3, 4), (2, 4)), ((3,), (3,)), ((3, 2), (3,))],
    }
    for pairs in (FITTING, UNFIT):
        for relational in ("RelationalDistance", "RelationalAngle"):
            pairs[relational] = pairs["SimilarityPreserving"]
    REMEDY = {
        "FeatureMSE": "give the `Hint` a projector",
        "AttentionTransfer": "Choose layers ",
        "SimilarityPreserving": "keep the batch axis",
        "RelationalDistance": "keep the batch axis",
        "RelationalAngle": "keep the batch axis",
    }

    @pytest.mark.parametrize("name", FITTING)
    def test_that_fit(self, name):
        for teacher, student in self.FITTING[name]:
            made(name).check_shapes(teacher, student)

    @pytest.mark.parametrize("name", UNFIT)
    def test_that_do_not(self, name):
        for teacher, student in self.UNFIT[name]:
            with pytest.raises(ValueError, match=self.REMEDY[name]) as caught:
                made(name, name="its_name").check_shapes(teacher, student)
            assert f"teacher features {teacher}, student features {student}" in str(
                caught.value
            )
            assert "`its_name`" in str(caught.value)

    @pytest.mark.parametrize("name", UNFIT)
    def test_are_checked_in_calls(self, name):
        for teacher, student in self.UNFIT[name]:
            features = [
                np.ones([3 if size is None else size for size in shape], "float32")
                for shape in (teacher, student)
            ]
            with pytest.raises(ValueError, match=self.REMEDY[name]):
                made(name)(*features)

    @pytest.mark.parametrize("axis", [0, -4, 4, -5])
    def test_axis(self, axis):
        with pytest.raises(ValueError, match=rf"`axis` must be .* axis={axis}"):
            losses.AttentionTransfer(axis=axis)(TEACHER, STUDENT)

    def test_who_needs_equal_widths(self):
        for name in LOSSES:
            assert made(name).needs_equal_widths == (name == "FeatureMSE")


class TestArguments:
    @pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
    @pytest.mark.parametrize(
        "loss", [losses.RelationalDistance, losses.RelationalAngle]
    )
    def test_delta(self, loss, value):
        message = f"`delta` must be positive and finite. Received: delta={value}"
        with pytest.raises(ValueError, match=message):
            loss(delta=value)

    @pytest.mark.parametrize("value", [0.0, 0.9, float("nan"), float("inf")])
    def test_power(self, value):
        message = f"`power` must be at least 1 and finite. Received: power={value}"
        with pytest.raises(ValueError, match=message):
            losses.AttentionTransfer(value)

    @pytest.mark.parametrize(
        ("loss", "own"),
        [
            (losses.FeatureMSE, {}),
            (losses.AttentionTransfer, {"power": 3.0, "axis": 2}),
            (losses.RelationalDistance, {"delta": 0.3}),
            (losses.RelationalAngle, {"delta": 0.3}),
            (losses.SimilarityPreserving, {}),
        ],
    )
    def test_round_trip(self, loss, own):
        arguments = {**own, "reduction": "sum", "name": "hint", "dtype": "float64"}
        loss = loss(**arguments)
        serialised = json.dumps(keras.saving.serialize_keras_object(loss))
        again = keras.saving.deserialize_keras_object(json.loads(serialised))
        assert again.get_config() == loss.get_config() == arguments
        pair = TEACHER, SAME_WIDTH
        with neutral.float64():
            assert again(*pair, WEIGHT) == loss(*pair, WEIGHT)

    def test_is_abstract(self):
        with pytest.raises(TypeError, match="abstract"):
            losses.FeatureLoss()

"""Ranking losses, against loops over the items and pairs of each list."""

import json
import re
from functools import partial

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers.schedules import PolynomialDecay
from scipy.special import expit, log_expit, log_softmax, logsumexp

from keras_distill.backend import keras_mask
from keras_distill.losses import (
    BinarySoftTargets,
    CalibratedListwise,
    ListwiseSoftTargets,
    PairwiseSoftTargets,
    SoftTargets,
)
from tests.losses import neutral

ALL = {
    "listwise": ListwiseSoftTargets,
    "calibrated": CalibratedListwise,
    "pairwise": PairwiseSoftTargets,
}
TEMPERED = ["listwise", "pairwise"]
each_loss = pytest.mark.parametrize("name", ALL)

RNG = np.random.default_rng(7)
# five lists of six items: full, with a tie, three valid, one valid, none valid
TEACHER, STUDENT = (2.0 * RNG.standard_normal((2, 5, 6))).astype("float32")
TEACHER[1, 4] = TEACHER[1, 2]
MASK = np.array(
    [
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 1, 1],
        [0, 1, 0, 1, 1, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ],
    bool,
)
SPEAK = np.array([True, True, True, False, False])
NOTHING = np.zeros((5, 6), bool)
ONE_ITEM = NOTHING | (np.arange(6) == 2)
ITEM_WEIGHT = RNG.uniform(0.5, 3.0, (5, 6)).astype("float32")
LIST_WEIGHT = np.array([2.0, 0.5, 3.0, 7.0, 9.0], "float32")

# the same as flat rows in any order
ORDER = RNG.permutation(30)
GROUP = np.repeat([2**40 + 1, -5, 2**40, 0, 2**62], 6)[ORDER]
ROW_OF_LIST = [int(np.flatnonzero(ORDER // 6 == row)[0]) for row in range(5)]


def flat(x):
    return x.ravel()[ORDER]


LAYOUTS = {
    "lists": (lambda x: x, {"mask": MASK}),
    "lists of one unit": (lambda x: x[..., None], {"mask": MASK[..., None]}),
    "groups": (flat, {"mask": flat(MASK), "group": GROUP}),
    "groups of one unit": (
        lambda x: flat(x)[:, None],
        {"mask": flat(MASK)[:, None], "group": GROUP[:, None]},
    ),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def loop(name, t, s, weight, temperature):
    """The loss of one list of valid items in float64."""
    t, s = t.astype("float64"), s.astype("float64")
    total, n = 0.0, len(t)
    if name == "pairwise":
        pairs = [(i, j) for i in range(n) for j in range(n) if t[i] > t[j]]
        for i, j in pairs:
            teacher, student = (x[i] - x[j] for x in (t, s))
            teacher, student = teacher / temperature, student / temperature
            total -= weight[i] * expit(teacher) * log_expit(student)
            total -= weight[i] * expit(-teacher) * log_expit(-student)
        return temperature**2 * total / max(len(pairs), 1)
    if n < 2:
        return 0.0
    if name == "listwise":
        p, log_q = np.exp(log_softmax(t / temperature)), log_softmax(s / temperature)
    else:
        log_p, log_q = (log_expit(x) - logsumexp(log_expit(x)) for x in (t, s))
        p = np.exp(log_p)
    for i in range(n):
        total -= weight[i] * p[i] * log_q[i]
    return temperature**2 * total


def each(
    name,
    teacher=TEACHER,
    student=STUDENT,
    *,
    mask=MASK,
    weight=None,
    temperature=1.0,
):
    """The loss of each list."""
    weight = np.ones(mask.shape) if weight is None else weight
    return np.array(
        [
            loop(name, t[m], s[m], w[m], temperature)
            for t, s, m, w in zip(teacher, student, mask, weight, strict=True)
        ]
    )


def finite_differences(function, x, step=1e-5):
    x = x.astype("float64")
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def value_and_gradient(loss, y_true, student, weight=None):
    """The loss and its gradient in the student's output."""
    return neutral.value_and_gradient(lambda s: loss(y_true, s, weight), student)


class TestAgainstLoops:
    @pytest.mark.parametrize("weighted", [False, True])
    @each_layout
    @each_loss
    def test_value_and_gradient(self, name, layout, weighted):
        lay, of_lists = LAYOUTS[layout]
        temperature = 2.5 if name in TEMPERED else 1.0
        arguments = {"temperature": 2.5} if name in TEMPERED else {}
        weight = ITEM_WEIGHT if weighted else None
        expected = partial(each, name, weight=weight, temperature=temperature)
        value, gradient = value_and_gradient(
            ALL[name](**arguments),
            {"scores": lay(TEACHER), **of_lists},
            lay(STUDENT),
            None if weight is None else lay(weight),
        )
        np.testing.assert_allclose(value, expected()[SPEAK].mean(), rtol=1e-5)
        np.testing.assert_allclose(
            gradient,
            lay(
                finite_differences(lambda s: expected(student=s)[SPEAK].mean(), STUDENT)
            ),
            rtol=1e-4,
            atol=1e-6,
        )

    @each_loss
    def test_compare_takes_each_row_for_a_list(self, name):
        np.testing.assert_allclose(
            ALL[name]().compare(TEACHER, STUDENT),
            each(name, mask=np.ones_like(MASK)),
            rtol=1e-5,
        )

    def test_lists_are_softmax_rows(self):
        np.testing.assert_allclose(
            ListwiseSoftTargets(3.0, reduction="none")(TEACHER, STUDENT),
            SoftTargets(3.0, reduction="none")(TEACHER, STUDENT),
            rtol=1e-6,
        )

    def test_pairs_of_two_items_are_binary(self):
        np.testing.assert_allclose(
            PairwiseSoftTargets(3.0)([[2.0, 0.5]], [[-1.0, 3.0]]),
            BinarySoftTargets(3.0)([[1.5]], [[-4.0]]),
            rtol=1e-6,
        )

    def test_hand_computed(self):
        teacher, student = [[0.2, 0.6, 0.2]], [[0.5, 0.25, 0.25]]
        np.testing.assert_allclose(
            CalibratedListwise(from_logits=False)(teacher, student),
            0.2 * np.log(2.0) + 0.8 * np.log(4.0),
            rtol=1e-6,
        )
        # the second item is preferred to both others, which are equal
        np.testing.assert_allclose(
            PairwiseSoftTargets()([[0.0, 1e4, 0.0]], [[0.0, 0.0, np.log(3.0)]]),
            (np.log(2.0) + np.log(4.0)) / 2,
            rtol=1e-6,
        )

    @each_loss
    def test_probabilities(self, name):
        p, q = expit(TEACHER.astype("float64")), expit(STUDENT.astype("float64"))
        np.testing.assert_allclose(
            ALL[name](from_logits=False)({"scores": p, "mask": MASK}, q),
            each(name)[SPEAK].mean(),
            rtol=1e-5,
        )

    @each_loss
    def test_sure_probabilities(self, name):
        sure, unsure = [[0.0, 1.0, 0.5]], [[0.5, 0.5, 0.1]]
        for teacher, student in ((sure, unsure), (unsure, sure), (sure, sure)):
            value, gradient = value_and_gradient(
                ALL[name](from_logits=False), teacher, student
            )
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()


class TestMinimum:
    @each_loss
    def test_at_the_teacher(self, name):
        value, gradient = value_and_gradient(ALL[name](), TEACHER, TEACHER)
        np.testing.assert_allclose(gradient, 0.0, atol=1e-8)
        for scale in (0.1, 1.0):
            away = TEACHER + scale * RNG.standard_normal(TEACHER.shape)
            assert ALL[name]()(TEACHER, away.astype("float32")) > value

    @pytest.mark.parametrize("name", TEMPERED)
    def test_whatever_the_scores_have_in_common(self, name):
        shift = np.array([[-3.0], [-1.0], [0.5], [2.0], [100.0]], "float32")
        _, gradient = value_and_gradient(ALL[name](2.0), TEACHER, TEACHER + shift)
        np.testing.assert_allclose(gradient, 0.0, atol=1e-6)

    def test_of_the_calibrated_loss_is_that_of_binary_cross_entropy(self):
        calibrated, binary = CalibratedListwise(), BinarySoftTargets()

        def both(teacher, student, weight):
            return calibrated(teacher, student) + binary(teacher, student)

        _, gradient = value_and_gradient(both, TEACHER, TEACHER)
        np.testing.assert_allclose(gradient, 0.0, atol=1e-8)
        # unlike the softmax, it hears of shifts
        _, gradient = value_and_gradient(calibrated, TEACHER, TEACHER + 1.0)
        assert np.abs(gradient).max() > 1e-3

    def test_of_the_calibrated_loss_is_up_to_a_factor(self):
        p = np.array([[0.1, 0.3, 0.2]])
        _, gradient = value_and_gradient(
            CalibratedListwise(from_logits=False), p, 2.0 * p
        )
        np.testing.assert_allclose(gradient, 0.0, atol=1e-6)

    def test_of_weighted_items_is_at_the_weighted_teacher(self):
        student = TEACHER + np.log(ITEM_WEIGHT)
        _, gradient = value_and_gradient(
            ListwiseSoftTargets(), TEACHER, student, ITEM_WEIGHT
        )
        np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


class TestTeacher:
    @each_layout
    @each_loss
    def test_gets_no_gradient(self, name, layout):
        lay, of_lists = LAYOUTS[layout]
        _, (to_teacher, to_student) = neutral.value_and_gradient(
            lambda t, s: ALL[name]()({"scores": t, **of_lists}, s),
            lay(TEACHER),
            lay(STUDENT),
        )
        assert neutral.is_stopped(to_teacher)
        assert np.abs(to_student).max() > 0.0


class TestTemperature:
    @pytest.mark.parametrize("name", TEMPERED)
    def test_its_square_is_applied_once(self, name):
        np.testing.assert_allclose(
            ALL[name](4.0)(4.0 * TEACHER, 4.0 * STUDENT),
            16.0 * ALL[name]()(TEACHER, STUDENT),
            rtol=1e-6,
        )

    @neutral.only_tensorflow
    @pytest.mark.parametrize("name", TEMPERED)
    def test_assignment_acts_in_a_traced_function(self, name):
        import tensorflow as tf

        loss = ALL[name](1.0)
        compiled = tf.function(lambda: loss({"scores": TEACHER, "mask": MASK}, STUDENT))
        for temperature in (1.0, 4.0):
            loss.temperature = temperature
            np.testing.assert_allclose(
                compiled(), each(name, temperature=temperature)[SPEAK].mean(), rtol=1e-5
            )

    @pytest.mark.parametrize("name", TEMPERED)
    def test_schedule_is_read_at_the_step(self, name):
        loss = ALL[name](PolynomialDecay(1.0, 10, 5.0))
        loss.step = 5
        np.testing.assert_allclose(
            loss(TEACHER, STUDENT), ALL[name](3.0)(TEACHER, STUDENT), rtol=1e-6
        )

    @pytest.mark.parametrize("name", TEMPERED)
    def test_must_be_positive(self, name):
        with pytest.raises(ValueError, match="Received: temperature=-1"):
            ALL[name](-1)

    def test_is_1_in_the_calibrated_loss(self):
        loss = CalibratedListwise()
        assert loss.temperature == 1.0
        with pytest.raises(ValueError, match="must be 1 .* Received: temperature=2.0"):
            loss.temperature = 2.0


class TestReduction:
    @pytest.mark.parametrize("layout", ["lists", "groups"])
    @each_loss
    def test_over_lists_that_say_something(self, name, layout):
        lay, of_lists = LAYOUTS[layout]
        unreduced = by_list = each(name)
        if layout == "groups":
            unreduced = np.zeros(30)
            unreduced[ROW_OF_LIST] = by_list
        for reduction, expected in (
            ("sum_over_batch_size", by_list[SPEAK].mean()),
            ("mean", by_list[SPEAK].mean()),
            ("mean_with_sample_weight", by_list[SPEAK].mean()),
            ("sum", by_list.sum()),
            ("none", unreduced),
            (None, unreduced),
        ):
            loss = ALL[name](reduction=reduction)
            value = loss({"scores": lay(TEACHER), **of_lists}, lay(STUDENT))
            np.testing.assert_allclose(value, expected, rtol=1e-5)

    @each_loss
    def test_weights_of_lists(self, name):
        y_true = {"scores": TEACHER, "mask": MASK}
        weighted = LIST_WEIGHT * each(name)
        for reduction, expected in (
            ("sum_over_batch_size", weighted[SPEAK].mean()),
            ("mean_with_sample_weight", weighted.sum() / LIST_WEIGHT[SPEAK].sum()),
            ("sum", weighted.sum()),
        ):
            loss = ALL[name](reduction=reduction)
            for weight in (LIST_WEIGHT, LIST_WEIGHT[:, None]):
                np.testing.assert_allclose(
                    loss(y_true, STUDENT, weight), expected, rtol=1e-5
                )
        value = ALL[name](reduction="none")(y_true, STUDENT, LIST_WEIGHT)
        np.testing.assert_allclose(value, weighted, rtol=1e-5)

    @each_layout
    @each_loss
    def test_weights_of_items(self, name, layout):
        """They don't enter the divisor, whatever the reduction."""
        lay, of_lists = LAYOUTS[layout]
        weighted = each(name, weight=ITEM_WEIGHT)
        for reduction, expected in (
            ("sum_over_batch_size", weighted[SPEAK].mean()),
            ("mean_with_sample_weight", weighted[SPEAK].mean()),
            ("sum", weighted.sum()),
        ):
            value = ALL[name](reduction=reduction)(
                {"scores": lay(TEACHER), **of_lists}, lay(STUDENT), lay(ITEM_WEIGHT)
            )
            np.testing.assert_allclose(value, expected, rtol=1e-5)

    @pytest.mark.parametrize("layout", ["lists", "groups"])
    @each_loss
    def test_one_weight_for_all(self, name, layout):
        lay, of_lists = LAYOUTS[layout]
        value = ALL[name]()({"scores": lay(TEACHER), **of_lists}, lay(STUDENT), 3.0)
        np.testing.assert_allclose(value, 3.0 * each(name)[SPEAK].mean(), rtol=1e-5)

    def test_items_that_weigh_0_stay_in_the_list(self):
        weight, mask = np.ones((5, 6), "float32"), np.ones((5, 6), bool)
        weight[:, 0], mask[:, 0] = 0.0, False
        loss = ListwiseSoftTargets()
        without = loss({"scores": TEACHER, "mask": mask}, STUDENT)
        weighted = loss(TEACHER, STUDENT, weight)
        expected = each("listwise", mask=np.ones((5, 6), bool), weight=weight)
        np.testing.assert_allclose(weighted, expected.mean(), rtol=1e-5)
        assert abs(weighted - without) > 0.01

    @pytest.mark.parametrize("layout", ["lists", "groups"])
    @each_loss
    def test_nothing_to_say(self, name, layout):
        lay, of_lists = LAYOUTS[layout]
        for mask in (NOTHING, ONE_ITEM):
            for reduction in ("sum_over_batch_size", "mean_with_sample_weight", "sum"):
                value, gradient = value_and_gradient(
                    ALL[name](reduction=reduction),
                    {"scores": lay(TEACHER), **of_lists, "mask": lay(mask)},
                    lay(STUDENT),
                )
                assert value == 0.0
                np.testing.assert_array_equal(gradient, 0.0)

    def test_no_pair(self):
        equal = np.full((2, 3), 0.7, "float32")
        value, gradient = value_and_gradient(
            PairwiseSoftTargets(), equal, STUDENT[:2, :3]
        )
        assert value == 0.0
        np.testing.assert_array_equal(gradient, 0.0)
        # beside a list that has one
        teacher = np.concatenate([equal, TEACHER[:1, :3]])
        expected = each("pairwise", teacher, STUDENT[:3, :3], mask=MASK[[0] * 3, :3])
        np.testing.assert_allclose(
            PairwiseSoftTargets()(teacher, STUDENT[:3, :3]), expected[2], rtol=1e-5
        )

    @pytest.mark.parametrize("layout", ["lists", "groups"])
    @each_loss
    def test_empty_batch(self, name, layout):
        lay, _ = LAYOUTS[layout]
        y_true = {"scores": TEACHER[:0]}
        student = STUDENT[:0]
        if layout == "groups":
            y_true = {"scores": student.ravel(), "group": GROUP[:0]}
            student = student.ravel()
        assert ALL[name](reduction="none")(y_true, student).shape == (0,)


class TestMask:
    @pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
    @pytest.mark.parametrize("layout", ["lists", "groups"])
    @each_loss
    def test_what_it_hides_may_be_anything(self, name, layout, garbage):
        lay, of_lists = LAYOUTS[layout]
        teacher, student, weight = (
            np.where(MASK, x, garbage).astype("float32")
            for x in (TEACHER, STUDENT, ITEM_WEIGHT)
        )
        value, gradient = value_and_gradient(
            ALL[name](),
            {"scores": lay(teacher), **of_lists},
            lay(student),
            lay(weight),
        )
        expected = each(name, weight=ITEM_WEIGHT)[SPEAK].mean()
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[~lay(MASK)], 0.0)

    @each_loss
    def test_hides_what_is_no_probability(self, name):
        p, q = (np.where(MASK, expit(x), 9.0) for x in (TEACHER, STUDENT))
        value = ALL[name](from_logits=False)({"scores": p, "mask": MASK}, q)
        np.testing.assert_allclose(value, each(name)[SPEAK].mean(), rtol=1e-5)

    @pytest.mark.parametrize("dtype", ["int32", "float32"])
    def test_of_numbers(self, dtype):
        loss = ListwiseSoftTargets()
        np.testing.assert_array_equal(
            loss({"scores": TEACHER, "mask": MASK.astype(dtype)}, STUDENT),
            loss({"scores": TEACHER, "mask": MASK}, STUDENT),
        )

    @pytest.mark.parametrize("units", [False, True])
    @each_loss
    def test_of_keras(self, name, units):
        """The student's own mask counts as one that is given, and besides it."""
        other = np.ones_like(MASK)
        other[0, 3:] = False
        for given, mask in ({}, MASK), ({"mask": other}, MASK & other):
            student, teacher = STUDENT, TEACHER
            if units:
                student, teacher = student[..., None], teacher[..., None]
            student = neutral.masked(student, MASK)
            value = ALL[name]()({"scores": teacher, **given}, student)
            expected = each(name, mask=mask)[SPEAK].mean()
            np.testing.assert_allclose(value, expected, rtol=1e-5)
            assert keras_mask(student) is not None

    def test_of_keras_over_flat_rows(self):
        lay, of_lists = LAYOUTS["groups of one unit"]
        student = neutral.masked(lay(STUDENT), flat(MASK))
        value = ListwiseSoftTargets()({"scores": lay(TEACHER), "group": GROUP}, student)
        np.testing.assert_allclose(value, each("listwise")[SPEAK].mean(), rtol=1e-5)


def by_xla(function):
    return neutral.compilers()["XLA" if neutral.IS_TENSORFLOW else "jit"](function)


class TestXLA:
    """A compiled step knows no more of the lists than that they change."""

    @pytest.mark.parametrize("layout", ["lists", "groups"])
    @each_loss
    def test_value_and_gradient(self, name, layout):
        lay, of_lists = LAYOUTS[layout]
        if "group" in of_lists:
            # JAX has no integers of 64 bits
            _, ids = np.unique(of_lists["group"], return_inverse=True)
            ids = of_lists["group"] if neutral.IS_TENSORFLOW else ids
            of_lists = {**of_lists, "group": ids}
        of_lists = {key: ops.convert_to_tensor(of_lists[key]) for key in of_lists}
        loss = ALL[name]()

        @by_xla
        def called(mask, student):
            y_true = {"scores": lay(TEACHER), **of_lists, "mask": mask}
            function = neutral.differentiated(lambda s: loss(y_true, s))
            return function(student)

        def compiled(mask, student):
            value, (gradient,) = called(*map(ops.convert_to_tensor, (mask, student)))
            return value, gradient

        def hidden(mask):
            return lay(np.where(mask, STUDENT, np.nan).astype("float32"))

        value, gradient = compiled(lay(MASK), hidden(MASK))
        expected = each(name)[SPEAK].mean()
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        _, expected = value_and_gradient(
            loss, {"scores": lay(TEACHER), **of_lists}, lay(STUDENT)
        )
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
        for mask in (NOTHING, ONE_ITEM):
            value, gradient = compiled(lay(mask), hidden(mask))
            assert value == 0.0
            np.testing.assert_array_equal(gradient, 0.0)

    @pytest.mark.parametrize(
        "reduction", [None, "none", "sum", "mean_with_sample_weight"]
    )
    def test_reductions(self, reduction):
        loss = PairwiseSoftTargets(reduction=reduction)
        y_true = {"scores": TEACHER, "mask": MASK}
        compiled = by_xla(lambda *given: loss(*given))
        np.testing.assert_allclose(
            compiled(y_true, STUDENT, LIST_WEIGHT),
            loss(y_true, STUDENT, LIST_WEIGHT),
            rtol=1e-5,
        )

    def test_says_nothing_of_what_is_no_probability(self):
        loss = ListwiseSoftTargets(from_logits=False)
        compiled = by_xla(lambda *given: loss(*given))
        outputs = np.array([[[-2.0, 0.5]], [[0.2, 0.9]]], "float32")
        assert np.isfinite(compiled(*outputs))


class TestGroups:
    @pytest.mark.parametrize(
        "ids",
        [
            np.array(["a", "bb", "", "ä", "b"]),
            np.array(["a", "bb", "", "ä", "b"], object),
            np.array([2**40, 2**40 + 1, -(2**40), 2**62, 2**62 + 1]),
            np.array([2**64 - 1, 2**64 - 2, 2**63, 1, 0], "uint64"),
            np.array([0, 1, 2, 3, 4], "int8"),
        ],
        ids=lambda ids: str(ids.dtype),
    )
    @pytest.mark.parametrize("graph", [False, True])
    def test_ids(self, ids, graph):
        lay, of_lists = LAYOUTS["groups"]
        group = np.repeat(ids, 6)[ORDER]
        expected = each("listwise")[SPEAK].mean()
        given = {"scores": lay(TEACHER), "mask": of_lists["mask"]}
        loss = ListwiseSoftTargets()
        if graph:
            if not neutral.IS_TENSORFLOW and ids.dtype != "int8":
                pytest.skip("JAX has neither strings nor integers of 64 bits")
            compiled, *_ = neutral.compilers().values()
            value = compiled(lambda ids: loss({**given, "group": ids}, lay(STUDENT)))(
                ops.convert_to_tensor(group)
            )
        else:
            value = loss({**given, "group": group}, lay(STUDENT))
        np.testing.assert_allclose(value, expected, rtol=1e-5)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_more_rows_than_a_narrow_dtype_can_count(self, dtype):
        """Lists of two equal items: each has the loss log 2, mixed ones have more."""
        rows = 2600
        loss = ListwiseSoftTargets(dtype=dtype, reduction="none")
        scores = np.zeros(rows, "float32")
        values = loss({"scores": scores, "group": np.arange(rows) // 2}, scores)
        expected = np.where(np.arange(rows) % 2, 0.0, np.log(2.0))
        np.testing.assert_allclose(ops.cast(values, "float32"), expected, rtol=4e-3)

    @neutral.only_tensorflow
    @pytest.mark.parametrize("jit_compile", [False, True])
    @each_loss
    def test_batches_of_unknown_size(self, name, jit_compile):
        import tensorflow as tf

        lay, _ = LAYOUTS["groups"]
        loss = ALL[name]()
        rows = partial(tf.TensorSpec, (None,))

        @tf.function(
            input_signature=[rows(), rows(), rows(tf.int64)],
            jit_compile=jit_compile,
            autograph=False,
        )
        def value(teacher, student, group):
            return loss({"scores": teacher, "group": group}, student)

        expected = each(name, mask=np.ones_like(MASK)).mean()
        np.testing.assert_allclose(
            value(lay(TEACHER), lay(STUDENT), GROUP), expected, rtol=1e-5
        )

    @neutral.only_tensorflow
    @pytest.mark.parametrize("units", [(), (None,), (1,)])
    @each_loss
    def test_lists_of_unknown_size(self, name, units):
        import tensorflow as tf

        loss = ALL[name]()
        spec = tf.TensorSpec((None, None, *units), tf.float32)
        value = tf.function(loss.__call__, input_signature=[spec] * 2, autograph=False)
        shape = (5, 6, *[1] * len(units))
        expected = each(name, mask=np.ones_like(MASK)).mean()
        np.testing.assert_allclose(
            value(TEACHER.reshape(shape), STUDENT.reshape(shape)), expected, rtol=1e-5
        )


class TestExtremes:
    @each_loss
    def test_wide_gaps(self, name):
        teacher, student = RNG.uniform(-1e4, 1e4, (2, 20, 5)).astype("float32")
        student[0] = teacher[0]
        mask = np.ones(teacher.shape, bool)
        value, gradient = value_and_gradient(
            ALL[name](reduction="none"), teacher, student
        )
        expected = each(name, teacher, student, mask=mask)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
        assert np.isfinite(gradient).all()
        np.testing.assert_allclose(gradient[0], 0.0, atol=1e-8)

    @each_loss
    def test_equal_scores(self, name):
        equal = np.full((2, 4), -1e4, "float32")
        for teacher, student in ((equal, TEACHER[:2, :4]), (TEACHER[:2, :4], equal)):
            value, gradient = value_and_gradient(
                ALL[name](reduction="none"), teacher, student
            )
            mask = np.ones((2, 4), bool)
            expected = each(name, teacher, student, mask=mask)
            np.testing.assert_allclose(value, expected, rtol=1e-5)
            assert np.isfinite(gradient).all()

    @each_loss
    def test_infinities(self, name):
        """Tamed as in other losses, so that nothing becomes NaN."""
        teacher = np.array([[1.0, -np.inf, 2.0], [np.inf, 0.0, -np.inf]], "float32")
        for student in (teacher, teacher[:, ::-1].copy(), np.zeros((2, 3), "float32")):
            value, gradient = value_and_gradient(ALL[name](), teacher, student)
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    @each_layout
    @each_loss
    def test_narrow_outputs(self, name, layout, dtype):
        lay, of_lists = LAYOUTS[layout]
        teacher, student = (neutral.rounded(lay(x), dtype) for x in (TEACHER, STUDENT))
        value, gradient = value_and_gradient(
            ALL[name](), {"scores": teacher, **of_lists}, student, lay(ITEM_WEIGHT)
        )
        rounded = (
            np.asarray(neutral.rounded(x, dtype)).astype("float64")
            for x in (TEACHER, STUDENT)
        )
        expected = each(name, *rounded, weight=ITEM_WEIGHT)[SPEAK].mean()
        assert value.dtype == "float32"
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert gradient.dtype == neutral.dtype_of(student)

    @pytest.mark.parametrize(
        ("dtype", "rounding"), [("float16", 2e-3), ("bfloat16", 2e-2)]
    )
    @each_loss
    def test_narrow_results_of_wide_maths(self, name, dtype, rounding):
        teacher, student = (
            np.asarray(neutral.rounded(x, dtype)).astype("float32")
            for x in (TEACHER, STUDENT)
        )
        value = ALL[name](dtype=dtype)({"scores": teacher, "mask": MASK}, student)
        assert value.dtype == dtype
        expected = each(name, teacher, student)[SPEAK].mean()
        np.testing.assert_allclose(float(value), expected, rtol=rounding)

    @each_loss
    def test_float64(self, name):
        teacher, student = TEACHER.astype("float64") / 3, STUDENT.astype("float64") / 3
        with neutral.float64():
            loss = ALL[name](dtype="float64")
            value = loss({"scores": teacher, "mask": MASK}, student)
        expected = each(name, teacher, student)[SPEAK].mean()
        np.testing.assert_allclose(value, expected, rtol=1e-12)


def raises(message, error=ValueError):
    return pytest.raises(error, match=f"(?s){message}")


class TestErrors:
    @pytest.mark.parametrize(
        "shape", [(6,), (6, 1), (6, 1, 1), (2, 3, 4), (2, 3, 1, 1)]
    )
    @each_loss
    def test_no_lists(self, name, shape):
        message = re.escape(
            f"'group': ids}}, student_output)`. Received: shape {shape}"
        )
        with raises(f"student's output must have shape .batch, list_size.*{message}"):
            ALL[name]()(np.zeros(shape), np.zeros(shape))

    @pytest.mark.parametrize("shape", [(3, 2), (6, 1, 1), ()])
    def test_groups_of_no_rows(self, shape):
        message = re.escape("(batch,) or (batch, 1) where `group` ids tell which rows")
        with raises(f"student's .*{message}.* shape {re.escape(str(shape))}"):
            ListwiseSoftTargets()(
                {"scores": np.zeros(shape), "group": [1, 2, 3]}, np.zeros(shape)
            )

    @each_loss
    def test_outputs_that_differ(self, name):
        with raises(r"teacher output \(5, 4\), student output \(5, 6\)"):
            ALL[name]()(TEACHER[:, :4], STUDENT)

    @pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 5), (1, 6), (5, 6, 2)])
    def test_mask_of_another_shape(self, shape):
        message = (
            r"mask .*must have the shape of the scores, \(5, 6\). Received: shape "
        )
        with raises(message + re.escape(str(shape))):
            ListwiseSoftTargets()({"scores": TEACHER, "mask": np.ones(shape)}, STUDENT)
        student = neutral.masked(STUDENT, np.ones(shape, "bool"))
        with raises(f"Keras {message}" + re.escape(str(shape))):
            ListwiseSoftTargets()(TEACHER, student)

    def test_mask_of_too_few_rows(self):
        with raises(r"The mask .* scores, \(30,\). Received: shape \(29,\)"):
            ListwiseSoftTargets()(
                {"scores": flat(TEACHER), "group": GROUP, "mask": np.ones(29)},
                flat(STUDENT),
            )

    @pytest.mark.parametrize("shape", [(5, 5), (5, 6, 2)])
    def test_weights_of_another_shape(self, shape):
        message = r"`sample_weight` must have the shape of the scores, \(5, 6\).*"
        with raises(message + re.escape(str(shape))):
            ListwiseSoftTargets()(TEACHER, STUDENT, np.ones(shape))

    @pytest.mark.parametrize("shape", [(29,), (30, 2), (1, 30), ()])
    def test_ids_of_another_shape(self, shape):
        with raises(f"an id for each row .* shape {re.escape(str(shape))} for 30 rows"):
            ListwiseSoftTargets()(
                {"scores": flat(TEACHER), "group": np.ones(shape, "int32")},
                flat(STUDENT),
            )

    @pytest.mark.parametrize("convert", [np.asarray, ops.convert_to_tensor])
    def test_ids_that_are_floats(self, convert):
        with raises("`group` ids must be integers or strings.*float"):
            ListwiseSoftTargets()(
                {"scores": flat(TEACHER), "group": convert(GROUP.astype("float32"))},
                flat(STUDENT),
            )

    @pytest.mark.parametrize(
        "y_true", [{"labels": TEACHER}, {"scores": TEACHER, "masks": MASK}]
    )
    def test_keys_of_y_true(self, y_true):
        with raises(re.escape(f"Received: keys {sorted(y_true)}")):
            ListwiseSoftTargets()(y_true, STUDENT)

    @pytest.mark.parametrize("argument", ["mask", "group"])
    @each_loss
    def test_arguments_are_names(self, name, argument):
        with raises(f"`{argument}` must be the name .*{argument}=array", TypeError):
            ALL[name](**{argument: MASK})

    @pytest.mark.parametrize("values", [(-0.5, 0.3), (0.3, 1.5)])
    @each_loss
    def test_no_probabilities(self, name, values):
        p, wrong = np.array([[0.2, 0.9]]), np.array([values])
        loss = ALL[name](from_logits=False, name="kd")
        received = f"from_logits=True` for logits. Received: values from {values[0]}"
        with raises(f"`kd` was told .* teacher's .*{received}.* to {values[1]}"):
            loss(wrong.astype("float32"), p)
        with raises(f"`kd` was told .* student's .*{received}.* to {values[1]}"):
            loss(p, wrong.astype("float32"))

    @neutral.only_tensorflow
    def test_no_probabilities_in_a_graph(self):
        import tensorflow as tf

        loss = ListwiseSoftTargets(from_logits=False)
        p, logits = np.array([[0.2, 0.9]]), np.array([[-2.0, 0.5]])
        compiled = tf.function(lambda t, s: loss(t, s), autograph=False)
        compiled(p, p)
        for outputs, whose in ((logits, p), "teacher"), ((p, logits), "student"):
            with raises(
                f"`from_logits=False`, so the {whose}.*-2.*0.5",
                tf.errors.InvalidArgumentError,
            ):
                compiled(*outputs)

    def test_no_probabilities_of_units(self):
        loss = BinarySoftTargets(from_logits=False)
        with raises("the student's output must be probabilities.* from -3.0 to 1.0"):
            loss([[0.5, 0.5]], [[-3.0, 1.0]])

    @neutral.only_tensorflow
    def test_no_probabilities_of_units_in_a_graph(self):
        import tensorflow as tf

        loss = BinarySoftTargets(from_logits=False)
        with raises(
            "so the teacher.*must be probabilities", tf.errors.InvalidArgumentError
        ):
            tf.function(loss.__call__, autograph=False)([[2.0]], [[0.5]])

    def test_probabilities_may_be_rounded(self):
        p = np.array([[0.2, 1.0 + 1e-6]], "float32")
        assert np.isfinite(ListwiseSoftTargets(from_logits=False)(p, p))

    def test_nan_is_another_mistake(self):
        p = np.array([[0.2, np.nan]], "float32")
        assert np.isnan(ListwiseSoftTargets(from_logits=False)(p, p))

    @neutral.only_tensorflow
    @pytest.mark.parametrize("units", [(6,), (6, 1)])
    @each_loss
    def test_warns_of_a_sigmoid(self, name, units):
        model = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(6, "sigmoid"),
                keras.layers.Reshape(units),
            ]
        )
        model.compile(loss=ALL[name]())
        with pytest.warns(match="The student's .* Remove the model's final sigmoid"):
            model.train_on_batch(STUDENT, TEACHER)


class TestWithLists:
    INPUTS = {"is_item": MASK, "session": GROUP, "x": STUDENT}

    def test_names_nothing(self):
        for inputs in (self.INPUTS, STUDENT, None):
            assert ListwiseSoftTargets().with_lists(TEACHER, inputs) is TEACHER

    @each_loss
    def test_mask(self, name):
        loss = ALL[name](mask="is_item")
        y_true = loss.with_lists(TEACHER, self.INPUTS)
        assert y_true == {"scores": TEACHER, "mask": MASK}
        expected = each(name)[SPEAK].mean()
        np.testing.assert_allclose(loss(y_true, STUDENT), expected, rtol=1e-5)

    def test_mask_and_group(self):
        loss = PairwiseSoftTargets(group="session", mask="valid")
        inputs = {"session": GROUP, "valid": flat(MASK)}
        y_true = loss.with_lists(flat(TEACHER), inputs)
        assert set(y_true) == {"scores", "mask", "group"}
        expected = each("pairwise")[SPEAK].mean()
        np.testing.assert_allclose(loss(y_true, flat(STUDENT)), expected, rtol=1e-5)

    @pytest.mark.parametrize("argument", ["mask", "group"])
    def test_missing_input(self, argument):
        loss = ListwiseSoftTargets(**{argument: "page"}, name="kd")
        message = (
            f"`kd` has {argument}='page', but the batch holds no .*Received: inputs"
        )
        with raises(message + re.escape(" ['is_item', 'session', 'x']")):
            loss.with_lists(TEACHER, self.INPUTS)
        with raises(message + " ndarray"):
            loss.with_lists(TEACHER, STUDENT)

    @pytest.mark.parametrize("argument", ["mask", "group"])
    def test_names_are_not_forgotten(self, argument):
        """A loss that was told where its lists are isn't computed without them."""
        loss = ListwiseSoftTargets(**{argument: "page"}, name="kd")
        with raises(f"`kd` has {argument}='page', .*with_lists.* without '{argument}'"):
            loss(TEACHER, STUDENT)


class TestSerialisation:
    @pytest.mark.parametrize("by", ["config", "saving", "losses"])
    @each_loss
    def test_round_trip(self, name, by):
        arguments = {
            "mask": "is_item",
            "group": "session",
            "from_logits": False,
            "reduction": "sum",
            "name": "kd",
            "dtype": "float64",
        }
        if name in TEMPERED:
            arguments["temperature"] = 2.5
        loss = ALL[name](**arguments)
        again = copy(loss, by)
        assert type(again) is type(loss)
        assert again.get_config() == loss.get_config() == arguments
        for argument, value in arguments.items():
            assert getattr(again, argument) == value

    def test_of_a_schedule(self):
        schedule = PolynomialDecay(1.0, 10, 5.0)
        again = copy(PairwiseSoftTargets(schedule), "saving")
        assert again.temperature.get_config() == schedule.get_config()


def copy(loss, by):
    if by == "config":
        return type(loss).from_config(json.loads(json.dumps(loss.get_config())))
    if by == "losses":
        return keras.losses.deserialize(keras.losses.serialize(loss))
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    return keras.saving.deserialize_keras_object(config)


class TestPlainKeras:
    @pytest.mark.parametrize("run_eagerly", [False, True])
    def test_one_step_of_fit(self, run_eagerly):
        model = keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(6, use_bias=False)]
        )
        before = model.get_weights()[0].astype("float64")
        model.compile(
            keras.optimizers.SGD(0.5), ListwiseSoftTargets(), run_eagerly=run_eagerly
        )
        history = model.fit(
            STUDENT, TEACHER, sample_weight=LIST_WEIGHT, batch_size=5, verbose=0
        )

        def expected(kernel):
            student = STUDENT.astype("float64") @ kernel
            values = each("listwise", student=student, mask=np.ones_like(MASK))
            return (LIST_WEIGHT * values).mean()

        np.testing.assert_allclose(history.history["loss"], expected(before), rtol=1e-5)
        np.testing.assert_allclose(
            model.get_weights()[0],
            before - 0.5 * finite_differences(expected, before),
            rtol=1e-4,
            atol=1e-5,
        )

    @each_loss
    def test_mask_of_an_embedding(self, name):
        ids = np.where(MASK, 1 + np.arange(6), 0)
        model = keras.Sequential(
            [
                keras.Input((6,), dtype="int32"),
                keras.layers.Embedding(7, 4, mask_zero=True),
                keras.layers.Dense(1),
            ]
        )
        student = model.predict(ids, verbose=0)[..., 0]
        model.compile("sgd", ALL[name]())
        history = model.fit(ids, TEACHER, batch_size=5, verbose=0)
        np.testing.assert_allclose(
            history.history["loss"],
            each(name, student=student)[SPEAK].mean(),
            rtol=1e-5,
        )

"""Losses of recorded parts of the teacher's output: top k and samples."""

import warnings
from functools import partial

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from keras_distill import losses
from keras_distill.losses.calling import call_loss
from tests.losses import cases, neutral, reference
from tests.losses.neutral import only_tensorflow

RNG = np.random.default_rng(17)
# (rows, classes)
TEACHER, STUDENT = (2.0 * RNG.standard_normal((2, 12, 7))).astype("float32")
DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": ml_dtypes.bfloat16}
ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
COUNTS = RNG.multinomial(5, np.full(7, 1 / 7), 12)


def top_k(teacher, k):
    """The record as recorders write it: float32, finite."""
    packed = reference.packed_top_k(np.asarray(teacher, "float64"), k)
    return np.maximum(packed, -65504.0).astype("float32")


def samples(counts, n):
    """The record of draws, with n places."""
    ids = np.argsort(-counts, axis=-1)[..., :n]
    drawn = np.take_along_axis(counts, ids, -1)
    assert (drawn.sum(-1) == counts.sum(-1)).all()
    return np.concatenate([ids, drawn / counts.sum(-1, keepdims=True)], -1).astype(
        "float32"
    )


PACKED = {
    "TopKForwardKL": (losses.TopKForwardKL, top_k(TEACHER, 3)),
    "SampledSoftTargets": (losses.SampledSoftTargets, samples(COUNTS, 6)),
}
each_loss = pytest.mark.parametrize("name", PACKED)


def value_and_gradient(loss, teacher, student):
    teacher = ops.convert_to_tensor(teacher)
    return neutral.value_and_gradient(lambda s: loss(teacher, s), student)


def assert_close(got, expected, *, relative, absolute):
    got = np.asarray(got, "float64")
    allowed = np.maximum(relative * np.abs(expected), absolute)
    assert (np.abs(got - expected) <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("batch, k", [("ten classes", 3), ("32k classes", 16)])
def test_top_k_agrees_with_float64(batch, k, temperature, dtype):
    teacher, student = cases.batches()[batch]
    if batch == "ten classes":  # Infinite divergences are tested by themselves.
        finite = np.isfinite(teacher).all(-1)
        teacher, student = teacher[finite], student[finite]
    teacher, student = teacher.astype("float32"), student.astype(DTYPES[dtype])
    loss = losses.TopKForwardKL(temperature, reduction=None)
    value, gradient = value_and_gradient(loss, top_k(teacher, k), student)
    expected, expected_gradient = reference.top_k_forward_kl(
        teacher.astype("float64"), student.astype("float64"), temperature, k=k
    )
    # The record has the logarithms to the rounding of float32.
    rounding = 1e-3 if batch == "ten classes" else 1e-5
    absolute = 2e-6 * temperature**2
    assert_close(value, expected, relative=rounding, absolute=absolute)
    relative = 1e-5 + ROUNDING[dtype]
    assert_close(gradient, expected_gradient, relative=relative, absolute=5 * absolute)


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_agree_with_float64(dtype):
    student = STUDENT.astype(DTYPES[dtype])
    loss = losses.SampledSoftTargets(reduction=None)
    value, gradient = value_and_gradient(loss, samples(COUNTS, 6), student)
    expected, expected_gradient = reference.sampled_soft_targets(
        None, student.astype("float64"), counts=COUNTS
    )
    assert_close(value, expected, relative=1e-5, absolute=1e-6)
    relative = 1e-5 + ROUNDING[dtype]
    assert_close(gradient, expected_gradient, relative=relative, absolute=1e-6)


@pytest.mark.parametrize(
    "make_reference",
    [
        partial(reference.top_k_forward_kl, k=3),
        partial(reference.sampled_soft_targets, counts=COUNTS),
    ],
    ids=["top k", "samples"],
)
def test_gradients_of_the_reference_are_its_finite_differences(make_reference):
    teacher, student = TEACHER.astype("float64"), STUDENT.astype("float64")
    _, gradient = make_reference(teacher, student, 3.0)
    for index in range(7):
        step = 1e-6 * np.eye(7)[index]
        above, _ = make_reference(teacher, student + step, 3.0)
        below, _ = make_reference(teacher, student - step, 3.0)
        np.testing.assert_allclose(
            (above - below) / 2e-6, gradient[:, index], rtol=1e-5, atol=1e-6
        )


def test_top_k_by_the_formula():
    """In probabilities, as the formula is written, at temperature 1."""
    p, q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.2, 0.4, 0.3, 0.1])
    a, b = 0.8, 0.6
    expected = 0.5 * np.log(0.5 / 0.2) + 0.3 * np.log(0.3 / 0.4)
    expected += (1 - a) * (np.log(1 - a) - np.log(1 - b))
    loss = losses.TopKForwardKL()(top_k(np.log(p[None]), 2), np.log(q[None]))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_all_classes_are_the_forward_kl(temperature, dtype):
    """The rest is empty, whatever number stands for its logarithm."""
    student = STUDENT.astype(DTYPES[dtype])
    packed = top_k(TEACHER, 7)
    right = value_and_gradient(losses.ForwardKL(temperature), TEACHER, student)
    for nothing in (-65504.0, -np.inf, 0.0):
        packed[:, 14] = nothing
        found = value_and_gradient(losses.TopKForwardKL(temperature), packed, student)
        for one, other in zip(found, right, strict=True):
            np.testing.assert_allclose(
                one.astype("float32"), other.astype("float32"), rtol=2e-5, atol=1e-6
            )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_zero_at_equality(k, temperature):
    loss = losses.TopKForwardKL(temperature, reduction=None)
    value, gradient = value_and_gradient(loss, top_k(TEACHER, k), TEACHER)
    np.testing.assert_allclose(value, 0.0, atol=1e-6 * temperature**2)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6 * temperature)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_is_exactly_zero_at_equality(temperature, dtype):
    """Log-probabilities that all dtypes have, without any rounding."""
    student = np.log2([[0.5, 0.25, 0.125, 0.125]]).astype(DTYPES[dtype])
    packed = [[0, 1, 2, -1.0, -2.0, -3.0, -3.0, 0.0]]
    loss = losses.TopKForwardKL(temperature)
    value, gradient = value_and_gradient(loss, np.array(packed, "float32"), student)
    assert value == 0.0
    np.testing.assert_array_equal(gradient.astype("float32"), 0.0)
    uniform = np.zeros((1, 4), DTYPES[dtype])
    shares = np.array([[3, 1, 0, 2, 0.25, 0.25, 0.25, 0.25]], "float32")
    _, gradient = value_and_gradient(losses.SampledSoftTargets(), shares, uniform)
    np.testing.assert_array_equal(gradient.astype("float32"), 0.0)


def test_a_common_offset_costs_nothing():
    loss = losses.TopKForwardKL(2.0, reduction=None)
    student = np.round(STUDENT * 64) / 64  # Exact at the offset.
    np.testing.assert_array_equal(
        loss(top_k(TEACHER, 3), student + 1000.0), loss(top_k(TEACHER, 3), student)
    )


def test_samples_are_unbiased():
    """The mean gradient over many draws is that of the forward KL."""
    p = np.exp(reference.tempered(TEACHER[:1].astype("float64"), 1.0))
    counts = np.random.default_rng(0).multinomial(20, p[0], 4000)
    student = np.repeat(STUDENT[:1], len(counts), 0)
    loss = losses.SampledSoftTargets(reduction=None)
    _, gradient = value_and_gradient(loss, samples(counts, 7), student)
    _, right = reference.forward_kl(TEACHER[:1].astype("float64"), STUDENT[:1], 1.0)
    error = np.sqrt((p * (1 - p) / 20 / len(counts))[0])
    assert (np.abs(gradient.mean(0) - right[0]) < 5 * error + 1e-5).all()


def test_masked_classes():
    """Of probability 0, in both models: neither NaN nor a cost."""
    teacher, student = TEACHER.copy(), STUDENT.copy()
    teacher[:, 4:] = student[:, 4:] = -np.inf
    for k in (3, 4, 5):
        value, gradient = value_and_gradient(
            losses.TopKForwardKL(2.0, reduction=None), top_k(teacher, k), student
        )
        right, right_gradient = reference.top_k_forward_kl(
            teacher.astype("float64"), student.astype("float64"), 2.0, k=k
        )
        np.testing.assert_allclose(value, right, rtol=1e-4)
        np.testing.assert_allclose(gradient, right_gradient, rtol=1e-4, atol=1e-6)


@each_loss
def test_sample_weights_and_masks(name):
    make_loss, packed = PACKED[name]
    of_rows = neutral.numpy(make_loss(reduction=None)(packed, STUDENT))
    weights = np.arange(12.0, dtype="float32")
    np.testing.assert_allclose(
        make_loss()(packed, STUDENT, weights), (of_rows * weights).mean(), rtol=1e-5
    )
    mask = weights % 2 == 0
    np.testing.assert_allclose(
        make_loss()(packed, neutral.masked(STUDENT, mask)),
        of_rows[mask].mean(),
        rtol=1e-5,
    )


@each_loss
def test_round_trip(name):
    make_loss, packed = PACKED[name]
    kwargs = {"temperature": 3.0, "from_logits": True} if "Top" in name else {}
    loss = make_loss(name="recorded", reduction="sum", **kwargs)
    config = keras.saving.serialize_keras_object(loss)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == loss.get_config()
    np.testing.assert_array_equal(again(packed, STUDENT), loss(packed, STUDENT))


def test_the_students_probabilities():
    loss, of_probabilities = (
        losses.TopKForwardKL(2.0, from_logits=from_logits)
        for from_logits in (True, False)
    )
    packed, q = top_k(TEACHER, 3), neutral.softmax(STUDENT)
    np.testing.assert_allclose(
        of_probabilities(packed, q), loss(packed, STUDENT), rtol=1e-5
    )
    with pytest.warns(UserWarning, match="student's output looks like prob.*from_log"):
        losses.TopKForwardKL()(packed, q)


BAD_SHAPES = {
    "odd": np.zeros((12, 7), "float32"),
    "rank": np.zeros((12, 1, 8), "float32"),
    "rows": np.zeros((11, 8), "float32"),
    "scalar": np.zeros((), "float32"),
}


@pytest.mark.parametrize("shape", BAD_SHAPES)
@each_loss
def test_wrong_shapes(name, shape):
    with pytest.raises(ValueError, match=r"\[[kn] ids,.*teacher output \(.*\(12, 7\)"):
        call_loss(PACKED[name][0](), BAD_SHAPES[shape], STUDENT)


def test_widths_that_are_no_top_k():
    for width in (2, 18):  # k = 0, and more than there are classes
        with pytest.raises(ValueError, match="k at most the number of classes"):
            losses.TopKForwardKL()(np.zeros((12, width), "float32"), STUDENT)
    with pytest.raises(ValueError, match="BinarySoftTargets"):
        losses.TopKForwardKL()(np.zeros((12, 4)), np.zeros((12, 1)))


def bad_values():
    top, drawn = top_k(TEACHER, 3), samples(COUNTS, 6)

    def changed(packed, at, value):
        packed = packed.copy()
        packed[4, at] = value
        return packed

    return {
        "an id too large": ("TopKForwardKL", changed(top, 0, 7.0)),
        "a negative id": ("TopKForwardKL", changed(top, 2, -1.0)),
        "a part of an id": ("TopKForwardKL", changed(top, 1, 2.5)),
        "NaN": ("TopKForwardKL", changed(top, 1, np.nan)),
        "a mean of two records": ("TopKForwardKL", (top + top[::-1]) / 2),
        "logits": ("TopKForwardKL", np.concatenate([TEACHER, TEACHER[:, :1]], -1)),
        "samples for a top k": ("TopKForwardKL", drawn),
        "a share above 1": ("SampledSoftTargets", changed(drawn, 6, 2.0)),
        "an id of samples": ("SampledSoftTargets", changed(drawn, 0, 7.0)),
        "a top k for samples": ("SampledSoftTargets", top),
    }


@pytest.mark.parametrize("case", bad_values())
def test_wrong_values_are_named(case):
    name, packed = bad_values()[case]
    loss = PACKED[name][0]()
    with pytest.raises(ValueError, match=r"for 7 classes.*Received: ids from .* numb"):
        loss(packed, STUDENT)


@pytest.mark.parametrize("compiler", neutral.compilers())
@pytest.mark.parametrize("case", bad_values())
def test_wrong_values_in_compiled_steps(case, compiler):
    """A graph raises. What XLA and JAX compile can't, and the value is NaN."""
    name, packed = bad_values()[case]
    loss = PACKED[name][0](reduction=None)
    compiled = neutral.compilers()[compiler](lambda s: loss(packed, s))
    if compiler == "graph":
        import tensorflow as tf

        with pytest.raises(
            (tf.errors.InvalidArgumentError, ValueError), match="for 7 classes"
        ):
            compiled(ops.convert_to_tensor(STUDENT))
        return
    traced = neutral.compilers()[compiler](lambda p, s: loss(p, s))
    values = neutral.numpy(traced(*map(ops.convert_to_tensor, (packed, STUDENT))))
    assert np.isnan(values[4])


@each_loss
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_would_round_ids(name, dtype):
    make_loss, packed = PACKED[name]
    with pytest.raises(ValueError, match="half precision rounds.*float16"):
        make_loss(dtype="float16")(packed, STUDENT)
    with pytest.raises(ValueError, match=f"half precision rounds.*{dtype}"):
        make_loss()(neutral.rounded(packed, dtype), STUDENT)


def test_ids_of_many_classes_are_exact():
    classes = 130_000
    student = np.zeros((1, classes), "float32")
    student[0, 129_999] = 5.0
    packed = np.array([[129_999, 129_998, -0.1, -3.0, -3.5, 0.0]], "float32")
    _, gradient = value_and_gradient(losses.TopKForwardKL(), packed, student)
    q = np.exp(5.0) / (np.exp(5.0) + classes - 1)
    p = np.exp(packed[0, 2:5]) / np.exp(packed[0, 2:5]).sum()
    np.testing.assert_allclose(gradient[0, 129_999], q - p[0], rtol=1e-4)


OTHERS = {
    "ForwardKL": losses.ForwardKL(),
    "ReverseKL": losses.ReverseKL(),
    "SoftTargets": losses.SoftTargets(),
    "LogitMSE": losses.LogitMSE(),
    "DIST": losses.DIST(),
}


@each_loss
@pytest.mark.parametrize("other", OTHERS)
def test_other_divergences_refuse_a_part_of_the_output(name, other):
    """By name and with the reason, where the shapes show it."""
    _, packed = PACKED[name]
    with pytest.raises(ValueError, match=r"TopKForwardKL.*renormalised.*reverse KL"):
        OTHERS[other](packed, STUDENT)


@each_loss
def test_parts_are_not_standardised(name):
    with pytest.raises(TypeError, match="only a part of the teacher's was recorded"):
        losses.Standardized(PACKED[name][0]())


@only_tensorflow
def test_sizes_that_are_not_known_before_the_step():
    """Rows and times are open, as in a data set; the width must be known."""
    import tensorflow as tf

    loss = losses.TopKForwardKL(reduction=None)
    teacher, student = (x.reshape(3, 4, -1) for x in (top_k(TEACHER, 3), STUDENT))

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, None, 8)),
            tf.TensorSpec((None, None, 7)),
        ]
    )
    def step(teacher, student):
        return call_loss(loss, teacher, student)

    np.testing.assert_allclose(
        step(teacher, student), loss(teacher, student), rtol=1e-5, atol=1e-7
    )

    @tf.function(input_signature=[tf.TensorSpec(None)])
    def unknown(teacher):
        return call_loss(loss, teacher, STUDENT)

    with pytest.raises(ValueError, match="both of known size"):
        unknown(top_k(TEACHER, 3))


def test_no_warning_of_packed_targets():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make_loss, packed in PACKED.values():
            make_loss()(packed, STUDENT)

"""Divergences from hidden states, against NumPy in float64 and losses of logits."""

from functools import partial

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_distill as kd
from keras_distill import losses
from keras_distill.losses.vocabulary import (
    Head,
    VocabularyLoss,
    per_token,
    weighted_sum,
)
from tests import slow
from tests.backends import tensorflow_only
from tests.losses import cases, neutral, reference
from tests.losses.neutral import is_stopped, masked, numpy, value_and_gradient

TOKENS, VOCABULARY, OF_TEACHER, OF_STUDENT = 10, 7, 5, 3
RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.standard_normal(shape).astype("float32")


TEACHER, STUDENT = normal(TOKENS, OF_TEACHER), normal(TOKENS, OF_STUDENT)
TEACHER_HEAD = Head(normal(OF_TEACHER, VOCABULARY), normal(VOCABULARY))
KERNEL, BIAS = normal(OF_STUDENT, VOCABULARY), normal(VOCABULARY)
WEIGHT = np.where(np.arange(TOKENS) % 4 == 1, 0.0, RNG.random(TOKENS)).astype("float32")

# The class and its reference, at temperature 2.
LOSSES = {
    "SoftTargets": (losses.SoftTargets, reference.soft_targets),
    "ForwardKL": (losses.ForwardKL, reference.forward_kl),
    "ReverseKL": (losses.ReverseKL, reference.reverse_kl),
    "Jeffreys": (losses.Jeffreys, reference.jeffreys),
    "TotalVariation": (losses.TotalVariation, reference.total_variation),
    **{
        f"JSD({beta}, {normalize})": (
            partial(losses.GeneralizedJSD, beta, normalize=normalize),
            partial(reference.generalized_jsd, beta=beta, normalize=normalize),
        )
        for beta, normalize in ((0.0, False), (0.5, False), (0.2, True), (1.0, True))
    },
}
COMPILERS = neutral.compilers()
each_compiler = pytest.mark.parametrize(
    "compiler",
    slow.but(COMPILERS.keys() - {"XLA"}, COMPILERS, "XLA compiles a loop"),
)
each_loss = pytest.mark.parametrize("name", LOSSES)


def made(name):
    return LOSSES[name][0](temperature=2.0)


def test_every_divergence_is_tried():
    cases.assert_all_divergences(map(made, LOSSES))


def exact(name, weight=WEIGHT, bias=BIAS, student=STUDENT):
    """Values, and gradients of their weighted sum in hidden states, kernel and bias."""
    teacher, student, kernel, weight = (
        np.asarray(x, "float64") for x in (TEACHER, student, KERNEL, weight)
    )
    t = teacher @ TEACHER_HEAD.kernel.astype("float64") + TEACHER_HEAD.bias
    s = student @ kernel + (0.0 if bias is None else bias)
    values, of_logits = LOSSES[name][1](t, s, 2.0)
    of_logits = weight[:, None] * of_logits
    return values, [of_logits @ kernel.T, student.T @ of_logits, of_logits.sum(0)]


def given(loss, compute, **options):
    """A function of the student's hidden states, kernel and bias."""

    def function(hidden, kernel, *bias):
        return compute(
            loss,
            TEACHER,
            hidden,
            teacher_head=TEACHER_HEAD,
            student_head=Head(kernel, *bias),
            **options,
        )

    return function


def summed(loss, chunk=4):
    return given(loss, weighted_sum, weight=WEIGHT, chunk=chunk)


def weighted_values(loss, chunk=4):
    values = given(loss, per_token, chunk=chunk)
    return lambda *inputs: ops.sum(values(*inputs) * WEIGHT)


def assert_close(found, expected, tolerance=2e-6):
    """Compare arrays by the norm of their difference."""
    error = np.linalg.norm(np.asarray(found, "float64") - expected)
    assert error <= tolerance * max(np.linalg.norm(expected), 1e-3)


class TestValuesAndGradients:
    @each_loss
    @pytest.mark.parametrize("path", [summed, weighted_values])
    def test_are_those_of_the_logits(self, name, path):
        value, found = value_and_gradient(path(made(name)), STUDENT, KERNEL, BIAS)
        values, expected = exact(name)
        assert_close(value, (WEIGHT * values).sum())
        for gradient, each in zip(found, expected, strict=True):
            assert_close(gradient, each)

    @pytest.mark.parametrize("path", [summed, weighted_values])
    def test_without_a_bias(self, path):
        value, found = value_and_gradient(path(made("ReverseKL")), STUDENT, KERNEL)
        values, expected = exact("ReverseKL", bias=None)
        assert_close(value, (WEIGHT * values).sum())
        for gradient, each in zip(found, expected[:2], strict=True):
            assert_close(gradient, each)

    @each_loss
    def test_value_of_each_token(self, name):
        values = given(made(name), per_token, chunk=3)(STUDENT, KERNEL, BIAS)
        assert_close(numpy(values), exact(name)[0])

    @pytest.mark.parametrize("chunk", [1, 3, 10, 128])
    @pytest.mark.parametrize("path", [summed, weighted_values])
    def test_any_size_of_chunks(self, chunk, path):
        function = path(losses.GeneralizedJSD(0.2, 2.0, normalize=True), chunk)
        _, found = value_and_gradient(function, STUDENT, KERNEL, BIAS)
        for gradient, each in zip(found, exact("JSD(0.2, True)")[1], strict=True):
            assert_close(gradient, each)

    @each_compiler
    @pytest.mark.parametrize("path", [summed, weighted_values])
    def test_in_a_compiled_step(self, compiler, path):
        differentiated = neutral.differentiated(path(losses.ReverseKL(2.0)))
        step = COMPILERS[compiler](differentiated)
        value, found = step(*map(ops.convert_to_tensor, (STUDENT, KERNEL, BIAS)))
        values, expected = exact("ReverseKL")
        assert_close(numpy(value), (WEIGHT * values).sum())
        for gradient, each in zip(found, expected, strict=True):
            assert_close(numpy(gradient), each)

    @tensorflow_only("other backends know all sizes")
    @pytest.mark.parametrize("tokens", [0, 1, 8, 9])
    def test_a_number_of_tokens_that_is_known_late(self, tokens):
        import tensorflow as tf

        loss = losses.ForwardKL(2.0)

        def function(teacher, student):
            heads = {"teacher_head": TEACHER_HEAD, "student_head": Head(KERNEL, BIAS)}
            return per_token(loss, teacher, student, chunk=4, **heads)

        specs = [tf.TensorSpec((None, n)) for n in (OF_TEACHER, OF_STUDENT)]
        late = tf.function(function, input_signature=specs)
        values = late(TEACHER[:tokens], STUDENT[:tokens])
        assert values.shape == (tokens,)
        assert_close(values.numpy(), exact("ForwardKL")[0][:tokens])

    @each_loss
    def test_no_gradient_where_both_agree(self, name):
        head = Head(KERNEL, BIAS)
        loss = made(name)

        def function(hidden):
            return ops.sum(
                per_token(loss, STUDENT, hidden, teacher_head=head, student_head=head)
            )

        _, gradient = value_and_gradient(function, STUDENT)
        np.testing.assert_array_equal(
            gradient, 0.0, "`gradient` must sum terms that are each 0 where p == q"
        )

    @each_loss
    def test_finite_at_logits_that_are_far_apart(self, name):
        far = [1e4, -1e4, 0.0, 1.0, -1.0] * 2
        student = np.asarray(far, "float32")[:, None] * np.ones(OF_STUDENT, "float32")
        value, found = value_and_gradient(summed(made(name)), student, KERNEL, BIAS)
        assert np.isfinite(value)
        assert all(np.isfinite(gradient).all() for gradient in found), (
            "`gradient` overflows: compute no ratio such as p / q"
        )

    def test_masked_entries_of_the_vocabulary(self):
        of_teacher, of_student = TEACHER_HEAD.bias.copy(), BIAS.copy()
        of_teacher[2] = of_student[2] = -np.inf
        loss = losses.Jeffreys(2.0)
        kept = np.arange(VOCABULARY) != 2

        def function(hidden, which):
            heads = {
                "teacher_head": (TEACHER_HEAD.kernel, of_teacher),
                "student_head": (KERNEL, of_student),
            }
            heads = {k: Head(w[:, which], b[which]) for k, (w, b) in heads.items()}
            return ops.sum(per_token(loss, TEACHER, hidden, **heads))

        value, gradient = value_and_gradient(partial(function, which=kept), STUDENT)
        every = np.ones(VOCABULARY, bool)
        found = value_and_gradient(partial(function, which=every), STUDENT)
        assert_close(found[0], value)
        assert_close(found[1], gradient)


class TestWhatGradientsReach:
    def test_neither_the_teacher_nor_the_weights(self):
        def function(hidden, kernel, bias, weight):
            return weighted_sum(
                losses.ForwardKL(),
                hidden,
                STUDENT,
                teacher_head=Head(kernel, bias),
                student_head=Head(KERNEL, BIAS),
                weight=weight,
            )

        _, found = value_and_gradient(function, TEACHER, *TEACHER_HEAD, WEIGHT)
        assert all(map(is_stopped, found))

    @pytest.mark.parametrize("compute", [per_token, weighted_sum])
    def test_the_student_where_both_have_one_head(self, compute):
        options = {"weight": WEIGHT} if compute is weighted_sum else {}

        def function(hidden, kernel):
            head = Head(kernel)
            of_teacher = ops.stop_gradient(hidden) + 1.0
            options.update(teacher_head=head, student_head=head)
            return ops.sum(
                compute(losses.ReverseKL(2.0), of_teacher, hidden, **options)
            )

        _, (of_hidden, of_kernel) = value_and_gradient(function, STUDENT, KERNEL)
        t, s = ((STUDENT + more).astype("float64") @ KERNEL for more in (1.0, 0.0))
        gradient = reference.reverse_kl(t, s, 2.0)[1]
        if options.get("weight") is not None:
            gradient = gradient * WEIGHT[:, None]
        assert_close(of_hidden, gradient @ KERNEL.T)
        assert_close(of_kernel, STUDENT.T @ gradient)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("path", [summed, weighted_values])
class TestHalfPrecision:
    def test_products_are_added_up_in_float32(self, dtype, path):
        rounded = neutral.rounded(STUDENT, dtype)
        function = path(losses.GeneralizedJSD(0.5, 2.0))
        value, found = value_and_gradient(function, rounded, KERNEL, BIAS)
        student = numpy(ops.cast(rounded, "float32"))
        values, expected = exact("JSD(0.5, False)", student=student)
        assert_close(value, (WEIGHT * values).sum())
        step = float(np.finfo("float16").eps) if dtype == "float16" else 2.0**-8
        assert neutral.dtype_of(found[0]) == neutral.dtype_of(rounded)
        assert_close(found[0].astype("float32"), expected[0], step)
        assert_close(found[1], expected[1])

    def test_of_a_kernel(self, dtype, path):
        kernel = neutral.rounded(KERNEL, dtype)
        function = path(losses.ForwardKL(2.0))
        value, found = value_and_gradient(function, STUDENT, kernel)
        rounded = numpy(ops.cast(kernel, "float32"))
        expected = value_and_gradient(function, STUDENT, rounded)
        assert_close(value, expected[0])
        assert_close(found[0], expected[1][0])
        assert neutral.dtype_of(found[1]) == neutral.dtype_of(kernel)


def holds_all_logits(function, *inputs):
    """Whether a tensor of a compiled function is as large as all logits of a model."""
    size = 2 * TOKENS * VOCABULARY
    if neutral.IS_TENSORFLOW:
        import tensorflow as tf

        traced = tf.function(function, autograph=False).get_concrete_function(*inputs)
        graph = traced.graph.as_graph_def(add_shapes=True)
        nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
        shapes = [
            [dimension.size for dimension in shape.dim]
            for node in nodes
            for shape in node.attr["_output_shapes"].list.shape
        ]
        assert shapes
        return any(np.prod(shape) >= size for shape in shapes)
    import re

    import jax

    text = str(jax.make_jaxpr(function)(*inputs))
    found = re.findall(r"f32\[([\d,]+)\]", text)
    assert found
    return any(np.prod([*map(int, shape.split(","))]) >= size for shape in found)


@pytest.mark.parametrize("path", [summed, weighted_values])
def test_the_logits_of_all_tokens_are_never_there(path, monkeypatch):
    for name in ("TEACHER", "WEIGHT"):
        monkeypatch.setitem(globals(), name, np.concatenate([globals()[name]] * 2))
    inputs = np.concatenate([STUDENT] * 2), KERNEL, BIAS
    inputs = [ops.convert_to_tensor(x) for x in inputs]
    step = neutral.differentiated(path(losses.Jeffreys(2.0)))
    assert not holds_all_logits(step, *inputs)

    loss = losses.Jeffreys(2.0)

    def plain(hidden, kernel, bias):
        logits = ops.matmul(hidden, kernel) + bias
        return ops.sum(loss.divergence(ops.ones_like(logits), logits, 2.0))

    assert holds_all_logits(neutral.differentiated(plain), *inputs)


class TestTheLoss:
    """`VocabularyLoss` beside the same loss of logits."""

    SHAPE = (2, 5)
    MASK = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]], bool)

    @pytest.fixture
    def loss(self):
        return self.made()

    def made(self, **options):
        return VocabularyLoss(
            losses.ForwardKL(2.0),
            teacher_head=TEACHER_HEAD,
            student_head=Head(KERNEL, BIAS),
            chunk=4,
            **options,
        )

    @property
    def outputs(self):
        return (x.reshape(*self.SHAPE, -1) for x in (TEACHER, STUDENT))

    @property
    def values(self):
        return exact("ForwardKL")[0].reshape(self.SHAPE)

    def test_mean_over_tokens(self, loss):
        assert_close(float(loss(*self.outputs)), self.values.mean())

    def test_sample_weights(self, loss):
        weight = WEIGHT.reshape(self.SHAPE)
        expected = (weight * self.values).sum() / (weight > 0.0).sum()
        assert_close(float(loss(*self.outputs, weight)), expected)
        of_rows = np.array([2.0, 0.0])
        expected = 2.0 * self.values[0].mean()
        assert_close(float(loss(*self.outputs, of_rows)), expected)
        assert_close(float(loss(*self.outputs, of_rows[:, None])), expected)

    def test_mask(self, loss):
        teacher, student = self.outputs
        found = loss(teacher, masked(student, self.MASK))
        assert_close(float(found), self.values[self.MASK].mean())

    def test_sum(self):
        loss, weight = self.made(reduction="sum"), WEIGHT.reshape(self.SHAPE)
        found = loss(*self.outputs, weight)
        assert_close(float(found), (weight * self.values).sum())

    def test_values(self):
        weight = WEIGHT.reshape(self.SHAPE)
        found = self.made(reduction=None)(*self.outputs, weight)
        assert_close(numpy(found), weight * self.values)

    def test_padding_changes_nothing(self, loss):
        teacher, student = self.outputs
        more = [(0, 0), (3, 4), (0, 0)]
        padded = [np.pad(x, more, constant_values=np.nan) for x in (teacher, student)]
        mask = np.pad(self.MASK, more[:2])

        def function(student, teacher, mask):
            return loss(teacher, student, mask)

        expected = value_and_gradient(
            partial(function, teacher=teacher, mask=self.MASK), student
        )
        found = value_and_gradient(
            partial(function, teacher=padded[0], mask=mask), padded[1]
        )
        assert_close(found[0], expected[0])
        assert_close(found[1][:, 3:8], expected[1])
        assert not found[1][~mask].any()

    def test_all_padding(self, loss):
        teacher, student = self.outputs
        nothing = np.zeros(self.SHAPE)
        value, gradient = value_and_gradient(
            lambda student: loss(teacher, student, nothing), student
        )
        assert value == 0.0 and not gradient.any()

    def test_scheduled_temperature(self):
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay([5], [1.0, 2.0])
        loss = VocabularyLoss(
            losses.ForwardKL(schedule),
            teacher_head=TEACHER_HEAD,
            student_head=Head(KERNEL, BIAS),
        )
        found = loss.for_batch(kd.losses.BatchContext(step=9))(*self.outputs)
        assert_close(float(found), self.values.mean())


class TestHeads:
    def value(self, head, kernel, bias=None):
        """Assert that a layer has the logits of a kernel."""
        options = {"teacher_head": TEACHER_HEAD}
        loss = losses.ForwardKL()
        found, expected = (
            numpy(per_token(loss, TEACHER, STUDENT, student_head=each, **options))
            for each in (head, Head(kernel, bias))
        )
        assert_close(found, expected)

    def test_dense(self):
        dense = layers.Dense(VOCABULARY)
        dense.build((None, OF_STUDENT))
        dense.set_weights([KERNEL, BIAS])
        self.value(dense, KERNEL, BIAS)

    def test_dense_with_lora(self):
        dense = layers.Dense(VOCABULARY, use_bias=False)
        dense.build((None, OF_STUDENT))
        dense.enable_lora(2)
        dense.lora_kernel_b.assign(normal(2, VOCABULARY))
        self.value(
            dense, numpy(ops.matmul(np.eye(OF_STUDENT, dtype="float32"), dense.kernel))
        )

    def test_tied_embedding(self):
        embedding = layers.Embedding(VOCABULARY, OF_STUDENT)
        embedding.build()
        embedding.set_weights([KERNEL.T])
        self.value(embedding, KERNEL)


class OwnDivergence(losses.ForwardKL):
    def divergence(self, teacher_logits, student_logits, temperature):
        return ops.sum(ops.abs(teacher_logits - student_logits), axis=-1)


class Capped(layers.Embedding):
    logit_soft_cap = 30.0


def built(layer):
    layer.build((None, OF_STUDENT))
    return layer


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"loss": losses.LogitMSE()},
            TypeError,
            "gradient in closed form, which .* `ForwardKL`",
        ),
        ({"loss": losses.DIST()}, TypeError, "gradient in closed form"),
        (
            {"loss": OwnDivergence()},
            TypeError,
            "computes another value than `ForwardKL`",
        ),
        (
            {"loss": losses.ForwardKL(from_logits=False)},
            ValueError,
            "from_logits=False",
        ),
        ({"loss": losses.ForwardKL(axis=1)}, ValueError, "axis=1"),
        ({"chunk": 0}, ValueError, "Received: chunk=0"),
        ({"reduction": "mean"}, ValueError, "Received: reduction='mean'"),
        ({"student_head": KERNEL}, TypeError, "must be a `Dense` layer"),
        (
            {"student_head": layers.Dense(7)},
            ValueError,
            "`student_head` must be a layer",
        ),
        (
            {"teacher_head": built(layers.Dense(7, "softmax"))},
            ValueError,
            "This one has an activation",
        ),
        (
            {"teacher_head": built(Capped(7, OF_STUDENT))},
            ValueError,
            "a soft cap of the logits",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_of_arguments(options, error, message):
    arguments = {
        "loss": losses.ForwardKL(),
        "teacher_head": TEACHER_HEAD,
        "student_head": Head(KERNEL),
        **options,
    }
    with pytest.raises(error, match=message):
        VocabularyLoss(**arguments)


@pytest.mark.parametrize(
    ("teacher", "student", "kernel", "bias", "message"),
    [
        (TEACHER[:4], STUDENT, KERNEL, BIAS, "of the same tokens"),
        (TEACHER[0], STUDENT[0], KERNEL, BIAS, r"shape \(\.\.\., hidden\)"),
        (TEACHER, TEACHER, KERNEL, BIAS, r"5 hidden units, a kernel of shape \(3, 7\)"),
        (TEACHER, STUDENT, KERNEL[:, :6], None, "must have one vocabulary"),
        (TEACHER, STUDENT, KERNEL, BIAS[:6], r"shape \(vocabulary,\)"),
        (TEACHER, STUDENT, BIAS, None, r"shape \(hidden, vocabulary\)"),
    ],
    ids=["tokens", "rank", "width", "vocabulary", "bias", "kernel"],
)
def test_errors_of_shapes(teacher, student, kernel, bias, message):
    head = Head(kernel, bias)
    loss = VocabularyLoss(
        losses.ForwardKL(), teacher_head=TEACHER_HEAD, student_head=head
    )
    with pytest.raises(ValueError, match=message):
        loss(teacher, student)


def token_model(width, seed):
    """A model that returns hidden states and logits for tokens."""
    keras.utils.set_random_seed(seed)
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    hidden = layers.Embedding(VOCABULARY, width)(tokens)
    hidden = layers.Dense(width, "tanh")(hidden)
    logits = layers.Dense(VOCABULARY, name="head")(hidden)
    return keras.Model(tokens, {"hidden": hidden, "logits": logits})


class TestInADistiller:
    """It trains as one whose loss is given logits."""

    X = RNG.integers(0, VOCABULARY, (8, 6))
    Y = np.roll(X, -1, axis=1)
    WEIGHT = np.where(X > 1, 1.0, 0.0)

    def distiller(self, from_hidden):
        teacher, student = token_model(16, 0), token_model(4, 1)
        loss = losses.GeneralizedJSD(0.3, 2.0, reduction="mean_with_sample_weight")
        if from_hidden:
            heads = (model.get_layer("head") for model in (teacher, student))
            named = zip(("teacher_head", "student_head"), heads, strict=True)
            loss = VocabularyLoss(loss, chunk=32, **dict(named))
        output = "hidden" if from_hidden else "logits"
        teacher = keras.Model(teacher.input, {output: teacher.output[output]})
        distiller = kd.Distiller(student, teacher)
        label_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(
            keras.optimizers.SGD(10.0),
            {"hidden": None, "logits": label_loss},
            distillation_loss={"hidden": None, "logits": None, output: loss},
            alpha=0.7,
        )
        return distiller

    def fitted(self, from_hidden):
        distiller = self.distiller(from_hidden)
        # Keras wants labels for each output that has weights, also where no loss reads
        # them.
        by_output = ({"hidden": x, "logits": x} for x in (self.Y, self.WEIGHT))
        data = {"tokens": self.X}, *by_output
        options = {"batch_size": 4, "shuffle": False, "verbose": 0}
        x, y, weight = data
        logs = distiller.fit(x, y, sample_weight=weight, **options).history
        return distiller, logs

    def test_trains_the_student_and_its_head(self):
        (found, logs), (expected, of_logits) = map(self.fitted, (True, False))
        for name, values in of_logits.items():
            np.testing.assert_allclose(logs[name], values, rtol=1e-5, err_msg=name)
        start = token_model(4, 1).get_weights()
        pairs = zip(found.student.weights, expected.student.weights, start, strict=True)
        for weight, of_expected, before in pairs:
            weight, of_expected = numpy(weight), numpy(of_expected)
            assert np.abs(weight - before).max() > 1e-3
            np.testing.assert_allclose(weight, of_expected, atol=1e-5)

    def test_files_hold_no_heads(self, tmp_path):
        distiller = self.distiller(True)
        distiller.save(tmp_path / "distiller.keras")
        loaded = kd.Distiller.load(
            tmp_path / "distiller.keras", teacher=distiller.teacher
        )
        with pytest.raises(ValueError, match="doesn't hold the heads. Compile again"):
            loaded.train_on_batch({"tokens": self.X}, {"logits": self.Y})

    def test_a_head_that_the_student_lacks(self):
        teacher, student = token_model(16, 0), token_model(4, 1)
        heads = [model.get_layer("head") for model in (teacher, student)]
        loss = VocabularyLoss(
            losses.ForwardKL(), teacher_head=heads[0], student_head=heads[1]
        )
        bodies = (keras.Model(m.input, m.output["hidden"]) for m in (student, teacher))
        distiller = kd.Distiller(*bodies)
        with pytest.raises(
            ValueError, match=r"must hold all weights .*\['head/kernel'"
        ):
            distiller.compile("sgd", distillation_loss=loss, alpha=1.0)
        heads[1].trainable = False
        distiller.compile("sgd", distillation_loss=loss, alpha=1.0)

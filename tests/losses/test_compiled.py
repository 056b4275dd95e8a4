"""Every public loss in a compiled step: the values and gradients of an eager call."""

from functools import partial

import numpy as np
import pytest
from keras import ops

from keras_distill import losses
from keras_distill.hints import losses as feature_losses
from tests import slow
from tests.losses import neutral, reference
from tests.losses.neutral import differentiated, masked

RNG = np.random.default_rng(8)
# (batch, time, classes)
TEACHER, STUDENT = (2.0 * RNG.standard_normal((2, 5, 4, 6))).astype("float32")
MASK = np.arange(4) < np.array([4, 2, 1, 3, 0])[:, None]
LABELS = RNG.integers(0, 6, (5, 4))
LABELLED = RNG.random((5, 4)) < 0.7
GROUP = np.array([3, 1, 3, 3, 1])


def decoupled(**kwargs):
    return losses.DecoupledKD(2.0, **kwargs).with_labels(LABELS, labelled=LABELLED)


def standardized(**kwargs):
    return losses.Standardized(losses.ForwardKL(2.0, **kwargs))


OF_CLASSES = {
    "SoftTargets": partial(losses.SoftTargets, 2.0),
    "ForwardKL": partial(losses.ForwardKL, 2.0),
    "ReverseKL": partial(losses.ReverseKL, 2.0),
    "GeneralizedJSD": partial(losses.GeneralizedJSD, 0.3, 2.0, normalize=True),
    "Jeffreys": partial(losses.Jeffreys, 2.0),
    "TotalVariation": partial(losses.TotalVariation, 2.0),
    "BinarySoftTargets": partial(losses.BinarySoftTargets, 2.0),
    "DIST": partial(losses.DIST, 2.0),
    "DecoupledKD": decoupled,
    "LogitMSE": losses.LogitMSE,
    "Standardized": standardized,
}
# Their `y_true` is a part of the teacher's output in another form.
OF_PACKED = {
    "TopKForwardKL": partial(losses.TopKForwardKL, 2.0),
    "SampledSoftTargets": losses.SampledSoftTargets,
}
OF_LISTS = {
    "ListwiseSoftTargets": partial(losses.ListwiseSoftTargets, 2.0),
    "PairwiseSoftTargets": partial(losses.PairwiseSoftTargets, 2.0),
    "CalibratedListwise": losses.CalibratedListwise,
}
OF_FEATURES = {
    "FeatureMSE": feature_losses.FeatureMSE,
    "AttentionTransfer": feature_losses.AttentionTransfer,
    "RelationalDistance": feature_losses.RelationalDistance,
    "RelationalAngle": feature_losses.RelationalAngle,
    "SimilarityPreserving": feature_losses.SimilarityPreserving,
}
EVERY = {**OF_CLASSES, **OF_PACKED, **OF_LISTS, **OF_FEATURES}
OF_PROBABILITIES = [name for name in EVERY if name in OF_LISTS] + [
    name for name in OF_CLASSES if name != "LogitMSE"
]
TOP_2 = reference.packed_top_k(TEACHER.astype("float64"), 2).astype("float32")
SAMPLED = np.concatenate(
    [RNG.integers(0, 6, (5, 4, 3)), RNG.dirichlet([1.0, 1.0, 1.0], (5, 4))], -1
).astype("float32")
# A value of these depends on other examples of the batch too.
OF_BATCHES = ["DIST", "RelationalDistance", "RelationalAngle", "SimilarityPreserving"]

COMPILERS = neutral.compilers()
# XLA compiles each loss on JAX too, in every run of the tests there.
each_compiler = pytest.mark.parametrize(
    "compiler",
    slow.but(COMPILERS.keys() - {"XLA"}, COMPILERS, "XLA compiles each loss"),
)
only_jax = pytest.mark.skipif(
    neutral.BACKEND != "jax", reason="`vmap` is a function of JAX"
)


def outputs(name):
    """Outputs of both models: lists have one class."""
    if name in OF_PACKED:
        return TOP_2 if name == "TopKForwardKL" else SAMPLED, STUDENT
    if name in OF_LISTS:
        return TEACHER[..., 0], STUDENT[..., 0]
    return TEACHER, STUDENT


def weight(name):
    """Sample weights of the loss's values, 0 for one of them."""
    of_examples = name in OF_LISTS or name in OF_FEATURES
    return np.arange(5.0 if of_examples else 20.0, dtype="float32").reshape(
        (5,) if of_examples else (5, 4)
    )


def assert_compiles(function, inputs, compiler):
    """`function` and its gradients are compiled as they are computed eagerly."""
    inputs = [ops.convert_to_tensor(x) for x in inputs]
    right, right_gradients = neutral.value_and_gradient(function, *inputs)
    eager = neutral.numpy(function(*inputs))
    np.testing.assert_allclose(right, eager, rtol=1e-6, atol=1e-7)
    value, gradients = COMPILERS[compiler](differentiated(function))(*inputs)
    np.testing.assert_allclose(value, eager, rtol=1e-5, atol=1e-6)
    assert np.isfinite(eager).all()
    (gradient,), right_gradient = gradients, right_gradients
    np.testing.assert_allclose(gradient, right_gradient, rtol=1e-4, atol=1e-6)
    assert np.abs(right_gradient).max() > 0.0


def test_every_public_loss_is_tried():
    abstract = {"BatchContext", "DistillationLoss", "TemperedLoss", "FeatureLoss"}
    # That of hidden states is tried in test_vocabulary.py.
    abstract |= {"SoftmaxDivergence", "vocabulary"}
    public = {*losses.__all__, *feature_losses.__all__}
    untried = sorted(public - abstract - set(EVERY))
    assert not untried, f"add them to OF_CLASSES, OF_LISTS or OF_FEATURES: {untried}"
    assert set(EVERY) == public - abstract


@each_compiler
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "reduction",
    slow.but(
        ["mean_with_sample_weight"],
        ["sum_over_batch_size", "mean_with_sample_weight", None],
        "compiles each loss",
    ),
)
@pytest.mark.parametrize("name", EVERY)
def test_value_and_gradient(name, reduction, weighted, compiler):
    teacher, student = outputs(name)
    loss = EVERY[name](reduction=reduction)
    weights = weight(name) if weighted else None
    assert_compiles(lambda s: loss(teacher, s, weights), [student], compiler)


@each_compiler
@pytest.mark.parametrize("name", EVERY)
def test_masks_of_the_student(name, compiler):
    teacher, student = outputs(name)
    loss = EVERY[name]()
    assert_compiles(lambda s: loss(teacher, masked(s, MASK)), [student], compiler)


@each_compiler
@pytest.mark.parametrize("name", OF_PROBABILITIES)
def test_probabilities(name, compiler):
    activation = neutral.softmax
    if name in OF_LISTS or name == "BinarySoftTargets":

        def activation(x):
            return neutral.numpy(ops.sigmoid(x))

    teacher, student = map(activation, outputs(name))
    loss = EVERY[name](from_logits=False)
    assert_compiles(lambda s: loss(teacher, s), [student], compiler)


@each_compiler
@pytest.mark.parametrize("name", OF_LISTS)
def test_lists_by_group(name, compiler):
    """The ids and the mask are inputs of the compiled step."""
    teacher, student = TEACHER[:, 0, 0], STUDENT[:, 0, 0]
    loss = OF_LISTS[name](group="session", mask="shown")
    shown = np.array([1, 1, 1, 0, 1])

    def called(student, group, shown):
        y_true = loss.with_lists(teacher, {"session": group, "shown": shown})
        return loss(y_true, student)

    inputs = [ops.convert_to_tensor(x) for x in (student, GROUP, shown)]
    compiled = COMPILERS[compiler](called)(*inputs)
    np.testing.assert_allclose(compiled, called(*inputs), rtol=1e-5)


@each_compiler
def test_labels_are_inputs_of_the_step(compiler):
    loss = losses.DecoupledKD(2.0)

    def called(student, labels, labelled):
        batch = losses.BatchContext(labels=labels, labelled=labelled)
        return loss.for_batch(batch)(TEACHER, student)

    inputs = [ops.convert_to_tensor(x) for x in (STUDENT, LABELS, LABELLED)]
    compiled = COMPILERS[compiler](called)(*inputs)
    np.testing.assert_allclose(compiled, decoupled()(TEACHER, STUDENT), rtol=1e-5)


@only_jax
@pytest.mark.parametrize("name", [name for name in EVERY if name not in OF_BATCHES])
def test_vmap_over_examples(name):
    """A batch of one example for each, which `vmap` computes at once."""
    import jax

    teacher, student = outputs(name)
    loss = EVERY[name](reduction=None)
    right = neutral.numpy(loss(teacher, student))
    if name == "DecoupledKD":
        loss = losses.DecoupledKD(2.0, reduction=None)

        def called(teacher, student, labels, labelled):
            bound = loss.with_labels(labels[None], labelled=labelled[None])
            return bound(teacher[None], student[None])[0]

        found = jax.vmap(called)(teacher, student, LABELS, LABELLED)
    else:

        def called(teacher, student):
            return loss(teacher[None], student[None])[0]

        found = jax.vmap(called)(teacher, student)
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)


@only_jax
@pytest.mark.parametrize("name", [name for name in EVERY if name != "DecoupledKD"])
def test_vmap_over_batches(name):
    """With gradients, compiled."""
    import jax

    scale = 1.0 if name in OF_PACKED else 0.5  # Half of an id isn't one.
    teacher, student = (
        np.stack([x, x[::-1], scale * x[[1, 0, 2, 4, 3]]]).astype("float32")
        for x in outputs(name)
    )
    loss = EVERY[name]()
    function = jax.value_and_grad(lambda s, t: loss(t, s))
    values, gradients = jax.jit(jax.vmap(function))(student, teacher)
    for value, gradient, s, t in zip(values, gradients, student, teacher, strict=True):
        right, right_gradient = function(s, t)
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient, right_gradient, rtol=1e-4, atol=1e-6)

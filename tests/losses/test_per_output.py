"""Which loss meets which output, in every structure that models return."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers.schedules import PolynomialDecay

from keras_distill.batch import Batch
from keras_distill.losses import (
    DecoupledKD,
    DistillationLoss,
    ForwardKL,
    LogitMSE,
    ReverseKL,
    Standardized,
)
from keras_distill.losses.per_output import PerOutputLoss
from keras_distill.per_output import as_structured, describe
from keras_distill.schedules import LateStart
from tests.losses.neutral import masked

RNG = np.random.default_rng(6)
TEACHER, STUDENT = (2.0 * RNG.standard_normal((2, 4, 3))).astype("float32")
OTHER_TEACHER, OTHER_STUDENT = (2.0 * RNG.standard_normal((2, 4, 5))).astype("float32")
KL, MSE = ForwardKL(2.0), LogitMSE()

TEACHERS = {"list": [TEACHER, OTHER_TEACHER], "tuple": (TEACHER, OTHER_TEACHER)}
STUDENTS = {"list": [STUDENT, OTHER_STUDENT], "tuple": (STUDENT, OTHER_STUDENT)}
TEACHERS["dict"] = {"a": TEACHER, "b": OTHER_TEACHER}
STUDENTS["dict"] = {"a": STUDENT, "b": OTHER_STUDENT}


class Total(PerOutputLoss):
    """Adds up what the outputs contribute."""

    def __call__(self, teacher_output, output, sample_weight=None, **known):
        batch = Batch(output=output, sample_weight=sample_weight, **known)
        return sum(super().__call__(teacher_output, batch).values())


def per_output(losses, output_names=None):
    return Total(losses, output_names=output_names)


def test_a_single_output():
    assert per_output(KL)(TEACHER, STUDENT) == KL(TEACHER, STUDENT)


@pytest.mark.parametrize("structure", TEACHERS)
def test_one_loss_for_all_outputs(structure):
    np.testing.assert_allclose(
        per_output(KL)(TEACHERS[structure], STUDENTS[structure]),
        KL(TEACHER, STUDENT) + KL(OTHER_TEACHER, OTHER_STUDENT),
        rtol=1e-6,
    )


@pytest.mark.parametrize("structure", TEACHERS)
def test_a_loss_for_each_output(structure):
    losses = {"list": [KL, MSE], "tuple": (KL, MSE), "dict": {"b": MSE, "a": KL}}
    np.testing.assert_allclose(
        per_output(losses[structure])(TEACHERS[structure], STUDENTS[structure]),
        KL(TEACHER, STUDENT) + MSE(OTHER_TEACHER, OTHER_STUDENT),
        rtol=1e-6,
    )


@pytest.mark.parametrize("structure", TEACHERS)
def test_none_is_not_distilled(structure):
    losses = {"list": [None, MSE], "tuple": (None, MSE), "dict": {"a": None, "b": MSE}}
    loss = per_output(losses[structure])
    expected = MSE(OTHER_TEACHER, OTHER_STUDENT)
    assert loss(TEACHERS[structure], STUDENTS[structure]) == expected
    # so the teacher needn't have that output
    without = {"list": [None, OTHER_TEACHER], "tuple": (None, OTHER_TEACHER)}
    without["dict"] = {"b": OTHER_TEACHER}
    assert loss(without[structure], STUDENTS[structure]) == expected


def test_names_of_list_outputs():
    loss = per_output({"b": MSE, "a": KL}, output_names=["a", "b"])
    np.testing.assert_allclose(
        loss(TEACHERS["list"], STUDENTS["list"]),
        KL(TEACHER, STUDENT) + MSE(OTHER_TEACHER, OTHER_STUDENT),
        rtol=1e-6,
    )


def test_nested_outputs():
    teacher = {"heads": [TEACHER, OTHER_TEACHER], "main": TEACHER}
    student = {"heads": [STUDENT, OTHER_STUDENT], "main": STUDENT}
    np.testing.assert_allclose(
        per_output({"heads": [KL, None], "main": MSE})(teacher, student),
        KL(TEACHER, STUDENT) + MSE(TEACHER, STUDENT),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        per_output(MSE)(teacher, student),
        2 * MSE(TEACHER, STUDENT) + MSE(OTHER_TEACHER, OTHER_STUDENT),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        "mean_squared_error",
        keras.losses.mean_squared_error,
        keras.losses.MeanSquaredError(),
        lambda teacher, student: keras.ops.mean((teacher - student) ** 2, axis=-1),
    ],
)
def test_keras_losses(loss):
    weight = np.array([1.0, 0.0, 2.0, 0.5], "float32")
    squares = np.square(TEACHER - STUDENT).mean(-1)
    np.testing.assert_allclose(
        per_output(loss)(TEACHER, STUDENT), squares.mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        per_output([loss, None])([TEACHER, None], [STUDENT, None], weight),
        (weight * squares).mean(),
        rtol=1e-5,
    )


def test_sample_weight_for_all_outputs_or_each():
    loss = per_output([KL, MSE])
    weight = np.array([1.0, 0.0, 2.0, 0.5], "float32")
    other = np.array([0.0, 3.0, 1.0, 1.0], "float32")
    np.testing.assert_allclose(
        loss(TEACHERS["list"], STUDENTS["list"], weight),
        KL(TEACHER, STUDENT, weight) + MSE(OTHER_TEACHER, OTHER_STUDENT, weight),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        loss(TEACHERS["list"], STUDENTS["list"], [weight, other]),
        KL(TEACHER, STUDENT, weight) + MSE(OTHER_TEACHER, OTHER_STUDENT, other),
        rtol=1e-6,
    )


def test_schedules_are_read_at_the_step_and_only_there():
    annealed = ForwardKL(PolynomialDecay(1.0, 4, 5.0))
    loss = per_output([annealed, MSE])
    assert list(loss.scheduled()) == [(annealed, annealed.tempering)]
    np.testing.assert_allclose(
        loss(TEACHERS["list"], STUDENTS["list"], step=2),
        ForwardKL(3.0)(TEACHER, STUDENT) + MSE(OTHER_TEACHER, OTHER_STUDENT),
        rtol=1e-6,
    )
    assert annealed.step == 0
    with pytest.raises(ValueError, match="same shape"):
        loss([TEACHER[:, :2], OTHER_TEACHER], STUDENTS["list"], step=2)
    assert annealed.step == 0


def test_scheduled_names_a_shared_loss_once():
    annealed = ForwardKL(LateStart(0, 2.0))
    losses = per_output({"a": annealed, "b": annealed})
    assert list(losses.scheduled()) == [(annealed, annealed.tempering)]
    assert list(per_output([ForwardKL(2.0), ReverseKL(), MSE]).scheduled()) == []


def test_state_holds_the_temperature_of_each_loss_once():
    inside = ForwardKL(LateStart(0, 2.0))
    given = {"a": KL, "b": Standardized(inside), "c": KL, "d": MSE, "e": "mse"}
    state = per_output(given).state
    assert [id(v) for v in state] == [
        id(KL.tempering.state),
        id(inside.tempering.state),
    ]


def test_schedules_of_losses_inside_others():
    annealed = Standardized(ForwardKL(LateStart(0, 2.0)))
    ((loss, tempering),) = per_output([annealed, MSE]).scheduled()
    assert loss is annealed
    assert tempering is annealed.loss.tempering


class Reads(DistillationLoss):
    """Notes what it is told of a batch."""

    def __init__(self):
        super().__init__()
        self.told = []

    def for_batch(self, batch):
        self.told.append(batch)
        return self

    def compare(self, teacher_logits, student_logits):
        return teacher_logits[..., 0]


def test_what_stands_beside_the_outputs():
    first, second = Reads(), Reads()
    labels, mask = np.arange(4), np.array([True, False, True, True])
    per_output([first, second])(
        TEACHERS["list"],
        STUDENTS["list"],
        inputs={"x": 1},
        labels=[None, labels],
        labelled={(1,): mask},
        step=7,
    )
    (told,) = first.told
    assert told.output is STUDENT
    assert told._replace(output=None) == Batch(inputs={"x": 1}, step=7)
    (told,) = second.told
    assert told.output is OTHER_STUDENT
    assert told.labels is labels
    assert told.labelled is mask


@pytest.mark.parametrize("weight", [None, np.array([1.0, 0.0, 2.0, 0.5], "float32")])
def test_label_losses_of_other_outputs(weight):
    """The label loss of a teacher is that of its outputs in the place of the student's.

    It is called as Keras calls it: the labels lack the axis of the classes.
    """
    label_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = PerOutputLoss([label_loss, None], output_names=None, of_labels=True)
    batch = Batch(output=STUDENTS["list"], sample_weight=weight, step=3)
    labels = [np.arange(4) % 3, np.arange(4)]
    terms = found(labels, batch._replace(output=TEACHERS["list"]))
    assert set(terms) == {(0,)}
    expected = label_loss(labels[0], TEACHER, sample_weight=weight)
    np.testing.assert_allclose(terms[(0,)], expected, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "none"])
def test_masks_of_outputs_whose_rank_changes(reduction):
    """A loss of Keras' sees one less axis; its mask is taken along."""
    mask = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], bool)

    class Squares(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return ops.square(y_true - y_pred)

    loss = per_output(Squares(reduction=reduction))
    value = loss(TEACHER, masked(STUDENT[..., None], mask))
    squares = np.square(TEACHER - STUDENT) * mask
    expected = {
        "sum_over_batch_size": squares.sum() / mask.sum(),
        "sum": squares.sum(),
        "none": squares,
    }[reduction]
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("structure", TEACHERS)
def test_one_loss_reads_the_labels_of_each_output(structure):
    labels = {"list": [np.arange(4) % 3, np.arange(4)], "dict": None}
    labels["tuple"] = tuple(labels["list"])
    labels["dict"] = dict(zip("ab", labels["list"], strict=True))
    loss, (first, second) = DecoupledKD(2.0), labels["list"]
    np.testing.assert_allclose(
        per_output(loss)(
            TEACHERS[structure], STUDENTS[structure], labels=labels[structure]
        ),
        loss.with_labels(first)(TEACHER, STUDENT)
        + loss.with_labels(second)(OTHER_TEACHER, OTHER_STUDENT),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("given", "outputs", "structured"),
    [
        (1, 0, 1),
        ([1], 0, 1),
        ({"a": 1}, 0, 1),
        ({"a": 1, "b": 2}, [0, 0], [1, 2]),
        ({"b": 2}, [0, 0], [None, 2]),
        ([1, 2], {"a": 0, "b": 0}, {"a": 1, "b": 2}),
        ((1, 2), [0, 0], (1, 2)),
        (None, [0, 0], None),
        ([1], {"a": 0, "b": 0}, [1]),
        ([1, 2], 0, [1, 2]),
    ],
)
def test_structures_of_what_is_given_per_output(given, outputs, structured):
    names = ["a", "b"] if keras.tree.is_nested(outputs) else ["a"]
    assert as_structured(given, outputs, names) == structured


@pytest.mark.parametrize("losses", [None, [None, None], {"a": None}])
def test_no_loss_at_all(losses):
    with pytest.raises(ValueError, match="a loss for one output at least. Received: "):
        per_output(losses)


@pytest.mark.parametrize("losses", [[KL], [KL, MSE, MSE], (KL,)])
def test_as_many_losses_as_outputs(losses):
    with pytest.raises(
        ValueError, match=rf"Received: {len(losses)} losses .*\(4, 3\), \(4, 5\)"
    ):
        per_output(losses)(TEACHERS["list"], STUDENTS["list"])


def test_a_list_of_losses_for_one_output():
    with pytest.raises(ValueError, match=r"1 losses for outputs of shape \(4, 3\)"):
        per_output([KL])(TEACHER, STUDENT)


@pytest.mark.parametrize("names", [None, ["a", "c"]])
def test_names_that_the_outputs_lack(names):
    with pytest.raises(ValueError, match=r"keys \['a', 'b'\], outputs named \["):
        per_output({"a": KL, "b": MSE}, names)(TEACHERS["list"], STUDENTS["list"])


def test_what_the_models_lack():
    loss = per_output({"a": KL, "b": MSE})
    with pytest.raises(ValueError, match=r"output \['b'\], which the teacher's .*'a'"):
        loss({"a": TEACHER}, STUDENTS["dict"])
    with pytest.raises(ValueError, match=r"output \['b'\], which the student's output"):
        loss(TEACHERS["dict"], {"a": STUDENT, "c": OTHER_STUDENT})
    with pytest.raises(ValueError, match=r"output \['b'\], which `sample_weight`"):
        loss(TEACHERS["dict"], STUDENTS["dict"], {"a": np.ones(4)})
    with pytest.raises(ValueError, match=r"output \[\], which the teacher's output"):
        per_output(KL)(TEACHERS["list"], STUDENT)


@pytest.mark.parametrize("loss", [KL, "mse", [KL, "mse"]])
def test_rows_of_a_tensor_are_no_outputs(loss):
    two = [STUDENT, STUDENT]
    with pytest.raises(ValueError, match=r"teacher's output doesn't .*: \(4, 3\)"):
        per_output(loss)(TEACHER, two)


def test_describe_shows_shapes_in_the_structure():
    assert describe({"a": [TEACHER, None]}) == "{'a': [(4, 3), 'None']}"

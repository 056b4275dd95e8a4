"""Guards change no training, and stop none that plain Keras would run."""

import warnings
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_distill as kd
from keras_distill.guards.validation import check_validation_data
from tests.guards.setups import classes, inputs, linear, student

X = inputs(64)
LOGITS = linear(4)(X).numpy()
Y = classes(LOGITS)
BATCH = 32


def crossentropy(y: Any, logits: Any) -> Any:
    return keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)


class Counting(keras.losses.Loss):
    """It weighs more from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = keras.Variable(0.0, trainable=False)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        self.calls.assign_add(1.0)
        return crossentropy(y_true, y_pred) * self.calls.value


class Noisy(keras.losses.Loss):
    def __init__(self) -> None:
        super().__init__()
        self.seed = keras.random.SeedGenerator(1)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        noise = keras.random.normal(ops.shape(y_pred), seed=self.seed)
        return crossentropy(y_true, y_pred + noise)


class PythonState(keras.losses.Loss):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def call(self, y_true: Any, y_pred: Any) -> Any:
        self.calls += 1
        return crossentropy(y_true, y_pred) * float(self.calls)


class OwnCall(keras.losses.Loss):
    """It has no values by row."""

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return ops.mean(crossentropy(y_true, y_pred))


class OfTheStudentAlone(keras.losses.Loss):
    """It asserts what is true of its student's outputs, and in no other place."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        tf.debugging.assert_equal(tf.shape(y_pred)[0], BATCH)
        tf.debugging.assert_less(tf.reduce_max(tf.abs(y_pred)), 1.0)
        return crossentropy(y_true, y_pred)


class OfConvertedKeras(keras.losses.SparseCategoricalCrossentropy):
    """A subclass of Keras' loss of probabilities that takes logits."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return super().call(y_true, ops.softmax(y_pred))


class ReadingTheMask(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        assert y_pred._keras_mask is not None
        return crossentropy(y_true, y_pred)


def printing(y_true: Any, y_pred: Any) -> Any:
    tf.print("called", output_stream="file:///dev/null")
    PRINTED.append(1)
    return crossentropy(y_true, y_pred)


PRINTED: list[int] = []


def small(units: int = 4) -> keras.Model:
    """A student whose logits are all between -1 and 1."""
    model = student(units)
    model.set_weights([0.01 * weight for weight in model.get_weights()])
    return model


def masked(model: keras.Model) -> keras.Model:
    given = keras.Input((6,))
    found = model(given)
    return keras.Model(given, Masked()(found))


class Masked(keras.layers.Layer):
    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return inputs[:, 0] < 100.0

    def call(self, inputs: Any) -> Any:
        return inputs + 0.0


def trained(pupil: keras.Model, model: keras.Model) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kd.teachers.TeacherWarning)
        model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0)
    return np.concatenate([weight.ravel() for weight in pupil.get_weights()])


@pytest.mark.parametrize("eagerly", [False, True], ids=["graph", "eager"])
@pytest.mark.parametrize(
    "make",
    [
        Counting,
        Noisy,
        PythonState,
        OwnCall,
        OfTheStudentAlone,
        OfConvertedKeras,
        ReadingTheMask,
        lambda: printing,
    ],
    ids=lambda make: make.__name__.strip("<>"),
)
def test_no_other_loss_than_keras_own_is_called_again(make: Any, eagerly: bool) -> None:
    """At alpha=0 the student is what it is in plain Keras, to the last bit."""
    build = (lambda: masked(small())) if make is ReadingTheMask else small
    alone, taught = build(), build()
    del PRINTED[:]
    alone.compile("sgd", make(), run_eagerly=eagerly)
    expected = trained(alone, alone)
    calls = len(PRINTED)
    distiller = kd.Distiller(taught, linear(4))
    distiller.compile("sgd", make(), alpha=0.0, run_eagerly=eagerly)
    np.testing.assert_allclose(trained(taught, distiller), expected, atol=1e-7)
    assert len(PRINTED) == 2 * calls


@pytest.mark.parametrize("eagerly", [False, True], ids=["graph", "eager"])
@pytest.mark.parametrize("make", [Counting, Noisy])
def test_a_loss_with_a_state_is_not_logged_of_the_teacher(
    make: Any, eagerly: bool
) -> None:
    distiller = kd.Distiller(small(), linear(4))
    distiller.compile("sgd", make(), log_teacher=True, run_eagerly=eagerly)
    with pytest.raises(ValueError, match=rf"keeps a variable .*{make.__name__}.*Ass"):
        distiller.fit(X, Y, batch_size=BATCH, verbose=0)


@pytest.mark.parametrize(
    "given", [{}, {"alpha": {"n": 0.5}, "loss_weights": [2.0]}], ids=["", "by output"]
)
def test_a_list_of_one_loss(given: dict[str, Any]) -> None:
    """It stands for the single output, to the log and to the guards too."""

    def logs(loss: Any) -> Any:
        keras.utils.set_random_seed(0)
        read = keras.Input((6,))
        model = keras.Model(read, keras.layers.Dense(4, name="n")(read))
        distiller = kd.Distiller(model, linear(4))
        distiller.compile("sgd", loss, log_teacher=True, run_eagerly=True, **given)
        with pytest.warns(UserWarning, match="The student's output looks like logits"):
            return distiller.fit(X[:8], Y[:8], verbose=0).history

    loss = "sparse_categorical_crossentropy"
    assert logs([loss]) == logs(loss)


@pytest.mark.parametrize(
    ("as_dict", "eagerly"),
    [(False, False), (True, True)],
    ids=["list in a graph", "dict, eager"],
)
def test_alpha_by_output_calls_no_loss_again(as_dict: bool, eagerly: bool) -> None:
    """Nor does the order of weights by name matter, but that of Keras."""

    def losses() -> Any:
        made = [Counting(), Noisy()]
        return dict(zip("za", made, strict=True)) if as_dict else made

    alone, taught = two_outputs(student, 4), two_outputs(student, 4)
    distiller = kd.Distiller(taught, two_outputs(linear, 4))
    given = {"loss_weights": {"z": 3.0, "a": 0.5}, "run_eagerly": eagerly}
    alone.compile("sgd", losses(), **given)
    expected = alone.fit(X, [Y, Y], batch_size=BATCH, shuffle=False, verbose=0)
    distiller.compile("sgd", losses(), alpha={"z": 0.0, "a": 0.0}, **given)
    logs = distiller.fit(X, [Y, Y], batch_size=BATCH, shuffle=False, verbose=0)
    for weight, other in zip(taught.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(weight, other, atol=1e-7)
    assert logs.history["student_loss"] == pytest.approx(expected.history["loss"])


def squared(teacher: Any, student: Any) -> Any:
    """A distillation loss that takes any shape of a teacher's."""
    return ops.mean((ops.mean(teacher) - student) ** 2, axis=-1)


def unknown(x: Any, rows: int | None, units: int) -> Any:
    """A teacher's output of which no shape is known."""
    found = tf.numpy_function(
        lambda batch: np.ones((len(batch) if rows is None else rows, units), "float32"),
        [x],
        tf.float32,
    )
    return tf.ensure_shape(found, (None, units)) if units == 4 else found


FOUR, TWO = linear(4), linear(2)
TEACHERS: dict[str, tuple[Any, Any]] = {
    "a row, as is known in the step": (lambda x: unknown(x, 1, 4), "mse"),
    "half the rows": (lambda x: FOUR(x[::2]), squared),
    "fewer units": (lambda x: TWO(x), squared),
    "text": (lambda x: tf.strings.as_string(FOUR(x)), lambda t, s: s[:, 0] ** 2),
    "distances": (lambda x: -FOUR(x), lambda t, s: ops.mean((t + s) ** 2, -1)),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_that_a_guard_cannot_compare(name: str) -> None:
    teacher, loss = TEACHERS[name]
    distiller = kd.Distiller(student(4), teacher)
    distiller.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(True), distillation_loss=loss
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logs = distiller.fit(X, Y, batch_size=BATCH, verbose=0).history
    assert np.isfinite(logs["distillation_loss"]).all()


def two_outputs(make: Any, units: int = 1) -> keras.Model:
    """The order of its outputs isn't that of their names."""
    given = keras.Input((6,))
    found = make(4)(given), make(units)(given)
    named = [
        keras.layers.Identity(name=name)(tensor)
        for name, tensor in zip("za", found, strict=True)
    ]
    return keras.Model(given, named)


FEW = X[:8]
ONE_HOT = np.eye(4, dtype="float32")[Y[:8]]
CLICKS = Y[:8, None].astype("float32")


def unshaped(*labels: Any) -> tf.data.Dataset:
    """A data set that doesn't tell the shapes of its labels."""
    types = (tf.float32,) * (1 + len(labels))

    def row(*arrays: Any) -> Any:
        x, *found = tf.numpy_function(lambda *each: each, arrays, types)
        return tf.ensure_shape(x, (6,)), tuple(found) if len(found) > 1 else found[0]

    return tf.data.Dataset.from_tensor_slices((FEW, *labels)).map(row).batch(8)


VALIDATION: dict[str, tuple[Any, Any]] = {
    "names": ([ONE_HOT, CLICKS], (FEW, {"z": ONE_HOT, "a": CLICKS})),
    "lists": ({"z": ONE_HOT, "a": CLICKS}, (FEW, [ONE_HOT, CLICKS])),
    "a tuple": ([ONE_HOT, CLICKS], (FEW, (ONE_HOT, CLICKS[:, 0]))),
    "None where there is no loss": ([ONE_HOT, CLICKS], (FEW, [ONE_HOT, None])),
    "no shapes": ([ONE_HOT, CLICKS], unshaped(ONE_HOT, CLICKS)),
}


@pytest.mark.parametrize("name", VALIDATION)
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_validation_data_that_plain_keras_takes(name: str) -> None:
    y, data = VALIDATION[name]
    without = name == "None where there is no loss"
    loss = [keras.losses.CategoricalCrossentropy(True), None if without else "mse"]
    alone, taught = two_outputs(student), two_outputs(student)
    distiller = kd.Distiller(taught, two_outputs(linear))
    alone.compile("sgd", loss, run_eagerly=True)
    distiller.compile("sgd", loss, distillation_loss="mse", alpha=0.0, run_eagerly=True)
    found = [
        model.fit(FEW, y, validation_data=data, verbose=0).history["val_loss"]
        for model in (alone, distiller)
    ]
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_validation_labels_that_leave_out_an_output_are_left_to_keras() -> None:
    model = two_outputs(student)
    check_validation_data(model, (FEW, [ONE_HOT]), [ONE_HOT, CLICKS])
    check_validation_data(model, (FEW, {"z": ONE_HOT}), [ONE_HOT, CLICKS])
    with pytest.raises(ValueError, match=r"must have the form.*\(8, 4\).*\(8, 1\)"):
        check_validation_data(model, (FEW, {"a": ONE_HOT}), [ONE_HOT, CLICKS])

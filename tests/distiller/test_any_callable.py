"""Losses of any kind, outputs of any rank, and what a student's class overrides."""

import contextlib
import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from tests.distiller.models import (
    CLASSES,
    FEATURES,
    assert_same_weights,
    crossentropy,
    data,
    label_loss,
    mlp,
)

X, Y = data()


def squared(teacher: Any, student: Any, scale: float = 1.0) -> Any:
    return scale * tf.reduce_mean(tf.square(teacher - student), -1)


def _private(teacher: Any, student: Any) -> Any:
    return squared(teacher, student)


class Squared:
    def __call__(self, teacher: Any, student: Any) -> Any:
        return squared(teacher, student)

    def method(self, teacher: Any, student: Any) -> Any:
        return squared(teacher, student)


class _PrivateLoss(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return squared(y_true, y_pred)


def named(name: str) -> Any:
    def function(teacher: Any, student: Any) -> Any:
        return squared(teacher, student)

    function.__name__ = name
    return function


CALLABLES = {
    "lambda": lambda t, s: squared(t, s),
    "private": _private,
    "partial": functools.partial(squared, scale=1.0),
    "object": Squared(),
    "method": Squared().method,
    "spaces": named("not a/scope"),
    "umlaut": named("größe"),
    "private loss": _PrivateLoss(),
    "loss with a name": _PrivateLoss(name="my loss/é"),
}


def test_any_callable_is_a_loss() -> None:
    """In a compiled step, where names matter; all in one, to trace once."""
    student, teacher = mlp(0), mlp(1)
    expected = np.square(teacher(X).numpy() - student(X).numpy()).mean()
    inputs = keras.Input((FEATURES,))
    many = keras.Model(inputs, [student(inputs)] * len(CALLABLES))
    distiller = kd.Distiller(many, lambda x: [teacher(x)] * len(CALLABLES))
    distiller.compile(
        keras.optimizers.SGD(0.0), distillation_loss=list(CALLABLES.values()), alpha=1.0
    )
    loss = distiller.fit(X, batch_size=24, verbose=0).history["distillation_loss"]
    np.testing.assert_allclose(loss, len(CALLABLES) * expected, rtol=1e-5)
    unrelated = mlp(2)
    unrelated.compile("adam", crossentropy())
    unrelated.fit(X, Y, verbose=0)
    assert all("loss" not in v.path for v in unrelated.optimizer.variables)


@pytest.mark.parametrize("name", CALLABLES)
def test_any_callable_is_the_loss_of_a_hint(name: str) -> None:
    student, teacher = mlp(0), mlp(1)
    hint = kd.hints.Hint(
        lambda model: model.layers[-1],
        lambda model: model.layers[-1],
        loss=CALLABLES[name],
    )
    expected = np.square(teacher(X).numpy() - student(X).numpy()).mean()
    distiller = kd.Distiller(student, teacher, hints=[hint])
    distiller.compile("sgd", crossentropy(), run_eagerly=True)
    logs = distiller.train_on_batch(X, Y, return_dict=True)
    np.testing.assert_allclose(logs["layer_hint_loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("argument", ["loss", "teacher_loss"])
@pytest.mark.parametrize("loss", [_PrivateLoss(name="my loss"), named("größe")])
def test_label_losses_that_keras_cannot_name(argument: str, loss: Any) -> None:
    arguments = {"loss": "mse", argument: loss}
    with pytest.raises(ValueError, match="names of losses of ASCII.*Received: a loss"):
        kd.Distiller(mlp(), mlp()).compile("sgd", **arguments)


# Ranks.


def column(x: Any) -> Any:
    return x[..., :1] - 0.5 * x[..., 1:2]


def ranked(rank_of_student: str, steps: int | None) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((FEATURES,) if steps is None else (steps, FEATURES))
    output = layers.Dense(1)(inputs)
    return keras.Model(inputs, output[..., 0] if rank_of_student == "less" else output)


RANKED_LOSSES = {
    "function": squared,
    "elementwise": lambda t, s: tf.square(t - s),
    "name": "mse",
    "Keras": keras.losses.MeanSquaredError(),
    "own class": _PrivateLoss(),
    "ours": kd.losses.LogitMSE(),
}


@pytest.mark.parametrize("steps", [None, 24])  # as many as rows: it would broadcast
@pytest.mark.parametrize("student_has", ["less", "more"])
def test_ranks_that_differ_by_a_last_1(student_has: str, steps: int | None) -> None:
    student = ranked(student_has, steps)
    x = X if steps is None else np.stack([X + i for i in range(steps)], 1)
    said, target = np.squeeze(student(x).numpy()), column(x)[..., 0]

    def teacher(x: Any) -> Any:
        return column(x) if student_has == "less" else column(x)[..., 0]

    for loss in RANKED_LOSSES.values():
        distiller = kd.Distiller(student, teacher)
        distiller.compile(
            keras.optimizers.SGD(0.0),
            distillation_loss=loss,
            alpha=1.0,
            run_eagerly=True,
        )
        got = distiller.train_on_batch(x, return_dict=True)["loss"]
        np.testing.assert_allclose(got, np.square(said - target).mean(), rtol=1e-5)


def test_members_of_an_ensemble_may_differ_by_a_last_1() -> None:
    ensemble = kd.teachers.Ensemble([column, lambda x: 3.0 * column(x)[:, 0]])
    np.testing.assert_allclose(ensemble(X), 2.0 * column(X), rtol=1e-6)


@pytest.mark.parametrize(
    "teacher, shape",
    [
        (lambda x: x, (24, 4)),
        (lambda x: x[:, 0], (24,)),
        (lambda x: x[:, :1], (24, 1)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "int32", "bool"])
def test_other_shapes_are_refused(
    teacher: Any, shape: tuple[int, ...], dtype: str
) -> None:
    for loss in (squared, "mse", _PrivateLoss(), kd.losses.ForwardKL()):
        distiller = kd.Distiller(mlp(), lambda x: tf.cast(teacher(x), dtype))
        distiller.compile("sgd", crossentropy(), distillation_loss=loss)
        distiller.run_eagerly = True
        with pytest.raises(ValueError) as error:
            distiller.train_on_batch(X, Y)
        assert str(shape) in str(error.value)
        assert "(24, 3)" in str(error.value)


@pytest.mark.parametrize(
    "loss", ["mse", squared, _PrivateLoss()], ids=["name", "function", "object"]
)
def test_integers_teach_as_floats_do(loss: Any) -> None:
    student = mlp()
    seen = []
    for dtype in ("int32", "float32"):
        distiller = kd.Distiller(student, lambda x, to=dtype: tf.cast(x[:, :3] > 0, to))
        distiller.compile(
            keras.optimizers.SGD(0.0),
            distillation_loss=loss,
            alpha=1.0,
            run_eagerly=True,
        )
        seen.append(distiller.train_on_batch(X, return_dict=True)["loss"])
    assert seen[0] == seen[1]


def test_class_ids_may_teach() -> None:
    student, teacher = mlp(0), mlp(1)
    ids = teacher(X).numpy().argmax(-1)
    distiller = kd.Distiller(student, lambda x: tf.argmax(teacher(x), -1))
    distiller.compile("sgd", distillation_loss=crossentropy(), alpha=1.0)
    distiller.run_eagerly = True
    expected = label_loss(ids, student(X)).mean()
    got = distiller.train_on_batch(X, return_dict=True)["loss"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def of_ids(ids: Any, probabilities: Any) -> Any:
    return keras.losses.sparse_categorical_crossentropy(ids, probabilities)


@pytest.mark.parametrize(
    "loss, shape",
    [
        (of_ids, (24,)),
        (functools.partial(of_ids), (24,)),
        (keras.losses.SparseCategoricalCrossentropy(), (24, 1)),
        ("sparse_categorical_crossentropy", (24, 1)),
        ("crossentropy", (24,)),
        ("crossentropy", (24, 1)),
    ],
    ids=["function", "partial", "object", "name", "vector", "column"],
)
def test_ids_teach_whatever_loss_reads_them(loss: Any, shape: tuple[int, ...]) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((FEATURES,))
    student = keras.Model(inputs, layers.Dense(CLASSES, "softmax")(inputs))
    ids = np.arange(24) % CLASSES
    expected = label_loss(ids, np.log(student(X))).mean()
    distiller = kd.Distiller(student, lambda x: tf.constant(ids.reshape(shape)))
    distiller.compile("sgd", distillation_loss=loss, alpha=1.0, run_eagerly=True)
    got = distiller.train_on_batch(X, return_dict=True)["loss"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_teacher_without_a_static_shape_takes_the_students() -> None:
    teacher = mlp(1)

    def opaque(x: Any) -> Any:
        return tf.py_function(teacher, [x], tf.float32)

    seen = []
    for source in (teacher, opaque, kd.teachers.Ensemble([opaque, teacher])):
        distiller = kd.Distiller(mlp(0), source)
        distiller.compile("sgd", crossentropy())
        seen.append(distiller.train_on_batch(X, Y, return_dict=True))
    assert seen[0] == pytest.approx(seen[1], rel=1e-6)
    assert seen[0] == pytest.approx(seen[2], rel=1e-6)
    with pytest.raises(ValueError, match="`tf.ensure_shape`.*unknown"):
        distiller.teacher = kd.teachers.Ensemble([opaque, opaque])
        distiller.train_on_batch(X, Y)


@pytest.mark.parametrize("student_has", ["less", "more"])
def test_a_rank_that_is_not_known_may_differ_by_a_last_1(student_has: str) -> None:
    """Found out when the step runs, as for ranks that are known."""
    student = ranked(student_has, None)
    said = np.squeeze(student(X).numpy())
    shape = [-1, 1] if student_has == "less" else [-1]

    def opaque(x: Any) -> Any:
        return tf.py_function(lambda x: tf.reshape(column(x), shape), [x], tf.float32)

    distiller = kd.Distiller(student, opaque)
    distiller.compile(
        keras.optimizers.SGD(0.0),
        distillation_loss=[squared, "mse"][student_has == "more"],
        alpha=1.0,
    )
    got = distiller.train_on_batch(X, return_dict=True)["loss"]
    expected = np.square(said - column(X)[:, 0]).mean()
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    shape[:] = [12, 2]  # as many values, but others
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"must have the same shape.*\[12 2\]"
    ):
        distiller.train_on_batch(X)


# A student's own methods.


class WithPenalty(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(CLASSES)
        self.seen = keras.metrics.Mean("seen")

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
    ) -> Any:
        return super().compute_loss(x, y, y_pred, sample_weight) + tf.reduce_mean(
            tf.square(y_pred)
        )

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> Any:
        self.seen.update_state(y_pred)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def predict_step(self, data: Any) -> Any:
        return tf.argmax(super().predict_step(data), -1)


def test_a_students_own_methods_are_called() -> None:
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        models.append(WithPenalty())
        models[-1](X)
    plain, student = models
    distiller = kd.Distiller(student, mlp(1))
    before = set(vars(student))
    histories = []
    for model, own in ((plain, {}), (distiller, {"alpha": 0.0})):
        model.compile(
            keras.optimizers.SGD(0.1), crossentropy(), metrics=["accuracy"], **own
        )
        histories.append(
            model.fit(X, Y, shuffle=False, batch_size=8, verbose=0).history
        )
    for name, values in histories[0].items():
        assert histories[1][name] == values
    assert_same_weights(student, plain)
    logs = [m.evaluate(X, Y, verbose=0, return_dict=True) for m in (plain, distiller)]
    assert logs[0] == logs[1]
    np.testing.assert_array_equal(
        distiller.predict(X, verbose=0), plain.predict(X, verbose=0)
    )
    assert set(vars(student)) == before
    assert not student.compiled


class WithStep(WithPenalty):
    def train_step(self, data: Any) -> Any:
        raise AssertionError


def test_a_train_step_is_refused_by_name() -> None:
    student = WithStep()
    student(X)
    with pytest.raises(ValueError, match="own `train_step`.*type WithStep"):
        kd.Distiller(student, mlp()).compile("sgd", crossentropy())
    with pytest.raises(ValueError, match="peer has its own `train_step`"):
        kd.online.MutualLearning([student, mlp()]).compile("sgd", crossentropy())
    with pytest.raises(ValueError, match="teacher that trains has its own"):
        kd.Distiller(mlp(), student).compile("sgd", "mse", teacher_loss="mse")


# A label mask by unit.


def test_a_label_mask_by_unit() -> None:
    rng = np.random.default_rng(2)
    mask = rng.random((24, CLASSES)) > 0.5
    labels = np.where(mask, rng.integers(0, 2, (24, CLASSES)), np.nan)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((FEATURES,), name="x")
    student = keras.Model({"x": inputs}, layers.Dense(CLASSES)(inputs))
    s = student({"x": X}).numpy()
    losses = np.logaddexp(0.0, s) - np.nan_to_num(labels) * s
    weights = rng.random(24)
    x = {"x": X, "mask": mask}
    for weight in (None, weights):
        distiller = kd.Distiller(student, lambda x: x["x"][:, :CLASSES])
        distiller.compile(
            keras.optimizers.SGD(0.0),
            keras.losses.BinaryCrossentropy(from_logits=True),
            distillation_loss=kd.losses.BinarySoftTargets(),
            label_mask="mask",
            weighted_metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)],
            run_eagerly=True,
        )
        logs = distiller.train_on_batch(
            x, labels, sample_weight=weight, return_dict=True
        )
        of_rows = np.ones(24) if weight is None else weight
        expected = (losses * mask * of_rows[:, None]).sum() / mask.sum()
        np.testing.assert_allclose(logs["student_loss"], expected, rtol=1e-5)
        right = ((s > 0) == (labels > 0.5)) * mask * of_rows[:, None]
        accuracy = right.sum() / (mask * of_rows[:, None]).sum()
        np.testing.assert_allclose(logs["binary_accuracy"], accuracy, rtol=1e-5)
    distiller.compile("sgd", crossentropy(), label_mask="mask", run_eagerly=True)
    with pytest.raises(ValueError, match="label mask of output .* mean over units"):
        distiller.train_on_batch(x, np.zeros((24, CLASSES), "int32"))


# After a refusal.


@pytest.mark.parametrize("how", [{}, {"jit_compile": True}, {"run_eagerly": True}])
def test_the_right_fit_works_after_a_refused_one(how: dict[str, Any]) -> None:
    inputs = keras.Input((FEATURES,))
    heads = [layers.Dense(CLASSES)(inputs), layers.Dense(CLASSES)(inputs)]
    student = keras.Model(inputs, heads)
    fresh = keras.models.clone_model(student)
    fresh.set_weights(student.get_weights())
    logs = []
    for model, is_refused in ((student, True), (fresh, False)):
        distiller = kd.Distiller(model, lambda x: [x[:, :CLASSES]] * 2)
        distiller.compile("adam", [crossentropy()] * 2, **how)
        if is_refused:
            with pytest.raises(ValueError):
                distiller.evaluate(X[:, :2], [Y, Y], verbose=0)
            with pytest.raises(ValueError, match="`alpha` must be 1"):
                distiller.train_on_batch(X)
        logs.append(distiller.train_on_batch(X, [Y, Y], return_dict=True))
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)


def test_peers_train_after_a_refused_fit() -> None:
    mutual = kd.online.MutualLearning([mlp(0), mlp(1)])
    mutual.compile("adam", crossentropy())
    with pytest.raises(ValueError, match="y=None"):
        mutual.fit(X, verbose=0)
    assert np.isfinite(mutual.fit(X, Y, verbose=0).history["loss"][0])


@pytest.mark.parametrize("call", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize("kind", ["distiller", "peers", "in a scope"])
def test_a_refusal_leaves_no_name_scope_open(kind: str, call: str) -> None:
    # Keras notes the name before TensorFlow refuses it.
    student = keras.Sequential([keras.Input((FEATURES,)), layers.Dense(CLASSES)])
    student.name = "my student"
    model: Any = kd.Distiller(student, mlp(0))
    if kind == "peers":
        model = kd.online.MutualLearning([mlp(0), student])
    model.compile("adam", crossentropy())
    data = [X] if call == "predict" else [X, Y]
    outer = ["outer"] if kind == "in a scope" else []
    with contextlib.ExitStack() as scopes:
        for name in outer:
            scopes.enter_context(keras.name_scope(name))
        with pytest.raises(ValueError, match="not a valid .*scope name"):
            getattr(model, call)(*data, verbose=0)
        new = layers.Dense(1, name="new")
        new.build((None, 1))
        assert new.kernel.path == "/".join([*outer, "new/kernel"])

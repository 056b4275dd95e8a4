"""What `keras.distillation` of Keras 3.15 gets wrong, next to what is done here.

Each `test_keras_...` shows that a defect is there, so that the test beside it is known
to hold something. Another version of Keras may have mended some: there they may fail.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from tests.distiller.models import (
    CLASSES,
    FEATURES,
    CountsCalls,
    assert_same_weights,
    crossentropy,
    data,
    forward_kl,
    label_loss,
    mlp,
)

theirs = pytest.importorskip("keras.distillation")
defect = pytest.mark.xfail(
    not keras.__version__.startswith("3.15."),
    reason="this version of Keras may have mended it",
    strict=False,
)

X, Y = data()
TEACHER_UNITS = 41


def keras_distiller(
    student: keras.Model, teacher: keras.Model, losses: Any = None, **kwargs: Any
) -> Any:
    losses = losses or theirs.LogitsDistillation(loss=keras.losses.KLDivergence())
    distiller = theirs.Distiller(teacher, student, losses)
    distiller.compile(kwargs.pop("optimizer", "sgd"), crossentropy(), **kwargs)
    return distiller


def our_distiller(
    student: keras.Model, teacher: keras.Model, loss: Any = None, **kwargs: Any
) -> kd.Distiller:
    distiller = kd.Distiller(student, teacher)
    optimizer = kwargs.pop("optimizer", "sgd")
    labels = kwargs.pop("labels", crossentropy())
    distiller.compile(optimizer, labels, distillation_loss=loss, **kwargs)
    return distiller


def moves(distiller: Any, **fit: Any) -> bool:
    """Whether a step changes the student."""
    before = distiller.student.get_weights()
    distiller.fit(X, Y, batch_size=24, verbose=0, **fit)
    after = distiller.student.get_weights()
    return not all(np.array_equal(a, b) for a, b in zip(after, before, strict=True))


# The default loss.

T_LOGITS = np.array([[6.0, 1.0, -3.0]], "float32")
S_LOGITS = np.array([[-2.0, 4.0, 0.0]], "float32")
EXACT = float(forward_kl(T_LOGITS, S_LOGITS, 3.0).mean())


@defect
def test_keras_default_loss_is_no_divergence_of_distributions() -> None:
    loss = theirs.LogitsDistillation()
    value = float(loss.compute_loss(T_LOGITS, S_LOGITS))
    assert abs(value - EXACT) > 0.2 * EXACT
    # a distribution doesn't change when all logits grow alike
    shifted = float(loss.compute_loss(T_LOGITS + 9.0, S_LOGITS + 9.0))
    assert abs(shifted - value) > 0.5 * EXACT


def test_our_default_loss_is_the_tempered_kl_divergence() -> None:
    loss = kd.losses.ForwardKL(temperature=3.0)
    for shift in (0.0, 9.0):
        value = float(loss(T_LOGITS + shift, S_LOGITS + shift))
        np.testing.assert_allclose(value, EXACT, rtol=1e-5)
    logs = our_distiller(mlp(), mlp(seed=1)).train_on_batch(X, Y, return_dict=True)
    expected = forward_kl(mlp(seed=1)(X), mlp()(X), 1.0).mean()
    np.testing.assert_allclose(logs["distillation_loss"], expected, rtol=1e-5)


# Clipped probabilities.


def gradient_at_a_gap(loss: Callable[[Any, Any], Any]) -> float:
    teacher, student = tf.constant([[0.0, 40.0]]), tf.constant([[40.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss(teacher, student)
    return float(tf.reduce_max(tf.abs(tape.gradient(value, student))))


@defect
def test_keras_gives_no_gradient_where_the_student_is_surely_wrong() -> None:
    loss = theirs.LogitsDistillation(1.0, loss=keras.losses.KLDivergence())
    assert gradient_at_a_gap(loss.compute_loss) < 1e-20


def test_we_give_the_full_gradient_where_the_student_is_surely_wrong() -> None:
    assert gradient_at_a_gap(kd.losses.ForwardKL()) == pytest.approx(1.0)


# Weights and additional losses.

WEIGHTS = {
    "sample_weight": {"sample_weight": np.zeros(24)},
    "class_weight": {"class_weight": {0: 0.0, 1: 0.0, 2: 0.0}},
}


@defect
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_keras_ignores_weights(weights: dict[str, Any]) -> None:
    assert moves(keras_distiller(mlp(), mlp(seed=1)), **weights)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_we_heed_weights(weights: dict[str, Any]) -> None:
    assert not moves(our_distiller(mlp(), mlp(seed=1)), **weights)


def penalised() -> tuple[keras.Model, float]:
    student = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(CLASSES, kernel_regularizer=keras.regularizers.L2(100.0)),
        ]
    )
    return student, float(student.losses[0])


@defect
def test_keras_ignores_regularisers() -> None:
    student, penalty = penalised()
    logs = keras_distiller(student, mlp()).train_on_batch(X, Y, return_dict=True)
    assert logs["loss"] < 0.5 * penalty


def test_we_add_regularisers() -> None:
    student, penalty = penalised()
    logs = our_distiller(student, mlp()).train_on_batch(X, Y, return_dict=True)
    terms = 0.5 * logs["student_loss"] + 0.5 * logs["distillation_loss"]
    np.testing.assert_allclose(logs["loss"], penalty + terms, rtol=1e-5)


# Several outputs.


def two_headed() -> keras.Model:
    inputs = keras.Input((FEATURES,))
    return keras.Model(inputs, [layers.Dense(CLASSES)(inputs) for _ in range(2)])


@defect
def test_keras_fails_on_labelled_models_of_several_outputs() -> None:
    losses = theirs.LogitsDistillation(loss=["kl_divergence", "kl_divergence"])
    distiller = theirs.Distiller(two_headed(), two_headed(), losses)
    distiller.compile("sgd", [crossentropy(), crossentropy()])
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        distiller.fit(X, [Y, Y], verbose=0)


def test_we_train_labelled_models_of_several_outputs() -> None:
    student, teacher = two_headed(), two_headed()
    s, t = student(X), teacher(X)
    distiller = our_distiller(student, teacher, labels=2 * [crossentropy()])
    logs = distiller.train_on_batch(X, [Y, Y], return_dict=True)
    np.testing.assert_allclose(
        logs["student_loss"], sum(label_loss(Y, o).mean() for o in s), rtol=1e-5
    )
    np.testing.assert_allclose(
        logs["distillation_loss"],
        sum(forward_kl(*pair, 1.0).mean() for pair in zip(t, s, strict=True)),
        rtol=1e-5,
    )


# Callbacks that change the weight or the temperature.


def logs_around(distiller: Any, change: Callable[[], None]) -> list[dict[str, float]]:
    """What a step logs before and after `change()`, the weights being the same."""
    before = distiller.train_on_batch(X, Y, return_dict=True)
    change()
    return [before, distiller.train_on_batch(X, Y, return_dict=True)]


@defect
def test_keras_freezes_weight_and_temperature_into_the_graph() -> None:
    loss = theirs.LogitsDistillation(3.0, loss=keras.losses.KLDivergence())
    distiller = keras_distiller(
        mlp(), mlp(seed=1), loss, optimizer=keras.optimizers.SGD(0.0)
    )

    def change() -> None:
        distiller.student_loss_weight, loss.temperature = 0.0, 1.0

    before, after = logs_around(distiller, change)
    assert after == before


def test_our_alpha_and_temperature_act_when_assigned() -> None:
    loss = kd.losses.ForwardKL(temperature=3.0)
    distiller = our_distiller(
        mlp(), mlp(seed=1), loss, optimizer=keras.optimizers.SGD(0.0)
    )

    def change() -> None:
        distiller.alpha, loss.temperature = 1.0, 1.0

    _, after = logs_around(distiller, change)
    expected = forward_kl(mlp(seed=1)(X), mlp()(X), 1.0).mean()
    np.testing.assert_allclose(after["loss"], expected, rtol=1e-5)


# Passes through the models and the state that they leave.


def counting(seed: int = 0, units: int = 5) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            CountsCalls(name="counter"),
            layers.Dense(units, name="hidden"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(CLASSES),
        ]
    )


def calls(model: keras.Model) -> int:
    return model.get_layer("counter").count


def moving_means(model: keras.Model) -> np.ndarray:
    return model.layers[2].moving_mean.numpy()


@defect
def test_keras_feature_losses_run_the_student_twice() -> None:
    student = counting()
    features = theirs.FeatureDistillation(
        teacher_layer_name="hidden", student_layer_name="hidden"
    )
    distiller = keras_distiller(student, counting(1), features)
    start = calls(student)
    distiller.train_on_batch(X, Y)
    assert calls(student) - start == 2
    means = moving_means(student)
    distiller.evaluate(X, Y, verbose=0)
    assert not np.array_equal(moving_means(student), means)


def test_we_run_the_student_once_a_step_and_update_its_statistics_once() -> None:
    student, plain = counting(), counting()
    distiller = our_distiller(student, counting(1))
    plain.compile("sgd", crossentropy())
    start = calls(student)
    distiller.train_on_batch(X, Y)
    plain.train_on_batch(X, Y)
    assert calls(student) - start == 1
    np.testing.assert_array_equal(moving_means(student), moving_means(plain))
    means = moving_means(student)
    distiller.evaluate(X, Y, verbose=0)
    distiller.predict(X, verbose=0)
    np.testing.assert_array_equal(moving_means(student), means)


@defect
def test_keras_runs_the_teacher_to_evaluate_the_student() -> None:
    teacher = counting(1)
    distiller = keras_distiller(mlp(), teacher)
    start = calls(teacher)
    distiller.evaluate(X, Y, batch_size=8, verbose=0)
    assert calls(teacher) - start == 3


def test_we_run_the_teacher_once_a_training_step_and_never_else() -> None:
    teacher = counting(1)
    distiller = our_distiller(mlp(), teacher)
    start = calls(teacher)
    distiller.evaluate(X, Y, batch_size=8, verbose=0)
    distiller.predict(X, batch_size=8, verbose=0)
    assert calls(teacher) == start
    distiller.fit(X, Y, batch_size=8, validation_data=(X, Y), verbose=0)
    assert calls(teacher) - start == 3


# What is the caller's.


@defect
def test_keras_freezes_the_callers_teacher() -> None:
    teacher = mlp()
    keras_distiller(mlp(), teacher)
    assert not teacher.trainable


def test_we_leave_the_callers_teacher_as_it_was() -> None:
    teacher = counting(1)
    teacher.layers[1].trainable = False
    optimizer = keras.optimizers.Adam()
    teacher.compile(optimizer, crossentropy(), metrics=["accuracy"])
    teacher.train_on_batch(X, Y)

    def state() -> list[Any]:
        return [
            teacher.name,
            [(layer.name, layer.trainable) for layer in teacher.layers],
            [variable.path for variable in teacher.trainable_variables],
            teacher.compiled,
            teacher.optimizer is optimizer,
            int(optimizer.iterations),
            teacher.get_compile_config(),
        ]

    def weights() -> dict[str, np.ndarray]:
        counter = teacher.get_layer("counter").calls
        return {v.path: v.numpy() for v in teacher.variables if v is not counter}

    state_before, weights_before = state(), weights()
    distiller = our_distiller(counting(), teacher, alpha=0.9)
    distiller.fit(X, Y, epochs=2, validation_data=(X, Y), verbose=0)
    assert state() == state_before
    for path, weight in weights().items():
        np.testing.assert_array_equal(weight, weights_before[path], err_msg=path)
    assert np.isfinite(teacher.train_on_batch(X, Y)).all()  # it can still be trained


def has_teacher(path: Path) -> bool:
    shapes = []
    with h5py.File(path) as file:
        file.visititems(lambda _, item: shapes.append(getattr(item, "shape", ())))
    return any(TEACHER_UNITS in shape for shape in shapes)


@defect
def test_keras_saves_the_teacher_with_every_checkpoint(tmp_path: Path) -> None:
    distiller = keras_distiller(mlp(), mlp(units=TEACHER_UNITS))
    distiller.fit(X, Y, verbose=0)
    distiller.save_weights(tmp_path / "d.weights.h5")
    assert has_teacher(tmp_path / "d.weights.h5")


def test_we_save_the_student_alone(tmp_path: Path) -> None:
    distiller = our_distiller(mlp(), mlp(units=TEACHER_UNITS))
    distiller.fit(X, Y, verbose=0)
    distiller.save_weights(tmp_path / "d.weights.h5")
    assert not has_teacher(tmp_path / "d.weights.h5")


@defect
def test_keras_loses_the_compile_state(tmp_path: Path) -> None:
    distiller = keras_distiller(mlp(), mlp(seed=1))
    distiller.fit(X, Y, verbose=0)
    distiller.save(tmp_path / "d.keras")
    with pytest.warns(UserWarning, match="was not called as part of model loading"):
        loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert not hasattr(loaded, "optimizer")


def test_we_keep_the_compile_state(tmp_path: Path) -> None:
    distiller = our_distiller(mlp(), mlp(seed=1), optimizer="adam")
    distiller.fit(X, Y, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = kd.Distiller.load(tmp_path / "d.keras", teacher=distiller.teacher)
    for model in (loaded, distiller):
        model.train_on_batch(X, Y)
    assert_same_weights(loaded.student, distiller.student)


# Models that differ.


def head(units: int) -> keras.Model:
    return keras.Sequential([keras.Input((FEATURES,)), layers.Dense(units)])


@defect
def test_keras_loss_of_a_one_unit_head_is_0_whatever_the_student_says() -> None:
    loss = theirs.LogitsDistillation(loss=keras.losses.KLDivergence())
    with pytest.warns(UserWarning, match="softmax over axis -1"):
        value = loss.compute_loss(tf.constant([[9.0]]), tf.constant([[-9.0]]))
    assert float(value) == 0.0


def test_we_refuse_a_softmax_over_one_unit() -> None:
    distiller = our_distiller(head(1), head(1), labels="mse")
    with pytest.raises(ValueError, match="Use `keras_distill.losses.BinarySoftTarget"):
        distiller.train_on_batch(X, Y)


def privileged(dtype: str = "float32") -> keras.Model:
    keras.utils.set_random_seed(1)
    query = keras.Input((FEATURES,), name="query")
    clicks = keras.Input((2,), name="clicks", dtype=dtype)
    seen = layers.Concatenate()([query, layers.Rescaling(1.0)(clicks)])
    return keras.Model({"query": query, "clicks": clicks}, layers.Dense(3)(seen))


def named_student() -> keras.Model:
    query = keras.Input((FEATURES,), name="query")
    return keras.Model({"query": query}, layers.Dense(CLASSES)(query))


@defect
def test_keras_refuses_a_teacher_that_reads_or_computes_otherwise() -> None:
    half = keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(CLASSES, dtype="float16")]
    )
    for student, teacher in ((named_student(), privileged()), (mlp(), half)):
        with pytest.raises(ValueError):
            keras_distiller(student, teacher)


def test_our_teacher_may_read_more_in_other_dtypes() -> None:
    student, teacher = named_student(), privileged("int32")
    clicks = np.arange(48, dtype="int32").reshape(24, 2) % 5
    batch = {"query": X, "clicks": clicks}
    distiller = our_distiller(student, teacher, kd.losses.ForwardKL())
    t, s = teacher(batch), student({"query": X})
    logs = distiller.train_on_batch(batch, Y, return_dict=True)
    np.testing.assert_allclose(
        logs["distillation_loss"], forward_kl(t, s).mean(), rtol=1e-5
    )

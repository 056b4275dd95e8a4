"""What can't work says so: with the value received, and what to do."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from tests.distiller.models import (
    CLASSES,
    Subclassed,
    assert_same_weights,
    crossentropy,
    data,
    mlp,
)

X, Y = data()


def compiled(teacher: Any, student: Any = None, **kwargs: Any) -> kd.Distiller:
    distiller = kd.Distiller(student or mlp(), teacher)
    distiller.compile("sgd", kwargs.pop("loss", crossentropy()), **kwargs)
    return distiller


def test_a_student_is_a_keras_model() -> None:
    with pytest.raises(TypeError, match="`student` must be a `keras.Model`.*Dense"):
        kd.Distiller(layers.Dense(3), mlp())
    with pytest.raises(TypeError, match="student=None of type NoneType"):
        kd.Distiller(None, mlp())


def test_a_teacher_is_callable_and_built() -> None:
    with pytest.raises(TypeError, match="a Keras model or a callable.*'teacher.keras'"):
        kd.Distiller(mlp(), "teacher.keras")
    unbuilt = Subclassed(name="fresh")
    with pytest.raises(ValueError, match="'fresh' isn't built.*Train it, load it"):
        kd.Distiller(mlp(), unbuilt)
    distiller = kd.Distiller(mlp())
    with pytest.raises(ValueError, match="'fresh' isn't built"):
        distiller.teacher = unbuilt
    assert distiller.teacher is None


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan"), float("inf")])
def test_alpha_is_a_weight(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"in \[0, 1\]. Received: alpha={alpha}"):
        compiled(mlp(), alpha=alpha)


@pytest.mark.parametrize("alpha", ["x", None, [0.5, 0.5]], ids=str)
def test_alpha_is_a_number_or_a_schedule(alpha: Any) -> None:
    with pytest.raises(TypeError, match="`alpha` must be a float or a .*Received: al"):
        compiled(mlp(), alpha=alpha)


def test_a_schedule_of_alpha_starts_as_a_weight() -> None:
    schedule = keras.optimizers.schedules.PolynomialDecay(2.0, 10, 0.0)
    with pytest.raises(ValueError, match="alpha=a schedule that is"):
        compiled(mlp(), alpha=schedule)


def test_alpha_before_compile() -> None:
    distiller = kd.Distiller(mlp(), mlp())
    with pytest.raises(ValueError, match=r"must call `compile\(\)`"):
        _ = distiller.alpha
    with pytest.raises(ValueError, match=r"must call `compile\(\)`"):
        distiller.alpha = 0.5
    with pytest.raises(ValueError, match=r"must call `compile\(\)`"):
        distiller.fit(X, Y)


def test_outputs_of_other_shapes() -> None:
    wide = keras.Sequential([keras.Input((4,)), layers.Dense(5)])
    with pytest.raises(ValueError, match=r"same shape.*\(24, 5\).*\(24, 3\)"):
        compiled(wide).train_on_batch(X, Y)


def test_one_unit_heads_are_no_softmax() -> None:
    head, other = (
        keras.Sequential([keras.Input((4,)), layers.Dense(1)]) for _ in range(2)
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match="one unit.*BinarySoftTargets.*24, 1"):
        compiled(head, other, loss=loss).train_on_batch(X, Y % 2)


@pytest.mark.parametrize(
    "which, loss",
    [
        ("distillation_loss", kd.losses.ForwardKL(reduction=None)),
        ("student_loss", crossentropy(reduction=None)),
    ],
)
def test_losses_are_reduced(which: str, loss: Any) -> None:
    argument = "loss" if which == "student_loss" else "distillation_loss"
    with pytest.raises(ValueError, match=rf"`{which}`.*`reduction`.*\(24,\)"):
        compiled(mlp(), **{argument: loss}).train_on_batch(X, Y)


def two_headed(**names: int) -> keras.Model:
    inputs = keras.Input((4,))
    heads = {name: layers.Dense(n, name=name)(inputs) for name, n in names.items()}
    return keras.Model(inputs, heads)


@pytest.mark.parametrize(
    "teacher, loss, message",
    [
        (
            two_headed(kind=3),
            kd.losses.ForwardKL(),
            r"loss for output \['size'\], which the teacher's output doesn't hold",
        ),
        (
            two_headed(kind=3, size=2),
            {"kind": None, "sise": "mse"},
            r"loss for output \['sise'\], which the teacher's output doesn't hold",
        ),
        (
            two_headed(kind=3, size=2),
            [kd.losses.ForwardKL()],
            "one loss or None for each.*1 losses for outputs",
        ),
    ],
)
def test_outputs_and_losses_match(teacher: Any, loss: Any, message: str) -> None:
    student = two_headed(kind=3, size=2)
    losses = {"kind": crossentropy(), "size": "mse"}
    distiller = compiled(teacher, student, loss=losses, distillation_loss=loss)
    with pytest.raises(ValueError, match=message):
        distiller.train_on_batch(X, {"kind": Y, "size": X[:, :2]})


def test_losses_by_name_need_the_names_of_outputs() -> None:
    distiller = compiled(mlp(), distillation_loss={"kind": kd.losses.ForwardKL()})
    with pytest.raises(ValueError, match=r"names of the student's outputs.*\['kind'\]"):
        distiller.train_on_batch(X, Y)


def test_a_loss_for_one_output_at_least() -> None:
    with pytest.raises(ValueError, match="one output at least.*None, None"):
        compiled(mlp(), distillation_loss=[None, None])


def broken_after(steps: int, value: float) -> Any:
    """A teacher whose outputs are bad from a row on, as of corrupt features."""

    def teacher(x: Any) -> Any:
        logits = tf.one_hot(tf.cast(x[:, 0] > 0, "int32"), CLASSES)
        return tf.where(x[:, 1:2] > 100.0, value, 2.0 * logits)

    bad = X.copy()
    bad[4 * steps :, 1] = 1e3
    return teacher, bad


@pytest.mark.parametrize(
    "value, how",
    [
        (np.nan, {}),
        (np.inf, {"run_eagerly": True}),
        (np.nan, {"steps_per_execution": 2}),
        pytest.param(np.nan, {"jit_compile": True}, marks=pytest.mark.slow("XLA")),
    ],
    ids=str,
)
def test_training_stops_at_the_step_at_which_the_teacher_breaks(
    value: float, how: dict[str, Any]
) -> None:
    teacher, bad = broken_after(2, value)
    distiller, expected = compiled(teacher, **how), compiled(teacher)
    with pytest.raises(tf.errors.InvalidArgumentError, match="teacher's output is NaN"):
        distiller.fit(bad, Y, batch_size=4, shuffle=False, verbose=0)
    for weight in distiller.student.get_weights():
        assert np.isfinite(weight).all()
    if "jit_compile" in how:  # the flag can't be read before the step has ended
        assert int(distiller.optimizer.iterations) == 3
    else:
        expected.fit(bad[:8], Y[:8], batch_size=4, shuffle=False, verbose=0)
        assert_same_weights(distiller.student, expected.student, atol=1e-7)
    distiller.fit(X, Y, verbose=0)  # a good batch trains again


def test_the_check_of_the_teacher_can_be_switched_off() -> None:
    teacher, bad = broken_after(0, np.inf)
    distiller = compiled(teacher, check_teacher=False)
    assert np.isfinite(distiller.train_on_batch(bad, Y, return_dict=True)["alpha"])


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("known_to_be_empty", [True, False])
def test_an_empty_dataset(known_to_be_empty: bool) -> None:
    distiller = compiled(mlp())
    before = distiller.student.get_weights()
    empty = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).take(0)
    if not known_to_be_empty:
        empty = empty.filter(lambda x, y: True)
    with pytest.raises(ValueError, match=r"needs data.*empty data set"):
        distiller.fit(empty, shuffle=False, verbose=0)
    for weight, expected in zip(distiller.student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_empty_arrays() -> None:
    with pytest.raises(ValueError, match=r"needs data.*empty data set"):
        compiled(mlp()).fit(X[:0], Y[:0], verbose=0)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_teacher_that_masks_a_class(jit_compile: bool) -> None:
    def teacher(x: tf.Tensor) -> tf.Tensor:
        return tf.concat([x[:, :2], tf.fill((tf.shape(x)[0], 1), -np.inf)], axis=-1)

    with pytest.raises(tf.errors.InvalidArgumentError, match="masks classes"):
        compiled(teacher, jit_compile=jit_compile).fit(X, Y, verbose=0)
    distiller = compiled(teacher, jit_compile=jit_compile, check_teacher=False)
    history = distiller.fit(X, Y, verbose=0).history
    assert np.isfinite(history["distillation_loss"][0])
    assert all(np.isfinite(weight).all() for weight in distiller.student.get_weights())


def test_a_schedule_that_leaves_the_range_later() -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\].*is 1.5 at step 10"):
        compiled(mlp(), alpha=kd.schedules.LateStart(5, 1.5))


@pytest.mark.parametrize("returned", [None, np.zeros((2, CLASSES), "float32")])
def test_a_teacher_of_ones_own_returns_a_lesson(returned: Any) -> None:
    class Direct(kd.teachers.Teacher):
        def teach(self, batch: Any) -> Any:
            return returned

    message = rf"`Lesson\(outputs\)`.*{type(returned).__name__} from Direct.teach"
    for teacher in (Direct(), kd.teachers.Adapted(Direct(), outputs=lambda out: out)):
        with pytest.raises(TypeError, match=message):
            compiled(teacher).fit(X, Y, verbose=0)


def test_an_unbuilt_layer_as_teacher() -> None:
    with pytest.raises(ValueError, match="isn't built"):
        kd.Distiller(mlp(), layers.Dense(CLASSES))


def test_alpha_assigned_where_there_are_no_labels() -> None:
    distiller = compiled(mlp(), alpha=1.0)
    distiller.fit(X, verbose=0)
    with pytest.raises(ValueError, match="must stay 1.*alpha=0.5"):
        distiller.alpha = 0.5


def test_privileged_features_are_a_list_of_names() -> None:
    with pytest.raises(TypeError, match="list of names. Received: .*'dwell'"):
        kd.Distiller(mlp(), mlp(), privileged_features="dwell")


def test_an_empty_dict_of_alphas() -> None:
    with pytest.raises(ValueError, match="a weight for each output.*alpha={}"):
        compiled(mlp(), alpha={})


def test_an_output_whose_loss_would_be_logged_as_ours() -> None:
    inputs = keras.Input((4,))
    heads = [keras.layers.Dense(3, name=name)(inputs) for name in ("student", "b")]
    distiller = kd.Distiller(keras.Model(inputs, heads), lambda x: [x, x])
    with pytest.raises(ValueError, match=r"logged under .*\['student'\]"):
        distiller.compile("sgd", ["mse", "mse"])


def test_a_fixed_teacher_keeps_its_moving_averages() -> None:
    inputs = keras.Input((4,))
    shared = keras.layers.BatchNormalization(center=False, scale=False)
    student, teacher = (
        keras.Model(inputs, keras.layers.Dense(3)(shared(inputs))) for _ in range(2)
    )
    distiller = kd.Distiller(student, teacher)
    with pytest.raises(ValueError, match="fixed teacher holds too.*moving"):
        distiller.compile("sgd", "mse")
    shared.trainable = False
    distiller.compile("sgd", "mse")

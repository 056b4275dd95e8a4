"""What can't be meant is warned of once, in words that lead on."""

import functools
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_distill as kd
from tests.guards.setups import (
    classes,
    inputs,
    linear,
    sparse,
    student,
    warned_of,
)
from tests.guards.test_sound import fitted, named, of_classes, of_clicks, opaque

X = inputs()
TEACHER = linear(4)
LOGITS = TEACHER(X).numpy()
Y = classes(LOGITS)

TAKES = "looks like logits, but `{}` takes"
LOOKS = "The teacher's output looks like probabilities"


def probabilities(x: tf.Tensor) -> tf.Tensor:
    """A teacher whose graph shows nothing."""
    return tf.ensure_shape(
        tf.numpy_function(
            lambda batch: ops.convert_to_numpy(ops.softmax(TEACHER(batch))),
            [x],
            tf.float32,
        ),
        (None, 4),
    )


HEAD = linear(1)


def click_probabilities(x: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(
        tf.numpy_function(
            lambda batch: ops.convert_to_numpy(ops.sigmoid(HEAD(batch))),
            [x],
            tf.float32,
        ),
        (None, 1),
    )


def recorded_probabilities() -> None:
    x = {"x": X, "said": ops.convert_to_numpy(ops.softmax(LOGITS))}
    distiller = kd.Distiller(named(student(4)), kd.teachers.Recorded("said"))
    distiller.compile("sgd", sparse())  # in a graph, which shows nothing of it
    distiller.fit(x, Y, verbose=0)


def one_hot_column() -> None:
    """A loss of labels' ids by its name, on a student of logits."""
    of_classes(loss="sparse_categorical_crossentropy")


def of_two_outputs() -> None:
    given = keras.Input((6,))
    models = [
        keras.Model(given, [make(4)(given), make(4)(given)])
        for make in (student, linear)
    ]
    distiller = kd.Distiller(*models)
    losses = [kd.losses.ForwardKL(), "kl_divergence"]
    distiller.compile(
        "sgd", [sparse(), sparse()], distillation_loss=losses, run_eagerly=True
    )
    distiller.fit(X, [Y, Y], verbose=0)


def kl(by: Any) -> Callable[[], None]:
    return lambda: of_classes(distillation_loss=by)


def one_hot(**kwargs: Any) -> None:
    of_classes(y=np.eye(4, dtype="float32")[Y], **kwargs)


# Each by what is wrong: what is run, and what is said.
VALUES: dict[str, tuple[Callable[[], None], str]] = {
    "divergence": (kl(keras.losses.KLDivergence()), TAKES.format("kl_divergence")),
    "its name": (kl("kl_divergence"), "ForwardKL"),
    "its function": (kl(keras.losses.kl_divergence), TAKES.format("kl_divergence")),
    "crossentropy": (
        kl("categorical_crossentropy"),
        "`categorical_crossentropy` takes",
    ),
    "crossentropy of a student's logits": (
        kl(keras.losses.CategoricalCrossentropy(from_logits=True)),
        "The teacher's output looks like logits",
    ),
    "focal": (kl(keras.losses.CategoricalFocalCrossentropy()), "looks like logits"),
    "binary": (kl("binary_crossentropy"), "`binary_crossentropy` .*BinarySoftTargets"),
    "binary focal": (kl(keras.losses.BinaryFocalCrossentropy()), "BinarySoftTargets"),
    "ours, told so": (
        kl(kd.losses.ForwardKL(from_logits=False)),
        "looks like logits.*Pass `from_logits=True`",
    ),
    "the teacher's, told so": (
        kl(kd.losses.ForwardKL(teacher_from_logits=False)),
        "The teacher's .*logits.*Pass `teacher_from_logits=True`",
    ),
    "label loss": (one_hot_column, "The student's .*an object with `from_logits=True`"),
    "label loss of units": (
        lambda: of_clicks(loss="binary_crossentropy"),
        "The student's .*`from_logits=True`, or end the model in a sigmoid",
    ),
    "label loss, categorical": (
        lambda: one_hot(loss="categorical_crossentropy"),
        "The student's .* in a softmax",
    ),
    "loss of a teacher that trains": (
        lambda: of_classes(teacher_loss="sparse_categorical_crossentropy"),
        "The teacher's .*looks like logits",
    ),
    "second output": (of_two_outputs, TAKES.format("kl_divergence")),
    "a callable's softmax": (
        lambda: of_classes(teacher=probabilities, run_eagerly=False),
        LOOKS,
    ),
    "a callable's sigmoid": (
        lambda: of_clicks(teacher=click_probabilities, run_eagerly=False),
        LOOKS,
    ),
    "recorded": (recorded_probabilities, LOOKS),
    "an ensemble's": (
        lambda: of_classes(
            teacher=kd.teachers.Ensemble([probabilities] * 2), run_eagerly=False
        ),
        LOOKS,
    ),
    "standardised": (
        lambda: of_classes(
            teacher=probabilities,
            distillation_loss=kd.losses.Standardized(kd.losses.ForwardKL()),
        ),
        LOOKS + ".*teacher_from_logits=False",
    ),
    "squared error of logits": (
        lambda: of_classes(
            teacher=probabilities, distillation_loss=kd.losses.LogitMSE()
        ),
        LOOKS + r'.*`logit_mse\w*` takes them.*`distillation_loss="mse"`',
    ),
    "squared error of logits, standardised": (
        lambda: of_classes(
            teacher=probabilities,
            distillation_loss=kd.losses.Standardized(kd.losses.LogitMSE()),
        ),
        LOOKS,
    ),
    "label loss named crossentropy": (
        lambda: of_classes(loss="crossentropy"),
        "The student's .*logits, but `crossentropy` takes .*`from_logits=True`",
    ),
    "label loss by its other name": (lambda: of_classes(loss="ce"), "`crossentropy` t"),
    "label loss named crossentropy, of one unit": (
        lambda: of_clicks(loss="crossentropy"),
        "The student's .*logits, but `crossentropy` takes .* in a sigmoid",
    ),
    "label loss named crossentropy, one-hot": (
        lambda: one_hot(loss="crossentropy"),
        "The student's .*logits, but `crossentropy` takes .* in a softmax",
    ),
    "in float16": (
        lambda: of_classes(
            teacher=lambda x: tf.cast(probabilities(x), "float16"),
        ),
        LOOKS,
    ),
}


LAST: dict[str, Callable[[], keras.layers.Layer]] = {
    "reshape": lambda: keras.layers.Reshape((4,)),
    "flatten": keras.layers.Flatten,
    "rescaling": lambda: keras.layers.Rescaling(1.0),
    "a layer of float16": lambda: keras.layers.Activation("linear", dtype="float16"),
    "a lambda": lambda: keras.layers.Lambda(lambda x: x + 0.0),
}


@pytest.mark.parametrize("name", LAST)
def test_a_softmax_that_keras_does_not_see(name: str) -> None:
    """Keras takes the logits of a softmax that ends a model, but of no other."""
    given = {
        "loss": sparse(),
        "distillation_loss": "mse",
        "run_eagerly": name not in ("reshape", "rescaling"),
    }
    model = keras.Sequential([student(4, "softmax"), LAST[name]()])
    (found,) = warned_of(lambda: fitted(model, TEACHER, X, Y, **given))
    assert "The student's output looks like probabilities, but `sparse_c" in found


def test_of_a_softmax_that_keras_sees_keras_warns() -> None:
    model = keras.Sequential([student(4, "softmax"), keras.layers.Activation("linear")])
    given = {"loss": sparse(), "distillation_loss": "mse", "run_eagerly": False}
    (found,) = warned_of(lambda: fitted(model, TEACHER, X, Y, **given))
    assert found.startswith('"`sparse_categorical_crossentropy` received')


@pytest.mark.parametrize("name", VALUES)
def test_values_that_a_loss_cannot_mean(name: str) -> None:
    run, message = VALUES[name]
    (found,) = warned_of(run)
    assert re.search(message, found), found


def unscaled(x: Any) -> Any:
    return TEACHER(200.0 * x)


CHANCE = "The teacher is no better than chance"
ORDER = np.array([1, 2, 3, 0])
CLUELESS: dict[str, Callable[..., None]] = {
    "untrained": functools.partial(of_classes, teacher=student(4)),
    "other classes": functools.partial(of_classes, teacher=linear(4, seed=7)),
    "other order": functools.partial(
        of_classes, teacher=lambda x: ops.take(TEACHER(x), ORDER, axis=-1)
    ),
    "other preprocessing": functools.partial(
        of_classes, teacher=lambda x: TEACHER(ops.flip(x, axis=-1))
    ),
    "unscaled": functools.partial(of_classes, teacher=unscaled),
    "constant": functools.partial(of_classes, teacher=lambda x: 0.0 * TEACHER(x)),
    "clicks, the wrong way round": functools.partial(
        of_clicks, teacher=lambda x: -HEAD(x)
    ),
    "regression": functools.partial(
        of_clicks,
        teacher=linear(1, seed=7),
        loss="mse",
        distillation_loss="mse",
        y=linear(1)(X).numpy(),
    ),
    "an ensemble": functools.partial(
        of_classes, teacher=kd.teachers.Ensemble([linear(4, seed=7)])
    ),
    "XLA": functools.partial(of_classes, teacher=student(4), jit_compile=True),
    "a graph": functools.partial(of_classes, teacher=student(4), run_eagerly=False),
    "several steps at once": functools.partial(
        of_classes, teacher=student(4), steps_per_execution=3
    ),
}


@pytest.mark.parametrize("name", CLUELESS)
def test_a_teacher_that_knows_nothing(name: str) -> None:
    (found,) = warned_of(functools.partial(CLUELESS[name], fit={"epochs": 2}))
    assert found.startswith(CHANCE)
    assert "the preprocessing and the order of classes" in found


def test_figures_of_chance() -> None:
    """They are those of the rows that were looked at."""
    constant = functools.partial(of_classes, teacher=lambda x: 0.0 * TEACHER(x))
    (found,) = warned_of(
        lambda: constant(x=X[:200], y=Y[:200], fit={"batch_size": 200})
    )
    assert "is 1.39 on the first 200 rows, where outputs that are all equal" in found
    assert " have 1.39, and in 50% of" in found


def test_the_warning_has_a_category_to_filter() -> None:
    with pytest.warns(kd.teachers.TeacherWarning, match=CHANCE):
        of_classes(teacher=student(4))


def test_the_teachers_loss_is_logged_on_request() -> None:
    weight = np.random.default_rng(0).random(640).astype("float32")
    distiller = kd.Distiller(student(4), TEACHER)
    distiller.compile("sgd", sparse(), log_teacher=True)
    logs = distiller.fit(X, Y, sample_weight=weight, verbose=0).history
    log_p = np.log(ops.convert_to_numpy(ops.softmax(LOGITS)))
    expected = -(weight * log_p[np.arange(640), Y]).mean()
    np.testing.assert_allclose(logs["teacher_loss"], [expected], rtol=1e-5)
    assert "teacher_loss" not in distiller.evaluate(X, Y, verbose=0, return_dict=True)
    with pytest.raises(ValueError, match="needs a label `loss`.*loss=None"):
        distiller.compile("sgd", alpha=1.0, log_teacher=True)


def test_only_the_first_rows_are_summed() -> None:
    distiller = kd.Distiller(student(4), TEACHER)
    distiller.compile("sgd", sparse())
    distiller.fit(X, Y, batch_size=64, epochs=4, verbose=0)
    seen = distiller._lent.setup.look.sums[:, 5].max()
    # Those of three epochs: in the second and third, the teacher meets the student.
    assert seen == 3 * 640
    distiller.fit(X, Y, verbose=0)
    assert distiller._lent.setup.look.sums[:, 5].max() == seen


def test_swapped_models() -> None:
    large = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(64), keras.layers.Dense(4)], name="big"
    )
    with pytest.warns(kd.teachers.TeacherWarning, match="'big' has 708 param.*swapped"):
        kd.Distiller(large, student(4))
    distiller = kd.Distiller(large)
    with pytest.warns(kd.teachers.TeacherWarning, match="more than its teacher"):
        distiller.teacher = student(4)
    sound = [
        lambda: kd.Distiller(student(4), large),
        lambda: kd.Distiller(student(4), linear(4)),
        lambda: kd.Distiller(large, opaque),
        lambda: kd.Distiller(large, kd.teachers.Recorded("said")),
        lambda: kd.Distiller(large, student(4), privileged_features=["p"]),
    ]
    assert [warned_of(make) for make in sound] == [[]] * len(sound)


def test_swapped_models_of_which_the_student_is_built_later() -> None:
    def larger() -> keras.Model:
        layers = [keras.layers.Dense(64), keras.layers.Dense(4)]
        return keras.Sequential(layers, name="big")

    distiller = kd.Distiller(larger(), linear(4))
    distiller.compile("sgd", sparse(), run_eagerly=True)
    with pytest.warns(kd.teachers.TeacherWarning, match="'big' has 708 param.*swapped"):
        distiller.train_on_batch(X[:8], Y[:8])
    assert warned_of(lambda: distiller.train_on_batch(X[:8], Y[:8])) == []
    model = larger()
    distiller = kd.Distiller(model, linear(4))
    model.build((None, 6))
    distiller.compile("sgd", sparse(), run_eagerly=True)
    (found,) = warned_of(lambda: distiller.train_on_batch(X[:8], Y[:8]))
    assert "swapped" in found


def test_a_model_does_not_teach_itself() -> None:
    model = student(4)
    with pytest.raises(
        ValueError, match=r"must be two models.*EMA\(student\).*one obj"
    ):
        kd.Distiller(model, model)
    distiller = kd.Distiller(model, linear(4))
    with pytest.raises(ValueError, match="must be two models"):
        distiller.teacher = model


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"alpha": kd.schedules.LateStart(500, 0.5)},
            "`alpha` .*in all 2 steps, 0 to 1",
        ),
        (
            {"distillation_loss": kd.losses.ForwardKL(kd.schedules.LateStart(0, 2.0))},
            None,
        ),
        (
            {
                "distillation_loss": kd.losses.ForwardKL(
                    keras.optimizers.schedules.PiecewiseConstantDecay([99], [4.0, 1.0])
                )
            },
            "`temperature` never started.*it was 4.0",
        ),
        ({"alpha": kd.schedules.LateStart(1, 0.5)}, None),
        ({"alpha": kd.schedules.LinearWarmup(9999, 0.5)}, None),
        ({"alpha": kd.schedules.TeacherAnnealing(3)}, None),
    ],
    ids=[
        "alpha starts too late",
        "a temperature that moves",
        "a temperature that moves too late",
        "alpha starts",
        "alpha rises slowly",
        "alpha falls",
    ],
)
def test_schedules_that_never_start(given: dict[str, Any], message: str | None) -> None:
    found = warned_of(lambda: of_classes(**given))
    assert len(found) == (message is not None)
    if message is not None:
        assert re.search(message, found[0])


def test_a_schedule_is_warned_of_once() -> None:
    distiller = kd.Distiller(student(4), linear(4))
    schedule = kd.schedules.LateStart(500, 0.5)
    distiller.compile("sgd", sparse(), alpha=schedule, run_eagerly=True)
    with pytest.warns(UserWarning, match="another `fit` goes on at step 20"):
        distiller.fit(X, Y, verbose=0)
    assert warned_of(lambda: distiller.fit(X, Y, verbose=0)) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, np.eye(4)[Y]), r"the form of the labels.*\(640, 4\).*\(640,\)"),
        (({"z": X}, Y), r"declares inputs that the batch doesn't hold: \['x'\]"),
        (
            tf.data.Dataset.from_tensor_slices({"z": X}).batch(8),
            r"doesn't hold: \['x'\]",
        ),
    ],
    ids=["other labels", "other keys", "other keys of a dataset"],
)
def test_validation_data_is_looked_at_before_the_first_epoch(
    data: Any, message: str
) -> None:
    distiller = kd.Distiller(named(student(4)), named(linear(4)))
    distiller.compile("sgd", sparse())
    with pytest.raises(ValueError, match=message):
        distiller.fit({"x": X}, Y, validation_data=data, verbose=0)
    assert int(distiller.optimizer.iterations) == 0

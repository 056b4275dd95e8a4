"""A teacher that trains in its student's steps: what each is trained on."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_distill as kd
from keras_distill.backend import invalid_values
from tests.backends import gradients, tensorflow_only
from tests.distiller.models import (
    CountsCalls,
    StepLogs,
    Subclassed,
    crossentropy,
    data,
    mlp,
)
from tests.distiller.pairs import (
    ID,
    PRIVILEGED,
    SERVED,
    bce,
    clicks,
    pair,
    served,
    together,
)

X, Y = clicks()
BROKEN = {**X, PRIVILEGED: X[PRIVILEGED].copy()}
BROKEN[PRIVILEGED][16:] = np.nan
STEPS = 6  # of the fits below
BAD_VALUES = type(invalid_values(""))
Weights = list[np.ndarray]


def sgd(rate: float = 0.2, **kwargs: Any) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(rate, **kwargs)


def fit(model: keras.Model, x: Any, *watched: keras.Model) -> list[list[Weights]]:
    """The weights of the watched models after each step, of shuffled batches."""
    logs = [StepLogs(watch.get_weights) for watch in watched]
    keras.utils.set_random_seed(11)  # the shuffling
    model.fit(x, Y, batch_size=8, epochs=2, verbose=0, callbacks=logs)
    assert all(len(log.seen) == STEPS for log in logs)
    return [log.seen for log in logs]


def same(weights: Weights, others: Weights) -> bool:
    return all(np.array_equal(w, o) for w, o in zip(weights, others, strict=True))


def assert_near(model: keras.Model, other: keras.Model, atol: float) -> None:
    for weight, expected in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=0.0, atol=atol)


# Two models that share nothing.


@pytest.fixture(scope="module")
def alone() -> list[list[Weights]]:
    """What student and teacher come to without each other."""
    student, teacher = pair(eventful=True)
    student.compile(sgd(momentum=0.9), bce())
    teacher.compile(keras.optimizers.Adam(0.03), bce())
    return [*fit(student, served(X), student), *fit(teacher, X, teacher)]


@pytest.mark.parametrize(
    "alpha, steps",
    [
        (0.0, STEPS),
        pytest.param(0.7, 0, marks=pytest.mark.slow("fits")),
        pytest.param(
            kd.schedules.LateStart(3, value=0.9), 3, marks=pytest.mark.slow("fits")
        ),
        (kd.schedules.LinearWarmup(4, value=0.9), 1),
    ],
    ids=["0", "constant", "late start", "warm-up"],
)
def test_each_model_trains_as_it_would_alone_until_alpha_counts(
    alpha: Any, steps: int, alone: list[list[Weights]]
) -> None:
    student, teacher = pair(eventful=True)
    distiller = together(
        student, teacher, teacher_optimizer=keras.optimizers.Adam(0.03), alpha=alpha
    )
    of_student, of_teacher = fit(distiller, X, student, teacher)
    student_alone, teacher_alone = alone
    for step in range(STEPS):
        assert same(of_teacher[step], teacher_alone[step]), step
        assert same(of_student[step], student_alone[step]) == (step < steps), step


@pytest.mark.parametrize(
    "alpha, start",
    [
        (kd.schedules.LateStart(3, value=0.9), 3),
        (kd.schedules.LinearWarmup(4, value=0.9), 1),
    ],
    ids=["late start", "warm-up"],
)
def test_with_shared_layers_alpha_reaches_both_models_when_it_starts(
    alpha: Any, start: int
) -> None:
    runs = []
    for value in (0.0, alpha):
        student, teacher = pair("items", eventful=True)
        distiller = together(student, teacher, alpha=value, run_eagerly=True)
        runs.append(fit(distiller, X, student, teacher))
    for without, late in zip(*runs, strict=True):
        for step in range(STEPS):
            assert same(late[step], without[step]) == (step < start), step


@pytest.mark.parametrize(
    "loss", [kd.losses.BinarySoftTargets(), "mse"], ids=["ours", "Keras'"]
)
def test_no_gradient_of_the_distillation_loss_reaches_the_teacher(loss: Any) -> None:
    student, teacher = pair()
    before = student.get_weights(), teacher.get_weights()
    distiller = together(
        student,
        teacher,
        distillation_loss=loss,
        teacher_loss=lambda y, logits: 0.0 * keras.ops.mean(logits, axis=-1),
        alpha=1.0,
        run_eagerly=True,
    )
    distiller.fit(X, Y, batch_size=24, verbose=0)
    assert same(teacher.get_weights(), before[1])
    assert not same(student.get_weights(), before[0])


# A step's gradients, by hand.

ALPHA = 0.6
SHARED = [(), ("items",), ("items", "users", "hidden")]


def by_weight(model: keras.Model, loss: Any) -> dict[int, np.ndarray]:
    """d/dw of a loss by the id of w."""
    weights = model.trainable_weights
    found = gradients(loss, weights)
    return {id(w): gradient for w, gradient in zip(weights, found, strict=True)}


@pytest.mark.parametrize("shared", SHARED, ids=str)
def test_a_step_follows_the_sum_of_the_gradients_where_a_layer_is_shared(
    shared: tuple[str, ...],
) -> None:
    student, teacher = pair(*shared)
    before = {id(w): w.numpy() for w in student.weights + teacher.weights}
    both = {id(w) for w in student.weights} & {id(w) for w in teacher.weights}
    assert len(both) == len(shared) + ("hidden" in shared)  # which has a bias too
    of_labels, of_targets = bce(), kd.losses.BinarySoftTargets()

    def loss_of_student() -> Any:
        s, t = student(served(X)), teacher(X)
        soft = of_targets(ops.stop_gradient(t), s)
        return (1 - ALPHA) * of_labels(Y, s) + ALPHA * soft

    def loss_of_teacher() -> Any:
        return of_labels(Y, teacher(X))

    student_loss, teacher_loss = float(loss_of_student()), float(loss_of_teacher())
    of_student = by_weight(student, loss_of_student)
    of_teacher = by_weight(teacher, loss_of_teacher)
    distiller = together(
        student,
        teacher,
        optimizer=sgd(0.5),
        teacher_optimizer=sgd(0.25),
        alpha=ALPHA,
    )
    logs = distiller.train_on_batch(X, Y, return_dict=True)
    for key, gradient in of_teacher.items():
        if key not in both:
            of_student[key] = 0.5 * gradient  # for half the rate
        else:
            of_student[key] = of_student[key] + gradient
    for weight in student.weights + teacher.weights:
        gradient = of_student[id(weight)]
        assert np.abs(gradient).max() > 1e-4
        np.testing.assert_allclose(
            weight, before[id(weight)] - 0.5 * gradient, atol=1e-6
        )
    np.testing.assert_allclose(logs["loss"], student_loss, rtol=1e-5)
    np.testing.assert_allclose(logs["teacher_loss"], teacher_loss, rtol=1e-5)


def test_a_shared_weight_has_its_moments_in_the_students_optimizer_alone() -> None:
    student, teacher = pair("items")
    adam = keras.optimizers.Adam(0.01)
    distiller = together(student, teacher, optimizer=adam, run_eagerly=True)
    distiller.fit(X, Y, batch_size=8, verbose=0)
    trained = distiller.teacher_in_training
    assert trained is not None
    assert len(adam._momentums) == len(student.trainable_weights)
    assert len(trained.optimizer._momentums) == len(teacher.trainable_weights) - 1
    assert int(adam.iterations) == int(trained.optimizer.iterations) == 3


class Recording(keras.optimizers.SGD):
    """Notes of which kind the gradients are that it is given."""

    kinds: dict[str, type]

    def apply_gradients(self, grads_and_vars: Any) -> Any:
        pairs = list(grads_and_vars)
        self.kinds = {variable.path: type(gradient) for gradient, variable in pairs}
        return super().apply_gradients(pairs)


@tensorflow_only("gradients of embeddings are sparse")
def test_gradients_of_embeddings_stay_sparse() -> None:
    student, teacher = pair("items")
    optimizers = Recording(0.1), Recording(0.1)
    distiller = together(
        student,
        teacher,
        optimizer=optimizers[0],
        teacher_optimizer=optimizers[1],
        run_eagerly=True,
    )
    distiller.train_on_batch(X, Y)
    of_student, of_teacher = (optimizer.kinds for optimizer in optimizers)
    assert of_student["items/embeddings"] is tf.IndexedSlices
    assert of_student["users/embeddings"] is tf.IndexedSlices
    assert of_teacher["users/embeddings"] is tf.IndexedSlices
    assert "items/embeddings" not in of_teacher
    assert issubclass(of_student["hidden/kernel"], tf.Tensor)


def activity() -> tuple[keras.Model, keras.Model]:
    """Both models hold a layer that adds a loss, of what differs between them."""
    keras.utils.set_random_seed(0)
    shared = layers.Dense(3, activity_regularizer=keras.regularizers.L2(1.0))
    models = []
    for _ in range(2):
        inputs = keras.Input((4,))
        hidden = shared(layers.Dense(4, "tanh")(inputs))
        models.append(keras.Model(inputs, layers.Dense(3)(hidden)))
    return models[0], models[1]


def test_what_a_shared_layer_adds_to_the_loss_is_counted_for_each_model() -> None:
    x, y = data()
    student, teacher = activity()
    labels, added = [], []
    for model in (student, teacher):
        labels.append(float(crossentropy()(y, model(x))))
        # A mean over the batch; a sum in Keras 3.12.
        added.append(float(sum(model.losses)))
    distiller = kd.Distiller(student, teacher)
    distiller.compile(sgd(), crossentropy(), alpha=0.0, teacher_loss=crossentropy())
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert abs(added[0] - added[1]) > 1e-2
    np.testing.assert_allclose(logs["loss"], labels[0] + added[0], rtol=1e-5)
    np.testing.assert_allclose(logs["teacher_loss"], labels[1] + added[1], rtol=1e-5)


# However a step is run.


@pytest.fixture(scope="module")
def reference() -> tuple[keras.Model, keras.Model]:
    """Student and teacher after four steps."""
    student, teacher = pair("items")
    distiller = together(student, teacher, optimizer=sgd(0.5), alpha=0.4)
    distiller.fit(X, Y, batch_size=12, epochs=2, shuffle=False, verbose=0)
    return student, teacher


@pytest.mark.parametrize(
    "how, batch_size",
    [
        ({"run_eagerly": True}, 12),
        ({"jit_compile": True}, 12),
        ({"steps_per_execution": 2}, 12),
        ({"optimizer": sgd(0.5, gradient_accumulation_steps=2)}, 6),
    ],
)
def test_however_a_step_is_run_it_is_the_same(
    how: dict[str, Any], batch_size: int, reference: tuple[keras.Model, keras.Model]
) -> None:
    student, teacher = pair("items")
    distiller = together(
        student, teacher, **{"optimizer": sgd(0.5), "alpha": 0.4, **how}
    )
    history = distiller.fit(
        X, Y, batch_size=batch_size, epochs=2, shuffle=False, verbose=0
    ).history
    assert_near(student, reference[0], atol=1e-6)
    assert_near(teacher, reference[1], atol=1e-6)
    assert all(np.isfinite(values).all() for values in history.values())


def under(policy: str, *shared: str) -> tuple[keras.Model, keras.Model]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        return pair(*shared)
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(
    "policy, shared, tolerance",
    [("mixed_bfloat16", ("items",), 0.03), ("mixed_float16", (), 3e-3)],
)
def test_a_step_of_mixed_precision_is_near_that_of_float32(
    policy: str, shared: tuple[str, ...], tolerance: float
) -> None:
    models, expected = under(policy, *shared), pair(*shared)
    distillers = [
        together(*of_both, optimizer=sgd(0.5)) for of_both in (models, expected)
    ]
    logs, expected_logs = (
        distiller.train_on_batch(X, Y, return_dict=True) for distiller in distillers
    )
    for name, value in expected_logs.items():
        np.testing.assert_allclose(logs[name], value, rtol=tolerance, err_msg=name)
    for model, other in zip(models, expected, strict=True):
        assert_near(model, other, atol=tolerance)
    trained = distillers[0].teacher_in_training
    assert trained is not None
    scaled = [
        isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        for optimizer in (distillers[0].optimizer, trained.optimizer)
    ]
    assert scaled == 2 * [policy == "mixed_float16"]


def test_each_model_is_run_once_a_step() -> None:
    x, y = data()
    models = []
    for _ in range(2):
        models.append(
            keras.Sequential(
                [keras.Input((4,)), CountsCalls(name="counter"), layers.Dense(3)]
            )
        )
    student, teacher = models
    distiller = kd.Distiller(student, teacher)
    distiller.compile(
        "sgd", crossentropy(), teacher_loss=crossentropy(), teacher_metrics=["accuracy"]
    )
    before = [model.get_layer("counter").count for model in models]
    distiller.fit(x, y, batch_size=8, verbose=0)
    after = [model.get_layer("counter").count for model in models]
    assert np.subtract(after, before).tolist() == [3, 3]
    distiller.evaluate(x, y, batch_size=24, verbose=0)
    distiller.predict(x, batch_size=24, verbose=0)
    assert teacher.get_layer("counter").count == after[1]


# What is logged.


@keras.saving.register_keras_serializable(package="tests")
class Rows(keras.metrics.Sum):
    """Counts the rows that it has seen since it was reset."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        super().update_state(keras.ops.ones(keras.ops.shape(y_true)[:1]))


def test_the_teachers_loss_and_metrics_are_logged_as_of_each_epoch() -> None:
    student, teacher = pair()
    logits = np.asarray(teacher(X))
    distiller = together(
        student,
        teacher,
        optimizer=sgd(0.0),  # so that every batch sees these outputs
        teacher_metrics=[
            Rows(name="rows"),
            keras.metrics.BinaryAccuracy("accuracy", threshold=0.0),
        ],
        metrics=[keras.metrics.BinaryAccuracy("accuracy", threshold=0.0)],
    )
    history = distiller.fit(
        X, Y, batch_size=10, epochs=2, validation_data=(X, Y), verbose=0
    ).history
    own = {"loss", "student_loss", "distillation_loss", "alpha", "accuracy"}
    of_teacher = {"teacher_loss", "teacher_rows", "teacher_accuracy"}
    assert history.keys() == own | of_teacher | {"val_loss", "val_accuracy"}
    losses = np.logaddexp(0.0, logits) - Y * logits
    np.testing.assert_allclose(history["teacher_loss"], 2 * [losses.mean()], rtol=1e-5)
    assert history["teacher_rows"] == [24.0, 24.0]
    accuracy = ((logits > 0.0) == Y).mean()
    np.testing.assert_allclose(history["teacher_accuracy"], 2 * [accuracy], rtol=1e-6)
    expected = ((np.asarray(student(served(X))) > 0.0) == Y).mean()
    np.testing.assert_allclose(history["accuracy"], 2 * [expected], rtol=1e-6)
    logs = distiller.evaluate(X, Y, verbose=0, return_dict=True)
    assert logs.keys() == {"loss", "accuracy"}
    listed = distiller.evaluate(X, Y, verbose=0)
    assert listed == [logs["loss"], logs["accuracy"]]


def test_sample_weights_act_on_the_teachers_loss() -> None:
    weights = np.random.default_rng(1).random(24).astype("float32")
    student, teacher = pair()
    logits = np.asarray(teacher(X))
    logs = together(student, teacher, run_eagerly=True).train_on_batch(
        X, Y, sample_weight=weights, return_dict=True
    )
    losses = (np.logaddexp(0.0, logits) - Y * logits)[:, 0]
    np.testing.assert_allclose(logs["teacher_loss"], (weights * losses).mean(), 1e-5)


def test_a_teacher_of_several_outputs_logs_each() -> None:
    x, y = data()

    def build(seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((4,))
        heads = {name: layers.Dense(3, name=name) for name in ("kind", "size")}
        return keras.Model(inputs, {name: head(inputs) for name, head in heads.items()})

    student, teacher = build(0), build(1)
    losses = {"kind": crossentropy(), "size": "mse"}
    labels = {"kind": y, "size": x[:, :3]}
    t = {name: np.asarray(output) for name, output in teacher(x).items()}
    distiller = kd.Distiller(student, teacher)
    distiller.compile(
        "sgd",
        losses,
        teacher_loss=losses,
        teacher_metrics={"kind": ["accuracy"]},
        run_eagerly=True,
    )
    logs = distiller.train_on_batch(x, labels, return_dict=True)
    kind = float(crossentropy()(y, t["kind"]))
    size = float(np.square(x[:, :3] - t["size"]).mean())
    expected = {
        "teacher_loss": kind + size,
        "teacher_kind_loss": kind,
        "teacher_size_loss": size,
        "teacher_kind_accuracy": (t["kind"].argmax(-1) == y).mean(),
    }
    assert {name for name in logs if name.startswith("teacher_")} == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)


# Arguments.


def test_the_teachers_optimizer_is_by_default_another_of_the_same_configuration() -> (
    None
):
    student, teacher = pair("items")
    optimizer = keras.optimizers.Adam(0.03, beta_1=0.5)
    distiller = together(student, teacher, optimizer=optimizer, run_eagerly=True)
    assert distiller.teacher_in_training is not None
    of_teacher = distiller.teacher_in_training.optimizer
    assert of_teacher is not optimizer
    assert of_teacher.get_config() == optimizer.get_config()
    distiller.fit(X, Y, batch_size=24, verbose=0)
    own, others = ({id(v) for v in o.variables} for o in (optimizer, of_teacher))
    assert own and others and not own & others


def test_the_teachers_optimizer_is_another_than_the_students() -> None:
    adam = keras.optimizers.Adam()
    with pytest.raises(ValueError, match="state of one model.*Received: teacher_opt"):
        together(*pair(), optimizer=adam, teacher_optimizer=adam)


def test_averages_of_weights_are_taken_over_at_the_end_as_keras_does() -> None:
    student, teacher = pair()
    averaging = {"use_ema": True, "ema_momentum": 0.5}
    distiller = together(
        student, teacher, optimizer=sgd(0.5, **averaging), run_eagerly=True
    )
    alone = pair()[1]
    alone.compile(sgd(0.5, **averaging), bce(), run_eagerly=True)
    for model in (distiller, alone):
        model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert same(teacher.get_weights(), alone.get_weights())


@pytest.mark.parametrize(
    "argument", [{"teacher_optimizer": "sgd"}, {"teacher_metrics": ["accuracy"]}]
)
def test_arguments_of_a_teacher_that_trains_need_its_loss(
    argument: dict[str, Any],
) -> None:
    distiller = kd.Distiller(mlp(), mlp())
    with pytest.raises(ValueError, match="only where it has a `teacher_loss`.*Receiv"):
        distiller.compile("sgd", crossentropy(), **argument)


@pytest.mark.parametrize(
    "teacher, received",
    [
        (lambda x: x, "teacher=<function"),
        (None, "teacher=None"),
        (layers.Identity(), "Identity"),
    ],
    ids=["function", "None", "layer"],
)
def test_only_a_keras_model_can_train(teacher: Any, received: str) -> None:
    if isinstance(teacher, keras.Layer):
        teacher.build((None, 4))
    distiller = kd.Distiller(mlp(), teacher)
    with pytest.raises(TypeError, match=f"must be a `keras.Model`.*{received}"):
        distiller.compile("sgd", crossentropy(), teacher_loss=crossentropy())


def test_a_teacher_that_trains_needs_labels() -> None:
    distiller = together(*pair(), alpha=1.0)
    with pytest.raises(ValueError, match="needs labels.*`label_mask`.*y=None"):
        distiller.fit(X, verbose=0)


def test_a_teacher_that_trains_cant_be_replaced() -> None:
    student, teacher = pair()
    distiller = together(student, teacher)
    with pytest.raises(ValueError, match="teacher trains.*new `Distiller`"):
        distiller.teacher = pair()[1]
    assert distiller.teacher is teacher


def test_a_fixed_teacher_must_not_hold_weights_that_the_student_trains() -> None:
    student, teacher = pair("items")
    distiller = kd.Distiller(student, teacher)
    with pytest.raises(
        ValueError, match=r"`teacher_loss`.*freeze.*\['items/embeddings'\]"
    ):
        distiller.compile("sgd", bce())
    assert not distiller.compiled
    student.get_layer("items").trainable = False
    distiller.compile("sgd", bce(), distillation_loss=kd.losses.BinarySoftTargets())
    before = teacher.get_weights()
    distiller.fit(X, Y, verbose=0)
    assert same(teacher.get_weights(), before)


def test_a_teacher_given_late_mustnt_hold_the_students_weights_either() -> None:
    student, teacher = pair("items")
    distiller = kd.Distiller(student)
    distiller.compile("sgd", bce(), distillation_loss=kd.losses.BinarySoftTargets())
    with pytest.raises(ValueError, match=r"`teacher_loss`.*\['items/embeddings'\]"):
        distiller.teacher = teacher
    assert distiller.teacher is None


@pytest.mark.parametrize("whose", ["both", "student"])
def test_shared_weights_cant_have_two_loss_scales(whose: str) -> None:
    student, teacher = under("mixed_float16", "items")
    if whose == "student":
        held = student.get_layer("items")
        teacher = keras.Sequential(  # of policy float32
            [
                keras.Input((1,), dtype=ID, name="item"),
                held,
                layers.Flatten(dtype="float32"),
                layers.Dense(1, dtype="float32"),
            ]
        )
    with pytest.raises(ValueError, match="loss scale of its own.*mixed_bfloat16"):
        together(student, teacher)


def test_shared_weights_cant_have_two_loss_scale_factors() -> None:
    with pytest.raises(ValueError, match="loss scale of its own"):
        together(
            *pair("items"),
            optimizer=sgd(loss_scale_factor=64.0),
            teacher_optimizer=sgd(),
        )


def test_a_subclassed_teacher_trains() -> None:
    x, y = data()
    teacher, alone = Subclassed(), Subclassed()
    for model in (teacher, alone):
        model(x)
    alone.set_weights(teacher.get_weights())
    for model in (teacher, alone):
        model.dropout.rate = 0.0
    distiller = kd.Distiller(mlp(), teacher)
    distiller.compile(
        sgd(), crossentropy(), teacher_loss=crossentropy(), run_eagerly=True
    )
    alone.compile(sgd(), crossentropy(), run_eagerly=True)
    for model in (distiller, alone):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert same(teacher.get_weights(), alone.get_weights())


@tensorflow_only("on JAX, a step that has gone wrong is found after its update")
@pytest.mark.parametrize(
    "how", [{"jit_compile": False}, {"run_eagerly": True}], ids=str
)
def test_training_stops_before_the_update_at_which_the_teacher_breaks(
    how: dict[str, Any],
) -> None:
    student, teacher = pair("items")
    distiller = together(student, teacher, **how)
    with pytest.raises(tf.errors.InvalidArgumentError, match="teacher's output is NaN"):
        distiller.fit(BROKEN, Y, batch_size=8, shuffle=False, verbose=0)
    expected = pair("items")
    first_two = {name: array[:16] for name, array in BROKEN.items()}
    together(*expected, **how).fit(
        first_two, Y[:16], batch_size=8, shuffle=False, verbose=0
    )
    for model, other in zip((student, teacher), expected, strict=True):
        assert_near(model, other, atol=1e-7)


def test_what_xla_compiles_stops_too_when_the_teacher_breaks() -> None:
    student, teacher = pair()
    distiller = together(student, teacher, jit_compile=True)
    with pytest.raises(BAD_VALUES, match="teacher's output is NaN"):
        distiller.fit(BROKEN, Y, batch_size=8, shuffle=False, verbose=0)
    assert int(distiller.optimizer.iterations) == 3
    assert all(np.isfinite(weight).all() for weight in student.get_weights())


def test_compiled_again_without_a_loss_the_teacher_is_fixed_again() -> None:
    student, teacher = pair()
    distiller = together(student, teacher)
    distiller.fit(X, Y, verbose=0)
    distiller.compile("sgd", bce(), distillation_loss=kd.losses.BinarySoftTargets())
    before = student.get_weights(), teacher.get_weights()
    history = distiller.fit(X, Y, verbose=0).history
    assert not any(name.startswith("teacher") for name in history)
    assert same(teacher.get_weights(), before[1])
    assert not same(student.get_weights(), before[0])
    assert "teacher" not in distiller.get_config()
    distiller.teacher = pair()[1]


# What is served.


@tensorflow_only("export runs on TensorFlow")
def test_the_student_is_exported_alone(tmp_path: Path) -> None:
    student, teacher = pair("items", "hidden", eventful=True)
    distiller = together(student, teacher)
    distiller.fit(X, Y, batch_size=8, verbose=0)
    batch = served(X)
    manifest = kd.export.export(
        student, tmp_path / "out", ["saved_model", "onnx"], example_batch=batch
    )
    assert {i["name"] for i in manifest["signature"]["inputs"]} == set(SERVED)
    expected = distiller.predict(X, verbose=0)
    saved = tf.saved_model.load(str(tmp_path / "out" / "saved_model"))
    said = saved.signatures["serving_default"](
        **{name: tf.constant(array) for name, array in batch.items()}
    )
    np.testing.assert_allclose(next(iter(said.values())), expected, atol=1e-6)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert {i.name for i in session.get_inputs()} == set(SERVED)
    np.testing.assert_allclose(session.run(None, batch)[0], expected, atol=1e-6)
    assert manifest["parameters"] == student.count_params()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 2
    assert not any(PRIVILEGED.encode() in path.read_bytes() for path in files)

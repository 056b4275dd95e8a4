"""No alarm where all is as it should be, in set-ups as different as they come."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from tests.guards.setups import (
    FEATURES,
    binary,
    classes,
    clicks,
    inputs,
    linear,
    sparse,
    student,
    warned_of,
)
from tests.losses import reference

X = inputs()
LOGITS = linear(4)(X).numpy()
Y = classes(LOGITS)
CLICK_LOGITS = linear(1)(X).numpy()


def fitted(
    pupil: keras.Model,
    teacher: Any,
    x: Any,
    y: Any = None,
    *,
    loss: Any = None,
    fit: dict[str, Any] | None = None,
    hints: Any = (),
    privileged_features: Any = (),
    **kwargs: Any,
) -> None:
    distiller = kd.Distiller(
        pupil, teacher, privileged_features=privileged_features, hints=hints
    )
    # without a graph, unless the case is about one: tracing is what a test costs
    engine = {"jit_compile", "steps_per_execution", "run_eagerly"} & set(kwargs)
    distiller.compile(
        "sgd", loss, **({} if engine else {"run_eagerly": True}), **kwargs
    )
    distiller.fit(x, y, **{"batch_size": 320, "verbose": 0, **(fit or {})})


def of_classes(**kwargs: Any) -> None:
    given: dict[str, Any] = {"loss": sparse(), "fit": {}, **kwargs}
    x, y = given.pop("x", X), given.pop("y", Y)
    fitted(student(4), given.pop("teacher", None) or linear(4), x, y, **given)


def of_clicks(**kwargs: Any) -> None:
    given = {"loss": binary(), "distillation_loss": kd.losses.BinarySoftTargets()}
    given |= kwargs
    x, y = given.pop("x", X), given.pop("y", None)
    teacher = given.pop("teacher", None) or linear(1)
    fitted(student(1), teacher, x, clicks(CLICK_LOGITS) if y is None else y, **given)


def many_classes() -> None:
    teacher = linear(50)
    fitted(student(50), teacher, X, classes(teacher(X)), loss=sparse())


def two_classes() -> None:
    teacher = linear(2)
    fitted(student(2), teacher, X, classes(teacher(X)), loss=sparse())


def one_row_of_two_small_logits() -> None:
    """Each is between 0 and 1, and some batch's have a sum of about 1."""
    x, teacher = inputs(24), linear(2, scale=0.1)
    kernel, _ = teacher.get_weights()
    teacher.set_weights([kernel, np.array([0.5, 0.5], "float32")])
    sums = teacher(x).numpy().sum(-1)
    assert (abs(sums - 1.0) < 1e-2).any()
    fitted(student(2), teacher, x, classes(teacher(x)), loss=sparse(), fit=ONE_BY_ONE)


ONE_BY_ONE = {"batch_size": 1}


def rare_clicks(balanced: bool = False, activation: str | None = None) -> None:
    x, teacher = inputs(2000), linear(1, activation=activation)
    kernel, _ = teacher.get_weights()
    labels = clicks(x @ kernel - 4.6)
    bias = 0.0 if balanced else -4.6
    teacher.set_weights([kernel, np.array([bias], "float32")])
    loss = kd.losses.BinarySoftTargets(teacher_from_logits=activation is None)
    of_clicks(teacher=teacher, x=x, y=labels, distillation_loss=loss)


def weak() -> None:
    """An area under the curve of 0.6."""
    x, teacher = inputs(2000), linear(1, scale=0.36)
    of_clicks(teacher=teacher, x=x, y=clicks(teacher(x)))


def weak_and_logits_between_0_and_1() -> None:
    x, teacher = inputs(2000), linear(1, scale=0.15)
    kernel, _ = teacher.get_weights()
    teacher.set_weights([kernel, np.array([0.5], "float32")])
    of_clicks(teacher=teacher, x=x, y=clicks(teacher(x)))


def fresh_and_logits_between_0_and_1(nested: bool = False) -> None:
    """Their distribution is far from the normal one, as after a ReLU."""
    x, pupil = inputs(2000) ** 2, student(1)
    pupil.set_weights([np.full((FEATURES, 1), 0.01), np.full(1, 0.01)])
    logits = pupil(x).numpy()
    assert logits.min() > 0.0 and logits.max() < 1.0
    teacher = linear(1)
    y = clicks(teacher(x))
    models = [named(model) if nested else model for model in (pupil, teacher)]
    loss = kd.losses.BinarySoftTargets()
    given = {"x": x} if nested else x
    fitted(*models, given, y, loss=binary(), distillation_loss=loss)


def regression(noise: float) -> None:
    labels = CLICK_LOGITS + noise * np.random.default_rng(0).normal(size=(640, 1))
    teacher = linear(1, scale=1.5)
    mse = {"loss": "mse", "distillation_loss": "mse"}
    fitted(student(1), teacher, X, labels.astype("float32"), **mse)


def multi_label() -> None:
    loss = kd.losses.BinarySoftTargets()
    fitted(
        student(4), linear(4), X, clicks(LOGITS), loss=binary(), distillation_loss=loss
    )


def soft_labels(smoothing: float = 0.0) -> None:
    labels = keras.ops.softmax(LOGITS) if not smoothing else np.eye(4)[Y]
    loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=smoothing
    )
    of_classes(y=np.asarray(labels, "float32"), loss=loss)


def label_mask() -> None:
    """Without a label, the label is wrong."""
    has_label = np.arange(640) % 3 == 0
    y = np.where(has_label, Y, (LOGITS.argmin(-1)))
    x = {"x": X, "labelled": has_label}
    models = [named(model) for model in (student(4), linear(4))]
    fitted(*models, x, y, loss=sparse(), label_mask="labelled", fit={"epochs": 2})


def named(model: keras.Model) -> keras.Model:
    given = {"x": keras.Input((FEATURES,), name="x")}
    return keras.Model(given, model(given["x"]))


def sample_weights() -> None:
    weight = (np.arange(640) % 3 == 0).astype("float32")
    y = np.where(weight > 0, Y, LOGITS.argmin(-1))
    of_classes(y=y, fit={"sample_weight": weight, "epochs": 2})


def sequences() -> None:
    def model(inner: keras.Model) -> keras.Model:
        given = keras.Input((5, FEATURES))
        return keras.Model(given, inner.layers[-1](given))

    x = inputs(1280).reshape(256, 5, FEATURES)
    y = classes(linear(4)(x.reshape(-1, FEATURES))).reshape(256, 5)
    fitted(model(student(4)), model(linear(4)), x, y, loss=sparse())


def several_outputs() -> None:
    def model(kind: keras.Model, click: keras.Model) -> keras.Model:
        given = keras.Input((FEATURES,))
        return keras.Model(given, {"kind": kind(given), "click": click(given)})

    fitted(
        model(student(4), student(1)),
        model(linear(4), linear(1)),
        X,
        {"kind": Y, "click": clicks(CLICK_LOGITS)},
        loss={"kind": sparse(), "click": binary()},
        distillation_loss={
            "kind": kd.losses.ForwardKL(),
            "click": kd.losses.BinarySoftTargets(),
        },
    )


def probabilities_of_both(loss: Any) -> None:
    fitted(
        student(4, "softmax"),
        linear(4, activation="softmax"),
        X,
        Y,
        loss="sparse_categorical_crossentropy",
        distillation_loss=loss,
    )


def recorded() -> None:
    x = {"x": X, "said": LOGITS}
    fitted(named(student(4)), kd.teachers.Recorded("said"), x, Y, loss=sparse())


def recorded_top_k() -> None:
    """Ids and log-probabilities are neither logits nor probabilities."""
    packed = reference.packed_top_k(LOGITS.astype("float64"), 1)
    fitted(
        named(student(4)),
        kd.teachers.Recorded("said"),
        {"x": X, "said": packed.astype("float32")},
        Y,
        loss=sparse(),
        distillation_loss=kd.losses.TopKForwardKL(2.0),
    )


def recorded_samples() -> None:
    """Of the width of the student's outputs."""
    ids = np.argsort(-LOGITS, axis=-1)[:, :2]
    fitted(
        named(student(4)),
        kd.teachers.Recorded("said"),
        {"x": X, "said": np.concatenate([ids, np.full_like(ids, 0.5, "float32")], -1)},
        Y,
        loss=sparse(),
        distillation_loss=kd.losses.SampledSoftTargets(),
    )


def privileged() -> None:
    """A small teacher that reads what the student doesn't, and a larger student."""
    read = {"x": keras.Input((FEATURES,), name="x"), "p": keras.Input((1,), name="p")}
    teacher = keras.Model(read, layers.Dense(1)(read["p"]))
    teacher.set_weights([np.ones((1, 1)), np.zeros(1)])
    labels = clicks(3.0 * CLICK_LOGITS)
    fitted(
        named(student(1)),
        teacher,
        {"x": X, "p": CLICK_LOGITS},
        labels,
        loss=binary(),
        distillation_loss=kd.losses.BinarySoftTargets(),
        privileged_features=["p"],
    )


def averaged() -> None:
    pupil = student(4)
    fitted(pupil, kd.teachers.EMA(pupil), X, Y, loss=sparse())


def trained_together() -> None:
    of_classes(teacher=student(4), teacher_loss=sparse(), y=np.roll(Y, 1))


def bfloat16() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        of_classes()
    finally:
        keras.config.set_dtype_policy("float32")


def sorted_labels() -> None:
    """Each batch holds one class, but for some at borders."""
    order = np.argsort(Y, kind="stable")
    data = tf.data.Dataset.from_tensor_slices((X[order], Y[order])).batch(64)
    of_classes(x=data, y=None, fit={"batch_size": None})


def noisy_labels() -> None:
    """A sure teacher that is right, and labels of which 4 in 10 are wrong."""
    rng = np.random.default_rng(0)
    best = LOGITS.argmax(-1)
    y = np.where(rng.random(640) < 0.4, rng.integers(0, 4, 640), best)
    of_classes(teacher=linear(4, scale=15.0), y=y)


def quantized() -> None:
    teacher = linear(4)
    teacher.layers[0].quantize("int8")
    of_classes(teacher=teacher)


TEACHER = linear(4)


def opaque(x: tf.Tensor) -> tf.Tensor:
    found = tf.numpy_function(lambda batch: TEACHER(batch).numpy(), [x], tf.float32)
    return tf.ensure_shape(found, (None, 4))


def sure(x: Any) -> Any:
    """A classifier that gives each row one class, and is wrong of a tenth of them."""
    return tf.one_hot(tf.argmax(linear(4)(x), axis=-1), 4)


MOSTLY = np.where(np.arange(len(X)) % 10, LOGITS.argmax(-1), Y)

SOUND: dict[str, Callable[[], None]] = {
    "a classifier without doubts": lambda: of_classes(
        teacher=sure,
        y=MOSTLY,
        distillation_loss=kd.losses.ForwardKL(teacher_from_logits=False),
    ),
    "four classes": lambda: of_classes(run_eagerly=False),
    "two classes": two_classes,
    "two classes, small logits, batches of one": one_row_of_two_small_logits,
    "many classes": many_classes,
    "99 to 1": rare_clicks,
    "99 to 1, a teacher of balanced classes": lambda: rare_clicks(balanced=True),
    "99 to 1, a sigmoid": lambda: rare_clicks(activation="sigmoid"),
    "tiny batches": lambda: of_classes(x=X[:96], y=Y[:96], fit={"batch_size": 4}),
    "batches of one": lambda: of_classes(x=X[:20], y=Y[:20], fit={"batch_size": 1}),
    "few rows": lambda: of_classes(x=X[:20], y=Y[:20], fit={"epochs": 3}),
    "weak": weak,
    "weak, logits between 0 and 1": weak_and_logits_between_0_and_1,
    "fresh, logits between 0 and 1": fresh_and_logits_between_0_and_1,
    "fresh, in a sub-model": lambda: fresh_and_logits_between_0_and_1(True),
    "regression": lambda: regression(0.5),
    "weak regression": lambda: regression(4.0),
    "multi-label": multi_label,
    "soft labels": soft_labels,
    "label smoothing": lambda: soft_labels(0.1),
    "label mask": label_mask,
    "sample weights": sample_weights,
    "sequences": sequences,
    "several outputs": several_outputs,
    "a teacher of probabilities": lambda: of_classes(
        teacher=linear(4, activation="softmax"),
        distillation_loss=kd.losses.ForwardKL(teacher_from_logits=False),
    ),
    "probabilities": lambda: probabilities_of_both(
        kd.losses.ForwardKL(from_logits=False)
    ),
    "probabilities, Keras' divergence": lambda: probabilities_of_both("kl_divergence"),
    "recorded": recorded,
    "recorded top k": recorded_top_k,
    "recorded samples": recorded_samples,
    "ensemble": lambda: of_classes(
        teacher=kd.teachers.Ensemble([linear(4), linear(4, scale=1.0)])
    ),
    "weighted by correctness": lambda: of_classes(
        teacher=kd.teachers.CorrectnessWeighted([linear(4), linear(4, seed=5)])
    ),
    "privileged features": privileged,
    "moving average": averaged,
    "trained together": trained_together,
    "bfloat16": bfloat16,
    "XLA": lambda: of_classes(jit_compile=True),
    "several steps at once": lambda: of_classes(steps_per_execution=2),
    "a graph of clicks": lambda: of_clicks(run_eagerly=False),
    "sorted": sorted_labels,
    "noisy labels": noisy_labels,
    "quantised": quantized,
    "opaque": lambda: of_classes(teacher=opaque, run_eagerly=False),
    "no labels": lambda: of_classes(y=None, loss=None, alpha=1.0),
    "squared error of logits": lambda: of_classes(distillation_loss="mse"),
    "cosine": lambda: of_classes(distillation_loss=keras.losses.CosineSimilarity()),
    "a late start": lambda: of_classes(alpha=kd.schedules.LateStart(1, 0.5)),
    "validation": lambda: of_classes(fit={"validation_data": (X[:9], Y[:9, None])}),
}


def test_there_are_thirty() -> None:
    assert len(SOUND) >= 30


@pytest.mark.parametrize("name", SOUND)
def test_is_silent(name: str) -> None:
    assert warned_of(SOUND[name]) == []

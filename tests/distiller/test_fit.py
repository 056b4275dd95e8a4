"""Every way that Keras takes data and runs a step, against the plainest one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from tests.distiller.models import (
    CLASSES,
    assert_same_weights,
    crossentropy,
    data,
    forward_kl,
    label_loss,
    mlp,
)

X, Y = data()
WEIGHTS = np.random.default_rng(1).random(24).astype("float32")
BATCH = 8


def compiled(**kwargs: Any) -> kd.Distiller:
    distiller = kd.Distiller(mlp(seed=0), mlp(seed=1))
    distiller.compile(
        kwargs.pop("optimizer", None) or keras.optimizers.SGD(0.2),
        crossentropy(),
        distillation_loss=kd.losses.ForwardKL(temperature=2.0),
        **kwargs,
    )
    return distiller


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        part = slice(BATCH * index, BATCH * (index + 1))
        return X[part], Y[part], WEIGHTS[part]


def generate() -> Iterator[Any]:
    while True:
        yield from (Batches()[i] for i in range(3))


def fit_arrays(distiller: kd.Distiller) -> None:
    distiller.fit(
        X, Y, BATCH, sample_weight=WEIGHTS, epochs=2, shuffle=False, verbose=0
    )


def fit_dataset(distiller: kd.Distiller) -> None:
    dataset = tf.data.Dataset.from_tensor_slices((X, Y, WEIGHTS)).batch(BATCH)
    distiller.fit(dataset, epochs=2, shuffle=False, verbose=0)


def fit_py_dataset(distiller: kd.Distiller) -> None:
    batches = Batches(workers=2, use_multiprocessing=False)
    distiller.fit(batches, epochs=2, shuffle=False, verbose=0)


def fit_generator(distiller: kd.Distiller) -> None:
    distiller.fit(generate(), steps_per_epoch=3, epochs=2, shuffle=False, verbose=0)


def fit_batch_by_batch(distiller: kd.Distiller) -> None:
    batches = generate()
    for _ in range(6):
        x, y, weights = next(batches)
        distiller.train_on_batch(x, y, sample_weight=weights)


@pytest.fixture(scope="module")
def reference() -> keras.Model:
    """The student after two epochs, computed by a loop without any of Keras' fit."""
    student, teacher = mlp(seed=0), mlp(seed=1)
    loss = kd.losses.ForwardKL(temperature=2.0)
    batches = generate()
    for _ in range(6):
        x, y, weights = next(batches)
        with tf.GradientTape() as tape:
            logits = student(x)
            total = 0.5 * crossentropy()(y, logits, weights)
            total += 0.5 * loss(teacher(x), logits, weights)
        variables = student.trainable_variables
        for variable, gradient in zip(
            variables, tape.gradient(total, variables), strict=True
        ):
            variable.assign_sub(0.2 * gradient)
    return student


@pytest.mark.parametrize(
    "fit",
    [fit_arrays, fit_dataset, fit_py_dataset, fit_generator, fit_batch_by_batch],
)
def test_data_of_any_form_train_alike(
    fit: Callable[[kd.Distiller], None], reference: keras.Model
) -> None:
    distiller = compiled()
    fit(distiller)
    assert_same_weights(distiller.student, reference, atol=1e-6)


@pytest.mark.parametrize(
    "how",
    [
        {"steps_per_execution": 2},
        {"run_eagerly": True},
        {"jit_compile": True, "steps_per_execution": 3},
    ],
    ids=str,
)
def test_however_a_step_is_run_it_is_the_same(
    how: dict[str, Any], reference: keras.Model
) -> None:
    distiller = compiled(**how)
    fit_arrays(distiller)
    assert_same_weights(distiller.student, reference, atol=1e-6)


def test_gradient_accumulation_over_two_batches_is_one_batch_of_both() -> None:
    whole, halves = (
        compiled(),
        compiled(
            optimizer=keras.optimizers.SGD(0.2, gradient_accumulation_steps=2),
        ),
    )
    whole.fit(X, Y, batch_size=24, epochs=2, shuffle=False, verbose=0)
    halves.fit(X, Y, batch_size=12, epochs=2, shuffle=False, verbose=0)
    assert_same_weights(halves.student, whole.student, atol=1e-6)


def test_class_weights_weigh_both_terms() -> None:
    distiller = compiled()
    class_weight = {0: 0.0, 1: 3.0, 2: 0.5}
    weights = np.array([class_weight[label] for label in Y])
    s, t = distiller.student(X).numpy(), distiller.teacher(X).numpy()
    history = distiller.fit(
        X, Y, batch_size=24, class_weight=class_weight, verbose=0
    ).history
    np.testing.assert_allclose(
        history["student_loss"], (weights * label_loss(Y, s)).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        history["distillation_loss"],
        (weights * forward_kl(t, s, 2.0)).mean(),
        rtol=1e-5,
    )


def test_validation_is_evaluation_of_the_student() -> None:
    distiller = compiled(metrics=["accuracy"])
    history = distiller.fit(
        X, Y, validation_data=(X[:7], Y[:7]), epochs=2, verbose=0
    ).history
    logs = distiller.evaluate(X[:7], Y[:7], return_dict=True, verbose=0)
    assert {name for name in history if name.startswith("val_")} == {
        "val_loss",
        "val_accuracy",
    }
    assert history["val_loss"][-1] == logs["loss"]
    np.testing.assert_allclose(
        logs["loss"], label_loss(Y[:7], distiller.student(X[:7])).mean(), rtol=1e-5
    )
    assert history["val_accuracy"][-1] == logs["accuracy"]


def test_validation_split_holds_out_the_end() -> None:
    whole, split = compiled(), compiled()
    whole.fit(X[:18], Y[:18], shuffle=False, verbose=0)
    history = split.fit(X, Y, validation_split=0.25, shuffle=False, verbose=0).history
    assert_same_weights(split.student, whole.student)
    np.testing.assert_allclose(
        history["val_loss"],
        label_loss(Y[18:], split.student(X[18:])).mean(),
        rtol=1e-5,
    )


def test_predict_is_the_students() -> None:
    distiller = compiled()
    expected = distiller.student.predict(X, verbose=0)
    np.testing.assert_array_equal(distiller.predict(X, verbose=0), expected)
    np.testing.assert_array_equal(distiller(X), distiller.student(X))
    np.testing.assert_array_equal(distiller.predict_on_batch(X), expected)


def test_callbacks_see_validation_and_act(tmp_path: Path) -> None:
    distiller = compiled()
    best = tmp_path / "best.weights.h5"
    distiller.optimizer.learning_rate = 30.0  # so that it gets worse
    history = distiller.fit(
        X,
        Y,
        validation_data=(X, Y),
        epochs=8,
        verbose=0,
        callbacks=[
            keras.callbacks.ModelCheckpoint(
                str(best), "val_loss", save_best_only=True, save_weights_only=True
            ),
            keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1),
            keras.callbacks.EarlyStopping(
                "val_loss", patience=2, restore_best_weights=True
            ),
        ],
    ).history
    losses = history["val_loss"]
    assert len(losses) < 8
    assert history["learning_rate"][-1] < 30.0
    final = distiller.evaluate(X, Y, verbose=0)
    np.testing.assert_allclose(final, min(losses), rtol=1e-6)
    distiller.load_weights(best)
    np.testing.assert_allclose(distiller.evaluate(X, Y, verbose=0), final, rtol=1e-6)


def test_a_student_may_teach_itself() -> None:
    student = mlp()
    before = student.get_weights()
    distiller = kd.Distiller(student, lambda x: student(x, training=False))
    distiller.compile(keras.optimizers.SGD(1.0), alpha=1.0)
    assert distiller.train_on_batch(X, return_dict=True)["loss"] == 0.0
    for weight, old in zip(student.get_weights(), before, strict=True):
        np.testing.assert_allclose(weight, old, atol=1e-8)


def test_a_teacher_may_be_any_callable_of_the_batch() -> None:
    logits = np.array([[4.0, 0.0, -1.0]])
    distiller = kd.Distiller(mlp(), lambda x: np.repeat(logits, len(x), axis=0))
    distiller.compile("sgd", distillation_loss=kd.losses.ForwardKL(), alpha=1.0)
    distiller.run_eagerly = True
    s = distiller.student(X).numpy()
    loss = distiller.train_on_batch(X, return_dict=True)["loss"]
    np.testing.assert_allclose(loss, forward_kl(logits, s).mean(), rtol=1e-5)


def test_another_teacher_may_take_over() -> None:
    distiller = compiled(alpha=1.0)
    first = distiller.train_on_batch(X, Y, return_dict=True)["distillation_loss"]
    assert first > 1e-3
    distiller.teacher = lambda x: distiller.student(x, training=False)
    distiller.reset_metrics()  # Keras 3.12 leaves that to its users.
    second = distiller.train_on_batch(X, Y, return_dict=True)["distillation_loss"]
    assert abs(second) < 1e-6


@pytest.mark.parametrize(
    "compiled",
    [
        {"loss": crossentropy()},
        {
            "loss": crossentropy(),
            "metrics": ["accuracy"],
            "weighted_metrics": ["accuracy"],
        },
        {"loss": crossentropy(), "teacher_loss": crossentropy()},
        {"loss": crossentropy(), "jit_compile": True, "metrics": ["accuracy"]},
    ],
    ids=["plain", "metrics", "a teacher that trains", "XLA"],
)
def test_a_step_is_traced_once(compiled: dict[str, Any]) -> None:
    traced = []

    class Counted(kd.Distiller):
        def train_step(self, data: Any) -> Any:
            traced.append("train")
            return super().train_step(data)

        def test_step(self, data: Any) -> Any:
            traced.append("test")
            return super().test_step(data)

    x, y = data()
    distiller = Counted(mlp(0), mlp(1))
    distiller.compile("adam", **compiled)
    distiller.fit(x, y, batch_size=8, epochs=2, validation_data=(x, y), verbose=0)
    assert traced == ["train", "test"]


class Grows(keras.Model):
    """Says that it is built before all of its layers are."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = keras.layers.Dense(4), keras.layers.Dense(CLASSES)

    def build(self, shape: Any) -> None:
        self.hidden.build(shape)
        self.built = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.head(self.hidden(x))


class Unfreezes(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        getattr(self.model, "student", self.model).layers[0].trainable = True


@pytest.mark.parametrize("case", ["a callback unfreezes a layer", "a layer is late"])
def test_what_trains_is_known_in_the_first_step(case: str) -> None:
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        model = mlp(3)
        if case == "a layer is late":
            model = Grows()
            model.build((None, X.shape[1]))
        else:
            model.layers[0].trainable = False
        models.append(model)
    plain, student = models
    distiller = kd.Distiller(student, mlp(1))
    plain.compile("adam", crossentropy())
    distiller.compile("adam", crossentropy(), alpha=0.0)
    for model in (plain, distiller):
        keras.utils.set_random_seed(2)
        model.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=[Unfreezes()])
    assert_same_weights(student, plain)

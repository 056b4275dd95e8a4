"""A teacher that trains, on every backend: its updates, its logs and its files."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_distill as kd
from tests import slow
from tests.backends import gradients
from tests.distiller.models import CLASSES, FEATURES, crossentropy, data, mlp

X, Y = data()
BATCH = 8
ALPHA = 0.6
Adam, SGD = keras.optimizers.Adam, keras.optimizers.SGD


@keras.saving.register_keras_serializable(package="test_joint")
class AddsLoss(keras.layers.Layer):
    """Adds a loss of its inputs."""

    def call(self, inputs: Any) -> Any:
        self.add_loss(0.1 * ops.mean(ops.square(inputs)))
        return inputs


def models(shared: bool = False) -> tuple[keras.Model, keras.Model]:
    """Student and teacher, whose first layer may be one."""
    keras.utils.set_random_seed(0)
    first = layers.Dense(5, "tanh", kernel_regularizer="l2")

    def model(own: keras.Layer, *more: keras.Layer) -> keras.Model:
        inputs = keras.Input((FEATURES,))
        return keras.Sequential([inputs, own, *more, layers.Dense(CLASSES)])

    own = layers.Dense(7, "tanh", activity_regularizer="l2")
    return model(first), model(first if shared else own, AddsLoss())


def joint(*of_both: keras.Model, optimizer: Any = None, **kwargs: Any) -> kd.Distiller:
    distiller = kd.Distiller(*of_both)
    distiller.compile(
        SGD(0.2, momentum=0.9) if optimizer is None else optimizer,
        crossentropy(),
        teacher_loss=crossentropy(),
        **{"alpha": ALPHA, **kwargs},
    )
    return distiller


def fit(distiller: kd.Distiller, epochs: int = 2, **kwargs: Any) -> dict[str, Any]:
    given = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **kwargs}
    history: dict[str, Any] = distiller.fit(X, Y, epochs=epochs, **given).history
    return history


def trained_by_hand(
    student: keras.Model,
    teacher: keras.Model,
    optimizers: tuple[Any, Any],
    epochs: int = 2,
) -> dict[str, list[float]]:
    """Train with a loop of two optimisers, and return the mean losses by epoch."""
    own = student.trainable_weights
    others = [w for w in teacher.trainable_weights if all(w is not o for o in own)]
    of_labels, of_targets = crossentropy(), kd.losses.ForwardKL()
    history: dict[str, list[float]] = {"loss": [], "teacher_loss": []}
    for _ in range(epochs):
        seen: list[list[float]] = [[], []]
        for start in range(0, len(X), BATCH):
            x, y = X[start : start + BATCH], Y[start : start + BATCH]

            def of_student(x: Any = x, y: Any = y) -> Any:
                s, t = student(x), ops.stop_gradient(teacher(x))
                kernel = student.layers[0].kernel
                penalty = 0.01 * ops.sum(ops.square(ops.add(kernel, 0.0)))
                labels = (1.0 - ALPHA) * of_labels(y, s)
                return labels + ALPHA * of_targets(t, s) + penalty

            def of_teacher(x: Any = x, y: Any = y) -> Any:
                hidden = teacher.layers[0](x)
                added = 0.1 * ops.mean(ops.square(hidden))
                if teacher.layers[0] is not student.layers[0]:
                    squares = ops.sum(ops.square(hidden))
                    added = added + 0.01 * squares / len(x)
                return of_labels(y, teacher.layers[2](hidden)) + added

            seen[0].append(float(of_student()))
            seen[1].append(float(of_teacher()))
            found = gradients(of_student, own)
            found_others = gradients(of_teacher, [*own, *others])
            # A weight that only the student has gets none of the teacher's loss.
            held = {id(weight) for weight in teacher.weights}
            both = [
                g + (t if id(w) in held else 0.0)
                for w, g, t in zip(own, found, found_others, strict=False)
            ]
            pairs = zip(map(ops.convert_to_tensor, both), own, strict=True)
            optimizers[0].apply_gradients(list(pairs))
            rest = map(ops.convert_to_tensor, found_others[len(own) :])
            optimizers[1].apply_gradients(list(zip(rest, others, strict=True)))
        history["loss"].append(float(np.mean(seen[0])))
        history["teacher_loss"].append(float(np.mean(seen[1])))
    return history


def assert_near(model: keras.Model, other: keras.Model, atol: float = 1e-5) -> None:
    for weight, expected in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=0.0, atol=atol)


def assert_same(distiller: kd.Distiller, expected: kd.Distiller) -> None:
    """Check that models and optimisers are the same to the bit."""
    trained, expected_trained = (d.teacher_in_training for d in (distiller, expected))
    assert trained is not None and expected_trained is not None
    for found, wanted in (
        (distiller.student.variables, expected.student.variables),
        (trained.teacher.variables, expected_trained.teacher.variables),
        (distiller.optimizer.variables, expected.optimizer.variables),
        (trained.optimizer.variables, expected_trained.optimizer.variables),
    ):
        for variable, value in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value.numpy())


# Updates.


@pytest.mark.parametrize(
    "shared, student_steps, teacher_steps",
    [(False, None, None), (True, None, None), (True, 2, 3)],
    ids=str,
)
def test_each_optimizer_updates_as_in_a_loop_of_two(
    shared: bool, student_steps: int | None, teacher_steps: int | None
) -> None:
    def optimizers() -> tuple[Any, Any]:
        return (
            SGD(0.2, momentum=0.9, gradient_accumulation_steps=student_steps),
            Adam(0.03, gradient_accumulation_steps=teacher_steps),
        )

    student, teacher = models(shared)
    own, of_teacher = optimizers()
    distiller = joint(student, teacher, optimizer=own, teacher_optimizer=of_teacher)
    history = fit(distiller)
    by_hand, expected_optimizers = models(shared), optimizers()
    expected = trained_by_hand(*by_hand, expected_optimizers)
    assert_near(student, by_hand[0])
    assert_near(teacher, by_hand[1])
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, err_msg=name)
    for optimizer, other in zip((own, of_teacher), expected_optimizers, strict=True):
        assert int(optimizer.iterations) == int(other.iterations)


@pytest.mark.parametrize(
    "how", [{"run_eagerly": True}, {"steps_per_execution": 3}], ids=str
)
def test_however_a_step_is_run_it_is_the_same(how: dict[str, Any]) -> None:
    of_both, expected = models(True), models(True)
    fit(joint(*of_both, **how))
    fit(joint(*expected))
    for model, other in zip(of_both, expected, strict=True):
        assert_near(model, other, atol=1e-6)


def test_batches_one_by_one_train_as_fit_does() -> None:
    of_both, expected = models(True), models(True)
    distiller = joint(*of_both)
    for start in range(0, len(X), BATCH):
        distiller.train_on_batch(X[start : start + BATCH], Y[start : start + BATCH])
    fit(joint(*expected), epochs=1)
    for model, other in zip(of_both, expected, strict=True):
        assert_near(model, other, atol=1e-6)


def test_state_of_the_teacher_is_updated_as_it_would_be_alone() -> None:
    def teacher() -> keras.Model:
        keras.utils.set_random_seed(3)
        return keras.Sequential(
            [
                keras.Input((FEATURES,)),
                layers.BatchNormalization(),
                layers.Dropout(0.4, seed=5),
                layers.Dense(CLASSES),
            ]
        )

    together, alone = teacher(), teacher()
    averaging = {"use_ema": True, "ema_momentum": 0.5}
    fit(joint(mlp(), together, teacher_optimizer=Adam(0.03, **averaging)))
    alone.compile(Adam(0.03, **averaging), crossentropy())
    alone.fit(X, Y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
    assert_near(together, alone, atol=1e-6)


def test_a_teacher_may_hold_no_weights_but_the_students() -> None:
    student = mlp()
    inputs = keras.Input((FEATURES,))
    doubled = keras.Model(inputs, layers.Rescaling(2.0)(student.layers[0](inputs)))
    teacher = keras.Sequential([doubled, student.layers[1]])
    teacher.build((None, FEATURES))
    before = student.get_weights()
    fit(joint(student, teacher), epochs=1)
    assert not np.array_equal(student.get_weights()[0], before[0])


class Late(keras.Model):
    """A student that is built by its first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(CLASSES)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs)


def test_a_student_may_be_built_by_the_first_batch() -> None:
    student, teacher = Late(), mlp(1)
    adam = Adam(0.03)
    distiller = joint(student, teacher, optimizer=adam)
    before = teacher.get_weights()
    fit(distiller)
    assert int(adam.iterations) == 6
    # An iteration, a learning rate, and two moments of each weight.
    assert len(adam.variables) == 2 + 2 * len(student.trainable_weights)
    assert not np.array_equal(teacher.get_weights()[0], before[0])


@pytest.mark.parametrize(
    "whose", slow.but(["both"], ["student", "teacher", "both"], "fits")
)
def test_each_loss_has_the_scale_of_its_own_optimizer(whose: str) -> None:
    def scaled(optimizer: Any, of: str) -> Any:
        if whose not in (of, "both"):
            return optimizer
        return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**10)

    of_both, expected = models(), models()
    own = scaled(SGD(0.2, momentum=0.9), "student")
    of_teacher = scaled(Adam(0.03), "teacher")
    fit(joint(*of_both, optimizer=own, teacher_optimizer=of_teacher))
    fit(joint(*expected, teacher_optimizer=Adam(0.03)))
    for model, other in zip(of_both, expected, strict=True):
        assert_near(model, other, atol=2e-6)
    for optimizer in (own, of_teacher):
        assert int(optimizer.iterations) == 6


# What users see.


def test_the_optimizer_is_the_students_and_callbacks_act_on_it() -> None:
    sgd = SGD(0.2)
    distiller = joint(*models(), optimizer=sgd)
    seen = []

    def note(epoch: int, logs: Any) -> None:
        seen.append(float(ops.convert_to_numpy(distiller.optimizer.learning_rate)))
        distiller.optimizer.learning_rate = 0.5 * seen[-1]

    fit(distiller, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=note)])
    assert distiller.optimizer is sgd
    np.testing.assert_allclose(seen, [0.2, 0.1], rtol=1e-6)
    trained = distiller.teacher_in_training
    assert trained is not None
    of_teacher = float(ops.convert_to_numpy(trained.optimizer.learning_rate))
    assert of_teacher == pytest.approx(0.2)


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.0),
        keras.callbacks.ReduceLROnPlateau("loss", 0.0, patience=0, min_delta=10.0),
    ],
    ids=["scheduler", "plateau"],
)
def test_a_schedule_of_the_learning_rate_stops_the_student_alone(callback: Any) -> None:
    student, teacher = models()
    distiller = joint(student, teacher, optimizer=SGD(1e-7))
    trained = distiller.teacher_in_training
    assert trained is not None
    trained.optimizer.learning_rate = 0.1
    fit(distiller, epochs=2, callbacks=[callback])
    before = student.get_weights(), teacher.get_weights()
    fit(distiller, epochs=1, callbacks=[])
    rate = float(ops.convert_to_numpy(distiller.optimizer.learning_rate))
    assert rate == 0.0
    assert all(map(np.array_equal, student.get_weights(), before[0]))
    assert not np.array_equal(teacher.get_weights()[0], before[1][0])


def test_logs_are_the_students_and_the_teachers() -> None:
    student, teacher = models()
    distiller = joint(
        student,
        teacher,
        optimizer=SGD(0.0),
        teacher_metrics=["accuracy"],
        metrics=["accuracy"],
    )
    history = fit(distiller, validation_data=(X, Y))
    terms = (1 - ALPHA) * np.array(history["student_loss"])
    terms += ALPHA * np.array(history["distillation_loss"])
    kernel = student.layers[0].get_weights()[0]
    terms += 0.01 * np.square(kernel).sum()
    np.testing.assert_allclose(history["loss"], terms, rtol=1e-5)
    accuracy = (np.asarray(teacher(X)).argmax(-1) == Y).mean()
    np.testing.assert_allclose(history["teacher_accuracy"], 2 * [accuracy], rtol=1e-6)
    assert not any(name.startswith("val_teacher") for name in history)


def test_evaluation_neither_needs_the_teacher_nor_builds_it() -> None:
    inputs = {name: keras.Input((FEATURES,), name=name) for name in ("x", "later")}
    student = keras.Model({"x": inputs["x"]}, layers.Dense(CLASSES)(inputs["x"]))
    both = layers.Concatenate()([inputs["x"], inputs["later"]])
    teacher = keras.Model(inputs, layers.Dense(CLASSES)(both))
    distiller = kd.Distiller(student, teacher, privileged_features=["later"])
    distiller.compile("sgd", crossentropy(), teacher_loss=crossentropy())
    before = distiller.evaluate({"x": X}, Y, verbose=0)
    history = distiller.fit({"x": X, "later": X}, Y, verbose=0).history
    assert {"loss", "teacher_loss"} <= set(history)
    assert distiller.evaluate({"x": X}, Y, verbose=0) < before
    # Without labels, the teacher is asked.
    logs = distiller.evaluate({"x": X, "later": X}, verbose=0, return_dict=True)
    assert logs["distillation_loss"] > 0.0


def test_unlabelled_rows_count_for_neither_model() -> None:
    labelled = np.arange(len(X)) % 3 != 0
    runs = []
    for junk in (0, 1):
        inputs = keras.Input((FEATURES,), name="x")
        of_both = []
        for seed in (1, 2):
            keras.utils.set_random_seed(seed)
            of_both.append(keras.Model({"x": inputs}, layers.Dense(CLASSES)(inputs)))
        distiller = kd.Distiller(*of_both)
        distiller.compile(
            SGD(0.2),
            crossentropy(),
            teacher_loss=crossentropy(),
            teacher_metrics=["accuracy"],
            label_mask="labelled",
        )
        y = np.where(labelled, Y, junk)
        history = distiller.fit(
            {"x": X, "labelled": labelled}, y, BATCH, 2, shuffle=False, verbose=0
        ).history
        runs.append((history, [w for m in of_both for w in m.get_weights()]))
    assert runs[0][0] == runs[1][0]
    assert all(map(np.array_equal, runs[0][1], runs[1][1]))


# Files.


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
def test_a_loaded_distiller_goes_on_as_if_nothing_had_happened(
    shared: bool, tmp_path: Path
) -> None:
    distiller = joint(
        *models(shared),
        optimizer=Adam(0.03),
        teacher_optimizer=SGD(0.1, momentum=0.8),
        alpha=kd.schedules.LinearWarmup(10, value=0.8),
    )
    fit(distiller)
    distiller.save(tmp_path / "d.keras")
    distiller.save_weights(tmp_path / "d.weights.h5")
    loaded = kd.Distiller.load(tmp_path / "d.keras")
    assert_same(loaded, distiller)
    again = joint(
        *models(shared),
        optimizer=Adam(0.03),
        teacher_optimizer=SGD(0.1, momentum=0.8),
        alpha=kd.schedules.LinearWarmup(10, value=0.8),
    )
    again.load_weights(tmp_path / "d.weights.h5")
    assert_same(again, distiller)
    history = fit(distiller)
    for other in (loaded, again):
        assert fit(other) == history
        assert_same(other, distiller)


def test_a_backup_resumes_both_optimizers(tmp_path: Path) -> None:
    def compiled() -> kd.Distiller:
        return joint(*models(), optimizer=Adam(0.03), teacher_optimizer=SGD(0.1, 0.8))

    def backup() -> keras.callbacks.Callback:
        return keras.callbacks.BackupAndRestore(
            str(tmp_path / "backup"), delete_checkpoint=False
        )

    whole = compiled()
    fit(whole, epochs=4)
    fit(compiled(), epochs=2, callbacks=[backup()])
    resumed = compiled()
    history = fit(resumed, epochs=4, callbacks=[backup()])
    assert len(history["loss"]) == 2
    assert_same(resumed, whole)

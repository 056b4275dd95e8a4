"""A teacher that is the moving average of its student."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.teachers import EMA, Ensemble
from tests.distiller.models import (
    CLASSES,
    CountsCalls,
    StepLogs,
    Subclassed,
    assert_same_weights,
    crossentropy,
    data,
    forward_kl,
    mlp,
)

X, Y = data()


def eventful() -> keras.Model:
    """A student with moving statistics and dropout."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, "tanh"),
            layers.BatchNormalization(momentum=0.7),
            layers.Dropout(0.3, seed=1),
            layers.Dense(CLASSES),
        ]
    )


def distiller_of(student: keras.Model, teacher: Any, **kwargs: Any) -> kd.Distiller:
    distiller = kd.Distiller(student, teacher)
    optimizer = kwargs.pop("optimizer", None) or keras.optimizers.SGD(0.3)
    distiller.compile(optimizer, crossentropy(), **kwargs)
    return distiller


def averages(
    start: list[np.ndarray], steps: list[list[np.ndarray]], decays: Any
) -> list[np.ndarray]:
    """What the teacher's weights are after steps that left these weights."""
    teacher = [weight.astype("float64") for weight in start]
    for weights, decay in zip(steps, decays, strict=True):
        teacher = [
            decay * t + (1 - decay) * s for t, s in zip(teacher, weights, strict=True)
        ]
    return teacher


def assert_close(weights: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for weight, value in zip(weights, expected, strict=True):
        np.testing.assert_allclose(weight, value, atol=1e-6)


class TestFollowing:
    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_the_weights_after_each_step(self, jit_compile: bool) -> None:
        student = eventful()
        start = student.get_weights()
        teacher = EMA(student, decay=0.8)
        distiller = distiller_of(student, teacher, jit_compile=jit_compile)
        steps = StepLogs(student.get_weights)
        distiller.fit(
            X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[steps]
        )
        expected = averages(start, steps.seen, [0.8] * 6)
        assert_close(teacher.model.get_weights(), expected)
        # the statistics have moved too
        assert not np.allclose(expected[4], start[4])

    def test_steps_per_execution_change_nothing(self) -> None:
        found = []
        for steps in (1, 3):
            student = eventful()
            teacher = EMA(student, decay=0.8)
            distiller = distiller_of(student, teacher, steps_per_execution=steps)
            distiller.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
            found.append(teacher.model)
        assert_same_weights(found[1], found[0], atol=1e-7)

    def test_a_schedule_is_of_the_updates_before(self) -> None:
        student = mlp()
        start = student.get_weights()
        schedule = keras.optimizers.schedules.PolynomialDecay(0.0, 2, 0.6)
        teacher = EMA(student, schedule)
        distiller = distiller_of(student, teacher)
        steps = StepLogs(student.get_weights)
        distiller.fit(X, Y, batch_size=6, shuffle=False, verbose=0, callbacks=[steps])
        expected = averages(start, steps.seen, [0.0, 0.3, 0.6, 0.6])
        assert_close(teacher.model.get_weights(), expected)

    def test_a_callback_may_assign_the_decay(self) -> None:
        student = mlp()
        teacher = EMA(student, decay=0.9)
        distiller = distiller_of(student, teacher)
        distiller.fit(X, Y, verbose=0)
        teacher.decay = 0.0
        distiller.fit(X, Y, verbose=0)
        assert_same_weights(teacher.model, student, atol=1e-7)

    def test_accumulated_gradients_are_no_update(self) -> None:
        student = mlp()
        start = student.get_weights()
        teacher = EMA(student, decay=0.8)
        distiller = distiller_of(
            student,
            teacher,
            optimizer=keras.optimizers.SGD(0.3, gradient_accumulation_steps=2),
        )
        steps, seen = StepLogs(student.get_weights), StepLogs(teacher.get_weights)
        distiller.fit(
            X, Y, batch_size=6, shuffle=False, verbose=0, callbacks=[steps, seen]
        )
        assert_close(seen.seen[0], start)
        expected = averages(start, [steps.seen[1], steps.seen[3]], [0.8, 0.8])
        assert_close(teacher.model.get_weights(), expected)

    def test_integers_are_copied(self) -> None:
        class Counts(layers.Layer):
            def build(self, input_shape: Any) -> None:
                self.count = self.add_weight(
                    shape=(), dtype="int32", initializer="zeros", trainable=False
                )

            def call(self, inputs: Any, training: bool = False) -> Any:
                if training:
                    self.count.assign_add(1)
                return inputs

        student = keras.Sequential([keras.Input((4,)), Counts(), layers.Dense(CLASSES)])
        teacher = EMA(student, decay=0.9)
        distiller_of(student, teacher).fit(X, Y, batch_size=8, verbose=0)
        assert int(teacher.model.layers[0].count) == 3

    def test_mixed_float16(self) -> None:
        student = keras.Sequential(
            [keras.Input((4,)), layers.Dense(CLASSES, dtype="mixed_float16")]
        )
        start = student.get_weights()
        teacher = EMA(student, decay=0.5)
        distiller = distiller_of(student, teacher)
        distiller.fit(X, Y, batch_size=24, verbose=0)
        expected = averages(start, [student.get_weights()], [0.5])
        assert_close(teacher.model.get_weights(), expected)


class TestTeaching:
    def test_it_teaches_what_it_says(self) -> None:
        student = mlp()
        teacher = EMA(student, decay=0.9)
        teacher.model.set_weights([w + 0.3 for w in student.get_weights()])
        expected = forward_kl(teacher.model(X), student(X), 2.0).mean()
        distiller = distiller_of(
            student,
            teacher,
            distillation_loss=kd.losses.ForwardKL(2.0),
            optimizer=keras.optimizers.SGD(0.0),
        )
        history = distiller.fit(X, Y, batch_size=24, verbose=0).history
        assert history["distillation_loss"][0] == pytest.approx(expected, rel=1e-5)

    def test_one_forward_pass_a_step(self) -> None:
        student = keras.Sequential(
            [keras.Input((4,)), CountsCalls(), layers.Dense(CLASSES)]
        )
        teacher = EMA(student, decay=0.0)
        counted = student.layers[0].count
        distiller_of(student, teacher).fit(X, Y, batch_size=8, verbose=0)
        assert student.layers[0].count == counted + 3
        assert teacher.model.layers[0].count == counted + 3  # followed, decay 0

    def test_only_the_student_trains(self) -> None:
        student = mlp()
        distiller = distiller_of(student, EMA(student))
        assert len(distiller.trainable_weights) == len(student.trainable_weights)
        assert distiller.count_params() == student.count_params()

    def test_it_sees_what_the_student_sees(self) -> None:
        """Not the privileged features, which a subclassed model would take in."""
        student = Subclassed()
        student({"x": X})
        teacher = EMA(student, decay=0.5)
        distiller = kd.Distiller(student, teacher, privileged_features=["late"])
        distiller.compile("sgd", crossentropy())
        distiller.fit({"x": X, "late": X}, Y, verbose=0)

    def test_within_an_ensemble_it_is_refused(self) -> None:
        with pytest.raises(TypeError, match="can't be a member.*EMA"):
            Ensemble([mlp(), EMA(mlp())])

    def test_it_doesnt_train(self) -> None:
        student = mlp()
        distiller = kd.Distiller(student, EMA(student))
        with pytest.raises(TypeError, match="EMA teaches by what others"):
            distiller.compile("sgd", crossentropy(), teacher_loss=crossentropy())


class TestTheModel:
    @pytest.mark.parametrize("build", [mlp, eventful, Subclassed])
    def test_it_starts_as_the_student(self, build: Any) -> None:
        student = build()
        student(X)
        teacher = EMA(student)
        assert type(teacher.model) is type(student)
        np.testing.assert_array_equal(teacher(X), np.asarray(student(X)))
        assert not {id(w) for w in teacher.weights} & {id(w) for w in student.weights}

    def test_a_class_that_isnt_registered(self) -> None:
        class Local(keras.Model):
            def __init__(self, **kwargs: Any) -> None:
                super().__init__(**kwargs)
                self.head = layers.Dense(CLASSES)

            def call(self, inputs: Any) -> Any:
                return self.head(inputs)

        student = Local()
        student(X)
        np.testing.assert_array_equal(EMA(student)(X), np.asarray(student(X)))

    @pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="TensorFlow exports"
    )
    def test_it_exports_alone(self, tmp_path: Path) -> None:
        import tensorflow as tf

        student = mlp()
        teacher = EMA(student, decay=0.5)
        distiller_of(student, teacher).fit(X, Y, verbose=0)
        kd.export.export(
            teacher.model, tmp_path / "out", formats=["saved_model"], example_batch=X
        )
        served = tf.saved_model.load(str(tmp_path / "out" / "saved_model"))
        (said,) = served.signatures["serving_default"](tf.constant(X)).values()
        np.testing.assert_allclose(said, teacher.model(X), atol=1e-6)

    def test_it_predicts_and_evaluates(self) -> None:
        teacher = EMA(mlp())
        np.testing.assert_allclose(
            teacher.predict(X, verbose=0), teacher.model(X), atol=1e-6
        )
        teacher.compile(loss=crossentropy(), metrics=["accuracy"])
        assert teacher.evaluate(X, Y, verbose=0)


class TestFiles:
    def trained(self) -> kd.Distiller:
        student = eventful()
        distiller = distiller_of(student, EMA(student, decay=0.8))
        distiller.fit(X, Y, batch_size=8, verbose=0)
        return distiller

    def test_weights_hold_it(self, tmp_path: Path) -> None:
        distiller = self.trained()
        distiller.save_weights(tmp_path / "run.weights.h5")
        student = eventful()
        other = distiller_of(student, EMA(student, decay=0.8))
        other.load_weights(tmp_path / "run.weights.h5")
        assert_same_weights(other.student, distiller.student)
        assert_same_weights(other.teacher.model, distiller.teacher.model)

    def test_a_file_holds_it_and_training_goes_on(self, tmp_path: Path) -> None:
        distiller = self.trained()
        distiller.save(tmp_path / "run.keras")
        loaded = kd.Distiller.load(tmp_path / "run.keras")
        assert isinstance(loaded.teacher, EMA)
        assert loaded.teacher.decay == 0.8
        for again in (distiller, loaded):
            again.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        assert_same_weights(loaded.student, distiller.student)
        assert_same_weights(loaded.teacher.model, distiller.teacher.model)

    def test_alone(self, tmp_path: Path) -> None:
        schedule = keras.optimizers.schedules.PolynomialDecay(0.1, 2, 0.6)
        teacher = EMA(mlp(), schedule, name="mean_teacher")
        teacher.save(tmp_path / "teacher.keras")
        loaded = keras.saving.load_model(tmp_path / "teacher.keras")
        assert loaded.name == "mean_teacher"
        assert loaded.decay.get_config() == schedule.get_config()
        assert_same_weights(loaded.model, teacher.model)


class TestErrors:
    @pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
    def test_decay(self, decay: float) -> None:
        with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\)"):
            EMA(mlp(), decay)

    def test_no_model(self) -> None:
        with pytest.raises(TypeError, match="`student` must be a `keras.Model`"):
            EMA(lambda x: x)

    def test_unbuilt(self) -> None:
        with pytest.raises(ValueError, match="student 'raw' isn't built"):
            EMA(Subclassed(name="raw"))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_narrow_weights(self, dtype: str) -> None:
        student = keras.Sequential([keras.Input((4,)), layers.Dense(2, dtype=dtype)])
        with pytest.raises(ValueError, match=f"stand still.*'mixed_{dtype}'"):
            EMA(student)

    def test_a_student_without_a_config(self) -> None:
        class Takes(keras.Model):
            def __init__(self, head: Any) -> None:
                super().__init__()
                self.head = head

            def call(self, inputs: Any) -> Any:
                return self.head(inputs)

            def get_config(self) -> dict[str, Any]:
                return {}

        student = Takes(layers.Dense(2))
        student(X)
        with pytest.raises(TypeError, match="(?s)its config makes again.*Takes.*head"):
            EMA(student)

    def test_another_student(self) -> None:
        distiller = distiller_of(mlp(), EMA(mlp(units=7)))
        with pytest.raises(ValueError, match="model that it was made from"):
            distiller.fit(X, Y, verbose=0)

"""What is on disk: the student, the optimiser, how it was compiled, no teacher."""

import zipfile
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
    Subclassed,
    assert_same_weights,
    crossentropy,
    data,
    mlp,
)

X, Y = data()
TEACHER_UNITS = 41  # a size that nothing else has


def with_dropout() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(5, "tanh", kernel_regularizer="l2"),
            layers.BatchNormalization(),
            layers.Dropout(0.4, seed=3),
            layers.Dense(CLASSES),
        ]
    )


def big_teacher() -> keras.Model:
    return mlp(seed=1, units=TEACHER_UNITS)


def trained(student: keras.Model | None = None, **kwargs: Any) -> kd.Distiller:
    distiller = kd.Distiller(student or with_dropout(), big_teacher())
    arguments = {
        "distillation_loss": kd.losses.ReverseKL(
            keras.optimizers.schedules.PolynomialDecay(4.0, 10, 1.0)
        ),
        "alpha": kd.schedules.LinearWarmup(10, value=0.8),
        "metrics": ["accuracy"],
        **kwargs,
    }
    distiller.compile(keras.optimizers.Adam(0.03), crossentropy(), **arguments)
    distiller.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    return distiller


def train_on(distiller: kd.Distiller) -> dict[str, Any]:
    history: dict[str, Any] = distiller.fit(
        X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0
    ).history
    return history


def arrays_in(path: Path) -> list[tuple[int, ...]]:
    """The shapes of all arrays in a file of weights."""
    shapes: list[tuple[int, ...]] = []

    def note(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            shapes.append(item.shape)

    with h5py.File(path) as file:
        file.visititems(note)
    return shapes


@pytest.mark.parametrize("build", [with_dropout, Subclassed])
def test_a_loaded_distiller_goes_on_as_if_nothing_had_happened(
    build: Any, tmp_path: Path
) -> None:
    path = tmp_path / "distiller.keras"
    distiller = trained(build())
    distiller.save(path)
    loaded = kd.Distiller.load(path, teacher=big_teacher())
    np.testing.assert_array_equal(
        loaded.predict(X, verbose=0), distiller.predict(X, verbose=0)
    )
    assert loaded.evaluate(X, Y, verbose=0) == distiller.evaluate(X, Y, verbose=0)
    assert train_on(loaded) == train_on(distiller)
    assert_same_weights(loaded.student, distiller.student)
    assert loaded.student.count_params() == distiller.student.count_params()


def test_the_compile_state_is_kept(tmp_path: Path) -> None:
    distiller = trained(steps_per_execution=2, check_teacher=False)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.teacher is None
    assert loaded.get_compile_config() == distiller.get_compile_config()
    assert loaded.get_config()["privileged_features"] == []
    assert isinstance(loaded.alpha, kd.schedules.LinearWarmup)
    assert loaded.alpha.get_config() == distiller.alpha.get_config()
    assert loaded.steps_per_execution == 2
    assert int(loaded.optimizer.iterations) == 3
    for variable, expected in zip(
        loaded.optimizer.variables, distiller.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(variable, expected)


def test_what_was_assigned_during_training_is_kept(tmp_path: Path) -> None:
    loss = kd.losses.ForwardKL(temperature=4.0)
    distiller = trained(distillation_loss=loss, alpha=0.5)
    distiller.alpha, loss.temperature = 0.125, 2.0
    distiller.save(tmp_path / "d.keras")
    loaded = kd.Distiller.load(tmp_path / "d.keras", big_teacher())
    assert loaded.alpha == 0.125
    assert train_on(loaded) == train_on(distiller)


def test_saved_without_being_compiled_it_loads_uncompiled(tmp_path: Path) -> None:
    distiller = kd.Distiller(with_dropout(), big_teacher(), name="mine")
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.name == "mine"
    assert not loaded.compiled
    assert_same_weights(loaded.student, distiller.student)


def test_losses_by_name_function_and_output_survive(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((FEATURES,))
    outputs = {name: layers.Dense(CLASSES, name=name)(inputs) for name in ("a", "b")}
    student = keras.Model(inputs, outputs)
    distiller = kd.Distiller(student, keras.models.clone_model(student))
    distiller.compile(
        "sgd",
        {"a": crossentropy(), "b": "mse"},
        distillation_loss={"a": kd.losses.ForwardKL(2.0), "b": "mse"},
    )
    labels = {"a": Y, "b": X[:, :CLASSES]}
    distiller.train_on_batch(X, labels)
    distiller.save(tmp_path / "d.keras")
    loaded = kd.Distiller.load(tmp_path / "d.keras", distiller.teacher)
    distiller.reset_metrics()  # Keras 3.12 leaves that to its users.
    logs, expected = (
        model.train_on_batch(X, labels, return_dict=True)
        for model in (loaded, distiller)
    )
    assert logs == expected


def test_without_a_teacher_it_serves_but_does_not_train(tmp_path: Path) -> None:
    trained().save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.predict(X, verbose=0).shape == (24, CLASSES)
    assert set(loaded.evaluate(X, Y, verbose=0, return_dict=True)) == {
        "loss",
        "accuracy",
    }
    with pytest.raises(ValueError, match="has no teacher.*Distiller.load"):
        train_on(loaded)
    loaded.teacher = big_teacher()
    train_on(loaded)


def test_load_refuses_another_kind_of_model(tmp_path: Path) -> None:
    mlp().save(tmp_path / "m.keras")
    with pytest.raises(TypeError, match="must hold a `Distiller`.*Sequential"):
        kd.Distiller.load(tmp_path / "m.keras", mlp())


def test_save_weights_and_load_weights(tmp_path: Path) -> None:
    distiller, other = trained(), trained()
    train_on(distiller)
    distiller.save_weights(tmp_path / "d.weights.h5")
    other.load_weights(tmp_path / "d.weights.h5")
    assert train_on(other) == train_on(distiller)
    assert_same_weights(other.student, distiller.student)


def test_the_student_is_saved_by_itself(tmp_path: Path) -> None:
    distiller = trained()
    distiller.student.save(tmp_path / "s.keras")
    student = keras.saving.load_model(tmp_path / "s.keras")
    assert_same_weights(student, distiller.student)


def test_no_file_holds_the_teacher(tmp_path: Path) -> None:
    distiller = trained()
    distiller.fit(
        X,
        Y,
        epochs=1,
        verbose=0,
        callbacks=[
            keras.callbacks.BackupAndRestore(
                str(tmp_path / "backup"), delete_checkpoint=False
            ),
            keras.callbacks.ModelCheckpoint(str(tmp_path / "checkpoint.keras")),
            keras.callbacks.ModelCheckpoint(
                str(tmp_path / "checkpoint.weights.h5"), save_weights_only=True
            ),
        ],
    )
    with zipfile.ZipFile(tmp_path / "checkpoint.keras") as archive:
        archive.extractall(tmp_path / "archive")
    config = (tmp_path / "archive" / "config.json").read_text()
    assert '"units": 5' in config
    assert f'"units": {TEACHER_UNITS}' not in config

    student = [tuple(weight.shape) for weight in distiller.student.variables]
    optimizer = [tuple(variable.shape) for variable in distiller.optimizer.variables]
    for path in (
        tmp_path / "archive" / "model.weights.h5",
        tmp_path / "checkpoint.weights.h5",
        tmp_path / "backup" / "latest.weights.h5",
    ):
        assert sorted(arrays_in(path)) == sorted(student + optimizer), path


def test_neither_a_tensorflow_checkpoint_nor_an_export_holds_the_teacher(
    tmp_path: Path,
) -> None:
    distiller = trained()
    prefix = tf.train.Checkpoint(model=distiller).save(str(tmp_path / "checkpoint"))
    shapes = [shape for _, shape in tf.train.list_variables(prefix)]
    assert not any(TEACHER_UNITS in shape for shape in shapes)

    distiller.export(str(tmp_path / "served"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    assert not any(TEACHER_UNITS in variable.shape for variable in served.variables)
    np.testing.assert_allclose(
        served.serve(X), distiller.predict(X, verbose=0), atol=1e-6
    )


def test_the_distillers_weights_are_the_students() -> None:
    distiller = trained()
    student = distiller.student
    assert len(distiller.trainable_weights) == len(student.trainable_weights)
    assert distiller.count_params() == student.count_params()
    assert_same_weights(distiller, student)
    assert distiller.layers == [student]

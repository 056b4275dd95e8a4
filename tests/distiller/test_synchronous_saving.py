"""A teacher that trains is part of the training, so files hold it and its optimiser."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from tests import slow
from tests.distiller.models import (
    CLASSES,
    Subclassed,
    assert_same_weights,
    crossentropy,
    data,
)
from tests.distiller.pairs import ID, bce, clicks, pair, together

X, Y = clicks()
VECTORS, CLASS = data()
Pair = tuple[keras.Model, keras.Model]


def trained(models: Pair, **kwargs: Any) -> kd.Distiller:
    """After an epoch with all that a resumed training must find again."""
    distiller = together(
        *models,
        **{
            "optimizer": keras.optimizers.Adam(0.03),
            "teacher_optimizer": keras.optimizers.Adam(0.05, beta_1=0.8),
            "alpha": kd.schedules.LinearWarmup(10, value=0.8),
            "metrics": ["accuracy"],
            "teacher_metrics": ["AUC"],
            "run_eagerly": True,  # tracing would be most of what these tests cost
            **kwargs,
        },
    )
    go_on(distiller)
    return distiller


def go_on(distiller: kd.Distiller, x: Any = X, y: Any = Y) -> dict[str, Any]:
    history: dict[str, Any] = distiller.fit(
        x, y, batch_size=8, shuffle=False, verbose=0
    ).history
    return history


def teacher_of(distiller: kd.Distiller) -> keras.Model:
    teacher = distiller.teacher
    assert isinstance(teacher, keras.Model)
    return teacher


def optimizers(distiller: kd.Distiller) -> list[keras.optimizers.Optimizer]:
    assert distiller.teacher_in_training is not None
    return [distiller.optimizer, distiller.teacher_in_training.optimizer]


def assert_same(distiller: kd.Distiller, expected: kd.Distiller) -> None:
    """Bitwise, both models and both optimisers."""
    assert_same_weights(distiller.student, expected.student)
    assert_same_weights(teacher_of(distiller), teacher_of(expected))
    for found, wanted in zip(optimizers(distiller), optimizers(expected), strict=True):
        for variable, value in zip(found.variables, wanted.variables, strict=True):
            np.testing.assert_array_equal(variable, value)


def shared_names(distiller: kd.Distiller) -> set[str]:
    held = {id(layer) for layer in distiller.student.layers if layer.weights}
    return {layer.name for layer in teacher_of(distiller).layers if id(layer) in held}


# Files of the whole distiller.


def functional() -> Pair:
    return pair(eventful=True)


def functional_shared() -> Pair:
    return pair("items", "hidden", eventful=True)


def one_graph() -> Pair:
    """Two models of the same tensors: inputs, layers and dropout are both's."""
    keras.utils.set_random_seed(0)
    ids = {name: keras.Input((1,), dtype=ID, name=name) for name in ("user", "item")}
    dwell = keras.Input((1,), name="dwell")
    found = [layers.Flatten()(layers.Embedding(9, 2)(x)) for x in ids.values()]
    hidden = layers.Dropout(0.3)(layers.Concatenate()(found))
    student = keras.Model(ids, layers.Dense(1)(hidden))
    known = layers.Concatenate()([hidden, dwell])
    return student, keras.Model({**ids, "dwell": dwell}, layers.Dense(1)(known))


@pytest.mark.parametrize(
    "build, run_eagerly",
    [
        pytest.param(functional, True, marks=pytest.mark.slow("fits")),
        (functional_shared, False),
        (one_graph, True),
    ],
)
def test_a_loaded_distiller_goes_on_as_if_nothing_had_happened(
    build: Callable[[], Pair], run_eagerly: bool, tmp_path: Path
) -> None:
    distiller = trained(build(), run_eagerly=run_eagerly)
    distiller.save(tmp_path / "d.keras")
    loaded = kd.Distiller.load(tmp_path / "d.keras")
    assert loaded.run_eagerly == run_eagerly
    assert shared_names(loaded) == shared_names(distiller)
    assert loaded.privileged_features == ("dwell",)
    assert_same(loaded, distiller)
    assert loaded.evaluate(X, Y, verbose=0) == distiller.evaluate(X, Y, verbose=0)
    np.testing.assert_array_equal(
        teacher_of(loaded).predict(X, verbose=0),
        teacher_of(distiller).predict(X, verbose=0),
    )
    assert go_on(loaded) == go_on(distiller)
    assert_same(loaded, distiller)


def sequential(shared: bool) -> Pair:
    keras.utils.set_random_seed(0)
    first = layers.Dense(5, "tanh", name="first")

    def build(own: keras.Layer) -> keras.Model:
        return keras.Sequential(
            [keras.Input((4,)), own, layers.Dropout(0.4), layers.Dense(CLASSES)]
        )

    other = first if shared else layers.Dense(5, "tanh")
    return build(first), build(other)


def subclassed() -> Pair:
    keras.utils.set_random_seed(0)
    models = Subclassed(units=4), Subclassed(units=6)
    for model in models:
        model(VECTORS)
    return models


@pytest.mark.parametrize(
    "build, shared",
    [
        (lambda: sequential(False), set()),
        (lambda: sequential(True), {"first"}),
        (subclassed, set()),
    ],
    ids=["sequential", "sequential shared", "subclassed"],
)
def test_models_of_other_kinds_go_on_too(
    build: Callable[[], Pair], shared: set[str], tmp_path: Path
) -> None:
    distiller = kd.Distiller(*build())
    distiller.compile(
        keras.optimizers.Adam(0.03),
        crossentropy(),
        teacher_loss=crossentropy(),
        run_eagerly=True,
    )
    go_on(distiller, VECTORS, CLASS)
    distiller.save(tmp_path / "d.keras")
    loaded = kd.Distiller.load(tmp_path / "d.keras")
    assert shared_names(loaded) == shared
    assert_same(loaded, distiller)
    assert go_on(loaded, VECTORS, CLASS) == go_on(distiller, VECTORS, CLASS)
    assert_same(loaded, distiller)


def test_the_compile_state_is_kept(tmp_path: Path) -> None:
    distiller = trained(pair("items"))
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.get_compile_config() == distiller.get_compile_config()
    assert isinstance(loaded.alpha, kd.schedules.LinearWarmup)
    assert [o.beta_1 for o in optimizers(loaded)] == [0.9, 0.8]
    with pytest.raises(ValueError, match="teacher trains.*can't be replaced"):
        kd.Distiller.load(tmp_path / "d.keras", teacher=pair()[1])


def test_the_student_is_saved_by_itself(tmp_path: Path) -> None:
    distiller = trained(pair("items"))
    distiller.student.save(tmp_path / "s.keras")
    student = keras.saving.load_model(tmp_path / "s.keras")
    assert_same_weights(student, distiller.student)
    assert {tensor.name for tensor in student.inputs} == {"user", "item"}


# What Keras can't tell from a file.


def deeper() -> Pair:
    """A layer of the student's lies within a part of the teacher."""
    keras.utils.set_random_seed(0)
    users = layers.Embedding(9, 2, name="users")
    inputs = keras.Input((1,), dtype=ID, name="user")
    student = keras.Model(
        {"user": inputs}, layers.Dense(1)(layers.Flatten()(users(inputs)))
    )
    tower = keras.Sequential(
        [keras.Input((1,), dtype=ID), users, layers.Flatten()], name="tower"
    )
    inputs = keras.Input((1,), dtype=ID, name="user")
    dwell = keras.Input((1,), name="dwell")
    known = layers.Dropout(0.3)(layers.Concatenate()([tower(inputs), dwell]))
    teacher = keras.Model({"user": inputs, "dwell": dwell}, layers.Dense(1)(known))
    return student, teacher


def test_layers_shared_deeper_down_are_read_from_a_file_of_weights(
    tmp_path: Path,
) -> None:
    distiller = trained(deeper())
    path = tmp_path / "d.keras"
    distiller.save(path)
    with pytest.raises(ValueError, match=r"share weights.*load_weights.*1 shared"):
        kd.Distiller.load(path)
    # as the error says
    other = together(
        *deeper(),
        optimizer=keras.optimizers.Adam(0.03),
        teacher_optimizer=keras.optimizers.Adam(0.05, beta_1=0.8),
        alpha=kd.schedules.LinearWarmup(10, value=0.8),
        run_eagerly=True,
    )
    other.load_weights(path)
    assert_same(other, distiller)
    go_on(other)
    go_on(distiller)
    assert_same(other, distiller)


def test_a_part_that_both_models_hold_is_found_again(tmp_path: Path) -> None:
    student, teacher = deeper()
    tower = teacher.get_layer("tower")
    inputs = keras.Input((1,), dtype=ID, name="user")
    student = keras.Model({"user": inputs}, layers.Dense(1)(tower(inputs)))
    distiller = trained((student, teacher))
    distiller.save(tmp_path / "d.keras")
    loaded = kd.Distiller.load(tmp_path / "d.keras")
    assert shared_names(loaded) == {"tower"}
    go_on(loaded)
    go_on(distiller)
    assert_same(loaded, distiller)


# Files of weights, and checkpoints.


def built_like(shared: tuple[str, ...]) -> kd.Distiller:
    """Compiled, with other weights, and not trained."""
    student, teacher = pair(*shared, eventful=True)
    for model in (student, teacher):
        model.set_weights([weight + 1.0 for weight in model.get_weights()])
    return together(
        student,
        teacher,
        optimizer=keras.optimizers.Adam(0.03),
        teacher_optimizer=keras.optimizers.Adam(0.05, beta_1=0.8),
        alpha=kd.schedules.LinearWarmup(10, value=0.8),
        run_eagerly=True,
    )


@pytest.mark.parametrize(
    "shared", slow.but([("items",)], [(), ("items",)], "fits"), ids=str
)
def test_save_weights_and_load_weights_into_models_just_built(
    shared: tuple[str, ...], tmp_path: Path
) -> None:
    distiller = trained(pair(*shared, eventful=True))
    distiller.save_weights(tmp_path / "d.weights.h5")
    other = built_like(shared)
    other.load_weights(tmp_path / "d.weights.h5")
    assert_same(other, distiller)
    go_on(other)
    go_on(distiller)
    assert_same(other, distiller)


def arrays_in(path: Path) -> list[np.ndarray]:
    arrays: list[np.ndarray] = []

    def note(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            arrays.append(item[()])

    with h5py.File(path) as file:
        file.visititems(note)
    return arrays


def holds(arrays: list[np.ndarray], weight: Any) -> bool:
    return any(np.array_equal(array, weight) for array in arrays)


def test_a_file_holds_the_teacher_where_it_trains_and_not_otherwise(
    tmp_path: Path,
) -> None:
    path = tmp_path / "d.weights.h5"
    distiller = trained(pair("items"))
    student, teacher = distiller.student, teacher_of(distiller)
    own = [teacher.get_layer(name).trainable_weights for name in ("users", "click")]
    only_teachers = [weight.numpy() for weights in own for weight in weights]
    variables = [
        v.numpy() for optimizer in optimizers(distiller) for v in optimizer.variables
    ]
    distiller.save_weights(path)
    arrays = arrays_in(path)
    for array in (*only_teachers, *student.get_weights(), *variables):
        assert holds(arrays, array)
    kernels = [
        a for a in arrays if np.array_equal(a, student.get_layer("items").embeddings)
    ]
    assert len(kernels) == 1  # shared, so it is written once

    fixed = kd.Distiller(*pair())
    fixed.compile(
        "sgd",
        bce(),
        distillation_loss=kd.losses.BinarySoftTargets(),
        run_eagerly=True,
    )
    go_on(fixed)
    fixed.save_weights(path)
    arrays = arrays_in(path)
    assert all(holds(arrays, weight) for weight in fixed.student.get_weights())
    of_teacher = teacher_of(fixed).get_layer("users").embeddings
    assert not holds(arrays, of_teacher)


def test_checkpoints_and_backups_hold_both_models(tmp_path: Path) -> None:
    distiller = trained(pair("items", eventful=True))
    distiller.fit(
        X,
        Y,
        batch_size=8,
        shuffle=False,
        verbose=0,
        callbacks=[
            keras.callbacks.BackupAndRestore(
                str(tmp_path / "backup"), delete_checkpoint=False
            ),
            keras.callbacks.ModelCheckpoint(str(tmp_path / "d.keras")),
            keras.callbacks.ModelCheckpoint(
                str(tmp_path / "d.weights.h5"), save_weights_only=True
            ),
        ],
    )
    loaded = kd.Distiller.load(tmp_path / "d.keras")
    assert_same(loaded, distiller)
    for path in ("d.weights.h5", "backup/latest.weights.h5"):
        other = built_like(("items",))
        other.load_weights(tmp_path / path)
        assert_same(other, distiller)


def test_a_frozen_layer_that_is_shared_deeper_down_is_not_lost_in_silence(
    tmp_path: Path,
) -> None:
    keras.utils.set_random_seed(0)
    frozen = layers.Embedding(9, 2, trainable=False, name="frozen")
    inputs = keras.Input((1,), dtype=ID, name="user")
    tower = keras.Model(inputs, layers.Flatten()(frozen(inputs)), name="tower")
    student = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(frozen(inputs))))
    teacher = keras.Model(inputs, layers.Dense(1)(tower(inputs)))
    distiller = kd.Distiller(student, teacher)
    distiller.compile("sgd", "mse", distillation_loss="mse", teacher_loss="mse")
    distiller.save(tmp_path / "d.keras")
    with pytest.raises(ValueError, match="can't tell from a file how"):
        kd.Distiller.load(tmp_path / "d.keras")

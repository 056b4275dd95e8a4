"""Joined outputs belong to their examples, or an error names the first that doesn't."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill import targets
from keras_distill.targets import index
from tests.targets.recordings import (
    CLASSES,
    FEATURES,
    ROWS,
    dataset,
    inputs,
    model,
    named,
)

Mismatch = tf.errors.InvalidArgumentError


def double(x: Any) -> Any:
    return 2.0 * (x["image"] if isinstance(x, dict) else x)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of `dataset`, with the doubled inputs as outputs."""
    directory = tmp_path_factory.mktemp("recorded")
    targets.record(double, dataset(), directory, rows_per_shard=32)
    return directory


@pytest.fixture(scope="module")
def by_name(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of `named` with ids."""
    directory = tmp_path_factory.mktemp("named")
    targets.record(
        double, named(), directory, ids="name", hash_keys=["image"], rows_per_shard=32
    )
    return directory


def check(joined: tf.data.Dataset, rows: int = ROWS) -> None:
    """Check that each row has its own output."""
    seen = 0
    for element in joined:
        x = element[0] if isinstance(element, tuple) else element
        given = x["inputs"] if "inputs" in x else x["image"]
        np.testing.assert_allclose(x["teacher"], 2.0 * given, rtol=1e-5, atol=1e-5)
        seen += len(given)
    assert seen == rows


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (dataset(), ROWS),
        (dataset(batch=7), ROWS),
        (dataset(batch=ROWS), ROWS),
        (dataset().repeat(2), 2 * ROWS),
        (dataset().unbatch().repeat(2).batch(9), 2 * ROWS),
        (dataset().take(3), 24),
    ],
    ids=["same", "other batches", "one", "repeated", "repeated first", "part"],
)
def test_in_order(recorded: Path, data: tf.data.Dataset, rows: int) -> None:
    joined = targets.join(data, recorded)
    assert joined.cardinality() == data.cardinality()
    check(joined, rows)


@pytest.mark.parametrize("by", [None, "content"])
def test_elements_keep_their_structure(recorded: Path, by: str | None) -> None:
    weighted = dataset().map(lambda x, y: (x, y, tf.ones_like(y)))
    x, y, weight = targets.join(weighted, recorded, by=by, key="t").element_spec
    assert x["t"].shape.as_list() == x["inputs"].shape.as_list() == [None, FEATURES]
    assert (y, weight) == weighted.element_spec[1:]
    alone = targets.join(dataset().map(lambda x, y: x), recorded, by=by)
    assert set(alone.element_spec) == {"inputs", "teacher"}


def test_after_a_shuffle(recorded: Path) -> None:
    shuffled = dataset().unbatch().shuffle(ROWS).batch(16)
    check(targets.join(shuffled, recorded, by="content"))
    # The index that is there is read.
    (path,) = recorded.glob(".index-*")
    before = path.stat()
    check(targets.join(shuffled.skip(1), recorded, by="content"), ROWS - 16)
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("by", ["content", "name", "position"])
def test_by_each_kind_of_id(
    recorded: Path, by_name: Path, by: str, tmp_path: Path
) -> None:
    shuffled = named().unbatch().shuffle(ROWS, seed=1).batch(16)
    directory = by_name
    if by == "position":
        directory = tmp_path
        targets.record(double, named(), tmp_path, hash_keys=["image"])
        shuffled = shuffled.map(lambda x: {**x, by: (x["number"] + 300) // 10})
    check(targets.join(shuffled, directory, by=by))


@pytest.mark.parametrize(
    ("change", "by", "message"),
    [
        (lambda x: x.skip(1), None, 'by="content".* at position 0,'),
        (lambda x: x.filter(lambda r: r["number"] != 0), None, "at position 30,"),
        (lambda x: x.map(lambda r: {**r, "image": r["image"] + 1}), None, "position 0"),
        (lambda x: x.take(50).repeat(2), None, "at position 50,"),
        (
            lambda x: x.map(lambda r: {**r, "image": r["image"] + 1}),
            "content",
            "row 0 of a batch, with content [0-9a-f]{16}",
        ),
        (
            lambda x: x.map(lambda r: {**r, "image": r["image"] + 1}),
            "name",
            "other rows than the recording.* at position 0,",
        ),
        (lambda x: x.map(lambda r: {**r, "name": "x"}), "name", "row 0 .*with name"),
        (lambda x: x, "number", "row 0 of a batch"),
    ],
    ids=[
        "skipped",
        "filtered",
        "changed",
        "part repeated",
        "changed, by content",
        "changed, by id",
        "unknown id",
        "wrong key",
    ],
)
def test_mismatches_name_the_first_row(
    by_name: Path, change: Any, by: str | None, message: str
) -> None:
    data = change(named().unbatch()).batch(8)
    with pytest.raises(Mismatch, match=message):
        list(targets.join(data, by_name, by=by))


def test_rows_of_equal_content(tmp_path: Path) -> None:
    x = {"image": np.ones((4, FEATURES), "f"), "number": np.arange(4)}
    data = tf.data.Dataset.from_tensor_slices(x).batch(2)
    same, other = tmp_path / "same", tmp_path / "other"
    targets.record(double, data, same, hash_keys=["image"])
    check(targets.join(data, same, by="content"), 4)

    def by_number(x: Any) -> Any:
        return tf.cast(x["number"][:, None], "float32")

    targets.record(by_number, data, other, hash_keys=["image"], ids="number")
    with pytest.raises(ValueError, match=r"rows 0 and 1 of equal \['image'\]"):
        targets.join(data, other, by="content")
    assert len(list(targets.join(data, other, by="number"))) == 2
    twice = data.map(lambda x: {**x, "number": x["number"] // 3})
    targets.record(by_number, twice, tmp_path / "ids", ids="number")
    with pytest.raises(ValueError, match="id 0 in rows 0 and 1"):
        targets.join(data, tmp_path / "ids", by="number")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": "image"}, "key='image'.*'image', 'name', 'number'"),
        ({"key": ""}, "key=''"),
        ({"augment": lambda x, seed: x}, "No augmented views were recorded"),
        ({"by": "nam"}, r"by=\['nam'\].*without \['nam'\]"),
    ],
    ids=["held key", "empty key", "augment", "unknown by"],
)
def test_wrong_arguments(
    by_name: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        targets.join(named(), by_name, **arguments)


def test_data_sets_without_what_was_hashed(by_name: Path) -> None:
    with pytest.raises(ValueError, match=r"without \['image'\], with \['inputs'\]"):
        targets.join(dataset(), by_name)
    with pytest.raises(TypeError, match="type ndarray"):
        targets.join(inputs(), by_name)


def test_an_index_of_many_pieces(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in recorded.glob(".index-*"):
        path.unlink()
    monkeypatch.setattr(index, "_SORTED_AT_ONCE", 7)
    check(targets.join(dataset().shuffle(ROWS), recorded, by="content"))


def test_a_directory_that_cannot_be_written(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in recorded.glob(".index-*"):
        path.unlink()

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    check(targets.join(dataset().shuffle(ROWS), recorded, by="content"))
    assert not list(recorded.glob(".index-*"))


def noisy(x: Any, seed: Any) -> Any:
    noise = tf.random.stateless_uniform((FEATURES,), seed)
    return {**x, "image": x["image"] + noise} if isinstance(x, dict) else x + noise


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of three views of each row."""
    directory = tmp_path_factory.mktemp("viewed")
    targets.record(
        double, dataset(), directory, augment=noisy, views=3, rows_per_shard=32
    )
    return directory


class TestViews:
    @pytest.mark.parametrize("by", [None, "content"])
    def test_student_and_teacher_see_the_same(self, viewed: Path, by: Any) -> None:
        data = dataset(batch=5)
        if by:
            data = data.unbatch().shuffle(ROWS).batch(5)
        joined = targets.join(data, viewed, by=by, augment=noisy)
        check(joined)
        rows = {
            tuple(row)
            for _ in range(8)
            for x, _ in joined.as_numpy_iterator()
            for row in x["inputs"]
        }
        # All three views of most rows, and no others.
        assert 2 * ROWS < len(rows) <= 3 * ROWS

    def test_another_augmentation(self, viewed: Path) -> None:
        def other(x: Any, seed: Any) -> Any:
            return noisy(x, seed) + 1.0

        with pytest.raises(Mismatch, match="another view . of row 0"):
            list(targets.join(dataset(), viewed, augment=other))

    def test_without_the_augmentation(self, viewed: Path) -> None:
        with pytest.raises(ValueError, match="pass the same `augment`"):
            targets.join(dataset(), viewed)

    def test_wrong_structure(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="the structure of the one"):
            targets.record(
                double, named(), tmp_path, augment=lambda x, seed: x["image"]
            )


class Subclassed(keras.Model):
    """A model that declares no inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(CLASSES)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs)

    def build(self, input_shape: Any) -> None:
        self.dense.build(input_shape)


def functional() -> keras.Model:
    x = keras.Input((FEATURES,), name="pixels")
    return keras.Model(x, layers.Dense(CLASSES)(x))


def subclassed() -> keras.Model:
    built = Subclassed()
    built.build((None, FEATURES))
    return built


@pytest.mark.parametrize("kind", ["sequential", "functional", "subclassed"])
def test_trained_weights_are_those_of_the_online_run(kind: str, tmp_path: Path) -> None:
    make = {"sequential": model, "functional": functional, "subclassed": subclassed}
    teacher = model(5)
    targets.record(teacher, dataset(), tmp_path)
    trained = []
    for given, data in (
        (teacher, dataset()),
        (kd.teachers.Recorded("teacher"), targets.join(dataset(), tmp_path)),
    ):
        keras.utils.set_random_seed(1)
        distiller = kd.Distiller(make[kind](), given)
        distiller.compile(
            "adam",
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            distillation_loss=kd.losses.ForwardKL(temperature=3.0),
        )
        distiller.fit(data, verbose=0, shuffle=False, epochs=2)
        trained.append(distiller.student.get_weights())
    for online, recorded in zip(*trained, strict=True):
        np.testing.assert_allclose(recorded, online, rtol=1e-5, atol=1e-6)
    predicted = distiller.student.predict(inputs(), verbose=0)
    assert predicted.shape == (ROWS, CLASSES)


def test_several_outputs_teach_several_outputs(tmp_path: Path) -> None:
    def two_headed(seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        x = keras.Input((FEATURES,), name="image")
        heads = [layers.Dense(2, name=name)(x) for name in ("a", "b")]
        return keras.Model(x, heads)

    data = named().map(lambda x: {"image": x["image"]})
    teacher = two_headed(0)
    targets.record(teacher, data, tmp_path)
    trained = []
    for given, joined in (
        (teacher, data),
        (kd.teachers.Recorded("teacher"), targets.join(data, tmp_path)),
    ):
        distiller = kd.Distiller(two_headed(1), given)
        distiller.compile("sgd", alpha=1.0)
        distiller.fit(joined, verbose=0, shuffle=False)
        trained.append(distiller.student.get_weights())
    for online, recorded in zip(*trained, strict=True):
        np.testing.assert_allclose(recorded, online, rtol=1e-5, atol=1e-6)

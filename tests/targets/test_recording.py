"""A recording is whole, of one teacher and one data set, or an error says why not."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill import targets
from keras_distill.targets import fingerprints, recording
from keras_distill.targets.planning import plan_of
from keras_distill.targets.recorder import Recorder
from tests.targets.recordings import (
    CLASSES,
    FEATURES,
    ROWS,
    dataset,
    files,
    inputs,
    model,
    named,
)


@pytest.fixture(scope="module")
def teacher() -> keras.Model:
    return model()


@pytest.fixture
def recorded(teacher: keras.Model, tmp_path: Path) -> Path:
    """A recording of 4 shards of 32 rows, the last of 4."""
    directory = tmp_path / "recorded"
    targets.record(teacher, dataset(), directory, rows_per_shard=32)
    return directory


def read(directory: Path, data: tf.data.Dataset | None = None) -> Any:
    """Return all recorded outputs in order."""
    joined = targets.join(data or dataset(), directory)
    parts = [
        (e[0] if isinstance(e, tuple) else e)["teacher"]
        for e in joined.as_numpy_iterator()
    ]
    return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)


def test_all_rows_are_recorded(teacher: keras.Model, recorded: Path) -> None:
    expected = teacher.predict(inputs(), verbose=0)
    np.testing.assert_allclose(read(recorded), expected, atol=1e-5)
    manifest = targets.Manifest.read(recorded)
    assert (manifest.rows, manifest.complete) == (ROWS, True)
    rows = [shard["rows"] for shard in manifest.shards.values()]
    assert rows == [32, 32, 32, 4]
    names = [f"shard-0000{number}.tfrecord" for number in range(4)]
    assert list(files(recorded)) == ["manifest.json", *names]


def test_tensorflow_reads_the_blocks(recorded: Path) -> None:
    layout = targets.Manifest.read(recorded).layout()
    paths = sorted(str(path) for path in recorded.glob("*.tfrecord"))
    blocks = [len(block.numpy()) for block in tf.data.TFRecordDataset(paths)]
    assert blocks == [rows * layout.row_bytes for rows in (32, 32, 32, 4)]


def test_size_on_disk(tmp_path: Path) -> None:
    """Blocks take 5 % more than the rows at most, for ten classes too."""
    data = tf.data.Dataset.range(20_000).batch(100)

    def few(x: Any) -> Any:
        return tf.cast(x[:, None], "float32") * tf.ones((1, 10))

    manifest = targets.record(few, data, tmp_path / "few")
    size = sum(len(content) for content in files(tmp_path / "few").values())
    assert size <= 1.05 * manifest.rows * manifest.layout().row_bytes
    # Top 16 of 1,000 classes, beside 4,000 bytes a row.
    top = targets.TopK(16).columns((1000,))
    assert sum(column.bytes_per_row for column in top) + 8 <= 4000 / 15


class Doubling(kd.teachers.Teacher):
    """A teacher that isn't a layer, and reads labels."""

    def teach(self, batch: Any) -> Any:
        labels = keras.ops.cast(batch.labels, "float32")
        return kd.teachers.Lesson(2.0 * labels[:, None])


TEACHERS = {
    "ensemble": lambda: kd.teachers.Ensemble([model(1), model(2)]),
    "adapted": lambda: kd.teachers.Adapted(model(1), outputs=[1, 0, 3]),
    "function": lambda: lambda x: x * 2.0,
    "numpy": lambda: lambda x: np.sort(np.asarray(x)) * 2.0,
    "labels": Doubling,
}


@pytest.mark.parametrize("kind", TEACHERS)
def test_teachers_of_all_kinds(kind: str, tmp_path: Path) -> None:
    given = TEACHERS[kind]()
    x = inputs()
    if kind == "labels":
        expected = 2.0 * (np.arange(ROWS) % CLASSES)[:, None]
    else:
        expected = keras.ops.convert_to_numpy(given(x))
    targets.record(given, dataset(), tmp_path, stored=targets.Values())
    np.testing.assert_allclose(read(tmp_path), expected, rtol=1e-6, atol=1e-6)
    # Whole: nothing is done.
    before = files(tmp_path)
    targets.record(given, dataset(), tmp_path, stored=targets.Values())
    assert files(tmp_path) == before


@pytest.mark.parametrize("structure", ["dict", "list"])
def test_several_outputs(structure: str, tmp_path: Path) -> None:
    x = keras.Input((FEATURES,), name="image")
    hint = layers.Dense(3, name="hint")(x)
    outputs = [layers.Dense(CLASSES, name="logits")(hint), hint]
    given = {"logits": outputs[0], "hint": hint} if structure == "dict" else outputs
    teacher = keras.Model(x, given)
    stored = {"logits": targets.TopK(2), "hint": targets.Values("float16")}
    targets.record(teacher, named(), tmp_path, stored=stored, hash_keys=["image"])
    found = read(tmp_path, named())
    logits, hints = found if structure == "list" else (found["logits"], found["hint"])
    expected = teacher.predict(inputs(), verbose=0)
    hidden = expected[1] if structure == "list" else expected["hint"]
    assert logits.shape == (ROWS, 6)
    np.testing.assert_allclose(hints, hidden, atol=2e-3)


def test_only_the_damaged_shards_are_made_again(
    teacher: keras.Model, recorded: Path
) -> None:
    before = files(recorded)
    (recorded / "shard-00000.tfrecord").unlink()
    flipped = bytearray(before["shard-00002.tfrecord"])
    flipped[100] ^= 1
    (recorded / "shard-00002.tfrecord").write_bytes(flipped)
    untouched = (recorded / "shard-00001.tfrecord").stat()
    message = "shard-00000.*missing; shard-00002.*SHA-256"
    with pytest.raises(ValueError, match=f"damaged.*{message}"):
        targets.join(dataset(), recorded)
    with pytest.warns(UserWarning, match=message):
        targets.record(teacher, dataset(), recorded)
    assert files(recorded) == before
    assert (recorded / "shard-00001.tfrecord").stat() == untouched


def test_a_truncated_shard_is_found_without_reading_it(recorded: Path) -> None:
    path = recorded / "shard-00003.tfrecord"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="shard-00003.tfrecord: it has .* bytes"):
        targets.join(dataset(), recorded, verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "can't be understood.*characters"),
        (lambda text: "", "can't be understood"),
        (lambda text: "[]", "can't be understood"),
        (lambda text: text.replace('"rows"', '"lines"'), "fields are missing"),
        (lambda text: text.replace('version": 1', 'version": 9'), "and is 9"),
        (lambda text: text.replace('"shard-00001', '"../shard-00001'), "own directory"),
        (lambda text: text.replace('"shard-00001', '"/shard-00001'), "own directory"),
    ],
)
def test_wrong_manifests(
    teacher: keras.Model, recorded: Path, change: Any, message: str
) -> None:
    path = recorded / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message):
        targets.join(dataset(), recorded)
    with pytest.raises(ValueError, match=message):
        targets.record(teacher, dataset(), recorded)


def test_a_link_out_of_the_directory_is_refused(recorded: Path) -> None:
    path = recorded / "shard-00001.tfrecord"
    outside = recorded.parent / path.name
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(ValueError, match="outside of the directory"):
        targets.join(dataset(), recorded)


def shifted(data: tf.data.Dataset) -> tf.data.Dataset:
    return data.map(lambda x, y: (x + 1.0, y))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": lambda: model(1)}, "differs in teacher.*'weights'"),
        ({"teacher": lambda: model(0, outputs=3)}, "differs in teacher.*outputs"),
        ({"dataset": lambda: shifted(dataset())}, "content hash of the first row"),
        ({"stored": targets.TopK(2)}, "outputs: .*LogProbabilities.*TopK"),
        ({"from_logits": False}, "from_logits: True there, False here"),
        ({"rows_per_shard": 40}, "rows_per_shard: 32 there, 40 here"),
        ({"batch_size": 16, "rows_per_shard": 32}, "batch_size: 8 there, 16 here"),
    ],
)
def test_another_recording_is_not_overwritten(
    teacher: keras.Model, recorded: Path, change: dict[str, Any], message: str
) -> None:
    before = files(recorded)
    made = {k: v() if callable(v) else v for k, v in change.items()}
    arguments = {"teacher": teacher, "dataset": dataset(), **made}
    with pytest.raises(ValueError, match=message):
        targets.record(directory=recorded, **arguments)
    assert files(recorded) == before


def test_the_same_teacher_under_other_names(recorded: Path) -> None:
    renamed = keras.Sequential([keras.Input((FEATURES,)), layers.Dense(CLASSES)])
    renamed.set_weights(model().get_weights())
    before = files(recorded)
    targets.record(renamed, dataset(batch=10), recorded)
    assert files(recorded) == before


def test_an_evaluation_leaves_the_teacher_the_same(tmp_path: Path) -> None:
    teacher = model()
    teacher.compile("adam", "mse", metrics=["mae"])
    given = kd.teachers.Adapted(teacher, outputs=[1, 0])
    for each in (teacher, given):
        before = fingerprints.of_teacher(each)
        teacher.evaluate(inputs(), np.ones((ROWS, CLASSES)), verbose=0)
        assert fingerprints.of_teacher(each) == before


def test_other_files_are_not_touched(teacher: keras.Model, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years")
    with pytest.raises(ValueError, match="without manifest.json, with .*thesis.txt"):
        targets.record(teacher, dataset(), tmp_path)
    with pytest.raises(NotADirectoryError, match="a file"):
        targets.record(teacher, dataset(), tmp_path / "thesis.txt")
    with pytest.raises(FileNotFoundError, match="must hold a recording"):
        targets.join(dataset(), tmp_path)
    assert len(files(tmp_path)) == 1


class Stop(Exception):
    """The end of an interrupted recording."""


def stopping(data: tf.data.Dataset, teacher: keras.Model, batches: int) -> Any:
    """Return a teacher that is interrupted after a number of batches."""
    left = [batches]

    def call(x: Any) -> Any:
        x = np.asarray(x)
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return teacher.predict_on_batch(x)

    call.__qualname__ = "teacher"
    return call


@pytest.mark.parametrize("batches", [1, 6, 12])
def test_an_interrupted_recording_goes_on(
    teacher: keras.Model, tmp_path: Path, batches: int
) -> None:
    asked: list[int] = []

    def make(count: int) -> Any:
        call = stopping(dataset(), teacher, count)

        def counted(x: Any) -> Any:
            asked.append(len(np.asarray(x)))
            return call(x)

        counted.__qualname__ = "teacher"
        return counted

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    targets.record(make(99), dataset(), whole, rows_per_shard=32)
    with pytest.raises(Stop):
        targets.record(make(batches), dataset(), parts, rows_per_shard=32)
    with pytest.raises(ValueError, match="must be complete"):
        targets.join(dataset(), parts)
    asked.clear()
    targets.record(make(99), dataset(), parts, rows_per_shard=32)
    # Whole shards aren't asked for again. Once more for the shapes of the outputs.
    recorded = max(batches - 1, 0) * 8 // 32 * 32
    assert sum(asked[1:]) == ROWS - recorded
    assert files(parts) == files(whole)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda data: data.take(2).concatenate(shifted(data.skip(2))), "position 16"),
        (lambda data: data.take(3), "no row at position 24"),
    ],
)
def test_a_changed_data_set_cannot_go_on(
    teacher: keras.Model, tmp_path: Path, other: Any, message: str
) -> None:
    given = stopping(dataset(), teacher, 6)
    with pytest.raises(Stop):
        targets.record(given, dataset(), tmp_path, rows_per_shard=32)
    given = stopping(dataset(), teacher, 99)
    with pytest.raises(ValueError, match=message):
        targets.record(given, other(dataset()), tmp_path, rows_per_shard=32)


def test_several_workers_write_the_same(teacher: keras.Model, tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    targets.record(teacher, dataset(), alone, rows_per_shard=32)
    plan = plan_of(teacher, dataset(), shared, rows_per_shard=32)
    with recording.begin(plan, shared):
        for numbers in ([3, 2], [0, 1]):
            Recorder(teacher, dataset(), shared).write(numbers)
        with pytest.raises(RuntimeError, match="Another process records"):
            with recording.begin(plan, shared):
                pass
        with pytest.raises(ValueError, match="4 shards, without"):
            recording.finish(shared, 5)
        recording.finish(shared, 4)
    assert files(shared) == files(alone)
    with pytest.raises(ValueError, match="The teacher must be the one"):
        Recorder(model(1), dataset(), shared)


def test_a_full_disk_leaves_whole_shards(tmp_path: Path) -> None:
    code = """
        import resource, signal, sys
        import numpy as np, tensorflow as tf
        from keras_distill import targets
        x = np.arange(4000.0, dtype="float32").reshape(1000, 4)
        data = tf.data.Dataset.from_tensor_slices(x).batch(50)
        def teacher(x): return tf.tile(x, (1, 50))
        def record(rows):
            targets.record(teacher, data, sys.argv[1], rows_per_shard=rows)
        size = resource.RLIMIT_FSIZE
        resource.setrlimit(size, (60_000, resource.getrlimit(size)[1]))
        try:
            record(100)
        except OSError as error:
            print(error)
        resource.setrlimit(size, (resource.getrlimit(size)[1],) * 2)
        record(100)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "can't be written. Shards that are whole remain" in done.stdout
    assert not [name for name in files(tmp_path) if name.startswith(".")]
    assert len(files(tmp_path)) == 11


def nan_at(row: int) -> Any:
    def teacher(x: Any) -> Any:
        x = np.array(x)
        x[np.all(x == inputs()[row], axis=-1)] = np.nan
        return x

    return teacher


@pytest.mark.parametrize(
    "stored",
    [targets.LogProbabilities("float16"), targets.Values(), targets.Sampled(3)],
)
def test_outputs_that_are_not_finite(stored: Any, tmp_path: Path) -> None:
    # The last row of a shard, which must not be closed without it.
    with pytest.raises(ValueError, match="finite.* nan in row 63"):
        targets.record(
            nan_at(63), dataset(), tmp_path, stored=stored, rows_per_shard=32
        )
    names = ["manifest.json", "shard-00000.json", "shard-00000.tfrecord"]
    assert list(files(tmp_path)) == names


def test_numbers_that_float16_cannot_hold(tmp_path: Path) -> None:
    stored = targets.Values("float16")
    with pytest.raises(ValueError, match="float16 ends at 65504.*inf in row"):
        targets.record(lambda x: 1e6 * x, dataset(), tmp_path, stored=stored)


DATASETS = {
    "unbatched": (dataset().unbatch(), ValueError, "add `.batch"),
    "empty": (dataset().take(0), ValueError, "an empty data set"),
    "empty, not known": (
        dataset().filter(lambda x, y: False),
        ValueError,
        "an empty data set",
    ),
    "infinite": (dataset().repeat(), ValueError, "an infinite data set"),
    "arrays": (inputs(), TypeError, "type ndarray"),
    "ragged": (
        tf.data.Dataset.from_tensors(tf.ragged.constant([[1.0], [1.0, 2.0]])),
        TypeError,
        "RaggedTensorSpec",
    ),
    "pair of inputs": (
        tf.data.Dataset.from_tensors(((inputs(), inputs()), inputs())),
        TypeError,
        "type tuple",
    ),
}


@pytest.mark.parametrize("kind", DATASETS)
def test_data_sets_that_cannot_be_recorded(kind: str, tmp_path: Path) -> None:
    data, error, message = DATASETS[kind]
    with pytest.raises(error, match=message):
        targets.record(lambda x: x, data, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows_per_shard": 30}, "rows_per_shard=30, batch_size=8"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"views": 2}, "augment=None, views=2"),
        ({"seed": 1}, "augment=None, views=1, seed=1"),
        ({"hash_keys": "name"}, "hash_keys='name'"),
        ({"hash_keys": ["nam"]}, r"without \['nam'\], with \['image', 'name'"),
        ({"ids": "image"}, "ids='image' of float32"),
        ({"ids": "id"}, r"without \['id'\]"),
        ({"stored": {"logits": targets.Values()}}, r"outputs \['output'\]"),
        ({"stored": targets.TopK(4)}, "k=4 for 4 classes"),
    ],
)
def test_wrong_arguments(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        targets.record(lambda x: x["image"], named(), tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (lambda x: None, "None from"),
        (lambda x: x[:3], r"shape \(3, 4\) for 8 rows"),
        (lambda x: {"a": {"b": x}}, "output 'a' of type dict"),
    ],
    ids=["none", "fewer rows", "nested"],
)
def test_wrong_outputs(teacher: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        targets.record(teacher, dataset(), tmp_path)


def test_a_teacher_that_changes_cannot_be_recorded(tmp_path: Path) -> None:
    following = kd.teachers.EMA(model())
    with pytest.raises(TypeError, match="changes while a student trains"):
        targets.record(following, dataset(), tmp_path)
    with pytest.raises(TypeError, match="stored.*'float16'"):
        targets.record(lambda x: x, dataset(), tmp_path, stored="float16")


def test_logits_that_are_given_as_probabilities_are_refused(tmp_path: Path) -> None:
    """Also where a few rows only aren't probabilities."""
    probabilities = np.full((6, 3), 1 / 3, "float32")
    for wrong in ([-1.0, 1.0, 1.0], [0.5, 0.1, 0.1]):
        probabilities[4] = wrong
        data = tf.data.Dataset.from_tensor_slices(probabilities).batch(3)
        with pytest.raises(ValueError, match=r"must be probabilities.* in row 4"):
            targets.record(lambda x: x, data, tmp_path / "out", from_logits=False)

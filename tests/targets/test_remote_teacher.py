"""`targets.remote` with a server that answers, waits, fails, stops or says wrong."""

import contextlib
import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.targets import remote, service
from tests.distiller.models import assert_same_weights, crossentropy
from tests.targets.servers import StandIn, standing_in

WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
X = np.random.default_rng(1).normal(size=(26, 4)).astype("float32")
Y = np.arange(26) % 3
LOGITS = X @ WEIGHTS
# What a shuffled set or another Keras does isn't the subject here.
pytestmark = pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")


def dense(arrays: dict[str, Any]) -> dict[str, Any]:
    logits = arrays["x"] @ WEIGHTS
    return {"logits": logits, "best": logits.max(axis=1)}


INPUTS = {"x": ("FP32", [-1, 4])}
OUTPUTS = {"logits": ("FP32", [-1, 3]), "best": ("FP32", [-1])}


def teacher(function: Any = dense, inputs: Any = INPUTS, **more: Any) -> StandIn:
    outputs = more.pop("outputs", {"logits": OUTPUTS["logits"]})
    return StandIn(function, inputs, outputs, **more)


@contextlib.contextmanager
def served(servicer: StandIn, **more: Any) -> Any:
    """Yield the first arguments of `remote` after the data set."""
    with standing_in(servicer, **more) as port:
        yield f"127.0.0.1:{port}", "teacher"


def batches(x: Any = X, y: Any = Y, size: int = 4, **options: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size, **options)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(service, "_LONGEST_PAUSE", 0.2)


@pytest.fixture(scope="module")
def plain() -> Any:
    """A teacher with two outputs that serves most of the tests."""
    with served(teacher(outputs=OUTPUTS)) as at:
        yield at


def joined(dataset: tf.data.Dataset, key: str = "teacher") -> np.ndarray:
    return np.concatenate([x[key] for x, *_ in dataset.as_numpy_iterator()])


@pytest.mark.parametrize("in_flight", [1, 4, 50])
def test_batches_keep_their_order_in_each_epoch(plain: Any, in_flight: int) -> None:
    taught = remote(batches(), *plain, outputs="logits", in_flight=in_flight)
    assert int(taught.cardinality()) == 7
    for _ in range(2):
        np.testing.assert_array_equal(joined(taught, "inputs"), X)
        np.testing.assert_allclose(joined(taught), LOGITS, rtol=1e-5)
        labels = [y for _, y in taught.as_numpy_iterator()]
        np.testing.assert_array_equal(np.concatenate(labels), Y)


def test_a_shuffled_set_is_shuffled_anew_in_each_epoch(plain: Any) -> None:
    shuffled = tf.data.Dataset.from_tensor_slices(X).shuffle(26).batch(4)
    taught = remote(shuffled.map(lambda x: (x,)), *plain, outputs="logits")
    seen = []
    for _ in range(2):
        rows = [(x["inputs"], x["teacher"]) for (x,) in taught.as_numpy_iterator()]
        x, logits = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        np.testing.assert_allclose(logits, x @ WEIGHTS, rtol=1e-4, atol=1e-6)
        seen.append(x)
    assert not np.array_equal(*seen)


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_shapes_and_dtypes_are_static(plain: Any, drop_remainder: bool) -> None:
    dataset = batches({"x": X, "own": Y}, drop_remainder=drop_remainder)
    x, y = remote(dataset, *plain).element_spec
    rows = 4 if drop_remainder else None
    assert {name: it.shape.as_list() for name, it in x.items()} == {
        "x": [rows, 4],
        "own": [rows],
        "teacher_logits": [rows, 3],
        "teacher_best": [rows],
    }
    assert x["teacher_best"].dtype == tf.float32 and y == dataset.element_spec[1]


@pytest.mark.parametrize("form", ["x", "(x,)", "(x, y)", "(x, y, w)"])
def test_batches_of_every_form(plain: Any, form: str) -> None:
    parts = (X, Y, np.ones(26, "float32"))[: max(1, form.count(",") + ("y" in form))]
    one = tf.data.Dataset.from_tensor_slices(X)
    several = tf.data.Dataset.from_tensor_slices(parts)
    dataset = (one if form == "x" else several).batch(13)
    (first, _) = list(remote(dataset, *plain, outputs="best", key="t"))
    x = first if form == "x" else first[0]
    assert set(x) == {"inputs", "t"}
    np.testing.assert_allclose(x["t"], LOGITS[:13].max(axis=1), rtol=1e-5)


def test_ragged_keys_that_the_teacher_does_not_read(plain: Any) -> None:
    words = tf.RaggedTensor.from_row_lengths(tf.range(9), [2, 3, 4])
    dataset = tf.data.Dataset.from_tensor_slices({"x": X[:3], "words": words}).batch(2)
    found = next(iter(remote(dataset, *plain)))
    assert found["words"].to_list() == [[0, 1], [2, 3, 4]]


DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float64": "FP64",
    "string": "BYTES",
}


@pytest.mark.parametrize("dtype", DATATYPES)
def test_datatypes_of_inputs(dtype: str) -> None:
    text = ["a\u00f1", "", "1"]
    values = tf.constant(text) if dtype == "string" else tf.cast([0, 1, 1], dtype)

    def check(arrays: dict[str, Any]) -> dict[str, Any]:
        found = arrays["x"].tolist()
        expected = [it.encode() for it in text] if dtype == "string" else [0, 1, 1]
        return {"logits": np.float32([a == b for a, b in zip(found, expected)])}  # noqa: B905

    inputs = {"x": (DATATYPES[dtype], [-1])}
    outputs = {"logits": ("FP32", [-1])}
    with served(teacher(check, inputs, outputs=outputs)) as at:
        dataset = tf.data.Dataset.from_tensors((values, [0, 1, 2]))
        assert joined(remote(dataset, *at)).tolist() == [1, 1, 1]


def test_a_batch_is_sent_in_parts_that_the_server_takes() -> None:
    triton = teacher(max_batch_size=3)
    with served(triton) as at:
        np.testing.assert_allclose(
            joined(remote(batches(size=8), *at)), LOGITS, rtol=1e-5
        )
    assert sorted(triton.sizes) == [2] * 4 + [3] * 6


def test_a_batch_of_a_fixed_size() -> None:
    inputs, outputs = {"x": ("FP32", [2, 4])}, {"logits": ("FP32", [2, 3])}
    fixed = teacher(inputs=inputs, outputs=outputs)
    with served(fixed) as at:
        np.testing.assert_allclose(joined(remote(batches(), *at)), LOGITS, rtol=1e-5)
        assert set(fixed.sizes) == {2}
        message = "takes 2 rows at once.*drop_remainder=True.*Received: a batch of 3"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            list(remote(batches(size=3), *at))


class TestInFlight:
    """How many requests run, how many batches are read ahead, and what remains."""

    def test_as_many_as_stated_run_at_the_same_time(self) -> None:
        for in_flight in (1, 3):
            waiting = teacher(seconds=0.02)
            with served(waiting) as at:
                list(remote(batches(), *at, in_flight=in_flight))
            assert waiting.most == in_flight

    def test_what_is_sent_ahead_is_bounded(self) -> None:
        quick = teacher()
        with served(quick) as at:
            iterator = iter(remote(batches(size=1), *at, in_flight=4))
            for taken in (1, 2):
                next(iterator)
                time.sleep(0.2)
                # One more is ready, and three are in flight.
                assert quick.asked == taken + 1 + 3

    @pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
    def test_nothing_is_left_of_an_iterator_that_is_dropped(self) -> None:
        slow = teacher(seconds=0.1)
        with served(slow) as at:
            taught = remote(batches(), *at)

            def drop() -> tuple[int, int]:
                next(iter(taught))
                gc.collect()
                return len(os.listdir("/proc/self/fd")), threading.active_count()

            before = drop()
            for _ in range(2):
                after = drop()
            assert after[0] <= before[0] + 1 and after[1] <= before[1] + 4
            time.sleep(0.15)
            asked = slow.asked
            time.sleep(0.15)
            assert slow.asked == asked and slow.running == 0

    def test_fit_that_stops_early(self) -> None:
        distiller = compiled()
        with served(teacher()) as at:
            taught = remote(batches(), *at).repeat()
            distiller.fit(taught, epochs=2, steps_per_epoch=3, verbose=0)
        assert int(distiller.optimizer.iterations) == 6


def student() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])


def compiled(teacher: Any = None) -> kd.Distiller:
    distiller = kd.Distiller(student(), teacher or kd.teachers.Recorded("teacher"))
    distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), crossentropy())
    return distiller


@pytest.fixture(scope="module")
def in_process() -> keras.Model:
    """The student of a teacher in the same process, after three epochs."""
    distiller = compiled(lambda x: x @ WEIGHTS)
    distiller.fit(batches(), epochs=3, verbose=0)
    return distiller.student


class TestAway:
    """The server stops, stays away, comes back or has no time."""

    def test_weights_are_those_of_a_teacher_in_the_process(
        self, in_process: keras.Model, plain: Any
    ) -> None:
        distiller = compiled()
        taught = remote(batches(), *plain, outputs="logits")
        distiller.fit(taught, epochs=3, verbose=0)
        assert_same_weights(distiller.student, in_process, atol=1e-6)

    @pytest.mark.parametrize(
        "status", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"]
    )
    def test_failures_that_pass(self, status: str) -> None:
        failing = teacher()
        failing.failures = [getattr(grpc.StatusCode, status)] * 5
        with served(failing) as at:
            logits = joined(remote(batches(), *at))
        np.testing.assert_allclose(logits, LOGITS, rtol=1e-5)
        assert failing.asked == 7 + 5

    def test_a_server_that_starts_again_during_fit(
        self, in_process: keras.Model
    ) -> None:
        """The port is closed for a while, then the model is missing for a while."""
        distiller, started = compiled(), contextlib.ExitStack()
        first, second = teacher(), teacher()
        second.name = "not yet"
        running = contextlib.ExitStack()
        url, name = running.enter_context(served(first))

        def restart() -> None:
            time.sleep(0.2)
            started.enter_context(served(second, port=int(url.rpartition(":")[2])))
            time.sleep(0.2)
            second.name = name

        thread = threading.Thread(target=restart)

        def kill(batch: int, logs: Any) -> None:
            if int(distiller.optimizer.iterations) == 10:
                running.close()
                thread.start()

        callback = keras.callbacks.LambdaCallback(on_train_batch_end=kill)
        taught = remote(batches(), url, name)
        with started:
            distiller.fit(taught, epochs=3, verbose=0, callbacks=[callback])
            thread.join()
        assert second.asked
        assert_same_weights(distiller.student, in_process, atol=1e-6)

    def test_fit_is_resumed_after_the_server_stayed_away(
        self, in_process: keras.Model, tmp_path: Path
    ) -> None:
        distiller = compiled()
        backup = keras.callbacks.BackupAndRestore(tmp_path)
        running = contextlib.ExitStack()
        url, name = running.enter_context(served(teacher()))

        def stop(batch: int, logs: Any) -> None:
            if int(distiller.optimizer.iterations) == 10:
                running.close()

        callback = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
        taught = remote(batches(), url, name, retries=2)
        message = "didn't answer 3 requests.*Start the server and call `fit` again"
        with pytest.raises(tf.errors.UnknownError, match=message):
            distiller.fit(taught, epochs=3, verbose=0, callbacks=[backup, callback])
        with served(teacher(), port=int(url.rpartition(":")[2])):
            distiller.fit(taught, epochs=3, verbose=0, callbacks=[backup])
        assert_same_weights(distiller.student, in_process, atol=1e-6)

    def test_an_answer_that_takes_too_long(self) -> None:
        slow = teacher(seconds=0.3)
        with served(slow) as at:
            taught = remote(batches(size=26), *at, timeout=0.05, retries=2)
            message = r"3 requests of up to 0.05 seconds.*DEADLINE_EXCEEDED"
            with pytest.raises(tf.errors.UnknownError, match=message):
                list(taught)
            slow.seconds = 0.0
            assert len(list(taught)) == 1

    def test_no_server_at_the_start(self) -> None:
        with served(teacher()) as at:
            pass
        message = f"'teacher' at {at[0]} didn't answer 2 requests.*UNAVAILABLE"
        with pytest.raises(ConnectionError, match=message):
            remote(batches(), *at, retries=1)

    def test_a_request_that_the_server_refuses_is_not_repeated(self) -> None:
        refusing = teacher()
        refusing.failures = [grpc.StatusCode.INVALID_ARGUMENT]
        with served(refusing) as at:
            message = (
                r"can't answer. The server's message: .*INVALID_ARGUMENT.*wants it"
            )
            with pytest.raises(tf.errors.InvalidArgumentError, match=message):
                list(remote(batches(size=26), *at))
        assert refusing.asked == 1


class TestAtTheStart:
    """What the server declares is compared to the data and the arguments."""

    @pytest.mark.parametrize(
        ("x", "inputs", "message"),
        [
            (
                {"image": X},
                {},
                r"inputs that the batches don't have: \['x'\].*\['image'",
            ),
            (X, {"x": ("FP32", [-1, 4]), "z": ("FP32", [-1])}, r"reads \['x', 'z'\]"),
            (X, {"x": ("UINT8", [-1, 4])}, r"'x'.* must be UINT8.*of dtype float32"),
            (X, {"x": ("BYTES", [-1, 4])}, r"must be BYTES.*of dtype float32"),
            (X, {"x": ("FP32", [-1, 5])}, r"shape \[-1, 5\].*of shape \(None, 4\)"),
            (X, {"x": ("FP32", [-1, 4, 1])}, r"shape \[-1, 4, 1\].*\(None, 4\)"),
            (tf.ragged.stack(list(X)), {}, "must be a dense tensor.*Ragged"),
        ],
        ids=["name", "names", "dtype", "string", "size", "rank", "ragged"],
    )
    def test_inputs(self, x: Any, inputs: Any, message: str) -> None:
        dataset = tf.data.Dataset.from_tensor_slices(x).batch(4)
        with served(teacher(inputs=inputs or INPUTS)) as at:
            with pytest.raises(ValueError, match=message):
                remote(dataset, *at)

    @pytest.mark.parametrize(
        ("declared", "asked", "message"),
        [
            (OUTPUTS, "log", r"outputs \['best', 'logits'\]. Received: outputs='log'"),
            (OUTPUTS, ["best", "b"], r"Received: outputs=\['best', 'b'\]"),
            (OUTPUTS, [], r"Received: outputs=\[\]"),
            ({"a": ("BYTES", [-1])}, None, "numbers for each row.*'a' of BYTES"),
            ({"a": ("FP32", [])}, None, r"numbers for each row.*shape \[\]"),
            ({}, None, r"must declare its inputs and outputs.*outputs \[\]"),
        ],
        ids=["name", "names", "none", "text", "scalar", "undeclared"],
    )
    def test_outputs(self, declared: Any, asked: Any, message: str) -> None:
        with served(teacher(outputs=declared)) as at:
            with pytest.raises(ValueError, match=message):
                remote(batches(), *at, outputs=asked)

    def test_a_model_that_is_not_there(self, plain: Any) -> None:
        message = "'other' at .* can't answer.*NOT_FOUND.*Model other not found"
        with pytest.raises(ValueError, match=message):
            remote(batches(), plain[0], "other")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                {"url": "http://127.0.0.1:8080"},
                "`url` must be host and port of .*http:",
            ),
            ({"url": "localhost"}, "`url` must be.*Received: url='localhost'"),
            ({"in_flight": 0}, "`in_flight` must be 1 or more. Received: in_flight=0"),
            ({"timeout": 0}, "`timeout` must be positive. Received: timeout=0"),
            ({"retries": -1}, "`retries` must be 0 or more. Received: retries=-1"),
            ({"key": "inputs", "outputs": "best"}, r"Received: keys \['inputs'\]"),
        ],
        ids=lambda it: next(iter(it)) if isinstance(it, dict) else "",
    )
    def test_arguments(self, plain: Any, arguments: Any, message: str) -> None:
        at = {"url": plain[0], "model_name": plain[1]}
        with pytest.raises(ValueError, match=message):
            remote(batches(), **(at | arguments))

    def test_the_number_of_classes(self, plain: Any) -> None:
        distiller = compiled()
        taught = remote(batches(), *plain, outputs="best")
        with pytest.raises(ValueError, match=r"teacher output \(None,\), student"):
            distiller.fit(taught, verbose=0)

    def test_without_the_client(
        self, plain: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "tritonclient", None)
        with pytest.raises(ImportError, match=r"'tritonclient'.*keras-distill\[triton"):
            remote(batches(), *plain)


WRONG = {
    "another shape": (lambda it: {"logits": it[:, :2]}, r"\[4, 3\].*: \[4, 2\]"),
    "rows missing": (lambda it: {"logits": it[1:]}, r"\[4, 3\].*Received: \[3, 3\]"),
    "another rank": (lambda it: {"logits": it[..., None]}, r"Received: \[4, 3, 1\]"),
    "another dtype": (lambda it: {"logits": it.astype("float64")}, "be FP32.*: FP64"),
    "no output": (lambda it: {}, r"is missing. Received: outputs \[\]"),
    "NaN": (
        lambda it: {"logits": it * np.float32([[1], [np.nan], [1], [np.nan]])},
        "must not be NaN. Received: 2 of 4 rows with NaN, the first of them row 1",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_answers_that_are_not_as_declared(case: str) -> None:
    spoil, message = WRONG[case]
    with served(teacher(lambda arrays: spoil(arrays["x"] @ WEIGHTS))) as at:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            list(remote(batches().take(1), *at))


def test_negative_infinity_is_a_logit() -> None:
    def masked(arrays: dict[str, Any]) -> dict[str, Any]:
        return {
            "logits": np.where([True, True, False], dense(arrays)["logits"], -np.inf)
        }

    with served(teacher(masked)) as at:
        assert np.isneginf(joined(remote(batches(), *at))[:, 2]).all()


def test_a_model_that_changes() -> None:
    changing = teacher()
    with served(changing) as at:
        taught = remote(batches(), *at, in_flight=1)
        iterator = iter(taught)
        next(iterator)
        changing.version = "2"
        message = "must remain of one version.*Received: version '2' after '1'"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            list(iterator)
        with pytest.raises(tf.errors.InvalidArgumentError, match="has changed while"):
            list(taught)


def test_a_remote_teacher_is_recorded(tmp_path: Path) -> None:
    """What a server has answered once needs no server any more."""
    with served(teacher()) as (url, name):
        taught = remote(batches(), url, name)
        recorded = kd.teachers.Recorded("teacher")
        kd.targets.record(recorded, taught, tmp_path, hash_keys=["inputs"])
    np.testing.assert_allclose(
        joined(kd.targets.join(batches(), tmp_path)), LOGITS, rtol=1e-5, atol=1e-6
    )

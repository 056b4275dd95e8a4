"""A data set whose batches hold the outputs of a teacher that a server runs."""

import collections
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras_distill.targets.calls import Call
from keras_distill.targets.service import Service

if TYPE_CHECKING:
    import tensorflow as tf


def remote(
    dataset: "tf.data.Dataset",
    url: str,
    model_name: str,
    *,
    outputs: str | Sequence[str] | None = None,
    key: str = "teacher",
    inputs: str = "inputs",
    in_flight: int = 4,
    timeout: float = 30.0,
    retries: int = 8,
    model_version: str = "",
    credentials: Any = None,
) -> "tf.data.Dataset":
    """Return the data set with the outputs of a teacher that runs on a server.

    The server speaks the Open Inference Protocol over gRPC, as Triton, KServe, MLServer
    and `keras-distill serve` do. `teachers.Recorded(key)` reads the outputs, in `fit`
    and in `targets.record`. Up to `in_flight` batches are sent ahead while the student
    trains; batches keep their order.

    When this function is called and whenever an iteration starts, the model on the
    server is compared to `dataset`. Each answer is checked for its shape, its dtype and
    NaN. A request that gets no answer in time, or finds no server, is sent again after
    a pause. The pauses grow from 0.25 to 8 seconds: 32 seconds in all for 8 retries.
    Then the iteration ends with an error. `fit` on the same data set continues the
    training once the server is back.

    Args:
        dataset: Batches `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`, as `fit`
            takes them. Where `x` is a dict, the server gets the keys that its model
            declares as inputs. A batch larger than the server takes is sent in parts.
        url: Host and port of the server's gRPC, such as `"127.0.0.1:8081"`.
        model_name: The model's name on the server.
        outputs: The name of an output of the model, or several. Defaults to all.
        key: The key of `x` for the output. With several outputs, each has the key
            `f"{key}_{output}"`.
        inputs: Where `x` is a tensor, its key in the dict that becomes `x`: the name of
            the student's `keras.Input`.
        in_flight: How many batches are sent ahead at most.
        timeout: Seconds that a request may take, the wait on the server included.
        retries: How often a request is sent again.
        model_version: The version of the model. By default the server chooses, and an
            answer of another version than the first one's is an error.
        credentials: A `grpc.ChannelCredentials`, for TLS. Not encrypted by default.

    Returns:
        The batches, with `x` a dict that has the keys of the outputs too. Shapes and
        dtypes are static.

    Raises:
        ImportError: `tritonclient` isn't installed.
        ConnectionError: The server can't be reached.
        ValueError: An argument isn't usable, or the model doesn't fit the data.

    Example:
        ```python
        taught = targets.remote(dataset, "127.0.0.1:8081", "teacher")
        distiller = Distiller(student, teachers.Recorded("teacher"))
        distiller.compile("adam", loss)
        distiller.fit(taught, epochs=3)
        ```
    """
    import tensorflow as tf

    _check(url, in_flight=in_flight, timeout=timeout, retries=retries)
    spec = dataset.element_spec
    x_spec = _x_of(spec)

    def connected() -> Service:
        return Service(
            url,
            model_name,
            version=model_version,
            timeout=timeout,
            retries=retries,
            credentials=credentials,
        )

    with connected() as service:
        model = service.model()
    read = model.inputs_of(x_spec)
    wanted = model.outputs_of(outputs)
    keys = {name: key if len(wanted) == 1 else f"{key}_{name}" for name in wanted}
    rows = next(iter(read.values())).shape[:1]
    targets = {keys[name]: it.spec(rows) for name, it in wanted.items()}

    def batches() -> Iterator[Any]:
        with connected() as service:
            service.expect(model)

            def send(batch: Any) -> Call:
                read = model.inputs_of(_x_of(batch))
                arrays = {name: tensor.numpy() for name, tensor in read.items()}
                return Call(service, model, arrays, wanted)

            for batch, answer in _ahead(dataset, send, in_flight):
                said = {keys[name]: value for name, value in answer.items()}
                yield _with_targets(batch, said, inputs)

    result = tf.data.Dataset.from_generator(
        batches, output_signature=_with_targets(spec, targets, inputs)
    )
    # The length, which `fit` shows in its progress bar.
    result = result.apply(
        tf.data.experimental.assert_cardinality(dataset.cardinality())
    )
    # Answers are awaited in a thread of its own, while a step trains.
    result = result.prefetch(1)
    # Not in one of TensorFlow's few threads, one a core, which the training needs.
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1 + (os.cpu_count() or 1)
    return result.with_options(options)


def _ahead(
    dataset: Any, send: Any, in_flight: int
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield each batch with its answer, and send as many batches ahead."""
    window: collections.deque[tuple[Any, Call]] = collections.deque()
    for batch in dataset:
        window.append((batch, send(batch)))
        if len(window) == in_flight:
            batch, call = window.popleft()
            yield batch, call.answer()
    for batch, call in window:
        yield batch, call.answer()


def _x_of(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple) else batch


def _with_targets(batch: Any, targets: Mapping[str, Any], inputs: str) -> Any:
    """Return a batch, or its spec, with more keys in `x`."""
    x = _x_of(batch)
    named = dict(x) if isinstance(x, Mapping) else {inputs: x}
    taken = [key for key in targets if key in named]
    if taken:
        raise ValueError(
            "`key` must be a key that the batches don't have. "
            f"Received: keys {taken} for the teacher beside {sorted(named)}"
        )
    named |= targets
    return (named, *batch[1:]) if isinstance(batch, tuple) else named


def _check(url: Any, *, in_flight: Any, timeout: Any, retries: Any) -> None:
    if not isinstance(url, str) or "://" in url or ":" not in url:
        raise ValueError(
            "`url` must be host and port of the server's gRPC, such as "
            f"'127.0.0.1:8081'. Received: url={url!r}"
        )
    if not isinstance(in_flight, int) or in_flight < 1:
        raise ValueError(
            f"`in_flight` must be 1 or more. Received: in_flight={in_flight!r}"
        )
    if not timeout > 0:
        raise ValueError(f"`timeout` must be positive. Received: timeout={timeout!r}")
    if not isinstance(retries, int) or retries < 0:
        raise ValueError(f"`retries` must be 0 or more. Received: retries={retries!r}")

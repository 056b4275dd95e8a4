"""Data sets with the outputs of a teacher that runs on a server."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill.targets.calls import Call
from keras_distill.targets.elements import (
    ahead,
    as_dict,
    inputs_of,
    mapped,
    with_inputs,
)
from keras_distill.targets.served import ServedModel, Tensor
from keras_distill.targets.service import Array, Service

if TYPE_CHECKING:
    import tensorflow as tf


def remote(
    dataset: "tf.data.Dataset",
    url: str,
    model_name: str,
    *,
    outputs: str | Sequence[str] | None = None,
    key: str = "teacher",
    in_flight: int = 4,
    timeout: float = 30.0,
    retries: int = 8,
    model_version: str = "",
    credentials: Any = None,
) -> "tf.data.Dataset":
    """Return the data set with the outputs of a teacher that runs on a server.

    The server must support the Open Inference Protocol over gRPC, as Triton, KServe,
    MLServer and `keras-distill serve` do. `teachers.Recorded(key)` reads the outputs,
    in `fit` and in `targets.record`. Up to `in_flight` batches are sent ahead while the
    student trains. Batches keep their order.

    This call compares the model on the server with `dataset`. Whenever an iteration
    starts, the server must still have the same model. Each answer is checked for its
    shape, its dtype and NaN. A request that gets no answer in time, or finds no server,
    is sent again after a pause. The pauses grow from 0.25 to 8 seconds: 32 seconds in
    all for 8 retries. After the last retry, the iteration ends with an error. Once the
    server is back, another `fit` on the same data set continues the training.

    Args:
        dataset: Batches `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`, as for `fit`.
            If `x` is a dict, the server gets the keys that its model declares as
            inputs. A batch that is too large for one request is sent in parts.
        url: Host and port of the server's gRPC, such as `"127.0.0.1:8081"`.
        model_name: The model's name on the server.
        outputs: The name of an output of the model, or several. Defaults to all.
        key: The key of `x` for the output. With several outputs, each has the key
            `f"{key}_{output}"`.
        in_flight: The largest number of batches that are sent ahead.
        timeout: Seconds that a request may take, including its wait on the server.
        retries: How often a request is sent again.
        model_version: The version of the model. By default, the server chooses it. Then
            an answer of another version than that of the first answer is an error.
        credentials: A `grpc.ChannelCredentials`, for TLS. By default, the connection
            isn't encrypted.

    Returns:
        The batches. Their `x` is a dict that also has the keys of the outputs. If `x`
        was a tensor, its key is `"inputs"`, which a student with one input reads.
        Shapes and dtypes are static.

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
    _check(url, in_flight=in_flight, timeout=timeout, retries=retries)
    connect = functools.partial(
        Service,
        url,
        model_name,
        version=model_version,
        timeout=timeout,
        retries=retries,
        credentials=credentials,
    )
    with connect() as service:
        model = service.model()
    stage = _Stage(connect, model, model.outputs_of(outputs), key, in_flight)
    return stage.applied(dataset)


@dataclasses.dataclass(frozen=True)
class _Stage:
    """The stage of the data that asks the server; the arguments are `remote`'s.

    Batches stay in TensorFlow. Only the server's inputs and outputs pass through
    Python: a generator that yielded whole batches would cost twice as much time.
    """

    connect: Callable[[], Service]
    model: ServedModel
    outputs: Mapping[str, Tensor]
    key: str
    in_flight: int
    # What each iteration has sent, by the number of the iteration.
    iterations: dict[int, "_Iteration"] = dataclasses.field(default_factory=dict)
    numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    def applied(self, dataset: "tf.data.Dataset") -> "tf.data.Dataset":
        """Return the data set with the outputs."""
        import tensorflow as tf

        begun = tf.data.Dataset.from_generator(
            self.begin, output_signature=tf.TensorSpec((), "int64")
        )
        taught = mapped(lambda number: self._taught(dataset, number))
        result = begun.flat_map(taught)
        # The length, which `fit` shows in its progress bar.
        length = tf.data.experimental.assert_cardinality(dataset.cardinality())
        return ahead(result.apply(length))

    def begin(self) -> Iterator[int]:
        """Connect, and yield an iteration's number. It ends with the generator."""
        number = next(self.numbers)
        # If the iteration ends early, leaving the block ends the requests too.
        with self.connect() as service:
            service.expect(self.model)
            self.iterations[number] = _Iteration(service, self.model, self.outputs)
            try:
                yield number
            finally:
                del self.iterations[number]

    def _taught(self, dataset: "tf.data.Dataset", number: Any) -> "tf.data.Dataset":
        """Return the batches with the outputs, for the number of an iteration."""
        import tensorflow as tf

        spec = dataset.element_spec
        read = self.model.inputs_of(inputs_of(spec))
        names, rows = list(read), next(iter(read.values())).shape[:1]
        specs = {name: it.spec(rows) for name, it in self.outputs.items()}

        def send(*parts: Any) -> tuple[Any, Any]:
            batch = parts if isinstance(spec, tuple) else parts[0]
            asked = self.model.inputs_of(inputs_of(batch))

            def sent(number: Any, *arrays: Array) -> Any:
                given = dict(zip(names, arrays, strict=True))
                return self.iterations[int(number)].send(given)

            arguments = [number, *asked.values()]
            return batch, tf.numpy_function(sent, arguments, tf.int64)

        def answer(batch: Any, ticket: Any) -> Any:
            def answered(number: Any, ticket: Any) -> list[Array]:
                return self.iterations[int(number)].answer(int(ticket))

            types = [it.dtype for it in specs.values()]
            found = tf.numpy_function(answered, [number, ticket], types)
            targets = dict(zip(specs, found, strict=True))
            for name, target in targets.items():
                target.set_shape(specs[name].shape)
            return self.joined(batch, targets)

        # `answer` waits for one more batch.
        window = self.in_flight - 1
        sent = dataset.map(mapped(send))
        return (sent.prefetch(window) if window else sent).map(mapped(answer))

    def joined(self, batch: Any, targets: Mapping[str, Any]) -> Any:
        """Return a batch with the outputs in `x`."""
        named = as_dict(inputs_of(batch))
        keys = {
            self.key if len(targets) == 1 else f"{self.key}_{name}": value
            for name, value in targets.items()
        }
        taken = [key for key in keys if key in named]
        if taken:
            raise ValueError(
                "`key` must be a key that the batches don't have. "
                f"Received: keys {taken} for the teacher beside {sorted(named)}"
            )
        return with_inputs(batch, named | keys)


class _Iteration:
    """The batches that an iteration has sent.

    Args:
        service: Its connection.
        model: The model on the server.
        outputs: The outputs that the server should return.
    """

    def __init__(
        self, service: Service, model: ServedModel, outputs: Mapping[str, Tensor]
    ) -> None:
        self._service = service
        self._model = model
        self._outputs = outputs
        self._calls: dict[int, Call] = {}
        self._tickets = itertools.count()

    def send(self, arrays: dict[str, Array]) -> Any:
        """Send a batch to the server, don't wait, and return the batch's number."""
        self._model.check(arrays)
        ticket = next(self._tickets)
        self._calls[ticket] = Call(self._service, self._model, arrays, self._outputs)
        return np.int64(ticket)

    def answer(self, ticket: int) -> list[Array]:
        """Wait for the outputs of the batch of a number."""
        return list(self._calls.pop(ticket).answer().values())


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

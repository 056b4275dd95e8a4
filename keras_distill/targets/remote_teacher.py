"""A data set whose batches hold the outputs of a teacher that a server runs."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from keras_distill.targets.calls import Call
from keras_distill.targets.elements import ahead, as_dict, inputs_of, with_inputs
from keras_distill.targets.served import ServedModel, Tensor
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
        in_flight: How many batches are sent ahead at most.
        timeout: Seconds that a request may take, the wait on the server included.
        retries: How often a request is sent again.
        model_version: The version of the model. By default the server chooses, and an
            answer of another version than the first one's is an error.
        credentials: A `grpc.ChannelCredentials`, for TLS. Not encrypted by default.

    Returns:
        The batches, with `x` a dict that has the keys of the outputs too. If `x` was a
        tensor, it is under the key `"inputs"`, which a student of one input reads.
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
    connect = partial(
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
    """The stage of the data that asks the server; the arguments are `remote`'s."""

    connect: Callable[[], Service]
    model: ServedModel
    outputs: Mapping[str, Tensor]
    key: str
    in_flight: int

    def applied(self, dataset: "tf.data.Dataset") -> "tf.data.Dataset":
        """Return the data set with the outputs."""
        import tensorflow as tf

        spec = dataset.element_spec
        read = self.model.inputs_of(inputs_of(spec))
        rows = next(iter(read.values())).shape[:1]
        targets = {name: it.spec(rows) for name, it in self.outputs.items()}
        result = tf.data.Dataset.from_generator(
            partial(self.batches, dataset),
            output_signature=self.joined(spec, targets),
        )
        # The length, which `fit` shows in its progress bar.
        length = tf.data.experimental.assert_cardinality(dataset.cardinality())
        return ahead(result.apply(length))

    def batches(self, dataset: "tf.data.Dataset") -> Iterator[Any]:
        """Yield the batches with the outputs, and send as many batches ahead."""
        window: collections.deque[tuple[Any, Call]] = collections.deque()
        # Where the iteration ends early, leaving the block ends the requests too.
        with self.connect() as service:
            service.expect(self.model)
            for batch in dataset:
                window.append((batch, self.sent(service, batch)))
                if len(window) == self.in_flight:
                    batch, call = window.popleft()
                    yield self.joined(batch, call.answer())
            for batch, call in window:
                yield self.joined(batch, call.answer())

    def sent(self, service: Service, batch: Any) -> Call:
        """Send a batch to the server, and don't wait."""
        read = self.model.inputs_of(inputs_of(batch))
        arrays = {name: tensor.numpy() for name, tensor in read.items()}
        return Call(service, self.model, arrays, self.outputs)

    def joined(self, batch: Any, targets: Mapping[str, Any]) -> Any:
        """Return a batch, or its spec, with the outputs, or theirs, in `x`."""
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

"""A connection to a model on a server of the Open Inference Protocol, over gRPC."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any, Self, TypeVar

import numpy.typing as npt

from keras_distill.installing import advice
from keras_distill.targets.served import ServedModel, Tensor

Array = npt.NDArray[Any]
Result = TypeVar("Result")

# Errors of a server that stops, starts or is too busy, and of a client that finds none.
_TEMPORARY = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0
_CHANNEL = {
    # gRPC's own limit is 4 MB, which a batch of images passes.
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
    # gRPC would wait up to two minutes before it looks for the server again.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
}


class Service:
    """A connection to a model on a server.

    Args:
        url: As in `targets.remote`; so are the other arguments.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        version: str,
        timeout: float,
        retries: int,
        credentials: Any,
    ) -> None:
        grpc = _client_library()
        self.label = f"Model '{name}' at {url}"
        self._model = {"model_name": name, "model_version": version}
        self._timeout = timeout
        self._retries = retries
        self._client = grpc.InferenceServerClient(
            url, creds=credentials, channel_args=list(_CHANNEL.items())
        )
        # Whether the model was there before.
        self._known = False
        self._version = version

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        # This ends the requests in flight too.
        self._client.close()

    def model(self) -> ServedModel:
        """Return the server's description of the model.

        Raises:
            ConnectionError: The server can't be reached.
            ValueError: There is no such model, or the server doesn't describe it.
        """
        return self.persistently(self._described)

    def expect(self, model: ServedModel) -> None:
        """Raise ValueError if the model isn't the one that the server had before."""
        self._known = True
        found = self.model()
        if found != model:
            raise ValueError(
                f"{self.label} has changed while it was in use. Call `targets.remote` "
                f"again. Received: {found}, before {model}"
            )

    def persistently(self, attempt: Callable[[], Result]) -> Result:
        """Return the result of `attempt`, which is called again after temporary errors.

        Raises:
            ConnectionError: None of the attempts reached the model.
            ValueError: The server refused the request.
        """
        from tritonclient.utils import InferenceServerException

        for number in range(self._retries + 1):
            try:
                return attempt()
            except InferenceServerException as error:
                if not self._may_pass(error):
                    raise ValueError(
                        f"{self.label} can't answer. The server's message: {error}"
                    ) from error
                last = error
            if number < self._retries:
                time.sleep(min(_FIRST_PAUSE * 2**number, _LONGEST_PAUSE))
        raise ConnectionError(
            f"{self.label} didn't answer {self._retries + 1} requests of up to "
            f"{self._timeout} seconds. Start the server and call `fit` again: the "
            "student keeps what it has learned. For a longer wait, pass larger "
            f"`retries` or `timeout`. Received: {last}"
        ) from last

    def infer(self, arrays: dict[str, Array], outputs: Iterable[str]) -> Future[Any]:
        """Send one request, don't wait, and return the future of its answer."""
        from tritonclient import grpc
        from tritonclient.utils import np_to_triton_dtype

        tensors = []
        for name, array in arrays.items():
            datatype = np_to_triton_dtype(array.dtype)
            tensors.append(grpc.InferInput(name, array.shape, datatype))
            tensors[-1].set_data_from_numpy(array)
        future: Future[Any] = Future()
        self._client.async_infer(
            **self._model,
            inputs=tensors,
            outputs=[grpc.InferRequestedOutput(name) for name in outputs],
            callback=partial(_settle, future),
            client_timeout=self._timeout,
        )
        return future

    def check_version(self, version: str) -> None:
        """Raise ValueError if an answer is of another version than the first one."""
        if self._version not in ("", version):
            raise ValueError(
                f"{self.label} must remain of one version. Pass `model_version` to "
                f"keep it. Received: version {version!r} after {self._version!r}"
            )
        self._version = version

    def _described(self) -> ServedModel:
        metadata = self._client.get_model_metadata(
            **self._model, client_timeout=self._timeout
        )
        inputs, outputs = (
            {it.name: Tensor(it.name, it.datatype, tuple(it.shape)) for it in tensors}
            for tensors in (metadata.inputs, metadata.outputs)
        )
        if not inputs or not outputs:
            raise ValueError(
                f"{self.label} must declare its inputs and outputs: configure them on "
                f"the server. Received: inputs {list(inputs)}, outputs {list(outputs)}"
            )
        # A model that was converted with a fixed size of the batch.
        fixed = {it.shape[0] for it in inputs.values() if it.shape} - {-1}
        return ServedModel(
            self.label,
            inputs,
            outputs,
            versions=tuple(metadata.versions),
            max_rows=min(fixed) if fixed else self._max_batch_size(),
            fixed=bool(fixed),
        )

    def _max_batch_size(self) -> int:
        """Return Triton's configured limit; 0 if the server has no limit."""
        from tritonclient.utils import InferenceServerException

        try:
            answer = self._client.get_model_config(
                **self._model, client_timeout=self._timeout
            )
        except InferenceServerException as error:
            # Configurations are an extension of the protocol.
            if _code(error) in ("UNIMPLEMENTED", "UNKNOWN"):
                return 0
            raise
        return int(answer.config.max_batch_size)

    def _may_pass(self, error: Exception) -> bool:
        """Return whether the request may succeed later."""
        code = _code(error)
        if code in _TEMPORARY:
            return True
        # A server that restarts answers before its models are ready. The model may have
        # become ready since the answer.
        return self._known and (code == "NOT_FOUND" or not self._ready())

    def _ready(self) -> bool:
        """Return whether the model is ready: a server begins without its models."""
        from tritonclient.utils import InferenceServerException

        try:
            return bool(
                self._client.is_model_ready(**self._model, client_timeout=self._timeout)
            )
        except InferenceServerException:
            return False


def _settle(future: Future[Any], result: Any, error: Exception | None) -> None:
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _code(error: Any) -> str:
    """Return the name of an error's gRPC status."""
    return str(error.status()).removeprefix("StatusCode.")


def _client_library() -> Any:
    try:
        from tritonclient import grpc
    except ImportError as error:
        raise ImportError(
            "A remote teacher needs the package 'tritonclient', which is not "
            f"installed. Install it with {advice('triton')}."
        ) from error
    return grpc

"""A server of the Open Inference Protocol, on the stubs of the client."""

import concurrent.futures
import contextlib
import threading
import time

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    triton_to_np_dtype,
)

from tests.e2e.services import HOST


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A server whose model is a function of named arrays, and which waits as told.

    Args:
        function: From the inputs by name to the outputs by name.
        inputs: By name, datatype and shape.
        outputs: The same of the outputs.
        seconds: How long an answer takes.
        max_batch_size: As Triton has it in its configuration; None for a server
            without configurations.
    """

    def __init__(
        self, function, inputs, outputs, *, seconds=0.0, max_batch_size=None, slots=16
    ):
        self.function, self.inputs, self.outputs = function, inputs, outputs
        self.seconds, self.max_batch_size = seconds, max_batch_size
        self.name, self.version = "teacher", "1"
        self.lock = threading.Lock()
        self.running = self.most = self.asked = 0
        self.sizes = []
        self.failures = []  # Statuses that the next requests are answered with.
        self.slots = slots

    def ModelMetadata(self, request, context):  # noqa: N802
        self._check_name(request.name, context)
        answer = service_pb2.ModelMetadataResponse(
            name=self.name, versions=[self.version]
        )
        for tensors, field in (
            (self.inputs, answer.inputs),
            (self.outputs, answer.outputs),
        ):
            for name, (datatype, shape) in tensors.items():
                field.add(name=name, datatype=datatype, shape=shape)
        return answer

    def ModelConfig(self, request, context):  # noqa: N802
        if self.max_batch_size is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no configurations")
        answer = service_pb2.ModelConfigResponse()
        answer.config.max_batch_size = self.max_batch_size
        return answer

    def ModelReady(self, request, context):  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name == self.name)

    def ModelInfer(self, request, context):  # noqa: N802
        self._check_name(request.model_name, context)
        with self.lock:
            self.asked += 1
            self.running += 1
            self.most = max(self.most, self.running)
            failure = self.failures.pop(0) if self.failures else None
        try:
            if failure is not None:
                context.abort(failure, "as the test wants it")
            time.sleep(self.seconds)
            arrays = {
                tensor.name: _to_array(tensor, raw)
                for tensor, raw in zip(
                    request.inputs, request.raw_input_contents, strict=True
                )
            }
            self.sizes.append(len(next(iter(arrays.values()))))
            return self._answer(self.function(arrays), request)
        finally:
            with self.lock:
                self.running -= 1

    def _answer(self, values, request):
        answer = service_pb2.ModelInferResponse(
            model_name=self.name, model_version=self.version
        )
        wanted = [it.name for it in request.outputs]
        for name in wanted:
            if name in values:
                value = np.ascontiguousarray(values[name])
                datatype = np_to_triton_dtype(value.dtype)
                answer.outputs.add(name=name, datatype=datatype, shape=value.shape)
                answer.raw_output_contents.append(value.tobytes())
        return answer

    def _check_name(self, name, context):
        if name != self.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Model {name} not found")


def _to_array(tensor, raw):
    if tensor.datatype == "BYTES":
        return deserialize_bytes_tensor(raw).reshape(tensor.shape)
    return np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).reshape(tensor.shape)


@contextlib.contextmanager
def standing_in(servicer, port=0):
    """Run the server on loopback until the block ends; yield its port."""
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(servicer.slots),
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)],
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()

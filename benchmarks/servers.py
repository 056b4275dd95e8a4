"""A server of the Open Inference Protocol (gRPC) for teachers in benchmarks."""

import concurrent.futures
from collections.abc import Callable, Sequence

import numpy as np

from keras_distill.devices.launching import HOST


def serve(
    port: int,
    answer: Callable[[np.ndarray], np.ndarray],
    *,
    shape: Sequence[int],
    classes: int,
    threads: int,
) -> None:
    """Answer requests until this process is ended.

    Args:
        port: The port of the loopback address.
        answer: Returns the logits of a batch, in float32.
        shape: The shape of a row of the input `image`.
        classes: The number of logits.
        threads: How many requests are answered at a time.
    """
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelMetadata(self, request, context):  # noqa: N802
            model = service_pb2.ModelMetadataResponse(name=request.name)
            model.inputs.add(name="image", datatype="FP32", shape=[-1, *shape])
            model.outputs.add(name="logits", datatype="FP32", shape=[-1, classes])
            return model

        def ModelInfer(self, request, context):  # noqa: N802
            image = np.frombuffer(request.raw_input_contents[0], "float32")
            logits = answer(image.reshape((-1, *shape)))
            given = service_pb2.ModelInferResponse(model_name=request.model_name)
            given.outputs.add(name="logits", datatype="FP32", shape=logits.shape)
            given.raw_output_contents.append(logits.tobytes())
            return given

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(threads))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), server)
    server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    server.wait_for_termination()

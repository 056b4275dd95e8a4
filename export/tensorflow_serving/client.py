"""Score one batch with a model in TensorFlow Serving.

python client.py rest http://localhost:8501 NAME batch.npz
python client.py grpc localhost:8500 NAME batch.npz
"""

import json
import sys
import urllib.request

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

Arrays = dict[str, np.ndarray]


def rest(url: str, model: str, inputs: Arrays) -> Arrays:
    """Ask in the columnar format: whole arrays, under their names."""
    columns = {name: value.tolist() for name, value in inputs.items()}
    request = urllib.request.Request(  # noqa: S310 - the caller's own URL
        f"{url}/v1/models/{model}:predict", json.dumps({"inputs": columns}).encode()
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        outputs = json.load(answer)["outputs"]
    # A model with one output answers with its values alone.
    named = outputs if isinstance(outputs, dict) else {"output": outputs}
    return {name: np.array(values) for name, values in named.items()}


def predict_request(model: str, inputs: Arrays) -> PredictRequest:
    """Make the request that gRPC carries."""
    request = PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = "serving_default"
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def remote(url: str, model: str, inputs: Arrays) -> Arrays:
    """Ask over gRPC, which is smaller and faster than JSON."""
    # Without a limit on what comes back; it would be 4 MB.
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(url, options) as channel:
        stub = PredictionServiceStub(channel)
        answer = stub.Predict(predict_request(model, inputs), timeout=10)
    return {name: tf.make_ndarray(it) for name, it in answer.outputs.items()}


def main(protocol: str, url: str, model: str, batch: str) -> None:
    """Print the shape and the first row of every output."""
    inputs = dict(np.load(batch))  # one array an input, under the input's name
    ask = {"rest": rest, "grpc": remote}[protocol]
    for name, value in sorted(ask(url, model, inputs).items()):
        print(name, value.shape, value[0].round(4).tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])

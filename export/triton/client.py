"""Score one batch with a model in Triton Inference Server.

python client.py grpc localhost:8001 NAME batch.npz
python client.py http localhost:8000 NAME batch.npz
"""

import sys
from importlib import import_module

import numpy as np
from tritonclient.utils import np_to_triton_dtype


def main(protocol: str, url: str, model: str, batch: str) -> None:
    """Print the shape and the first row of every output."""
    triton = import_module(f"tritonclient.{protocol}")
    client = triton.InferenceServerClient(url)
    # Triton takes raw bytes over HTTP too; other servers of the protocol take JSON.
    form = {"binary_data": False} if protocol == "http" else {}
    as_json = {"as_json": True} if protocol == "grpc" else {}
    metadata = client.get_model_metadata(model, **as_json)
    inputs = []
    for name, value in np.load(batch).items():  # one array an input, under its name
        tensor = triton.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(value, **form)
        inputs.append(tensor)
    names = sorted(output["name"] for output in metadata["outputs"])
    outputs = [triton.InferRequestedOutput(name, **form) for name in names]
    answer = client.infer(model, inputs, outputs=outputs)
    for name in names:
        value = answer.as_numpy(name)
        print(name, value.shape, value[0].astype(float).round(4).tolist())
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Score one batch with a server of the Open Inference Protocol, over HTTP.

python client.py http://127.0.0.1:8080 NAME batch.npz
"""

import json
import sys
import urllib.error
import urllib.request

import numpy as np

DATATYPES = {"float16": "FP16", "float32": "FP32", "float64": "FP64"}


def to_tensor(name: str, value: np.ndarray) -> dict[str, object]:
    """Describe an array as the protocol does: integers are INT64 and the like."""
    datatype = DATATYPES.get(value.dtype.name, value.dtype.name.upper())
    if value.dtype.kind in "OSU":
        datatype = "BYTES"
    return {
        "name": name,
        "shape": list(value.shape),
        "datatype": datatype,
        "data": value.ravel().tolist(),
    }


def main(url: str, model: str, batch: str) -> None:
    """Print the shape and the first row of every output."""
    arrays = np.load(batch)  # one array an input, under the input's name
    inputs = [to_tensor(name, value) for name, value in arrays.items()]
    request = urllib.request.Request(  # noqa: S310 - the caller's own URL
        f"{url}/v2/models/{model}/infer",
        json.dumps({"inputs": inputs}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            outputs = json.load(answer)["outputs"]
    except urllib.error.HTTPError as error:
        sys.exit(f"HTTP {error.code}: {error.read().decode()}")
    for output in sorted(outputs, key=lambda it: it["name"]):
        value = np.array(output["data"]).reshape(output["shape"])
        print(output["name"], value.shape, value[0].round(4).tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])

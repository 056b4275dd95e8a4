"""Score one batch with an exported student in ONNX Runtime.

python client.py model.onnx batch.npz
"""

import sys

import numpy as np
import onnxruntime


def main(model: str, batch: str) -> None:
    """Print the shape and the first row of every output."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    inputs = dict(np.load(batch))  # one array an input, under the input's name
    names = [output.name for output in session.get_outputs()]
    for name, value in zip(names, session.run(names, inputs), strict=True):
        print(name, value.shape, value[0].round(4).tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Score one batch with an exported student in LiteRT.

python client.py model.tflite batch.npz
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main(model: str, batch: str) -> None:
    """Print the shape and the first row of every output."""
    inputs = dict(np.load(batch))  # one array an input, under the input's name
    interpreter = Interpreter(model_path=model)
    signature = interpreter.get_signature_runner("serving_default")
    for name, value in sorted(signature(**inputs).items()):
        print(name, value.shape, value[0].astype(float).round(4).tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])

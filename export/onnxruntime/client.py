"""Score one batch with an exported student in ONNX Runtime.

python client.py model.onnx batch.npz
python client.py model.onnx batch.npz CUDAExecutionProvider
"""

import sys

import numpy as np
import onnxruntime


def main(model: str, batch: str, *providers: str) -> None:
    """Print the shape and the first row of every output."""
    wanted = [*providers, "CPUExecutionProvider"]  # the CPU takes what is left over
    session = onnxruntime.InferenceSession(model, providers=wanted)
    # ONNX Runtime only warns, and computes on the CPU.
    missing = set(wanted) - set(session.get_providers())
    if missing:
        sys.exit(f"not to be had here: {', '.join(sorted(missing))}")
    inputs = dict(np.load(batch))  # one array an input, under the input's name
    names = [output.name for output in session.get_outputs()]
    for name, value in zip(names, session.run(names, inputs), strict=True):
        print(name, value.shape, value[0].astype(float).round(4).tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])

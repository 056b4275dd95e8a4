"""What stands in for Triton's own ONNX Runtime backend: a backend's `model.py`.

Triton's server runs it by its Python backend. As the one it stands in for, it refuses a
configuration that isn't that of the ONNX file.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton

# ONNX Runtime's names to Triton's, where they aren't the same in capitals.
DATA_TYPES = {"FLOAT16": "FP16", "FLOAT": "FP32", "DOUBLE": "FP64"}


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        version = Path(args["model_repository"], args["model_version"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            version / config["default_model_filename"],
            options,
            providers=["CPUExecutionProvider"],
        )
        self.names = [it.name for it in self.session.get_outputs()]
        self.batched = config["max_batch_size"] > 0
        self.check(config["input"], self.session.get_inputs())
        self.check(config["output"], self.session.get_outputs())

    def check(self, configured, values):
        said = {it["name"]: (it["data_type"], self.shape(it)) for it in configured}
        found = {it.name: (data_type(it), dims(it)) for it in values}
        if said != found:
            raise triton.TritonModelException(f"config {said}, model {found}")

    def shape(self, tensor):
        shape = tensor["reshape"]["shape"] if "reshape" in tensor else tensor["dims"]
        return [-1] * self.batched + [int(size) for size in shape]

    def execute(self, requests):
        # Not `as_numpy`: the server was built for NumPy 1, and gives 2 wrong values.
        feeds = [
            {it.name(): np.from_dlpack(it) for it in request.inputs()}
            for request in requests
        ]
        if self.batched:
            sizes = [len(next(iter(feed.values()))) for feed in feeds]
            joined = {
                name: np.concatenate([feed[name] for feed in feeds])
                for name in feeds[0]
            }
            ends = np.cumsum(sizes)[:-1]
            outputs = self.session.run(self.names, joined)
            answers = zip(*(np.split(it, ends) for it in outputs), strict=True)
        else:
            answers = (self.session.run(self.names, feed) for feed in feeds)
        return [self.response(arrays) for arrays in answers]

    def response(self, arrays):
        return triton.InferenceResponse(
            [
                # Of its own memory: what was split shares that of the whole batch.
                triton.Tensor.from_dlpack(
                    name,
                    onnxruntime.OrtValue.ortvalue_from_numpy(
                        np.ascontiguousarray(array)
                    ),
                )
                for name, array in zip(self.names, arrays, strict=True)
            ]
        )


def data_type(value):
    name = value.type.removeprefix("tensor(").removesuffix(")").upper()
    return f"TYPE_{DATA_TYPES.get(name, name)}"


def dims(value):
    return [size if isinstance(size, int) else -1 for size in value.shape]

"""An MLServer runtime that computes named outputs from named inputs with ONNX Runtime.

The file is copied beside `model-settings.json`. It needs only mlserver, numpy and
onnxruntime.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from mlserver import MLModel  # type: ignore[import-untyped]
from mlserver.errors import InferenceError  # type: ignore[import-untyped]
from mlserver.types import (  # type: ignore[import-untyped]
    InferenceRequest,
    InferenceResponse,
    MetadataTensor,
    RequestInput,
    RequestOutput,
    ResponseOutput,
)
from mlserver.utils import get_model_uri  # type: ignore[import-untyped]

Array = npt.NDArray[Any]

# A process has only one module called `runtime`: all models use the file that was
# imported last. So a new version of this file must stay compatible with older ones.

# ONNX Runtime's names of types to those of the Open Inference Protocol.
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_DTYPES = {
    "BOOL": np.dtype(bool),
    "FP16": np.dtype("float16"),
    "FP32": np.dtype("float32"),
    "FP64": np.dtype("float64"),
    **{name: np.dtype(name.lower()) for name in _DATATYPES.values() if "INT" in name},
}
# The kinds of NumPy types that lists may convert to. Very large UINT64 become floats.
_KINDS = {"f": "fiu", "i": "iu", "u": "iuf", "b": "b"}


class OnnxModel(MLModel):
    """The ONNX file that `model-settings.json` names, run by ONNX Runtime.

    A request must contain every input, with the name, datatype and shape of the model's
    metadata. -1 in a shape allows any size; the first axis of all inputs must have the
    same size. The answer to any other request is HTTP 400 or gRPC's INVALID_ARGUMENT.
    """

    async def load(self) -> bool:
        """Open the file and read its inputs and outputs."""
        path = await get_model_uri(self.settings)
        self._session = _open(path, self.settings.parameters.extra or {})
        self.inputs = [_metadata(it) for it in self._session.get_inputs()]
        self.outputs = [_metadata(it) for it in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the outputs that the request names, or all of them."""
        arrays = to_arrays(payload.inputs, self.inputs)
        outputs = requested(payload.outputs, self.outputs)
        # In a thread of its own: the server handles all other requests in one thread.
        values = await asyncio.to_thread(self._run, outputs, arrays)
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            outputs=[
                to_response(output, value)
                for output, value in zip(outputs, values, strict=True)
            ],
        )

    def _run(
        self, outputs: Sequence[MetadataTensor], arrays: dict[str, Array]
    ) -> list[Array]:
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        try:
            values: list[Array] = self._session.run([it.name for it in outputs], arrays)
        except InvalidArgument as error:
            # E.g. an index that an embedding doesn't have.
            raise InferenceError(
                f"Inputs must be values that the model can compute with. {error}"
            ) from error
        return values


def _open(path: str, extra: dict[str, Any]) -> Any:
    # From 1.29 on, ONNX Runtime reports to Microsoft by default. It reads this variable
    # when it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    providers = extra.get("providers") or ["CPUExecutionProvider"]
    available = onnxruntime.get_available_providers()
    # ONNX Runtime would silently run without providers that it doesn't have.
    if not set(providers) <= set(available):
        raise ValueError(
            f"`providers` must be some of {available}. Received: {providers}."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = extra.get("threads", 0)
    return onnxruntime.InferenceSession(path, options, providers=providers)


def _metadata(value: Any) -> MetadataTensor:
    shape = [size if isinstance(size, int) else -1 for size in value.shape]
    return MetadataTensor(name=value.name, datatype=_DATATYPES[value.type], shape=shape)


def to_arrays(
    tensors: Sequence[RequestInput], expected: Sequence[MetadataTensor]
) -> dict[str, Array]:
    """Convert the inputs of a request to NumPy arrays, and check them."""
    names = [tensor.name for tensor in tensors]
    wanted = [it.name for it in expected]
    if sorted(names) != sorted(wanted):
        raise InferenceError(f"Inputs must be {wanted}. Received: {names}.")
    given = {tensor.name: tensor for tensor in tensors}
    arrays = {it.name: to_array(given[it.name], it) for it in expected}
    batches = {it.name: len(arrays[it.name]) for it in expected if it.shape[:1] == [-1]}
    if len(set(batches.values())) > 1 or 0 in batches.values():
        raise InferenceError(
            "Inputs must hold the same number of examples, and at least one. "
            f"Received: {batches}."
        )
    return arrays


def to_array(tensor: RequestInput, expected: MetadataTensor) -> Array:
    """Convert one input to the model's datatype, and check its shape."""
    label = f"Input {tensor.name!r}"
    if tensor.datatype != expected.datatype:
        raise InferenceError(
            f"{label} must have datatype {expected.datatype}. "
            f"Received: {tensor.datatype}."
        )
    shape = list(tensor.shape)
    if len(shape) != len(expected.shape) or any(
        size < 0 or wanted not in (-1, size)
        for size, wanted in zip(shape, expected.shape, strict=True)
    ):
        raise InferenceError(
            f"{label} must have shape {expected.shape}; -1 takes any size. "
            f"Received: {shape}."
        )
    data = getattr(tensor.data, "root", tensor.data)
    try:
        array = (
            _to_strings(data)
            if tensor.datatype == "BYTES"
            else _to_numbers(data, _DTYPES[tensor.datatype])
        )
        return array.reshape(shape)
    except (OverflowError, TypeError, ValueError) as error:
        raise InferenceError(
            f"{label} must hold {expected.datatype} values, as many as its shape "
            f"{shape} says. Received: {error}."
        ) from error


def _to_numbers(data: Any, dtype: np.dtype[Any]) -> Array:
    natural = np.asarray(data)
    if natural.dtype == object and dtype.kind == "f":
        # JSON has no NaN. Client and server write null instead.
        return np.array(data, dtype)
    if natural.size and natural.dtype.kind not in _KINDS[dtype.kind]:
        raise TypeError(f"values of {natural.dtype}")
    if dtype.kind in "fb":
        return natural.astype(dtype)
    # Converted from `data`, not from `natural`, to find integers that are too large.
    array = np.array(data, dtype)
    if not np.array_equal(array, natural):
        raise ValueError("fractions")
    return array


def _to_strings(data: Any) -> Array:
    flat = np.asarray(data, dtype=object).ravel()
    return np.array(
        [it.decode() if isinstance(it, bytes) else str(it) for it in flat], object
    )


def requested(
    wanted: Sequence[RequestOutput] | None, outputs: Sequence[MetadataTensor]
) -> list[MetadataTensor]:
    """Return the outputs that a request names; all of them if it names none."""
    if not wanted:
        return list(outputs)
    by_name = {output.name: output for output in outputs}
    unknown = [it.name for it in wanted if it.name not in by_name]
    if unknown:
        raise InferenceError(
            f"Outputs must be some of {list(by_name)}. Received: {unknown}."
        )
    return [by_name[it.name] for it in wanted]


def to_response(output: MetadataTensor, value: Array) -> ResponseOutput:
    """Return one output as flat data with its shape."""
    data = value.ravel().tolist()
    if output.datatype == "BYTES":
        data = [item.encode() for item in data]
    return ResponseOutput(
        name=output.name,
        datatype=output.datatype,
        shape=list(value.shape),
        data=data,
    )

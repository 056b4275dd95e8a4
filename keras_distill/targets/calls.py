"""Batches that were sent to a model on a server, and the checks of its answers."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from keras_distill.targets.served import ServedModel, Tensor
from keras_distill.targets.service import Array, Service


class Call:
    """A batch that was sent to a server, in parts if a request can't have all its rows.

    Args:
        service: The connection.
        model: The model on the server.
        arrays: The inputs by name.
        outputs: The outputs that the server should return.

    Raises:
        ValueError: The batch can't be divided into parts of the model's fixed size.
    """

    def __init__(
        self,
        service: Service,
        model: ServedModel,
        arrays: Mapping[str, Array],
        outputs: Mapping[str, Tensor],
    ) -> None:
        rows = len(next(iter(arrays.values())))
        size = model.max_rows or rows
        if model.fixed and rows % size:
            raise ValueError(
                f"{model.label} takes {size} rows at once. Make batches of a multiple "
                f"of {size}, with `drop_remainder=True`. Received: a batch of {rows}"
            )
        self._parts = [
            _Part(
                service,
                {name: array[at : at + size] for name, array in arrays.items()},
                outputs,
            )
            for at in range(0, rows, size)
        ]

    def answer(self) -> dict[str, Array]:
        """Wait for the outputs and return them by name.

        Raises:
            ConnectionError: None of the attempts reached the model.
            ValueError: The server refused the request, or its answer isn't usable.
        """
        answers = [part.answer() for part in self._parts]
        return {
            name: np.concatenate([answer[name] for answer in answers])
            if len(answers) > 1
            else answers[0][name]
            for name in answers[0]
        }


class _Part:
    """One request."""

    def __init__(
        self, service: Service, arrays: dict[str, Array], outputs: Mapping[str, Tensor]
    ) -> None:
        self._service = service
        self._outputs = outputs
        self._rows = len(next(iter(arrays.values())))
        self._send = partial(service.infer, arrays, outputs)
        self._sent: Any = self._send()

    def answer(self) -> dict[str, Array]:
        result = self._service.persistently(self._result)
        self._service.check_version(result.get_response().model_version)
        return {name: self._checked(result, it) for name, it in self._outputs.items()}

    def _result(self) -> Any:
        """Wait for the answer. Send the request again if it was waited for before."""
        sent, self._sent = self._sent or self._send(), None
        return sent.result()

    def _checked(self, result: Any, output: Tensor) -> Array:
        label = f"Output '{output.name}' of {self._service.label}"
        given = result.get_output(output.name)
        if given is None:
            names = [it.name for it in result.get_response().outputs]
            raise ValueError(f"{label} is missing. Received: outputs {names}")
        shape = tuple(given.shape)
        expected = (self._rows, *output.shape[1:])
        if len(shape) != len(expected) or any(
            wanted not in (-1, size)
            for wanted, size in zip(expected, shape, strict=True)
        ):
            raise ValueError(
                f"{label} must have shape {list(expected)}; -1 takes any size. "
                f"Received: {list(shape)}"
            )
        if given.datatype != output.datatype:
            raise ValueError(
                f"{label} must be {output.datatype}. Received: {given.datatype}"
            )
        array: Array = result.as_numpy(output.name)
        self._check_numbers(label, array)
        return array

    def _check_numbers(self, label: str, array: Array) -> None:
        if array.dtype.kind in "iub":
            return
        rows = np.unique(np.nonzero(np.isnan(array))[0])
        if rows.size:
            raise ValueError(
                f"{label} must not be NaN. Received: {rows.size} of {len(array)} rows "
                f"with NaN, the first of them row {rows[0]}: {array[rows[0]]}"
            )

"""The outputs and inputs that a server declares, and checks of batches."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output as the server declares it. -1 permits any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> Any:
        """The NumPy type: objects for strings, None for types that NumPy lacks."""
        from tritonclient.utils import triton_to_np_dtype

        return triton_to_np_dtype(self.datatype)

    def spec(self, rows: Sequence[int | None]) -> "tf.TensorSpec":
        """Return the spec of an output whose first size is `rows`."""
        import tensorflow as tf

        sizes = [None if size < 0 else size for size in self.shape[1:]]
        return tf.TensorSpec([*rows, *sizes], tf.as_dtype(self.dtype), self.name)


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A model as its server describes it.

    Args:
        label: The model's name and address, for messages.
        inputs: Its inputs by name.
        outputs: Its outputs by name.
        versions: The versions that the server has.
        max_rows: The largest number of rows in a request; 0 for any number.
        fixed: Whether each request must have `max_rows` rows.
    """

    label: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    versions: tuple[str, ...] = ()
    max_rows: int = 0
    fixed: bool = False

    def inputs_of(self, x: Any) -> dict[str, Any]:
        """Return the part of a batch, or of its spec, that the model reads.

        Raises:
            ValueError: The batch has other names, dtypes or shapes.
        """
        if not isinstance(x, Mapping):
            if len(self.inputs) != 1:
                raise ValueError(
                    f"{self.label} reads {sorted(self.inputs)}. Pass batches whose `x` "
                    f"is a dict with these keys. Received: {x}"
                )
            x = {next(iter(self.inputs)): x}
        missing = [name for name in self.inputs if name not in x]
        if missing:
            raise ValueError(
                f"{self.label} reads inputs that the batches don't have: {missing}. "
                "Name the keys of `x` as the model's inputs. "
                f"Received: keys {sorted(x)}"
            )
        for name, tensor in self.inputs.items():
            self._check_input(tensor, x[name])
        return {name: x[name] for name in self.inputs}

    def check(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raise ValueError if the inputs of a request have other dtypes or shapes."""
        import tensorflow as tf

        for name, array in arrays.items():
            dtype = tf.as_dtype(array.dtype)
            self._check_input(self.inputs[name], tf.TensorSpec(array.shape, dtype))

    def outputs_of(self, names: str | Sequence[str] | None) -> dict[str, Tensor]:
        """Return the named outputs, or all for None.

        Raises:
            ValueError: The model has no such output, or an output doesn't have numbers
                for each row.
        """
        given = self.outputs if names is None else names
        chosen = [given] if isinstance(given, str) else list(given)
        unknown = [name for name in chosen if name not in self.outputs]
        if unknown or not chosen:
            raise ValueError(
                f"{self.label} has the outputs {sorted(self.outputs)}. "
                f"Received: outputs={names!r}"
            )
        for name in chosen:
            output = self.outputs[name]
            if output.dtype in (None, np.object_) or not output.shape:
                raise ValueError(
                    f"{self.label} must return numbers for each row. Received: output "
                    f"'{name}' of {output.datatype} and shape {list(output.shape)}"
                )
        return {name: self.outputs[name] for name in chosen}

    def _check_input(self, tensor: Tensor, given: Any) -> None:
        import tensorflow as tf

        label = f"Input '{tensor.name}' of {self.label}"
        if not isinstance(given, tf.Tensor | tf.TensorSpec):
            raise ValueError(f"{label} must be a dense tensor. Received: {given}")
        if tensor.dtype is None or tf.as_dtype(tensor.dtype) != given.dtype:
            raise ValueError(
                f"{label} must be {tensor.datatype}. Convert it in the data. "
                f"Received: '{tensor.name}' of dtype {given.dtype.name}"
            )
        # Any number of rows fits: `Call` divides batches into requests.
        sizes = [None, *(None if size < 0 else size for size in tensor.shape[1:])]
        if not given.shape.is_compatible_with(sizes):
            raise ValueError(
                f"{label} must have shape {list(tensor.shape)}; -1 takes any size. "
                f"Received: '{tensor.name}' of shape {given.shape}"
            )

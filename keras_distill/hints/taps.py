"""Taps, which collect the outputs of layers while their model runs."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from keras_distill import backend
from keras_distill.types import Tensor

# The methods that compute the output of a layer.
_METHODS = ("call", "quantized_call")
_LOCK = threading.RLock()
# How many taps are open on a layer, by its id.
_OPEN: dict[int, int] = {}


class _Listeners(threading.local):
    """The open taps of one thread. Each replica of a strategy traces in its own."""

    def __init__(self) -> None:
        self.caught: list[dict[int, list[Any]]] = []


_LISTENERS = _Listeners()


class Taps:
    """Layers of a model whose outputs are collected while the model runs.

    Args:
        layers: The layers by name. Error messages use these names.
    """

    def __init__(self, layers: Mapping[str, keras.Layer]) -> None:
        self._layers = layers

    @contextmanager
    def open(self) -> Iterator["Caught"]:
        """Collect outputs inside a `with` block; then restore the layers' methods."""
        layers = list({id(layer): layer for layer in self._layers.values()}.values())
        outputs: dict[int, list[Any]] = {id(layer): [] for layer in layers}
        _LISTENERS.caught.append(outputs)
        _install(layers)
        try:
            yield Caught(self._layers, outputs)
        finally:
            _remove(layers)
            _LISTENERS.caught.pop()


class Caught:
    """The outputs of layers in one pass of their model.

    Args:
        layers: The layers by name.
        outputs: A list of all outputs of each layer, by the layer's `id`.
    """

    def __init__(
        self, layers: Mapping[str, keras.Layer], outputs: Mapping[int, list[Any]]
    ) -> None:
        self._layers = layers
        self._outputs = outputs

    def output(self, name: str) -> Tensor:
        """Return the output of the layer of this name.

        Raises:
            ValueError: If the layer didn't run exactly once, returned more than one
                tensor, or ran inside a loop or a condition. Its output isn't available
                outside of the loop or condition.
        """
        outputs = self._outputs[id(self._layers[name])]
        received = f"Received: layer '{self._layers[name].name}' of '{name}'"
        if len(outputs) != 1:
            raise ValueError(
                "A hint needs a layer that runs once in a pass of its model. Name "
                f"another. {received}, which ran {len(outputs)} times"
            )
        (output,) = outputs
        if keras.tree.is_nested(output):
            raise ValueError(
                "A hint needs a layer with one output. Name another. "
                f"{received}, which returned {len(keras.tree.flatten(output))} tensors"
            )
        if backend.is_of_inner_trace(output):
            raise ValueError(
                "A hint can't read a layer that runs inside a loop, a condition or a "
                f"function of its own, such as a recurrent cell. Name the layer around "
                f"it. {received}"
            )
        return output


def _install(layers: Sequence[keras.Layer]) -> None:
    with _LOCK:
        for layer in layers:
            _OPEN[id(layer)] = _OPEN.get(id(layer), 0) + 1
            if _OPEN[id(layer)] == 1:
                for name in _METHODS:
                    if callable(getattr(layer, name, None)):
                        # Python finds an attribute of the instance before the method
                        # of its class. `object.__setattr__` avoids Keras' tracking.
                        object.__setattr__(layer, name, _tapped(layer, name))


def _remove(layers: Sequence[keras.Layer]) -> None:
    with _LOCK:
        for layer in layers:
            _OPEN[id(layer)] -= 1
            if not _OPEN[id(layer)]:
                del _OPEN[id(layer)]
                for name in _METHODS:
                    tapped = vars(layer).get(name)
                    if tapped is not None:
                        object.__delattr__(layer, name)
                        # The instance may have had a method of its own.
                        if tapped.earlier is not None:
                            object.__setattr__(layer, name, tapped.earlier)


def _tapped(layer: keras.Layer, name: str) -> Callable[..., Any]:
    work = getattr(layer, name)

    def tapped(*args: Any, **kwargs: Any) -> Any:
        output = work(*args, **kwargs)
        for caught in _LISTENERS.caught:
            if id(layer) in caught:
                caught[id(layer)].append(output)
        return output

    tapped.earlier = vars(layer).get(name)  # type: ignore[attr-defined]
    return tapped

"""What layers put out while their model runs, so that it need not run again."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from keras_distill.types import Tensor

_METHODS = ("call", "quantized_call")  # what a layer does its work by
_LOCK = threading.RLock()
_OPEN: dict[int, int] = {}  # by the layer's id: how many listen to it


class _Listeners(threading.local):
    """Those of one thread: each replica of a strategy traces in its own."""

    def __init__(self) -> None:
        self.caught: list[dict[int, list[Any]]] = []


_LISTENERS = _Listeners()


class Taps:
    """Some layers of a model, whose outputs are caught while the model runs.

    Args:
        layers: The layers by the names that error messages call them.
    """

    def __init__(self, layers: Mapping[str, keras.Layer]) -> None:
        self._layers = layers

    @contextmanager
    def open(self) -> Iterator["Caught"]:
        """Yield what the layers put out; they are left as they were when it ends."""
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
    """What layers put out in one pass of their model.

    Args:
        layers: The layers by name.
        outputs: All outputs of each by the layer's id.
    """

    def __init__(
        self, layers: Mapping[str, keras.Layer], outputs: Mapping[int, list[Any]]
    ) -> None:
        self._layers = layers
        self._outputs = outputs

    def output(self, name: str) -> Tensor:
        """Return what the layer of this name put out.

        Raises:
            ValueError: If it didn't run once, put out more than one tensor, or ran
                inside a loop or a condition, which nothing leaves.
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
        graph = (
            getattr(output, "graph", None) if tf.is_symbolic_tensor(output) else None
        )
        if graph is not None and graph is not tf.compat.v1.get_default_graph():
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
                        # past Keras' tracking: what stands on the instance comes
                        # before the method of its class
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
                        if tapped.earlier is not None:  # it wasn't the class's
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

"""A record of the label losses that Keras computes in a step."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.types import Nested, Path, Tensor

tree = keras.tree

# The attribute of a `CompileLoss` that holds its record.
_RECORD = "_keras_distill_record"


class RecordedLosses:
    """Records the label losses that Keras computes and adds up.

    So no loss has to be called again. Another call would change the state of a loss,
    such as a variable or a seed.

    A `CompileLoss` has one record. All `RecordedLosses` of it read the same record.

    Args:
        compile_loss: The `CompileLoss` that `keras.Model.compile` makes from `loss` and
            `loss_weights`. None without a label loss: nothing is then recorded.
    """

    def __init__(self, compile_loss: Any | None) -> None:
        self._record = _Record()
        if compile_loss is None:
            return
        earlier = vars(compile_loss).get(_RECORD)
        if earlier is not None:
            self._record = earlier
            return
        setattr(compile_loss, _RECORD, self._record)
        compile_loss.call = _recording_call(compile_loss, self._record)
        compile_loss.build = _recording_build(compile_loss, self._record)
        if compile_loss.built:
            _record_items(compile_loss, self._record)

    def taken(
        self, outputs: Nested, names: Sequence[str] | None
    ) -> tuple[Tensor | None, dict[Path, Tensor]]:
        """Return the losses of the last computation in this thread, and clear them.

        Args:
            outputs: The model's outputs.
            names: The names of the outputs in order, if the model has names.

        Returns:
            The label loss, a weighted sum over the outputs, without regularisers. It is
            None if no label loss was computed since the last call. And a dict of the
            weighted loss of each output by the output's path.
        """
        total, by_path = self._record.total, self._record.by_path
        self._record.clear()
        paths = [tuple(path) for path, _ in tree.flatten_with_path(outputs)]
        # Keras may convert a single output or a list of outputs to a dict by name.
        named = {(key,): path for key, path in zip(names or (), paths, strict=False)}
        return total, {
            path if path in paths else named[path]: value
            for path, value in by_path.items()
        }


class _Record(threading.local):
    """The losses of one thread: on several devices, each step has its own thread."""

    def __init__(self) -> None:
        self.clear()

    def __reduce__(self) -> tuple[type["_Record"], tuple[()]]:
        # The record of a copied loss begins empty.
        return type(self), ()

    def clear(self) -> None:
        """Clear all losses."""
        self.total: Tensor | None = None
        self.by_path: dict[Path, Tensor] = {}
        self.takes_first = False

    def add(self, path: Path, value: Tensor) -> None:
        """Record a loss of one output, which may have several losses."""
        if path not in self.by_path:
            self.by_path[path] = value
        elif not self.takes_first:
            self.by_path[path] = self.by_path[path] + value


def _recording_call(compile_loss: Any, record: _Record) -> Callable[..., Any]:
    """Return the `call` of a `CompileLoss` that records what it returns."""
    call = compile_loss.call

    def recording_call(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        # The last computation may have ended in an error.
        record.clear()
        # Of several losses of a single output, Keras returns the first.
        record.takes_first = not (tree.is_nested(y_true) or tree.is_nested(y_pred))
        record.total = call(y_true, y_pred, sample_weight)
        return record.total

    return recording_call


def _recording_build(compile_loss: Any, record: _Record) -> Callable[..., None]:
    """Return the `build` of a `CompileLoss` whose losses record what they return."""
    build = compile_loss.build

    def recording_build(y_true: Any, y_pred: Any) -> None:
        build(y_true, y_pred)
        _record_items(compile_loss, record)

    return recording_build


def _record_items(compile_loss: Any, record: _Record) -> None:
    compile_loss._flat_losses = [
        item._replace(loss=_recording_loss(item, compile_loss.dtype, record))
        for item in compile_loss._flat_losses
    ]


def _recording_loss(item: Any, dtype: str, record: _Record) -> Callable[..., Tensor]:
    """Return the loss of one output that records its weighted value."""

    def recording_loss(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        value = item.loss(y_true, y_pred, sample_weight)
        # Computed as Keras does, so that the values add up to the total.
        weighted = ops.cast(value, dtype)
        if item.loss_weights is not None:
            weighted = ops.multiply(weighted, item.loss_weights)
        record.add(tuple(item.path), weighted)
        return value

    return recording_loss

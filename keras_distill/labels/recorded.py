"""Each output's label loss, as Keras computed it in a step."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_distill.per_output import Path
from keras_distill.types import Tensor

tree = keras.tree


class RecordedLosses:
    """Keeps the label losses that Keras adds up, so that none is called again.

    Another call would move what a loss keeps, such as a variable or a seed.

    Args:
        compile_loss: What `keras.Model.compile` makes of `loss` and `loss_weights`.
    """

    def __init__(self, compile_loss: Any) -> None:
        # the step of each device runs in a thread of its own
        self._of_thread = threading.local()
        self._compile_loss, self._build = compile_loss, compile_loss.build
        compile_loss.build = self._build_recording

    def taken(self, outputs: Any, names: Sequence[str] | None) -> dict[Path, Tensor]:
        """Return the weighted losses of this step by the path of their output.

        Args:
            outputs: The model's outputs.
            names: The names of the outputs in order, where the model has any.
        """
        values = vars(self._of_thread).pop("values", {})
        paths = [tuple(path) for path, _ in tree.flatten_with_path(outputs)]
        # where losses are a dict, Keras makes a dict of a list of outputs, or of one
        named = {(key,): path for key, path in zip(names or (), paths, strict=False)}
        return {
            path if path in paths else named[path]: value
            for path, value in values.items()
        }

    def _build_recording(self, y_true: Any, y_pred: Any) -> None:
        self._build(y_true, y_pred)
        self._compile_loss._flat_losses = [
            item._replace(loss=self._recording(item, is_first=number == 0))
            for number, item in enumerate(self._compile_loss._flat_losses)
        ]

    def _recording(self, item: Any, *, is_first: bool) -> Callable[..., Tensor]:
        def loss(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
            value = item.loss(y_true, y_pred, sample_weight)
            weight = 1.0 if item.loss_weights is None else item.loss_weights
            if is_first:
                self._of_thread.values = {}
            # of several losses of a single output Keras takes the first
            self._of_thread.values.setdefault(tuple(item.path), weight * value)
            return value

        return loss

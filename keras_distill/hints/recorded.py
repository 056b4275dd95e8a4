"""Recorded features of a teacher's layer, read from the batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_distill.hints.layers import Shape
from keras_distill.losses.checks import may_have_shape
from keras_distill.types import Nested, Tensor


@keras.saving.register_keras_serializable(package="keras_distill")
class Recorded:
    """The recorded output of a layer of the teacher, as the `hint` of a `Hint`.

    The inputs of each batch contain the output under `key`. Neither model receives this
    key.

    Args:
        key: The key in the inputs.
        shape: The shape of one row, without the batch axis, as in `keras.Input`.
            Projectors are made for this shape before the first batch.

    Raises:
        TypeError: If `key` isn't a string, or `shape` isn't a sequence of sizes.

    Example:
        >>> import numpy as np
        >>> from keras_distill import Distiller
        >>> from keras_distill.hints.hint import Hint
        >>> from keras_distill.teachers import Recorded as RecordedOutputs
        >>> student = keras.Sequential(
        ...     [keras.Input((4,), name="x"), keras.layers.Dense(8, name="hidden"),
        ...      keras.layers.Dense(3)])
        >>> hint = Hint("hidden", Recorded("teacher_hidden", shape=(32,)))
        >>> distiller = Distiller(student, RecordedOutputs("teacher"), hints=[hint])
        >>> distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(
        ...     from_logits=True))
        >>> batch = {"x": np.ones((6, 4)), "teacher": np.eye(6, 3),
        ...          "teacher_hidden": np.ones((6, 32))}
        >>> "hidden_hint_loss" in distiller.fit(
        ...     batch, np.zeros(6), verbose=0).history
        True
    """

    def __init__(self, key: str, shape: Sequence[int | None]) -> None:
        if not isinstance(key, str):
            raise TypeError(
                f"`key` must be the name of a key of the inputs. Received: key={key!r}"
            )
        sizes = tuple(shape) if isinstance(shape, Sequence) else None
        if sizes is None or not all(s is None or isinstance(s, int) for s in sizes):
            raise TypeError(
                "`shape` must be the shape of one row, such as (7, 7, 64). Received: "
                f"shape={shape!r}"
            )
        self.key = key
        self.shape = sizes

    @property
    def batch_shape(self) -> Shape:
        """The shape with the batch axis."""
        return (None, *self.shape)

    def read(self, x: Nested) -> Tensor:
        """Return the features from the inputs of a batch.

        Raises:
            ValueError: If the inputs lack the key, or the features have another shape.
        """
        if not isinstance(x, Mapping) or self.key not in x:
            keys = sorted(x) if isinstance(x, Mapping) else None
            raise ValueError(
                f"The batch doesn't hold the recorded hint '{self.key}'. Pass a dict "
                f"with this key as `x`. Received: keys {keys}"
            )
        features = keras.ops.convert_to_tensor(x[self.key])
        if not may_have_shape(features, self.batch_shape):
            raise ValueError(
                f"The recorded hint '{self.key}' has another shape than was said. "
                f"Received: features of shape {tuple(features.shape)}, "
                f"shape={self.shape} for each row"
            )
        return features

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"key": self.key, "shape": list(self.shape)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Recorded":
        """Build the object from `get_config`'s result."""
        return cls(**config)

    def __repr__(self) -> str:
        return f"Recorded({self.key!r}, shape={self.shape})"

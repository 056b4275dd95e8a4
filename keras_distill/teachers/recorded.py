"""A teacher that reads recorded outputs from the inputs of the batch."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_distill.batch import Batch
from keras_distill.teachers.base import Lesson, Teacher
from keras_distill.types import Nested, Tensor


class Recorded(Teacher):
    """Reads a teacher's recorded outputs from the inputs of the batch.

    The student never gets these inputs.

    Args:
        keys: The key of the inputs that holds the output. For several outputs, a list
            or dict of keys in the structure of the student's outputs.

    Raises:
        ValueError: When called with a batch that lacks one of the keys.

    Example:
        >>> teacher = Recorded("teacher_logits")
        >>> teacher({"age": [[31.0]], "teacher_logits": [[0.7]]})
        [[0.7]]
    """

    def __init__(self, keys: Any) -> None:
        self.keys = keys

    @property
    def reads(self) -> list[str]:
        """The keys of the inputs that hold the recorded outputs."""
        return [str(key) for key in keras.tree.flatten(self.keys)]

    def __call__(self, x: Nested) -> Nested:
        """Return the recorded outputs of a batch. `x` is its dict of inputs."""
        if isinstance(self.keys, Mapping):
            return {output: _at(key, x) for output, key in self.keys.items()}
        if isinstance(self.keys, list | tuple):
            return [_at(key, x) for key in self.keys]
        return _at(self.keys, x)

    def teach(self, batch: Batch) -> Lesson:
        """Return the recorded outputs of a batch."""
        return Lesson(self(batch.inputs))


def _at(key: str, x: Nested) -> Tensor:
    if not isinstance(x, Mapping) or key not in x:
        keys = sorted(x) if isinstance(x, Mapping) else None
        raise ValueError(
            f"The batch doesn't hold the recorded teacher output '{key}'. Pass a dict "
            f"with this key as `x`. Received: keys {keys}"
        )
    return x[key]

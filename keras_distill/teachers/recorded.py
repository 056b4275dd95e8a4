"""A teacher whose outputs were recorded before: they come with the batch."""

from collections.abc import Mapping
from typing import Any

import keras


class Recorded:
    """Reads the teacher's outputs from the batch's inputs.

    Args:
        keys: The key under which they stand, for one output; for several, a list or
            dict of keys that mirrors the student's outputs.

    Raises:
        ValueError: When called with a batch that doesn't hold the keys.

    Example:
        >>> teacher = Recorded("teacher_logits")
        >>> teacher({"age": [[31.0]], "teacher_logits": [[0.7]]})
        [[0.7]]
    """

    def __init__(self, keys: Any) -> None:
        self.keys = keys

    @property
    def reads(self) -> list[str]:
        """The keys of the batch that it reads: targets, not for a student's eyes."""
        return [str(key) for key in keras.tree.flatten(self.keys)]

    def __call__(self, x: Any) -> Any:
        """Return the recorded outputs of a batch, `x` a dict of inputs."""
        if isinstance(self.keys, Mapping):
            return {output: _at(key, x) for output, key in self.keys.items()}
        if isinstance(self.keys, list | tuple):
            return [_at(key, x) for key in self.keys]
        return _at(self.keys, x)


def _at(key: str, x: Any) -> Any:
    if not isinstance(x, Mapping) or key not in x:
        keys = sorted(x) if isinstance(x, Mapping) else None
        raise ValueError(
            f"The batch doesn't hold the recorded teacher output '{key}'. Pass a dict "
            f"with this key as `x`. Received: keys {keys}"
        )
    return x[key]

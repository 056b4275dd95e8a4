"""Names for types that Python can't express."""

from typing import Any

# A tensor of the backend that Keras runs on, or what that backend converts to one.
Tensor = Any

# A tensor, or a list, tuple or dict of them in any depth, as `keras.tree` takes it.
Nested = Any

# Where a tensor is in such a structure: the keys and indices on the way down to it.
Path = tuple[Any, ...]

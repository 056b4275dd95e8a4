"""Marks of tests that need one of Keras' backends.

`@tensorflow_only("how gradients of XLA are read")` skips a test on other backends, and
`pytestmark = tensorflow_only(...)` a whole file. `tests/conftest.py` applies it.
"""

import keras
import pytest

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
ON_JAX = keras.backend.backend() == "jax"

tensorflow_only = pytest.mark.tensorflow_only

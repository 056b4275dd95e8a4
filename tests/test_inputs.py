"""The part of a batch that a model reads, of data of any library and dtype."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_distill import backend, inputs


def model(dtype: str = "float32") -> keras.Model:
    read = keras.Input((2,), name="x", dtype=dtype)
    return keras.Model(read, keras.layers.Identity()(read), name="m")


FINE: dict[str, tuple[str, Any]] = {
    "the same": ("float32", np.ones((3, 2), "float32")),
    "twice as precise": ("float32", np.ones((3, 2), "float64")),
    "whole numbers": ("float32", np.ones((3, 2), "int64")),
    "truths": ("int32", np.ones((3, 2), "bool")),
    "longer integers": ("int32", np.ones((3, 2), "int64")),
    "a tensor": ("float32", ops.ones((3, 2), "bfloat16")),
    "no dtype": ("int32", [[0.5, 1.0]]),
    "dates": ("float32", np.zeros((3, 2), "datetime64[s]")),
}


@pytest.mark.parametrize("name", FINE)
def test_dtypes_that_fit(name: str) -> None:
    dtype, x = FINE[name]
    assert inputs.select(model(dtype), {"x": x, "other": 0}) is x


@pytest.mark.parametrize(
    ("dtype", "x", "name"),
    [
        ("int32", np.ones((3, 2), "float32"), "float32"),
        ("int64", ops.ones((3, 2), "bfloat16"), "bfloat16"),
        ("uint8", np.ones((3, 2), "float64"), "float64"),
        ("float32", np.array([["a", "b"]]), "string"),
        ("float32", np.array([["a", None]], dtype=object), "string"),
        ("int32", np.array([[b"a", b"b"]]), "string"),
    ],
)
def test_dtypes_that_lose_something(dtype: str, x: Any, name: str) -> None:
    message = (
        f"Input 'x' of model 'm' is declared as {dtype}, which {name} can't become "
        f"without loss. .* Received: 'x' of dtype {name}$"
    )
    with pytest.raises(TypeError, match=message):
        inputs.select(model(dtype), {"x": x})


def test_text() -> None:
    if not backend.is_tensorflow():
        pytest.skip("Keras has inputs of text on TensorFlow only.")
    for x in (np.array([["a", "b"]]), np.array([["a", "b"]], dtype=object)):
        assert inputs.select(model("string"), {"x": x}) is x
    with pytest.raises(TypeError, match="is declared as string, which int64 can't"):
        inputs.select(model("string"), {"x": np.ones((1, 2), "int64")})


def test_what_is_left_out() -> None:
    x = {"x": np.ones((3, 2)), "deep": {"said": 1, "kept": 2}, "said": 3}
    assert inputs.select(lambda x: x, x, withheld=["said"]) == {
        "x": x["x"],
        "deep": {"kept": 2},
    }
    with pytest.raises(ValueError, match=r"doesn't hold: \['x'\].*keys \['deep'"):
        inputs.select(model(), {"deep": {}})

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.export import onnx
from keras_distill.export.formats import Loaded
from keras_distill.export.parity import Reference, compare, reference
from keras_distill.export.serving import serve

X = {"x": np.zeros((3, 1), "float32")}


def against(wanted, given, tolerance=1e-5, scale=None, names=("x", "y")):
    wanted, given = np.asarray(wanted), np.asarray(given)
    scale = float(np.abs(wanted).max()) if scale is None else scale
    loaded = Loaded(
        frozenset({names[0]}), frozenset({names[1]}), lambda arrays: {"y": given}
    )
    expected = Reference([(X, {"y": wanted})], {"y": scale})
    return compare(onnx.FORMAT, loaded, expected, tolerance)


def test_the_largest_difference_is_returned():
    assert against([1.0, 2.0], [1.0 + 1e-6, 2.0 - 3e-6]) == pytest.approx(3e-6)


def test_tolerance_is_relative_to_the_scale_of_the_output():
    small = np.array([1e-4, 5e-4])
    with pytest.raises(RuntimeError, match="within 5e-09.*0.00050001 where"):
        against(small, small + [0, 1e-8])
    assert against(small * 1e6, small * 1e6 + [0, 1e-3]) == pytest.approx(1e-3)


def test_masks_do_not_hide_a_difference(floats):
    class Masked(keras.Model):
        def call(self, x):
            return keras.ops.where(x > 0, x, -1e9)

    model = Masked()
    batch = np.array([[1.0, -1.0], [2.0, 3.0]], "float32")
    model(batch)
    expected = reference(serve(model, batch), {"input": batch})
    assert expected.scales == {"output": 3.0}
    wanted = expected.cases[0][1]["output"]
    assert wanted.min() == np.float32(-1e9)
    with pytest.raises(RuntimeError, match="1 of 4 values"):
        against(wanted, wanted + np.float32([[0.01, 0], [0, 0]]), scale=3.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_a_difference(bad):
    with pytest.raises(RuntimeError, match=f"Received: {bad} where Keras gives 2"):
        against([1.0, 2.0], [1.0, bad])


def test_infinities_have_to_be_the_same():
    assert against([1.0, -np.inf], [1.0, -np.inf], scale=1.0) == 0.0
    with pytest.raises(RuntimeError, match="3 where Keras gives -inf"):
        against([1.0, -np.inf], [1.0, 3.0], scale=1.0)


def test_integers_and_text_have_to_be_equal():
    assert against([5, 6], [5, 6]) == 0.0
    with pytest.raises(RuntimeError, match="as it is int64.* 1 of 2 values"):
        against([5, 6], [5, 7], tolerance=10.0)
    text = np.array([b"a", b"b"], dtype=object)
    assert against(text, text, scale=1.0) == 0.0
    with pytest.raises(RuntimeError, match="as it is object"):
        against(text, text[::-1], scale=1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ones((2, 1)), r"float64 of shape \(2,\). Received: float64 of .*\(2, 1\)"),
        (np.ones(2, "float32"), r"Received: float32 of shape \(2,\)"),
    ],
)
def test_shape_and_dtype(given, message):
    with pytest.raises(RuntimeError, match=message):
        against([1.0, 1.0], given)


@pytest.mark.parametrize("names", [("x:0", "y"), ("x", "Identity:0")])
def test_names(names):
    with pytest.raises(RuntimeError, match=r"names \['[xy]'\]. Received: \['.*:0'\]"):
        against([1.0], [1.0], names=names)


def test_a_runtime_that_raises_is_explained():
    def run(arrays):
        raise TypeError("wants a static batch.")

    loaded = Loaded(frozenset({"x"}), frozenset({"y"}), run)
    expected = Reference([(X, {"y": np.ones(3)})], {"y": 1.0})
    with pytest.raises(RuntimeError, match="running it on a batch of 3 failed.*static"):
        compare(onnx.FORMAT, loaded, expected, 1e-5)


def test_reference_has_two_batch_sizes(floats):
    x = keras.Input((2,), name="x")
    model = keras.Model(x, layers.Dense(2, name="y")(x))
    batch = floats(5, 2)
    (first, whole), (second, single) = reference(
        serve(model, batch), {"x": batch}
    ).cases
    assert (len(first["x"]), len(second["x"])) == (5, 1)
    np.testing.assert_allclose(whole["y"], model(batch), rtol=1e-6)
    np.testing.assert_allclose(whole["y"][:1], single["y"], rtol=1e-5)

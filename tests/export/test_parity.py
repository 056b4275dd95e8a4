import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.export import onnx
from keras_distill.export.formats import Loaded, Target
from keras_distill.export.parity import Difference, ParityError, compare, reference
from keras_distill.export.serving import serve

X = {"x": np.zeros((3, 1), "float32")}


def against(wanted, given, tolerance=1e-5, scale=None, names=("x", "y")):
    wanted, given = np.asarray(wanted), np.asarray(given)
    scale = float(np.abs(wanted).max()) if scale is None else scale
    loaded = Loaded(
        frozenset({names[0]}), frozenset({names[1]}), lambda arrays: {"y": given}
    )
    cases = [(X, {"y": wanted})]
    return compare(Target(onnx.FORMAT), loaded, cases, {"y": scale}, tolerance)


def approx(absolute, relative):
    return Difference(pytest.approx(absolute), pytest.approx(relative))


def test_the_largest_difference_is_returned():
    # Over the scale of 2; the larger of the two is the second, in both ways.
    assert against([1.0, 2.0], [1.0 + 1e-6, 2.0 - 3e-6]) == approx(3e-6, 1.5e-6)


def test_a_value_beyond_the_scale_is_relative_to_itself():
    assert against([1.0, 8.0], [1.001, 8.004], 1.0, scale=2.0) == approx(4e-3, 5e-4)


def test_of_several_cases_and_outputs_the_largest_counts():
    def run(arrays):
        shift = 1.0 if len(arrays["x"]) == 1 else 0.0
        return {"y": np.ones(1) + shift, "z": np.full(1, 20.0) + 10 * shift}

    loaded = Loaded(frozenset({"x"}), frozenset({"y", "z"}), run)
    wanted = {"y": np.ones(1), "z": np.full(1, 20.0)}
    cases = [({"x": X["x"][:size]}, wanted) for size in (3, 1, 2)]
    scales = {"y": 4.0, "z": 100.0}
    found = compare(Target(onnx.FORMAT), loaded, iter(cases), scales, 1.0)
    assert found == approx(10.0, 0.25)


def test_without_tolerance_any_finite_difference_passes():
    assert against([1.0, 2.0], [900.0, 2.0], tolerance=None) == approx(899.0, 449.5)
    assert against([5, 6], [5, 7], tolerance=None) == Difference(1.0, 1.0)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ParityError, match=f"Received: {bad} where"):
            against([1.0, 2.0], [bad, 2.0], tolerance=None)
    with pytest.raises(ParityError, match="must be float64 of shape"):
        against([1.0, 2.0], [1.0, 2.0, 3.0], tolerance=None)
    with pytest.raises(ParityError, match="names"):
        against([1.0], [1.0], tolerance=None, names=("x", "Identity:0"))


def test_tolerance_is_relative_to_the_scale_of_the_output():
    small = np.array([1e-4, 5e-4])
    with pytest.raises(RuntimeError, match="within 5e-09.*0.00050001 where"):
        against(small, small + [0, 1e-8])
    assert against(small * 1e6, small * 1e6 + [0, 1e-3]) == approx(1e-3, 2e-6)


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
    assert against([1.0, -np.inf], [1.0, -np.inf], scale=1.0) == Difference()
    with pytest.raises(RuntimeError, match="3 where Keras gives -inf"):
        against([1.0, -np.inf], [1.0, 3.0], scale=1.0)


def test_integers_and_text_have_to_be_equal():
    assert against([5, 6], [5, 6]) == Difference()
    with pytest.raises(RuntimeError, match="as it is int64.* 1 of 2 values"):
        against([5, 6], [5, 7], tolerance=10.0)
    text = np.array([b"a", b"b"], dtype=object)
    assert against(text, text, scale=1.0) == Difference()
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
    cases = [(X, {"y": np.ones(3)})]
    with pytest.raises(RuntimeError, match="running it on a batch of 3 failed.*static"):
        compare(Target(onnx.FORMAT), loaded, cases, {"y": 1.0}, 1e-5)


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


def test_of_a_fixed_batch_size_every_row_is_in_a_case(floats):
    x = keras.Input((2,), name="x")
    model = keras.Model(x, layers.Dense(2, name="y")(x))
    batch = floats(5, 2)
    cases = reference(serve(model, batch, batch_size=2), {"x": batch}).cases
    assert [len(inputs["x"]) for inputs, _ in cases] == [2, 2, 2]
    # The last is filled up with its own last row.
    rows = np.concatenate([inputs["x"] for inputs, _ in cases])
    np.testing.assert_array_equal(rows, batch[[0, 1, 2, 3, 4, 4]])
    outputs = np.concatenate([outputs["y"] for _, outputs in cases])
    np.testing.assert_allclose(outputs, model(rows), rtol=1e-5)

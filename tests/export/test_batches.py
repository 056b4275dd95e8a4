import numpy as np
import pytest
import tensorflow as tf

from keras_distill.export.batches import other_size, to_arrays

ONE = {"x": tf.TensorSpec([None, 3], tf.float32)}
TWO = {**ONE, "n": tf.TensorSpec([None], tf.int32)}


def test_arrays_lists_and_dicts_come_out_the_same():
    x, n = np.ones((2, 3)), [1, 2]
    for batch in ([x, n], (x, n), {"n": n, "x": x}, {"x": tf.constant(x), "n": n}):
        arrays = to_arrays(batch, TWO)
        assert list(arrays) == ["x", "n"]
        assert [a.dtype.name for a in arrays.values()] == ["float32", "int32"]
        np.testing.assert_array_equal(arrays["n"], [1, 2])
    assert list(to_arrays(x, ONE)) == list(to_arrays([x], ONE)) == ["x"]


def test_text_stays_text():
    arrays = to_arrays(np.array(["a", "b"]), {"t": tf.TensorSpec([None], tf.string)})
    assert arrays["t"].dtype == object
    assert list(arrays["t"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("batch", "specs", "message"),
    [
        ({"y": 1}, ONE, r"the keys \['x'\]. Received: keys=\['y'\]"),
        ([np.ones((2, 3))] * 2, ONE, r"each of the 1 inputs \['x'\]. Received: 2"),
        (np.ones((2, 3)), TWO, "each of the 2 inputs .* Received: 1 of type ndarray"),
        (np.ones((2, 4)), ONE, r"shape \(None, 3\) for the input 'x'.*\(2, 4\)"),
        (np.ones(3), ONE, r"Received: shape=\(3,\)"),
        (np.ones((0, 3)), ONE, r"at least one example. Received: shape=\(0, 3\)"),
        (np.array([["a", "b", "c"]]), ONE, "float32 for the input 'x'.*dtype=<U1"),
        ([np.ones((2, 3)), [1.5, 2.5]], TWO, "int32 for the input 'n'.*float64"),
        ([np.ones((2, 3)), [1, 2, 3]], TWO, "same number of examples.*'n': 3"),
    ],
)
def test_wrong_batches(batch, specs, message):
    with pytest.raises(ValueError, match=f"`example_batch` must .*{message}"):
        to_arrays(batch, specs)


@pytest.mark.parametrize(("size", "other"), [(1, 2), (2, 1), (9, 1)])
def test_other_size(size, other):
    arrays = other_size({"x": np.arange(size * 2.0).reshape(size, 2)})
    np.testing.assert_array_equal(arrays["x"], [[0.0, 1.0]] * other)

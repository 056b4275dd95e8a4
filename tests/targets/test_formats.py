"""Formats store what they say, and give losses numbers that are close to it."""

from typing import Any

import numpy as np
import pytest
from keras import ops

from keras_distill.targets import LogProbabilities, Sampled, TopK, Values
from keras_distill.targets.formats import Format, from_config

LOGITS = np.array([[1.0, 2.0, 0.5, -1.0], [0.0, 0.0, 0.0, 0.0], [30.0, 0, -9, 1]], "f")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    exact = logits.astype("float64")
    shifted = exact - exact.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def packed(stored: Format, output: Any, from_logits: bool = True) -> dict[str, Any]:
    """Return what is stored for an output, by column."""
    output = np.asarray(output, "float32")
    columns = stored.pack(ops.convert_to_tensor(output), from_logits)
    arrays = {name: ops.convert_to_numpy(value) for name, value in columns.items()}
    kept = dict(stored.stored(arrays, output.shape[1:], (0, 0)))
    for column in stored.columns(output.shape[1:]):
        assert kept[column.name].dtype == column.dtype
        assert kept[column.name].shape == (len(output), *column.shape)
    return kept


def read(stored: Format, output: Any, from_logits: bool = True) -> np.ndarray:
    """Return what losses read of an output."""
    result = stored.unpack(packed(stored, output, from_logits))
    assert result.dtype == "float32"
    assert result.shape[1:] == stored.packed_shape(np.shape(output)[1:])
    return result


@pytest.mark.parametrize("shape", [(3, 4), (3, 1, 2, 2)])
def test_log_probabilities_are_read_as_logits(shape: tuple[int, ...]) -> None:
    logits = LOGITS.reshape(shape)
    np.testing.assert_allclose(read(LogProbabilities(), logits), logits, atol=4e-6)
    half = read(LogProbabilities("float16"), logits)
    np.testing.assert_allclose(half, logits, atol=2e-2)
    kept = packed(LogProbabilities(), logits)["log_p"]
    np.testing.assert_allclose(kept, log_softmax(logits), rtol=1e-5, atol=1e-6)


def test_probabilities_are_read_as_logits_too() -> None:
    probabilities = [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]
    logits = read(LogProbabilities(), probabilities, from_logits=False)
    np.testing.assert_allclose(np.exp(logits), probabilities, atol=1e-6)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("stored", [LogProbabilities("float16"), TopK(2)])
def test_gaps_beyond_float16_stay_finite(stored: Format) -> None:
    assert np.isfinite(read(stored, [[1e6, 0.0, -1e6]])).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_are_stored_as_they_are(dtype: str) -> None:
    values = read(Values(dtype), LOGITS)
    np.testing.assert_array_equal(values, LOGITS.astype(dtype).astype("float32"))


def test_top_k_keeps_the_likeliest_and_the_rest() -> None:
    log_p = log_softmax(LOGITS)
    for row, expected in zip(read(TopK(2, "float32"), LOGITS), log_p, strict=True):
        ids = row[:2].astype(int)
        assert sorted(expected[ids]) == sorted(expected)[2:]
        np.testing.assert_allclose(row[2:4], expected[ids], rtol=1e-5, atol=1e-6)
        rest = np.delete(expected, ids)
        np.testing.assert_allclose(row[4], np.log(np.exp(rest).sum()), rtol=1e-5)
    np.testing.assert_allclose(
        read(TopK(2), LOGITS)[:, 5], np.log(np.exp(LOGITS).sum(-1)), rtol=1e-6
    )


def test_top_k_of_a_sure_teacher_has_an_exact_rest() -> None:
    # 1 - p would be 0 in float32.
    assert read(TopK(1), [[60.0, 0.0, 0.0]])[0, 2] == pytest.approx(np.log(2) - 60)


@pytest.mark.parametrize(
    ("classes", "dtype"), [(256, "uint8"), (257, "uint16"), (70_000, "uint32")]
)
def test_ids_take_the_smallest_dtype(classes: int, dtype: str) -> None:
    assert TopK(3).columns((classes,))[0].dtype == dtype


def test_samples_are_unbiased_counts() -> None:
    rows, n = 4000, 5
    logits = np.tile(np.log(np.array([0.6, 0.3, 0.1, 1e-30], "float32")), (rows, 1))
    result = read(Sampled(n, seed=3), logits)
    ids, shares = result[:, :n].astype(int), result[:, n:]
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-6)
    assert all(
        len(set(i[s > 0])) == (s > 0).sum() for i, s in zip(ids, shares, strict=True)
    )
    total = np.bincount(ids.ravel(), shares.ravel(), minlength=4) / rows
    # Four standard deviations of the mean of 20,000 draws.
    np.testing.assert_allclose(total, [0.6, 0.3, 0.1, 0], atol=0.014)
    assert (result == read(Sampled(n, seed=3), logits)).all()
    assert (result != read(Sampled(n, seed=4), logits)).any()


@pytest.mark.parametrize(
    "stored", [LogProbabilities("float16"), Values(), TopK(7), Sampled(9, seed=2)]
)
def test_configs_are_read_back(stored: Format) -> None:
    assert from_config(stored.get_config()) == stored


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogProbabilities("int8"), "dtype='int8'"),
        (lambda: Values("float64"), "dtype='float64'"),
        (lambda: TopK(0), "k=0"),
        (lambda: TopK(True), "k=True"),
        (lambda: Sampled(2.5), "n=2.5"),
        (lambda: Sampled(2, seed=None), "seed=None"),
        (lambda: TopK(5).columns((5,)), "k=5 for 5 classes"),
        (lambda: TopK(2).columns((2**24 + 1,)), "16777217 classes"),
        (lambda: LogProbabilities().columns(()), r"shape \(rows,\)"),
        (lambda: from_config({"class": "Top", "k": 1}), "'class': 'Top'"),
        (lambda: from_config({"class": "TopK"}), "'class': 'TopK'"),
    ],
)
def test_wrong_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

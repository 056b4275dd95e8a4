"""A token is drawn from the distribution that the arguments describe."""

from typing import Any

import numpy as np
import pytest
from keras import ops

from keras_distill.sequence.sampling import Sampling, choose

LOGITS = np.log([[0.4, 0.3, 0.2, 0.1], [0.1, 0.25, 0.25, 0.4]]).astype("float32")


def powers(p: np.ndarray) -> np.ndarray:
    return p**2 / (p**2).sum(-1, keepdims=True)


P = np.exp(LOGITS)


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({}, P),
        ({"temperature": 0.5}, powers(P)),
        ({"temperature": 0}, np.eye(4)[[0, 3]]),
        ({"top_k": 1}, np.eye(4)[[0, 3]]),
        # Tokens that are as probable as the last that is kept are kept.
        ({"top_k": 2}, [[4 / 7, 3 / 7, 0, 0], [0, 5 / 18, 5 / 18, 8 / 18]]),
        ({"top_k": 4}, P),
        ({"top_k": 9}, P),
        ({"top_p": 1.0}, P),
        ({"top_p": 0.65}, [[4 / 7, 3 / 7, 0, 0], [0, 5 / 18, 5 / 18, 8 / 18]]),
        ({"top_p": 0.75}, [[4 / 9, 3 / 9, 2 / 9, 0], [0, 5 / 18, 5 / 18, 8 / 18]]),
        ({"top_p": 1e-9}, np.eye(4)[[0, 3]]),
        # The probabilities that `top_p` adds are those of the `top_k` tokens: 4/7, 3/7.
        ({"top_k": 2, "top_p": 0.5}, [[1, 0, 0, 0], [0, 5 / 18, 5 / 18, 8 / 18]]),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_probabilities(arguments: Any, right: Any, dtype: str) -> None:
    found = Sampling(**arguments).probabilities(ops.cast(LOGITS, dtype))
    found = ops.convert_to_numpy(found)
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(found, right, atol=tolerance)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


def test_logits_far_apart_and_excluded_ones() -> None:
    logits = np.array([[1e4, 0.0, -1e4], [-np.inf, 0.0, -np.inf]], "float32")
    for arguments in ({}, {"top_k": 2}, {"top_p": 0.9}, {"temperature": 1e-3}):
        found = Sampling(**arguments).probabilities(ops.convert_to_tensor(logits))
        np.testing.assert_array_equal(
            ops.convert_to_numpy(found), [[1, 0, 0], [0, 1, 0]]
        )


@pytest.mark.parametrize("size", [1, 2, 7, 100, 101])
def test_each_index_is_drawn_as_often_as_its_weight_says(size: int) -> None:
    rng = np.random.default_rng(0)
    weights = rng.random(size).astype("float32") * (rng.random(size) < 0.7)
    weights[-1] += 1.0
    # Pairs of numbers that cover the square evenly are inverted without noise.
    count = 200
    grid = (np.arange(count) + 0.5) / count
    numbers = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    rows = np.broadcast_to(weights, (len(numbers), size))
    drawn = choose(ops.convert_to_tensor(rows), ops.cast(numbers, "float32"))
    found = np.bincount(ops.convert_to_numpy(drawn), minlength=size) / len(numbers)
    np.testing.assert_allclose(found, weights / weights.sum(), atol=2 / count)
    assert not found[weights == 0].any()


def test_a_large_vocabulary_keeps_its_small_probabilities() -> None:
    # All but one token have 1e-8 each, together a third.
    size = 50_000
    weights = np.full((1, size), 1e-8, "float32")
    weights[0, 7] = 1e-3
    largest = np.float32(1 - 2**-24)
    edges = [[0.0, 0.0], [largest, largest], [0.5, 0.5]]
    for numbers, right in zip(edges, [0, size - 1, None], strict=True):
        drawn = choose(ops.convert_to_tensor(weights), ops.cast([numbers], "float32"))
        assert 0 <= int(drawn[0]) < size
        assert right is None or int(drawn[0]) == right


@pytest.mark.parametrize("number", [0.0, 1 - 2**-24])
def test_a_weight_of_zero_is_never_drawn(number: float) -> None:
    weights = np.zeros((4, 30), "float32")
    weights[np.arange(4), [0, 11, 17, 29]] = [1e-30, 1.0, 3e30, 0.3]
    numbers = ops.full((4, 2), number, dtype="float32")
    drawn = choose(ops.convert_to_tensor(weights), numbers)
    assert ops.convert_to_numpy(drawn).tolist() == [0, 11, 17, 29]

"""Data sets of what a teacher writes."""

from typing import Any

import numpy as np
import pytest
from keras import ops

from keras_distill.sequence import generate, sample
from tests.sequence.writers import bigram, recurrent

# After each token, the next one is the most probable, and 4 ends.
COUNTING = 10 * np.roll(np.eye(5), 1, axis=1)
PROMPTS = np.array([[1, 2, 0], [0, 0, 2], [0, 0, 0]])


def test_completions_of_all_prompts_in_order() -> None:
    texts = sample(
        bigram(COUNTING),
        PROMPTS,
        max_new_tokens=3,
        end_token=4,
        samples=2,
        batch_size=4,
        temperature=0,
    )
    assert texts["prompts"].tolist() == PROMPTS.repeat(2, axis=0).tolist()
    assert texts["prompt_mask"].sum(1).tolist() == [2, 2, 1, 1, 0, 0]
    assert texts["completions"].tolist() == [[3, 4, 0]] * 4 + [[0, 0, 0]] * 2
    assert texts["completion_mask"].sum(1).tolist() == [2, 2, 2, 2, 0, 0]


def test_samples_differ_and_are_those_of_a_seed() -> None:
    model = recurrent()
    prompts = np.array([[3, 1]])
    options: dict[str, Any] = {"max_new_tokens": 6, "samples": 5, "batch_size": 2}
    texts = sample(model, prompts, seed=1, **options)
    again = sample(model, prompts, seed=1, **options)
    for name, array in texts.items():
        np.testing.assert_array_equal(array, again[name])
    assert len({tuple(row) for row in texts["completions"].tolist()}) > 2
    other = sample(model, prompts, seed=2, **options)
    assert (other["completions"] != texts["completions"]).any()


def test_masks_keep_tokens_that_are_padding_elsewhere() -> None:
    prompts, mask = np.array([[4, 0]]), np.array([[1, 1]])
    model = bigram(COUNTING)
    texts = sample(model, prompts, prompt_mask=mask, max_new_tokens=5, temperature=0)
    assert texts["completions"].tolist() == [[1, 2, 3, 4, 0]]
    assert texts["completion_mask"].all() and texts["prompt_mask"].all()
    written = generate(
        model, prompts, prompt_mask=mask, max_new_tokens=5, temperature=0
    )
    assert ops.convert_to_numpy(written.tokens)[:, 2:].tolist() == [[1, 2, 3, 4, 0]]


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"samples": 0}, "`samples` must be a whole number from 1 on.*samples=0"),
        ({"batch_size": 0}, "`batch_size` must be .*batch_size=0"),
        ({"prompts": np.zeros((0, 2), int)}, r"at least one row.*\(0, 2\)"),
        ({"prompts": np.ones((1, 2))}, "whole numbers.*float64"),
    ],
    ids=["samples", "batch_size", "empty", "floats"],
)
def test_wrong_arguments(changed: Any, error: str) -> None:
    arguments = {"prompts": PROMPTS, "max_new_tokens": 2, **changed}
    with pytest.raises((ValueError, TypeError), match=error):
        sample(bigram(COUNTING), **arguments)

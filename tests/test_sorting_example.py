"""The example on token models measures what its page says."""

import keras
import numpy as np
import pytest

from tests.scripts import imported


@pytest.fixture(scope="module")
def sorting():
    with imported("examples/sorting.py") as module:
        yield module


def constant(sorting, logits):
    """Return a model of the same logits everywhere."""
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(len(sorting.CHARACTERS), len(logits)),
        ]
    )
    model.set_weights([np.tile(logits, (len(sorting.CHARACTERS), 1))])
    return model


def test_answers_are_digits_in_order(sorting):
    keras.utils.set_random_seed(0)
    texts = sorting.draw(3)
    written = ["".join(sorting.CHARACTERS[i] for i in row) for row in texts["prompts"]]
    answers = [
        "".join(map(sorting.CHARACTERS.__getitem__, row))
        for row in texts["completions"]
    ]
    assert answers == ["".join(sorted(row[:-1])) + "." for row in written]
    assert all(row[-1] == ">" and row[:-1].isdigit() for row in written)


def test_reverse_kl_of_answers(sorting):
    keras.utils.set_random_seed(0)
    test = sorting.draw(500)
    logits = np.full(len(sorting.CHARACTERS), -30.0)
    logits[sorting.ZERO], logits[sorting.END] = 0.0, 0.0
    student = constant(sorting, logits)
    teacher = constant(sorting, np.zeros_like(logits))
    # Each character halves the student's probability. Half of the answers have one, a
    # quarter two, ..., and those of length 9 may lack an end.
    length = sum(0.5**count for count in range(sorting.DIGITS + 1))
    expected = length * np.log(len(logits) / 2)
    *_, measured = sorting.measure(student, teacher, test)
    deviation = np.log(len(logits) / 2) * 2**0.5 / len(test["prompts"]) ** 0.5
    assert abs(measured - expected) < 4 * deviation
    assert sorting.measure(student, student, test)[-1] == 0.0


def test_right_answers(sorting):
    keras.utils.set_random_seed(0)
    test = sorting.draw(4)
    test["prompts"][:], test["completions"][:] = sorting.ZERO, sorting.ZERO
    test["completions"][0] += 1
    logits = 30.0 * np.eye(len(sorting.CHARACTERS))[sorting.ZERO]
    student = constant(sorting, logits)
    assert sorting.measure(student, student, test) == [75.0, 75.0, 0.0]

"""Drafts are checked as the papers say, whatever the block, the cache and the rows."""

import itertools
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_distill.sequence import (
    generate,
    propose_and_check,
    speculative_decode,
)
from keras_distill.sequence.blocks import NUMBERS
from keras_distill.sequence.sampling import Sampling, choose, uniform
from tests.backends import tensorflow_only
from tests.sequence.writers import (
    VOCABULARY,
    attending,
    bigram,
    gpt2,
    needs_hub,
)

PROMPTS = np.array([[3, 1, 4], [0, 0, 2], [0, 0, 0], [5, 5, 0], [9, 0, 7]])
NEW, END = 6, 8
PAIRS = {"plain": attending, "hub": gpt2}
pairs = pytest.mark.parametrize(
    "pair", [pytest.param("plain"), pytest.param("hub", marks=needs_hub)]
)


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """Return pairs of models, made when first asked for, that agree now and then."""

    class Made(dict):
        def __missing__(self, name: str) -> Any:
            drafter, checker = PAIRS[name](), PAIRS[name]()
            for number, weight in enumerate(drafter.trainable_variables):
                noise = np.random.default_rng(number).normal(size=weight.shape)
                weight.assign(weight + 0.15 * noise)
            self[name] = drafter, checker
            return self[name]

    return Made()


def as_arrays(written: Any) -> list[np.ndarray]:
    return [ops.convert_to_numpy(part) for part in written]


def tables(vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of a drafting and of a checking model, by the last token."""
    rng = np.random.default_rng(0)
    shape = (vocabulary, vocabulary)
    return tuple(1.5 * rng.normal(size=shape).astype("float32") for _ in range(2))


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def chi_square(written: np.ndarray, next_token: np.ndarray, new: int) -> float:
    """Return chi square of completions after the token 2, of a table of transitions."""
    size = len(next_token)
    found: dict[tuple[int, ...], int] = {}
    for row in written.tolist():
        found[tuple(row)] = found.get(tuple(row), 0) + 1
    total = 0.0
    for path in itertools.product(range(size), repeat=new):
        steps = zip((2, *path), path, strict=False)
        right = len(written) * np.prod([next_token[a, b] for a, b in steps])
        count = found.pop(path, 0)
        assert right or not count
        total += (count - right) ** 2 / right if right else 0.0
    assert not found
    return total


def completions(written: Any, new: int) -> np.ndarray:
    """Return the completions of rows, of `new` tokens each."""
    tokens, is_completion = as_arrays(written)[:2]
    return tokens[is_completion].reshape(-1, new)


# Prompts of two lengths, after which a table of transitions writes the same.
RAGGED = np.tile([[2, 0], [1, 2]], (10_000, 1))


@pytest.mark.parametrize("block", [1, 2, 3])
def test_speculative_decoding_follows_the_target(block: int) -> None:
    draft, target = tables(3)
    written = speculative_decode(
        bigram(draft),
        bigram(target),
        RAGGED,
        max_new_tokens=3,
        padding_token=0,
        block=block,
        seed=1,
    )
    # 26 degrees of freedom: exceeded with one seed in a thousand.
    assert chi_square(completions(written, 3), softmax(target), 3) < 54.1


def test_both_models_draw_from_the_same_part_of_their_distributions() -> None:
    draft, target = tables(4)
    sampling = {"temperature": 0.7, "top_k": 2}
    written = speculative_decode(
        bigram(draft),
        bigram(target),
        RAGGED[:, :1] * 0 + 2,
        max_new_tokens=2,
        block=2,
        seed=1,
        **sampling,
    )
    kept = target >= np.sort(target, axis=-1)[:, -2:-1]
    right = softmax(np.where(kept, target / 0.7, -np.inf))
    # 3 degrees of freedom: exceeded with one seed in a thousand.
    assert chi_square(completions(written, 2), right, 2) < 16.3


def test_the_acceptance_rate_is_the_overlap_of_both_distributions() -> None:
    draft, target = (np.tile(table[:1], (5, 1)) for table in tables(5))
    written = speculative_decode(
        bigram(draft), bigram(target), RAGGED, max_new_tokens=4, block=2, seed=1
    )
    right = np.minimum(softmax(draft[0]), softmax(target[0])).sum()
    assert float(written.acceptance_rate) == pytest.approx(right, abs=0.01)


@pairs
@pytest.mark.parametrize(
    ("block", "use_cache"), [(1, True), (3, False), (4, True), (9, True)]
)
def test_the_most_probable_completion_is_that_of_the_target(
    made: Any, pair: str, use_cache: bool, block: int
) -> None:
    drafter, target = made[pair]
    options = {"max_new_tokens": NEW, "end_token": END, "temperature": 0}
    right = generate(target, PROMPTS, **options)
    written = speculative_decode(
        drafter, target, PROMPTS, block=block, use_cache=use_cache, **options
    )
    for found, expected in zip(as_arrays(written), as_arrays(right), strict=False):
        np.testing.assert_array_equal(found, expected)
    # Some rows end early and others don't.
    assert len(set(as_arrays(right)[1].sum(axis=1))) > 2


@pytest.mark.parametrize("block", [1, 2, 5])
def test_a_draft_of_the_target_itself_is_always_kept(made: Any, block: int) -> None:
    model = made["plain"][1]
    prompts = np.array([[3, 1, 4], [9, 2, 7]])
    written = speculative_decode(
        model, model, prompts, max_new_tokens=NEW, block=block, seed=1
    )
    assert float(written.acceptance_rate) == 1
    assert int(written.target_calls) == -(-NEW // (block + 1))


def checked_one_by_one(
    student: Any, teacher: Any, numbers: np.ndarray, prompt: list[int], top_k: int
) -> tuple[list[int], list[bool]]:
    """Return a completion by speculative KD of one prompt, and what is replaced."""
    row, replaced = list(prompt), []
    while prompt and len(row) < len(prompt) + NEW:
        # All of one length, for each of which JAX compiles. What follows isn't read.
        tokens = np.array([row + [1] * (3 + NEW - len(row))], "int32")
        q, p = (
            ops.convert_to_numpy(model(tokens))[:, len(row) - 1]
            for model in (student, teacher)
        )
        number = numbers[len(row)][None]
        drawn = Sampling().choose(ops.convert_to_tensor(q), number[:, :2])
        token = int(drawn[0])
        replaced.append((p[0] > p[0, token]).sum() >= top_k)
        if replaced[-1]:
            drawn = choose(ops.convert_to_tensor(softmax(p)), number[:, 2:4])
            token = int(drawn[0])
        row.append(token)
        if token == END:
            break
    return row[len(prompt) :], replaced


@pytest.mark.parametrize("top_k", [1, 3, VOCABULARY])
def test_proposals_are_those_that_are_checked_one_by_one(made: Any, top_k: int) -> None:
    student, teacher = made["plain"]
    numbers = ops.convert_to_numpy(uniform(PROMPTS, NEW, NUMBERS, 5))
    prompts = [[3, 1, 4], [2], [], [5, 5], [9, 0, 7]]
    right = [
        checked_one_by_one(student, teacher, of_row, prompt, top_k)
        for prompt, of_row in zip(prompts, numbers, strict=True)
    ]
    blocks = [(1, True), (4, True), (9, False)] if top_k == 3 else [(4, True)]
    for block, use_cache in blocks:
        written = propose_and_check(
            student,
            teacher,
            PROMPTS,
            max_new_tokens=NEW,
            end_token=END,
            teacher_top_k=top_k,
            block=block,
            seed=5,
            use_cache=use_cache,
        )
        tokens, is_completion, is_replaced = as_arrays(written)
        for row, (completion, replaced) in enumerate(right):
            assert tokens[row][is_completion[row]].tolist() == completion
            assert is_replaced[row][is_completion[row]].tolist() == replaced
            assert not is_replaced[row][~is_completion[row]].any()
        assert is_replaced.any() == (top_k < VOCABULARY)


def test_proposals_follow_the_formula() -> None:
    student, teacher = tables(4)
    written = propose_and_check(
        bigram(student),
        bigram(teacher),
        RAGGED,
        max_new_tokens=2,
        teacher_top_k=2,
        seed=1,
    )
    q, p = softmax(student), softmax(teacher)
    is_kept = (p[:, None, :] > p[:, :, None]).sum(-1) < 2
    right = q * is_kept + (q * ~is_kept).sum(-1, keepdims=True) * p
    # 15 degrees of freedom: exceeded with one seed in a thousand.
    assert chi_square(completions(written, 2), right, 2) < 37.7


@tensorflow_only("shapes are known on other backends")
@pytest.mark.parametrize(
    ("pair", "jit_compile"),
    [
        pytest.param("plain", True, id="plain-xla"),
        pytest.param("hub", False, id="hub-graph", marks=needs_hub),
    ],
)
def test_a_tensorflow_step_writes_the_same(
    made: Any, pair: str, jit_compile: bool
) -> None:
    import tensorflow as tf

    options = {"max_new_tokens": NEW, "end_token": END, "temperature": 0}
    spec = tf.TensorSpec((None, None), tf.int32)

    @tf.function(jit_compile=jit_compile, input_signature=[spec])
    def step(prompts: Any) -> Any:
        return speculative_decode(*made[pair], prompts, **options)

    right = speculative_decode(*made[pair], PROMPTS, **options)
    written = step(tf.convert_to_tensor(PROMPTS, tf.int32))
    for found, of_eager in zip(as_arrays(written), as_arrays(right), strict=True):
        np.testing.assert_array_equal(found, of_eager)


@pytest.mark.parametrize(
    ("function", "changed", "error"),
    [
        (propose_and_check, {"teacher_top_k": 0}, "`teacher_top_k` must be .*=0"),
        (propose_and_check, {"block": 0}, "`block` must be a whole number .*block=0"),
        (speculative_decode, {"block": 1.5}, "`block` must be .*block=1.5"),
        (speculative_decode, {"end_token": 4}, "`end_token` must be .*end_token=4"),
        (speculative_decode, {"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_wrong_arguments(function: Any, changed: Any, error: str) -> None:
    models = [bigram(table) for table in tables(4)]
    with pytest.raises(ValueError, match=error):
        function(*models, np.array([[1]]), **{"max_new_tokens": 2, **changed})


@pytest.mark.parametrize("function", [propose_and_check, speculative_decode])
def test_models_of_different_tokenizers_are_refused(function: Any) -> None:
    models = [bigram(tables(size)[0]) for size in (4, 5)]
    with pytest.raises(
        ValueError, match=r"same tokenizer.*token by token.*vocabulary of 4.* with 5"
    ):
        function(*models, np.array([[1]]), max_new_tokens=2)


def test_a_batch_of_padding_gets_no_completion() -> None:
    models: list[keras.Model] = [bigram(table) for table in tables(4)]
    for function in (propose_and_check, speculative_decode):
        written = function(*models, np.zeros((2, 3), int), max_new_tokens=2)
        assert not as_arrays(written)[1].any()
        assert not as_arrays(written)[0].any()

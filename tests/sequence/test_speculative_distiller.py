"""SpeculativeDistiller: its step by hand, what it logs, its files, its errors."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_distill.sequence import (
    OnPolicyDistiller,
    SpeculativeDistiller,
    propose_and_check,
)
from tests.distiller.models import assert_same_weights
from tests.sequence.texts import END, PROMPTS, VOCABULARY, token_model

WRITING = {"max_new_tokens": 4, "end_token": END}


def speculative(teacher: Any = None, **kwargs: Any) -> SpeculativeDistiller:
    """A distiller that is compiled as one that XLA doesn't compile.

    XLA draws other random numbers from a seed.
    """
    given = {**WRITING, "teacher_top_k": 2, "seed": 5, **kwargs}
    teacher = token_model(1) if teacher is None else teacher
    distiller = SpeculativeDistiller(token_model(0, 4), teacher, **given)
    distiller.compile(keras.optimizers.SGD(0.5), jit_compile=False)
    return distiller


def test_a_step_by_hand() -> None:
    ours, student = speculative(), token_model(0, 4)
    written = propose_and_check(
        student,
        ours.teacher,
        PROMPTS,
        teacher_top_k=2,
        seed=keras.random.SeedGenerator(5),
        **WRITING,
    )
    tokens, is_completion, is_replaced = (ops.convert_to_numpy(x) for x in written)
    count = is_completion.sum()
    assert 0 < is_replaced.sum() < count
    # The rows of prompts and completions as references, all tokens marked by masks.
    references = {
        "prompts": tokens,
        "prompt_mask": (tokens != 0) & ~is_completion,
        "completions": tokens,
        "completion_mask": is_completion,
    }
    supervised = OnPolicyDistiller(
        student, ours.teacher, student_fraction=0.0, **WRITING
    )
    supervised.compile(keras.optimizers.SGD(0.5), jit_compile=False)
    before = [ops.convert_to_numpy(weight) for weight in ours.teacher.weights]
    logs = ours.train_on_batch(PROMPTS, return_dict=True)
    right = supervised.train_on_batch(references, return_dict=True)
    assert logs["replaced_fraction"] == pytest.approx(is_replaced.sum() / count)
    for name in ("loss", "reverse_kl", "student_entropy"):
        assert logs[name] == pytest.approx(right[name], rel=1e-5)
    assert set(logs) == {*right, "replaced_fraction"}
    assert_same_weights(ours.student, student, atol=1e-6)
    for weight, value in zip(ours.teacher.weights, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), value)


def test_what_is_evaluated_is_the_students_alone() -> None:
    ours = speculative()
    logs = ours.evaluate(PROMPTS, verbose=0, return_dict=True)
    plain = OnPolicyDistiller(token_model(0, 4), ours.teacher, seed=5, **WRITING)
    plain.compile("sgd", jit_compile=False)
    right = plain.evaluate(PROMPTS, verbose=0, return_dict=True)
    assert logs == pytest.approx(right, rel=1e-5)


def test_with_all_of_the_vocabulary_nothing_is_replaced() -> None:
    ours = speculative(teacher_top_k=VOCABULARY)
    assert ours.train_on_batch(PROMPTS, return_dict=True)["replaced_fraction"] == 0


def test_files_hold_its_arguments(tmp_path: Path) -> None:
    ours = speculative(block=2, teacher_top_k=3)
    ours.train_on_batch(PROMPTS)
    ours.save(tmp_path / "distiller.keras")
    loaded = SpeculativeDistiller.load(tmp_path / "distiller.keras", ours.teacher)
    assert (loaded.block, loaded.teacher_top_k) == (2, 3)
    again = [d.train_on_batch(PROMPTS, return_dict=True) for d in (ours, loaded)]
    assert again[0] == pytest.approx(again[1])


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"teacher_top_k": 0}, ValueError, "`teacher_top_k` must be .*teacher_top_k=0"),
        ({"block": -1}, ValueError, "`block` must be .*block=-1"),
        ({"privileged_context": "hint"}, TypeError, "privileged_context"),
        ({"teacher": lambda x: x}, TypeError, "must be a causal Keras model.*function"),
    ],
    ids=["top_k", "block", "context", "function"],
)
def test_wrong_arguments(changed: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        speculative(**changed).train_on_batch(PROMPTS)


def test_a_teacher_of_another_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tokenizer"):
        speculative(token_model(1, vocabulary=VOCABULARY + 1)).train_on_batch(PROMPTS)

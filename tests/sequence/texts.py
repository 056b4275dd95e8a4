"""Token models and texts small enough that tracing is what a test costs."""

from typing import Any

import keras
import numpy as np
from keras import layers

from keras_distill.sequence import OnPolicyDistiller

VOCABULARY, END, PADDING = 7, 1, 0
PROMPTS = np.array([[2, 3, 4], [0, 5, 2], [6, 0, 0], [3, 3, 2]])
COMPLETIONS = np.array([[4, 4, 1, 0], [5, 1, 0, 0], [2, 6, 3, 5], [0, 0, 6, 1]])
# The same, from their first token to their last.
ROWS = [
    ([2, 3, 4], [4, 4, 1]),
    ([5, 2], [5, 1]),
    ([6], [2, 6, 3, 5]),
    ([3, 3, 2], [6, 1]),
]
REFERENCES = {"prompts": PROMPTS, "completions": COMPLETIONS}


def token_model(
    seed: int, units: int = 6, vocabulary: int = VOCABULARY, noisy: bool = False
) -> Any:
    """A causal model that sees four tokens, with logits that differ by their tokens.

    Where it is `noisy`, two of its layers act otherwise in training.
    """
    keras.utils.set_random_seed(seed)
    normal = keras.initializers.RandomNormal(stddev=0.7)
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(vocabulary, units, embeddings_initializer=normal),
            layers.Conv1D(units, 4, padding="causal", activation="tanh"),
            *([layers.Dropout(0.4, seed=3), layers.BatchNormalization()] * noisy),
            layers.Dense(vocabulary, kernel_initializer=normal),
        ],
        name=f"model_{seed}_{units}",
    )


def on_policy(student: Any = None, teacher: Any = None, **kwargs: Any) -> Any:
    """An `OnPolicyDistiller` of two models, not compiled."""
    given = {"max_new_tokens": 4, "end_token": END, "seed": 5, **kwargs}
    student = token_model(0, 4) if student is None else student
    teacher = token_model(1) if teacher is None else teacher
    return OnPolicyDistiller(student, teacher, **given)

"""Token models: completions that models write, and what students learn from them."""

from keras_distill.sequence.generation import Completions, generate
from keras_distill.sequence.models import logits_of
from keras_distill.sequence.speculative import (
    Decoded,
    Proposals,
    propose_and_check,
    speculative_decode,
)

__all__ = [
    "Completions",
    "Decoded",
    "Proposals",
    "generate",
    "logits_of",
    "propose_and_check",
    "speculative_decode",
]


def __dir__() -> list[str]:
    return sorted(__all__)

"""Token models: generation of completions, and distillation on their tokens.

Logits are of shape `(batch, time, vocabulary)`.
"""

from keras_distill.sequence.generation import Completions, generate
from keras_distill.sequence.models import logits_of
from keras_distill.sequence.on_policy import OnPolicyDistiller
from keras_distill.sequence.samples import sample
from keras_distill.sequence.speculative import (
    Decoded,
    Proposals,
    propose_and_check,
    speculative_decode,
)
from keras_distill.sequence.speculative_distiller import SpeculativeDistiller
from keras_distill.sequence.token_loss import TokenLoss

__all__ = [
    "Completions",
    "Decoded",
    "OnPolicyDistiller",
    "Proposals",
    "SpeculativeDistiller",
    "TokenLoss",
    "generate",
    "logits_of",
    "propose_and_check",
    "sample",
    "speculative_decode",
]


def __dir__() -> list[str]:
    return sorted(__all__)

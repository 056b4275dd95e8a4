"""Token models: completions that models write, and what students learn from them.

Logits are of shape `(batch, time, vocabulary)`.
"""

from keras_distill.sequence.generation import Completions, generate
from keras_distill.sequence.models import logits_of
from keras_distill.sequence.on_policy import OnPolicyDistiller
from keras_distill.sequence.token_loss import TokenLoss

__all__ = ["Completions", "OnPolicyDistiller", "TokenLoss", "generate", "logits_of"]


def __dir__() -> list[str]:
    return sorted(__all__)

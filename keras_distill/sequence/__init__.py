"""Token models: divergences over tokens, and students that learn from what they write.

Logits are of shape `(batch, time, vocabulary)`.
"""

from keras_distill.sequence.token_loss import TokenLoss

__all__ = ["TokenLoss"]


def __dir__() -> list[str]:
    return sorted(__all__)

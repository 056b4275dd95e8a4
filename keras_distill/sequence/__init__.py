"""Token models: completions that models write, and what students learn from them."""

from keras_distill.sequence.generation import Completions, generate
from keras_distill.sequence.models import logits_of

__all__ = ["Completions", "generate", "logits_of"]


def __dir__() -> list[str]:
    return sorted(__all__)

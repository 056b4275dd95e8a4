"""An audit of privileged features: whether distillation from them helps on a log."""

from keras_distill.privileged.auditing import audit
from keras_distill.privileged.result import Audit

__all__ = ["Audit", "audit"]


def __dir__() -> list[str]:
    return sorted(__all__)

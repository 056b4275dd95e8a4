"""Knowledge distillation for Keras 3: compile, fit, export a small model, prove it."""

from keras_distill import (
    export,
    hints,
    losses,
    metrics,
    online,
    schedules,
    teachers,
)
from keras_distill.distiller import Distiller
from keras_distill.teachers import cross_fit
from keras_distill.version import __version__

__all__ = [
    "Distiller",
    "__version__",
    "cross_fit",
    "export",
    "hints",
    "losses",
    "metrics",
    "online",
    "schedules",
    "teachers",
]

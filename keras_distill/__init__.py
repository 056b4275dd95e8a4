"""Knowledge distillation for Keras 3: compile, fit, export a small model, prove it."""

import importlib
from typing import TYPE_CHECKING, Any

from keras_distill import hints, losses, metrics, online, schedules, teachers
from keras_distill.distiller import Distiller
from keras_distill.teachers import cross_fit
from keras_distill.version import __version__

if TYPE_CHECKING:
    from keras_distill import export

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


def __getattr__(name: str) -> Any:
    # two fifths of the package's modules, which a training never needs; a room whose
    # classes stand in Keras' files can't wait, as Keras looks for these by name
    if name == "export":
        return importlib.import_module("keras_distill.export")
    raise AttributeError(f"module 'keras_distill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "export"})

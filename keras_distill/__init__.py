"""Knowledge distillation for Keras 3: compile, fit, export a small model, prove it."""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_distill.version import __version__


def _is_the_command() -> bool:
    """Whether this process is `keras-distill`, which reads its arguments first."""
    return Path((getattr(sys, "argv", None) or [""])[0]).stem == "keras-distill"


# Keras finds the classes that its files name only once they are imported, so all are
# imported with the package. It takes seconds, most of them TensorFlow's: the command
# waits until its arguments are read.
if TYPE_CHECKING or not _is_the_command():
    from keras_distill import hints, losses, metrics, online, schedules, teachers
    from keras_distill.distiller import Distiller
    from keras_distill.teachers import cross_fit

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

# What isn't a module by its own name.
_WITHIN = {"Distiller": "distiller", "cross_fit": "teachers"}


def __getattr__(name: str) -> Any:
    # `export` waits in every process: it is two fifths of the package's modules, and
    # no class of it is in a Keras file.
    if name in _WITHIN:
        return getattr(importlib.import_module(f"keras_distill.{_WITHIN[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"keras_distill.{name}")
    raise AttributeError(f"module 'keras_distill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

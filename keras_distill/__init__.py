"""Knowledge distillation for Keras 3: train, export and compare small models."""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_distill.version import __version__


def _is_the_command() -> bool:
    """Return whether this process is the command `keras-distill`."""
    return Path((getattr(sys, "argv", None) or [""])[0]).stem == "keras-distill"


# Keras can load a class from a file only after its module was imported, so the package
# imports all of them. That takes seconds. The command doesn't wait for it, so that it
# reports mistakes in its arguments at once.
if TYPE_CHECKING or not _is_the_command():
    from keras_distill import (
        callbacks,
        fake_quantization,  # noqa: F401 (files hold its layers)
        hints,
        losses,
        metrics,
        online,
        schedules,
        sequence,
        teachers,
    )
    from keras_distill.distiller import Distiller
    from keras_distill.teachers import cross_fit

if TYPE_CHECKING:
    from keras_distill import export, privileged, report, students, targets, tuning

__all__ = [
    "Distiller",
    "__version__",
    "callbacks",
    "cross_fit",
    "export",
    "hints",
    "losses",
    "metrics",
    "online",
    "privileged",
    "report",
    "schedules",
    "sequence",
    "students",
    "targets",
    "teachers",
    "tuning",
]

# Public names that are not modules, with the module of each.
_WITHIN = {"Distiller": "distiller", "cross_fit": "teachers"}


def __getattr__(name: str) -> Any:
    # `export`, `privileged`, `report`, `targets`, `students` and `tuning` have half of
    # the package's modules and no class that is in a Keras file: they are imported when
    # first used.
    if name in _WITHIN:
        return getattr(importlib.import_module(f"keras_distill.{_WITHIN[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"keras_distill.{name}")
    raise AttributeError(f"module 'keras_distill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""Imports a script of `examples/` or `benchmarks/` for its tests."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def imported(script: str) -> Iterator[ModuleType]:
    """Import a script as Python runs it: with the files of its folder.

    Afterwards these modules are forgotten, because other folders have files of the same
    names.

    Args:
        script: The path from the repository, such as "examples/flights.py".
    """
    path = ROOT / script
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        yield importlib.import_module(path.stem)
    for name in [file.stem for file in path.parent.glob("*.py")]:
        sys.modules.pop(name, None)

"""Parameters of which every run takes some, and `make test-slow` the others."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def but(usual: Collection[Any], cases: Iterable[Any], reason: str) -> list[Any]:
    """Return the cases, marked as slow but for the usual ones."""
    mark = pytest.mark.slow(reason)
    return [case if case in usual else pytest.param(case, marks=mark) for case in cases]

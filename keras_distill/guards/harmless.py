"""A guard that fails is silent: no training ends because of what only looks at it."""

from collections.abc import Callable
from typing import Any


def tried(function: Callable[..., Any], *args: Any) -> Any:
    """Return what a function returns, None where it raises.

    A warning that a user has turned into an error is raised.
    """
    try:
        return function(*args)
    except Warning:
        raise
    except Exception:
        return None

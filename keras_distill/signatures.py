"""Signatures for methods that override those of Keras and pass on all arguments."""

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

P = ParamSpec("P")


def like(
    original: Callable[P, Any],
) -> Callable[[Callable[..., Any]], Callable[P, Any]]:
    """Give a method of `*args, **kwargs` the signature of the method it overrides.

    Editors and notebooks then show the arguments of the installed Keras.

    Args:
        original: The method of Keras.
    """

    def decorate(method: Callable[..., Any]) -> Callable[P, Any]:
        method.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
        return method

    return decorate

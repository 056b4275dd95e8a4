"""The types of options: what can be checked before anything is imported."""

import json
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any


def whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Return the type of a whole number in a range."""
    wanted = f"a whole number from {minimum} " + (f"to {maximum}" if maximum else "on")

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ArgumentTypeError(f"must be {wanted}, not {text!r}") from None
        if number < minimum or (maximum is not None and number > maximum):
            raise ArgumentTypeError(f"must be {wanted}, not {text!r}")
        return number

    return parse


def at_least_0(text: str) -> float:
    """Parse a number that is finite and not negative."""
    return _number(text, "at least 0", lambda number: 0 <= number < float("inf"))


def positive(text: str) -> float:
    """Parse a number that is finite and above 0."""
    return _number(text, "above 0", lambda number: 0 < number < float("inf"))


def _number(text: str, wanted: str, accepts: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not accepts(number):
        raise ArgumentTypeError(f"must be a number {wanted}, not {text!r}")
    return number


def version(text: str) -> int | str:
    """Parse the number of a version, or `next`."""
    if text == "next":
        return text
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ArgumentTypeError(f"must be a number from 1 on or `next`, not {text!r}")


def file(text: str) -> str:
    """Check that there is a file."""
    if not Path(text).is_file():
        raise ArgumentTypeError(f"must be a file, but there is none at {text!r}")
    return text


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"must be JSON in braces, not {text!r}")
    return value


def json_file(text: str) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(Path(file(text)).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArgumentTypeError(f"must be a JSON file: {text!r} ({error})") from None


def require_input(path: str, what: str) -> None:
    """Raise where a command's model or export isn't there."""
    if not Path(path).exists():
        wanted = "nothing" if what == "EXPORT" else "no file"
        raise FileNotFoundError(
            f"`{what}` must be there. Received: {path!r}, where there is {wanted}."
        )

"""Types of options. They check values before TensorFlow is imported."""

import errno
import json
import os
import stat
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_distill.naming import NAME, NAMES

# The number of characters of a wrong argument that an error repeats.
_SHOWN = 200


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
    """Check that there is a file that can be read."""
    found = _found(text)
    if found:
        raise ArgumentTypeError(f"must be a file, but {found} at {_shown(text)}")
    return text


def place(text: str) -> str:
    """Check that a text can be the path of a directory."""
    try:
        text.encode("utf-8")
        usable = bool(os.lstat(text)) if text else False
    except OSError as error:
        usable = error.errno != errno.ENAMETOOLONG
    except ValueError:
        # The path contains a NUL, or bytes that aren't UTF-8.
        usable = False
    if not usable:
        raise ArgumentTypeError(f"must be the path of a directory, not {_shown(text)}")
    return text


def absolute(text: str) -> str:
    """Check that a path is absolute."""
    if not os.path.isabs(place(text)):
        raise ArgumentTypeError(f"must be an absolute path, not {_shown(text)}")
    return text


def server_name(text: str) -> str:
    """Check that a text can be the name of a model in a server."""
    if not NAME.fullmatch(text):
        raise ArgumentTypeError(f"must be {NAMES}, not {_shown(text)}")
    return text


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        return _object(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentTypeError(
            f"must be JSON in braces, not {_shown(text)} ({error})"
        ) from None


def json_file(text: str) -> dict[str, Any]:
    """Read a file that contains a JSON object."""
    try:
        return _object(Path(file(text)).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArgumentTypeError(
            f"must be a JSON file of an object in braces: {_shown(text)} ({error})"
        ) from None


def _object(text: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    value = json.loads(text, parse_constant=refuse)
    if not isinstance(value, dict):
        raise ValueError(f"it is of type {type(value).__name__}")
    return value


def require_input(path: str, what: str) -> None:
    """Raise FileNotFoundError if a command's model or export doesn't exist."""
    found = _found(path, directories=True)
    if found == _NOTHING:
        found = "there is nothing" if what == "EXPORT" else "there is no file"
    if found:
        raise FileNotFoundError(
            f"`{what}` must be there. Received: {_shown(path)}, where {found}."
        )


_NOTHING = "there is none"


def _found(text: str, *, directories: bool = False) -> str | None:
    """Return in words why a path can't be read; None if it can."""
    try:
        mode = os.stat(text).st_mode if text else None
    except (OSError, ValueError) as error:
        if os.path.islink(text):
            return "there is a link to nothing"
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        # The path is too long, contains a NUL, or is in a directory without access.
        reason = getattr(error, "strerror", None) or str(error)
        return _NOTHING if absent else f"there can be none ({reason})"
    if mode is None:
        return _NOTHING
    if not os.access(text, os.R_OK):
        return "this process may not read what is there"
    if stat.S_ISDIR(mode):
        return None if directories else "there is a directory"
    return None if stat.S_ISREG(mode) else "there is no regular file"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")

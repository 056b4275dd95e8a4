"""Errors of the library, with its arguments replaced by command-line options."""

import argparse
import os
import re
import textwrap
from collections.abc import Mapping
from typing import Any

# Options whose names differ from the library's arguments. An error names the first of
# them that was given, or else the first that the command has.
_OTHERWISE = {
    "accelerators": ("--accelerator",),
    "calibration_data": ("--calibrate",),
    "data": ("--evaluate",),
    "dataset": ("--data",),
    "directory": ("EXPORT", "--out"),
    "evaluation": ("--evaluate",),
    "example_batch": ("--examples", "--calibrate", "--evaluate"),
    "formats": ("--to",),
    "from_logits": ("--probabilities",),
    "k": ("--top-k",),
    "max_queue_delay_microseconds": ("--max-queue-delay",),
    "preferred_batch_sizes": ("--preferred-batch-size",),
    "preprocessing": ("--split-preprocessing",),
    "providers": ("--provider",),
    "repository": ("--out",),
    "stored": ("--dtype", "--values", "--samples", "--top-k"),
    "teacher": ("TEACHER.keras",),
}


def options(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the options of the library's arguments, by the arguments' names.

    Args:
        arguments: The parsed arguments, with their `parser`.
    """
    actions = arguments.parser._actions
    own = {action.dest: _typed(action) for action in actions}
    given = [_typed(action) for action in actions if _value(action, arguments)]
    others = {
        name: typed
        for name, candidates in _OTHERWISE.items()
        for known in (own.values(), given)
        for typed in reversed(candidates)
        if typed in known
    }
    return {**own, **others}


def explained(error: Exception, arguments: argparse.Namespace) -> str:
    """Return the message of an error on one line."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        # `str(error)` would begin with the number of the error.
        message = error.strerror
        if error.filename is not None:
            message = _of_file(error, arguments)
    elif not message or not isinstance(error, _WORDED):
        message = textwrap.shorten(f"{type(error).__name__}: {message}", 300)
        message += (
            ". This isn't foreseen: the same call of `keras_distill.export` in Python "
            "shows where it comes from."
        )
    return in_options(" ".join(message.split()), options(arguments))


# The text of another library's error within an error of this library.
_QUOTED = re.compile(r"\(\w*(?:Error|Exception)\w*: .*\)")
# The classes of the errors that the library raises itself.
_WORDED = (ImportError, OSError, RuntimeError, TypeError, ValueError)


def _of_file(error: OSError, arguments: argparse.Namespace) -> str:
    """Return the message of a system error, with the option that named the file."""
    path = os.path.realpath(os.fsdecode(error.filename))
    what = "A file"
    for action in arguments.parser._actions:
        value = _value(action, arguments)
        if isinstance(value, str) and path.startswith(os.path.realpath(value)):
            what = f"`{_typed(action)}`"
    return (
        f"{what} must be one that this process can use. Received: "
        f"{os.fsdecode(error.filename)!r} ({error.strerror})."
    )


def _typed(action: argparse.Action) -> str:
    strings = action.option_strings
    return strings[-1] if strings else str(action.metavar)


def _value(action: argparse.Action, arguments: argparse.Namespace) -> Any:
    return getattr(arguments, action.dest, None)


def in_options(message: str, options: Mapping[str, str]) -> str:
    """Return a message that names options instead of Python arguments.

    Args:
        message: An error of the library. It contains the names of arguments in
            backticks, alone or with a value, and again after "Received:".
        options: The option or metavar by the name of the argument.

    >>> message = "`max_drop` must be at least 0. Received: max_drop=-1.0."
    >>> in_options(message, {"max_drop": "--max-drop"})
    '`--max-drop` must be at least 0. Received: --max-drop -1.0.'
    >>> in_options("pass `version='next'`", {"version": "--version"})
    'pass `--version next`'
    """
    quote = _QUOTED.search(message)
    # The message of another library isn't changed.
    if quote:
        around = message[: quote.start()], message[quote.end() :]
        before, after = (in_options(part, options) for part in around)
        return before + quote[0] + after

    def quoted(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        if name not in options:
            return match[0]
        return f"`{options[name]}`" if value is None else f"`{options[name]} {value}`"

    def received(match: re.Match[str]) -> str:
        name = match["name"]
        return f"{options[name]} " if name in options else match[0]

    message = re.sub(
        r"`(?P<name>[a-z_]+)(?:=(?P<q>['\"]?)(?P<value>[^`'\"]*)(?P=q))?`",
        quoted,
        message,
    )
    start = message.find("Received:")
    if start < 0:
        return message
    end = re.sub(r"\b(?P<name>[a-z_]+)=(?=\S)", received, message[start:])
    return message[:start] + end

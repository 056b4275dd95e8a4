"""The library's errors in the words of the command line."""

import argparse
import re
from collections.abc import Mapping

# The library's arguments whose options have other names, and these options: the first
# one that the command has is meant.
_OTHERWISE = {
    "accelerators": ("--accelerator",),
    "calibration_data": ("--calibrate",),
    "data": ("--evaluate",),
    "directory": ("EXPORT", "--out"),
    "evaluation": ("--evaluate",),
    "example_batch": ("--examples",),
    "formats": ("--to",),
    "max_queue_delay_microseconds": ("--max-queue-delay",),
    "preferred_batch_sizes": ("--preferred-batch-size",),
    "preprocessing": ("--split-preprocessing",),
    "providers": ("--provider",),
    "repository": ("--out",),
}


def options(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return what users type for the arguments of the library."""
    own = {
        action.dest: action.option_strings[-1]
        if action.option_strings
        else str(action.metavar)
        for action in parser._actions
    }
    others = {
        name: typed
        for name, candidates in _OTHERWISE.items()
        for typed in reversed(candidates)
        if typed in own.values()
    }
    return {**own, **others}


def in_options(message: str, options: Mapping[str, str]) -> str:
    """Replace Python arguments by options, and calls by how they are typed.

    Args:
        message: An error of the library, which sets names in backticks, alone or with
            a value, and repeats them after "Received:".
        options: Option or metavar by the name of the argument.

    >>> message = "`max_drop` must be at least 0. Received: max_drop=-1.0."
    >>> in_options(message, {"max_drop": "--max-drop"})
    '`--max-drop` must be at least 0. Received: --max-drop -1.0.'
    >>> in_options("pass `version='next'`", {"version": "--version"})
    'pass `--version next`'
    """

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

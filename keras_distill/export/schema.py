"""The structure of a manifest, and its check before anything else reads it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


@dataclass(frozen=True)
class Kind:
    """A kind of values.

    Attributes:
        words: A description, for errors.
        holds: Returns whether a value is of this kind.
    """

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Optional:
    """An entry that may be absent."""

    schema: Any


# A schema is a `Kind`; `[schema]` for a list of any length; a dict of schemas by key,
# with further keys allowed; or `{...: schema}` for a dict with any keys.
Schema = Any


def damage(value: Any, schema: Schema, where: str = "the manifest") -> str | None:
    """Return a description of the first error in a value; None without an error."""
    return next(_damages(value, schema, where), None)


def _damages(value: Any, schema: Schema, where: str) -> Iterator[str]:
    if isinstance(schema, Kind):
        if not schema.holds(value):
            yield f"{where} must be {schema.words}, not {_shown(value)}"
    elif isinstance(schema, list):
        if not isinstance(value, list):
            yield f"{where} must be a list, not {_shown(value)}"
            return
        for number, item in enumerate(value):
            yield from _damages(item, schema[0], f"{where}[{number}]")
    elif not isinstance(value, dict):
        yield f"{where} must be an object, not {_shown(value)}"
    else:
        yield from _damages_of_entries(value, schema, where)


def _damages_of_entries(
    value: dict[str, Any], schema: dict[Any, Schema], where: str
) -> Iterator[str]:
    entries = {name: schema[...] for name in value} if ... in schema else schema
    for name, inner in entries.items():
        if name in value:
            wanted = inner.schema if isinstance(inner, Optional) else inner
            yield from _damages(value[name], wanted, f"{where}.{name}")
        elif not isinstance(inner, Optional):
            yield f"{where} has no {name!r}"


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    named = repr(value)
    return named if len(named) <= 60 else f"{named[:57]}..."


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    try:
        return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)
    except OverflowError:  # An integer that is too large for a float.
        return False


def _is_path(value: Any) -> bool:
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    # JSON can contain half of a surrogate pair, but a file's name can't.
    return not any(0xD800 <= ord(char) <= 0xDFFF for char in value)


def _is_dtype(value: Any) -> bool:
    try:
        return isinstance(value, str) and tf.as_dtype(value) is not None
    except TypeError:
        return False


def _is_shape(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(size is None or (_is_whole(size) and size >= 0) for size in value)
    )


def _relaxed(entries: dict[str, Schema], *required: str) -> dict[Any, Schema]:
    """Return the schema in which only the entries `required` are obligatory."""
    return {
        name: inner
        if name in required or isinstance(inner, Optional)
        else Optional(inner)
        for name, inner in entries.items()
    }


TEXT = Kind("text", lambda value: isinstance(value, str))
NUMBER = Kind("a finite number", _is_finite)
POSITIVE = Kind("a positive number", lambda value: _is_finite(value) and value > 0)
NOT_NEGATIVE = Kind(
    "a number from 0 on", lambda value: _is_finite(value) and value >= 0
)
COUNT = Kind(
    "a whole number from 0 on", lambda value: _is_whole(value) and 0 <= value < 2**63
)
BATCH = Kind(
    "a whole number from 1 on", lambda value: _is_whole(value) and 0 < value < 2**31
)

_PATH = {"path": Kind("the path of a file", _is_path)}
_FILE = {
    **_PATH,
    "bytes": COUNT,
    "sha256": Kind(
        "a SHA-256 in hexadecimal",
        lambda value: (
            isinstance(value, str)
            and len(value) == 64
            and set(value) <= set("0123456789abcdef")
        ),
    ),
}
# The entries that a manifest of any version needs so that its export can be replaced.
FILES = {"artefacts": {...: {"files": [_PATH]}}, "examples": Optional([_PATH])}
_SPECS = [
    {
        "name": TEXT,
        "dtype": Kind("the name of a dtype", _is_dtype),
        "shape": Kind("a list of sizes, null for open ones", _is_shape),
    }
]
_ARTEFACT = {
    "format": TEXT,
    "precision": TEXT,
    "files": [_FILE],
    "bytes": COUNT,
    "max_abs_difference": NOT_NEGATIVE,
    "max_relative_difference": NOT_NEGATIVE,
    "tolerance": POSITIVE,
    "weights": Optional({...: COUNT}),
    "evaluation": Optional({"metric": NUMBER}),
    "integers": Optional(
        {...: {"dtype": TEXT, "scale": POSITIVE, "zero_point": NUMBER}}
    ),
}
MANIFEST = {
    "model": TEXT,
    "parameters": COUNT,
    "signature": {
        "inputs": _SPECS,
        "outputs": _SPECS,
        "raw_inputs": Optional(_SPECS),
    },
    "scales": {...: POSITIVE},
    "artefacts": {...: _ARTEFACT},
    "examples": [_FILE],
    "batch_size": Optional(BATCH),
    "version": Optional(BATCH),
    "evaluation": Optional(
        {
            "metric": TEXT,
            "output": TEXT,
            "mode": TEXT,
            "max_drop": NUMBER,
            "examples": COUNT,
            "keras": NUMBER,
        }
    ),
    "rows_depend_on_each_other": Optional({"part": TEXT}),
    "versions": {...: TEXT},
}
# The entries for a server's repository. The others are for running the artefacts.
SERVED = _relaxed(MANIFEST, "model", "signature") | {
    "artefacts": {...: _relaxed(_ARTEFACT, "format", "files")}
}

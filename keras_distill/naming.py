"""Names for logs, files and servers."""

import re
from collections.abc import Sequence

# Names that every server accepts as a directory, in a URL and in its configuration.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
NAMES = (
    "letters, digits, '_', '-' and '.', and begin with a letter, a digit or '_', as it "
    "becomes a directory and part of a URL"
)


def distinct(names: Sequence[str]) -> list[str]:
    """Return the names, with a number at the end of each repeated name."""
    result: list[str] = []
    for name in names:
        number, candidate = 0, name
        while candidate in result:
            number += 1
            candidate = f"{name}_{number}"
        result.append(candidate)
    return result

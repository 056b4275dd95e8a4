"""Names that logs and files tell things apart by."""

from collections.abc import Sequence


def distinct(names: Sequence[str]) -> list[str]:
    """Return the names with a number at the end of those that are taken already."""
    result: list[str] = []
    for name in names:
        number, candidate = 0, name
        while candidate in result:
            number += 1
            candidate = f"{name}_{number}"
        result.append(candidate)
    return result

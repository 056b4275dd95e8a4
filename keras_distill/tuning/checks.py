"""Checks of the arguments of a search, with the split of its held-out rows."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_distill.tuning.fits import BLOCKS, Rows, take


def count(rows: Rows) -> int:
    """Return the number of rows."""
    return len(keras.tree.flatten(rows)[0])


def split(held_out: Any, seed: int) -> dict[str, Rows]:
    """Return one half of the rows for the search, and one for the confirmation."""
    what = "arrays that aren't in `train`, with labels"
    check_labelled("held_out", held_out, what)
    rows = keras.tree.map_structure(np.asarray, tuple(held_out))
    counts = {len(array) for array in keras.tree.flatten(rows)}
    if len(counts) != 1 or min(counts) < 2 * BLOCKS:
        raise ValueError(
            f"`held_out` must have {2 * BLOCKS} rows or more, as many labels "
            f"as inputs. Received: arrays of {sorted(counts)} rows"
        )
    order = np.random.default_rng(seed).permutation(counts.pop())
    half = len(order) // 2
    return {"search": take(rows, order[:half]), "confirm": take(rows, order[half:])}


def check_labelled(name: str, data: Any, what: str) -> None:
    """Raise ValueError unless data are inputs, labels and perhaps sample weights.

    Args:
        name: The name of the argument.
        data: Its value.
        what: What its parts must be, for the error message.
    """
    given = isinstance(data, (tuple, list)) and len(data) in (2, 3)
    if not given or any(part is None for part in data):
        raise ValueError(
            f"`{name}` must be (x, y) or (x, y, sample_weight), {what}. "
            f"Received: {name} of {type(data).__name__}"
            + (f" with {[type(it).__name__ for it in data]}" if given else "")
        )


def check_counts(counts: Mapping[str, int | None]) -> None:
    """Raise ValueError for a number below 1. None isn't checked."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be 1 or more. Received: {name}={value}")


def check_callable(functions: Mapping[str, Any], *optional: Any) -> None:
    """Raise TypeError for an argument that isn't a function."""
    names = ("callbacks", "oracle")
    given = {k: v for k, v in zip(names, optional, strict=True) if v is not None}
    for name, value in {**functions, **given}.items():
        if not callable(value):
            raise TypeError(
                f"`{name}` must be a function, or for a teacher also a model. Objects "
                "such as optimisers serve one fit, so that each fit makes its own. "
                f"Received: {name}={value!r}"
            )


def check_numbers(
    counts: Mapping[str, int],
    seeds: int,
    max_seeds: int,
    max_trials: int | None,
    smallest_gain: float,
) -> None:
    """Raise ValueError for a number out of its range."""
    check_counts(counts)
    if not 2 <= seeds <= max_seeds:
        raise ValueError(
            "`seeds` must be 2 or more, and at most `max_seeds`. Received: "
            f"seeds={seeds}, max_seeds={max_seeds}"
        )
    if max_trials is not None and max_trials < 2:
        raise ValueError(
            "`max_trials` must be 2 or more: the student alone and one setting. "
            f"Received: max_trials={max_trials}"
        )
    if not smallest_gain >= 0:
        raise ValueError(
            f"`smallest_gain` must be 0 or more. Received: {smallest_gain=}"
        )

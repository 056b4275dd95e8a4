"""Functions of axes that the rules of several layers share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_distill.students.tracing import CannotFollow
from keras_distill.students.units import (
    Axes,
    Labels,
    labelled,
    replaced,
)


def channel_axis(layer: Any, rank: int) -> int:
    """Return the axis of the channels."""
    first = getattr(layer, "data_format", None) == "channels_first"
    return 1 if first else rank - 1


def only(axes: Axes, axis: int) -> Labels | None:
    """Return the units of an axis. Raise `CannotFollow` if another axis has units."""
    if labelled(replaced(axes, axis, None)):
        raise CannotFollow(f"it mixes units that lie along another axis than {axis}")
    return axes[axis]


def sizes(axes: Axes, shape: Sequence[int | None]) -> list[Labels | int | None]:
    """Return the size of each dimension, or its labels if a part of it is kept."""
    pairs = zip(axes, shape, strict=True)
    return [size if labels is None else labels for labels, size in pairs]


def spatial(shape: Sequence[int | None], channel: int) -> list[int | None]:
    """Return the sizes of the axes that are neither batch nor channels."""
    return [size for axis, size in enumerate(shape) if axis not in (0, channel)]


def repeated(labels: Labels | None, times: int) -> Labels | None:
    """Return the labels with each of them several times in a row."""
    return None if labels is None else np.repeat(labels, times)


def of_listed(axis: Any) -> list[int]:
    """Return a layer's axes as a list, from one axis or several."""
    return list(axis) if isinstance(axis, (list, tuple)) else [axis]

"""Units of layers, and which of them have to be cut together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# The unit at each position of an axis. Units may occur several times, as after Flatten.
Labels = npt.NDArray[np.int64]
# The labels of each axis of a tensor or a weight; None for an axis that is never cut.
Axes = tuple[Labels | None, ...]


@dataclass(frozen=True)
class Made:
    """The units that one layer makes.

    Attributes:
        path: The names of the sub-models around the layer, then its own name.
        labels: The units of the layer.
    """

    path: tuple[str, ...]
    labels: Labels


class Units:
    """A union-find of units. Tied units are cut together.

    The units that a layer makes at once form a space. A width keeps a part of a space.
    If two units are tied, their spaces are tied too.
    """

    def __init__(self) -> None:
        self.made: list[Made] = []
        self.fixed: set[int] = set()
        self.refused: dict[int, tuple[str, str]] = {}
        self._units = _Forest()
        self._spaces = _Forest()
        self._space_of: list[int] = []

    def __len__(self) -> int:
        return len(self._space_of)

    def new(self, count: int, path: tuple[str, ...]) -> Labels:
        """Return new units that a layer makes."""
        space = self._spaces.add()
        labels = np.array([self._units.add() for _ in range(count)], "int64")
        self._space_of += [space] * count
        self.made.append(Made(path, labels))
        return labels

    def new_fixed(self, count: int) -> Labels:
        """Return units that are never cut, such as the channels of an input."""
        space = self._spaces.add()
        labels = np.array([self._units.add() for _ in range(count)], "int64")
        self._space_of += [space] * count
        self.fix(labels)
        return labels

    def tie(self, first: Labels, second: Labels) -> None:
        """Tie units position by position."""
        for a, b in np.broadcast(first, second):
            self._units.join(int(a), int(b))
            self._spaces.join(self._space_of[a], self._space_of[b])

    def fix(self, labels: Labels) -> None:
        """Exclude units from any cut."""
        self.fixed.update(map(int, labels.ravel()))

    def refuse(self, labels: Labels, layer: str, why: str) -> None:
        """Record a layer because of which a cut of any of these units is an error."""
        for unit in map(int, labels.ravel()):
            self.refused.setdefault(unit, (layer, why))

    def roots(self) -> Labels:
        """Return the representative of each unit, the same for all tied units."""
        return np.array([self._units.find(unit) for unit in range(len(self))], "int64")

    def space_roots(self) -> Labels:
        """Return the representative of each unit's space."""
        return np.array([self._spaces.find(space) for space in self._space_of], "int64")


class _Forest:
    """A union-find."""

    def __init__(self) -> None:
        self.parents: list[int] = []

    def add(self) -> int:
        self.parents.append(len(self.parents))
        return self.parents[-1]

    def find(self, item: int) -> int:
        root = item
        while self.parents[root] != root:
            root = self.parents[root]
        while self.parents[item] != root:
            self.parents[item], item = root, self.parents[item]
        return root

    def join(self, a: int, b: int) -> None:
        self.parents[self.find(b)] = self.find(a)


def labelled(axes: Axes) -> list[Labels]:
    """Return the labels of the axes that have labels."""
    return [labels for labels in axes if labels is not None]


def whole(rank: int) -> Axes:
    """Return the axes of a tensor of which nothing is cut."""
    return (None,) * rank


def replaced(axes: Axes, axis: int, labels: Labels | None) -> Axes:
    """Return the axes with other labels on one of them."""
    result = list(axes)
    result[axis] = labels
    return tuple(result)


def reshaped(
    axes: Axes, shape: Sequence[int | None], new: Sequence[int | None]
) -> Axes:
    """Return the axes after a reshape in C order that keeps the batch axis.

    Raises:
        LookupError: If the units of one axis don't lie along one axis afterwards.
    """
    if not labelled(axes):
        return whole(len(new))
    dims = [size for size in shape[1:] if size is not None]
    new_dims = [size for size in new[1:] if size is not None]
    known = len(dims) == len(shape) - 1 and len(new_dims) == len(new) - 1
    if axes[0] is not None or not known or len(labelled(axes)) > 1:
        raise LookupError
    ((position, labels),) = ((p, a) for p, a in enumerate(axes) if a is not None)
    aligned = labels.reshape([-1 if p == position else 1 for p in range(1, len(axes))])
    spread = np.broadcast_to(aligned, dims).reshape(new_dims)
    for axis in range(spread.ndim):
        line = np.moveaxis(spread, axis, -1).reshape(-1, spread.shape[axis])
        if (line == line[0]).all():
            return replaced(whole(len(new)), axis + 1, np.array(line[0]))
    raise LookupError

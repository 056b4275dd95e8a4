"""Plans of the units that a student keeps, by widths or by its size."""

import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt

from keras_distill.students.importance import Scores
from keras_distill.students.tracing import Size, Trace
from keras_distill.students.units import Axes, Labels, Made

Kept = npt.NDArray[np.bool_]
_WHOLE = "To leave it whole, give `width` by layer, as in width={{{!r}: 0.5}}."
_WITHIN = 0.05


@dataclass
class Space:
    """Units that are made or added together. A width keeps a part of them.

    Attributes:
        free: The units that may be cut, one of each set of tied units, the most
            important first.
        makers: The layers that make the units, each by the names of its sub-models and
            its own name.
        needed: Units that are always kept, so that no layer loses all of its units.
        refused: A layer that can't follow a cut, and the reason. None if all can.
    """

    free: Labels
    makers: list[tuple[str, ...]]
    needed: set[int]
    refused: tuple[str, str] | None

    def called(self, pattern: str) -> bool:
        """Return whether the name of a maker or of a sub-model around it matches."""
        return any(
            fnmatch.fnmatchcase(n, pattern) for path in self.makers for n in path
        )

    @property
    def name(self) -> str:
        """The name of its first layer."""
        return self.makers[0][-1]

    def best(self, width: float) -> set[int]:
        """Return the units that are kept at a width, with those that are needed."""
        count = int(width * len(self.free) + 0.5)
        chosen = [unit for unit in self.free.tolist() if unit in self.needed]
        others = [unit for unit in self.free.tolist() if unit not in self.needed]
        return {*chosen, *others[: max(count - len(chosen), 0)]}


class Plan:
    """The spaces of a teacher, and the units that widths keep of them."""

    def __init__(self, trace: Trace, scores: Scores) -> None:
        self.trace = trace
        self.roots = trace.units.roots()
        self.spaces = list(_spaces(trace, self.roots, scores))

    def at(self, width: float) -> Kept:
        """Return the units kept if every layer has this width."""
        refused = [*self.trace.refusals, *(s.refused for s in self.spaces if s.refused)]
        if refused and width < 1.0:
            name, why = refused[0]
            example = next((s.name for s in self.spaces if not s.refused), "dense")
            remedy = _WHOLE.format(example)
            raise ValueError(f"The layer {name!r} can't follow a cut: {why}. {remedy}")
        return self._kept([width] * len(self.spaces))

    def by_layer(self, widths: Mapping[str, float]) -> Kept:
        """Return the units kept if the layers of each name have its width."""
        chosen: list[float | None] = [None] * len(self.spaces)
        for pattern, width in widths.items():
            found = [i for i, space in enumerate(self.spaces) if space.called(pattern)]
            if not found:
                for name, why in self.trace.refusals:
                    if fnmatch.fnmatchcase(name, pattern):
                        raise ValueError(
                            f"The layer {name!r} can't be cut: {why}. "
                            f"Received: width={dict(widths)}"
                        )
                names = sorted({path[-1] for s in self.spaces for path in s.makers})
                raise ValueError(
                    f"`width` names {pattern!r}, which isn't a layer or sub-model that "
                    f"can be cut. Those that can be: {names}"
                )
            for index in found:
                if chosen[index] not in (None, width):
                    raise ValueError(
                        f"`width` has {chosen[index]} and {width} for layers that are "
                        f"added together and so are cut together: "
                        f"{[path[-1] for path in self.spaces[index].makers]}"
                    )
                chosen[index] = width
                refused = self.spaces[index].refused
                if refused and width < 1.0:
                    raise ValueError(
                        f"{self.spaces[index].name!r} can't be cut, as the layer "
                        f"{refused[0]!r} can't follow: {refused[1]}. "
                        f"Received: width={dict(widths)}"
                    )
        return self._kept([1.0 if w is None else w for w in chosen])

    def _kept(self, widths: list[float], strict: bool = True) -> Kept:
        kept: set[int] = set(self.roots.tolist())
        for space, width in zip(self.spaces, widths, strict=True):
            count = len(space.free)
            if strict and count > 1 and int(width * count + 0.5) == 0:
                raise ValueError(
                    f"`width` leaves the layer {space.name!r} without a unit: it has "
                    f"{count}. Received: width={width}"
                )
            kept -= set(space.free.tolist()) - space.best(width)
        return np.isin(self.roots, list(kept))

    def of_size(self, size: Callable[[Kept], float], share: float, name: str) -> Kept:
        """Return the units kept at the width that reduces the size to this share.

        Raises:
            ValueError: If no width comes within 5 % of the share.
        """
        wanted = share * size(self.at(1.0))
        self.at(0.999)  # Raises an error if a layer can't follow.
        low, high = 0.0, 1.0
        for _ in range(30):
            width = (low + high) / 2
            below = size(self._near(width, width, 0)) < wanted
            low, high = (width, high) if below else (low, width)
        # Several spaces may lose a unit at the same width. For sizes in between, the
        # first of the spaces have the larger width.
        steps = [self._near(low, high, n) for n in range(len(self.spaces) + 1)]
        best = min(steps, key=lambda kept: abs(size(kept) - wanted))
        if abs(size(best) - wanted) > _WITHIN * wanted:
            reached = size(best) / size(self.at(1.0))
            raise ValueError(
                f"No width comes within 5 % of `{name}`; the nearest share is "
                f"{reached:.3f}. Received: {name}={share}"
            )
        return best

    def _near(self, low: float, high: float, number: int) -> Kept:
        """Return the units kept with the width `high` for the first `number` spaces."""
        widths = [high] * number + [low] * (len(self.spaces) - number)
        return self._kept(widths, strict=False)


def _spaces(trace: Trace, roots: Labels, scores: Scores) -> list[Space]:
    total = np.zeros(len(roots))
    np.add.at(total, roots, scores)
    of_space = trace.units.space_roots()
    fixed = {int(roots[unit]) for unit in trace.units.fixed}
    found: dict[int, list[Made]] = {}
    for made in trace.units.made:
        if len(made.labels):
            found.setdefault(int(of_space[made.labels[0]]), []).append(made)
    refusals = {int(roots[u]): why for u, why in trace.units.refused.items()}
    result = []
    for space, makers in found.items():
        members = np.unique(roots[of_space == space])
        free = np.array([unit for unit in members if int(unit) not in fixed], "int64")
        if not len(free):
            continue
        # Of equal units the first stays, whatever the order of sorting.
        free = free[np.argsort(-total[free], kind="stable")]
        refused = next((refusals[u] for u in free.tolist() if u in refusals), None)
        tied = len(free) == 1 and max(len(made.labels) for made in makers) > 1
        if tied and refused is None:
            refused = makers[0].path[-1], "its units are tied to each other by groups"
        place = {unit: index for index, unit in enumerate(free.tolist())}
        needed = set()
        for made in makers:
            own = [place.get(unit, -1) for unit in roots[made.labels].tolist()]
            if min(own) >= 0:
                needed.add(int(free[min(own)]))
        result.append(Space(free, [made.path for made in makers], needed, refused))
    return result


def length(size: Size, kept: Kept) -> int | None:
    """Return the length of an axis after the cut."""
    return int(kept[size].sum()) if isinstance(size, np.ndarray) else size


def parameters(teacher: keras.Model, trace: Trace) -> Callable[[Kept], float]:
    """Return the function that counts the parameters of the student."""
    plain: int = sum(
        math.prod(v.shape) for v in teacher.weights if id(v) not in trace.weights
    )
    cut = [(weight.axes, weight.variable.shape) for weight in trace.weights.values()]

    def count(kept: Kept) -> float:
        return plain + sum(math.prod(_shape(*each, kept)) for each in cut)

    return count


def _shape(axes: Axes, shape: tuple[int, ...], kept: Kept) -> list[int]:
    pairs = zip(axes, shape, strict=True)
    return [size if a is None else int(kept[a].sum()) for a, size in pairs]


def flops(trace: Trace) -> Callable[[Kept], float]:
    """Return the function that counts multiplications with kernels and in attention."""
    if any(size is None for product in trace.products for size in product):
        raise ValueError(
            "`flops` needs a teacher whose inputs have known sizes: the number of "
            "multiplications depends on them. Use `parameters`."
        )

    def count(kept: Kept) -> float:
        return float(
            sum(math.prod(length(s, kept) or 0 for s in p) for p in trace.products)
        )

    return count

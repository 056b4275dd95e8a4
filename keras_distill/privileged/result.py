"""The result of an audit: the verdict, and the numbers that it follows from."""

import dataclasses
from collections.abc import Mapping
from math import floor, log10
from typing import Any

from keras_distill.privileged.fits import ALONE, CONTROL_TEACHER, MODELS, TEACHER
from keras_distill.tuning.interval import Gain

# The verdict is "leaks" if the teacher explains more than this share of the loss that
# remains without the privileged features. See `audit`.
LEAK = 0.8


@dataclasses.dataclass(frozen=True)
class Audit:
    """The result of `keras_distill.privileged.audit`. Print it for a summary.

    A gain is the difference of two models' mean label losses on the test rows. It is
    positive if the model that is named first is better.

    Args:
        gain: The gain of the student with a teacher over the student alone.
        over_control: The gain of the same student over the control, a student whose
            teacher reads the privileged features of another row.
        control_gain: The gain of the control over the student alone.
        teacher_gain: The gain of the teacher over the student alone.
        columns: The rise of the teacher's loss when a feature is shuffled in the test
            rows, by the name of each privileged feature.
        losses: The mean label loss of each model.
        rows: The number of test rows.
        groups: The number of groups or blocks that the test rows are in.
        folds: The number of folds.
        fits: The number of fits.

    Example:
        >>> none, some = Gain(0.0, -0.01, 0.01, 3), Gain(0.05, 0.03, 0.07, 3)
        >>> losses = {"student alone": 0.5, "student, control": 0.5,
        ...           "student, privileged": 0.45, "teacher, control": 0.5,
        ...           "teacher": 0.3}
        >>> found = Audit(gain=some, over_control=some, control_gain=none,
        ...               teacher_gain=some, columns={"dwell": some}, losses=losses,
        ...               rows=500, groups=30, folds=3, fits=45)
        >>> found.verdict, round(found.explained, 2)
        ('pays', 0.4)
    """

    gain: Gain
    over_control: Gain
    control_gain: Gain
    teacher_gain: Gain
    columns: Mapping[str, Gain]
    losses: Mapping[str, float]
    rows: int
    groups: int
    folds: int
    fits: int

    @property
    def explained(self) -> float:
        """The share of the loss without privileged features that the teacher explains.

        It is `1 - loss of the teacher / loss of the student alone`. If the loss of the
        control's teacher is lower than that of the student alone, it is used instead.
        """
        remaining = min(self.losses[ALONE], self.losses[CONTROL_TEACHER])
        return 1.0 - self.losses[TEACHER] / remaining if remaining else 0.0

    @property
    def verdict(self) -> str:
        """The verdict, `"pays"`, `"doesn't"` or `"leaks"`, as defined in `audit`."""
        if self.explained > LEAK:
            return "leaks"
        gains = self.gain.verdict, self.over_control.verdict
        return "pays" if gains == ("helps", "helps") else "doesn't"

    @property
    def leading(self) -> list[str]:
        """The column of the largest rise in loss, and those of half as much or more."""
        rises = {name: rise.mean for name, rise in self.columns.items()}
        first, *others = sorted(rises, key=lambda name: -rises[name])
        return [first, *(name for name in others if rises[name] >= rises[first] / 2)]

    @property
    def advice(self) -> str:
        """A text that advises what to do next."""
        if self.verdict == "leaks":
            return (
                f"Leave out {', '.join(self.leading)}: the teacher all but reads the "
                "label there. Then audit the other columns."
            )
        if self.verdict == "pays":
            return (
                f"Distil from {', '.join(self.leading)} on the whole log, and keep the "
                "student alone and the control beside it."
            )
        largest = max(0.0, min(self.gain.high, self.over_control.high))
        return (
            "Train without these columns. On these rows they gain the student "
            f"{largest:.{self._decimals}f} at most. Raise `max_rows` or `seeds` if "
            "that still matters to you."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the result as dicts, lists, strings and numbers, e.g. for JSON."""
        derived = {name: getattr(self, name) for name in ("verdict", "explained")}
        return derived | dataclasses.asdict(self) | {"advice": self.advice}

    def __str__(self) -> str:
        ranked = sorted(self.columns.items(), key=lambda item: -item[1].mean)
        lines = [
            f"Label loss of {self.rows} later rows ({self.folds} folds, "
            f"{self.gain.seeds} seeds, {self.groups} groups; lower is better):",
            *(self._line(name, f"{self.losses[name]: .{self._decimals}f}")
              for name in MODELS),
            f"The teacher explains {self.explained:.0%} of what remains without its "
            f"columns (a leak above {LEAK:.0%}).",
            "Gain in label loss, with its 95 % interval:",
            self._gain("privileged over alone", self.gain),
            self._gain("privileged over control", self.over_control),
            self._gain("control over alone", self.control_gain),
            self._gain("teacher over alone", self.teacher_gain),
            "Rise of the teacher's loss where a column is shuffled:",
            *(self._gain(name, rise) for name, rise in ranked),
            f"Verdict: {self.verdict}. Fits: {self.fits}.",
            f"Next: {self.advice}",
        ]  # fmt: skip
        return "\n".join(lines)

    @property
    def _decimals(self) -> int:
        """The decimals that show the loss of the student alone with five digits."""
        loss = self.losses[ALONE]
        return max(0, 4 - floor(log10(loss))) if loss > 0 else 4

    def _line(self, name: str, text: str) -> str:
        width = max(map(len, (*MODELS, "privileged over control", *self.columns)))
        return f"  {name:{width}s}  {text}"

    def _gain(self, name: str, gain: Gain) -> str:
        mean, low, high = (
            f"{value:+.{self._decimals}f}" for value in (gain.mean, gain.low, gain.high)
        )
        return self._line(name, f"{mean}  [{low}, {high}]")

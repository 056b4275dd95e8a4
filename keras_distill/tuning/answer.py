"""The answer of a search: the setting to use, and whether distillation helps."""

import dataclasses
from collections.abc import Mapping
from math import inf, isfinite
from typing import Any

from keras_distill.tuning.interval import Gain
from keras_distill.tuning.settings import ALONE, Setting


@dataclasses.dataclass(frozen=True)
class Answer:
    """The result of `keras_distill.tuning.search`. Print it for a summary.

    Args:
        best: The setting with alpha above 0 that has the best score in the search.
        gain: The gain of `best` over the student alone, on rows and seeds that weren't
            used to choose `best`.
        objective: The name of the value that was measured.
        direction: `"max"` or `"min"`.
        scores: The mean score of each setting that the search tried; NaN if a fit
            diverged.
        fits: The number of fits in the search and the confirmation.
        distillation_loss: The loss of `best`.

    Example:
        >>> best = Setting(0.5, "ForwardKL", 4.0)
        >>> gain = Gain(-0.01, -0.02, 0.002, 5)
        >>> answer = Answer(best, gain, "accuracy", "max", {}, 11)
        >>> answer.verdict, str(answer.setting)
        ('no gain shown', 'alone (alpha 0)')
        >>> answer.compile_arguments()
        {'alpha': 0.0}
    """

    best: Setting
    gain: Gain
    objective: str
    direction: str
    scores: Mapping[Setting, float]
    fits: int
    distillation_loss: Any = None

    @property
    def verdict(self) -> str:
        """The verdict of `gain`, `"helps"`, `"no gain shown"` or `"hurts"`."""
        return self.gain.verdict

    @property
    def setting(self) -> Setting:
        """The setting to use, `best` if it helps, and otherwise the student alone."""
        return self.best if self.verdict == "helps" else ALONE

    def compile_arguments(self) -> dict[str, Any]:
        """Return the arguments of `Distiller.compile` for the setting to use."""
        if self.setting == ALONE:
            return {"alpha": 0.0}
        return {
            "alpha": self.setting.alpha,
            "distillation_loss": self.distillation_loss,
        }

    def __str__(self) -> str:
        gain, better = self.gain, "higher" if self.direction == "max" else "lower"
        sign = -1 if self.direction == "max" else 1
        ranked = sorted(
            self.scores.items(),
            key=lambda item: sign * item[1] if isfinite(item[1]) else inf,
        )
        lines = [
            f"{self.objective} in the search ({better} is better):",
            *(f"  {score:.4f}  {setting}" for setting, score in ranked),
            f"Gain of {self.best} over alone, on other rows and {gain.seeds} other "
            f"seeds: {gain.mean:+.4f}, 95 % interval [{gain.low:+.4f}, "
            f"{gain.high:+.4f}].",
            f"Verdict: {self.verdict}. Use: {self.setting}. Fits: {self.fits}.",
        ]
        return "\n".join(lines)

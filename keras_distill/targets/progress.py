"""The line that shows the progress of a recording."""

import sys
import time


class Progress:
    """Shows examples, examples a second and the time left, if stderr is a terminal.

    Args:
        shown: Whether to show anything.
        total: The number of examples; None if it isn't known.
    """

    def __init__(self, shown: bool, total: int | None = None) -> None:
        self.shown = shown and sys.stderr.isatty()
        self.total = total
        self.rows = self.asked = 0
        self._began = self._written = time.monotonic()

    def add(self, rows: int, *, asked: bool) -> None:
        """Count rows. `asked` is whether the teacher ran on them."""
        self.rows += rows
        self.asked += rows if asked else 0
        if self.shown and time.monotonic() - self._written > 0.2:
            self._write()

    def end(self) -> None:
        """End the line."""
        if self.shown:
            self._write()
            sys.stderr.write("\n")

    def text(self) -> str:
        """Return the line."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = self.asked / seconds
        of_total = f"/{self.total:,}" if self.total else ""
        line = f"recording {self.rows:,}{of_total} examples, {rate:,.0f} examples/s"
        if self.total and self.asked:
            left = max(self.total - self.rows, 0) / rate
            line += f", {_duration(left)} left"
        return line

    def _write(self) -> None:
        self._written = time.monotonic()
        sys.stderr.write(f"\r{self.text()}\x1b[K")
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

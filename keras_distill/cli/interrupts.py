"""The handling of Ctrl-C: an exit code, no traceback, no unfinished files."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from keras_distill import standard_error

INTERRUPTED = 130
# Ctrl-C pressed again within this time doesn't interrupt the removal of unfinished
# files.
_SECONDS_TO_CLEAN_UP = 2.0
# How often the block is checked for an interrupt that a library has dropped.
_SECONDS_BETWEEN_CHECKS = 0.1


class Interrupts:
    """Raises one `KeyboardInterrupt` for Ctrl-C while a block runs.

    Python and libraries drop some exceptions: in destructors, in C++ that clears
    errors, in a bare `except`. An interrupt that was dropped is raised again.

    Args:
        restore: Whether the previous handling of Ctrl-C is restored after the block. If
            not, the process is about to end, and Ctrl-C does nothing.
    """

    def __init__(self, *, restore: bool) -> None:
        self._restore = restore
        self._at_once = False
        self._last: float | None = None
        self._before: Any = None
        self._over = threading.Event()
        self._checks = threading.Thread(target=self._check, daemon=True)
        self._checking = False

    @property
    def seen(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._last is not None

    @contextmanager
    def leaving_at_once(self) -> Iterator[None]:
        """End the process at Ctrl-C, without an exception, within this block.

        Use it only while no files are written. Libraries that are interrupted during
        their import raise other errors than `KeyboardInterrupt`.
        """
        self._at_once = True
        yield
        self._at_once = False

    def __enter__(self) -> "Interrupts":
        # The shell may make this process ignore Ctrl-C. Only the main thread can set
        # signal handlers.
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._interrupt)
            self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._before is None:
            return
        if self.seen:
            # The last signal of a check must not reach the handler that is set below.
            self._checks.join()
            # Meanwhile, a filter of the standard error has restored the descriptor.
            self._silence()
        sys.unraisablehook = self._hook
        after = self._before if self._restore else signal.SIG_IGN
        signal.signal(signal.SIGINT, after)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._at_once:
            os._exit(INTERRUPTED)
        checking, self._checking = self._checking, False
        if self._over.is_set() or (checking and _being_handled()):
            return
        now = time.monotonic()
        if not checking and self._last and now - self._last < _SECONDS_TO_CLEAN_UP:
            return
        first, self._last = not self.seen, now
        if first:
            self._checks.start()
        self._silence()
        raise KeyboardInterrupt

    def _check(self) -> None:
        main = threading.main_thread().ident or 0
        while not self._over.wait(_SECONDS_BETWEEN_CHECKS):
            self._checking = True
            signal.pthread_kill(main, signal.SIGINT)

    def _silence(self) -> None:
        """Drop the tracebacks that C++ libraries print when they are interrupted."""
        if not self._restore:
            standard_error.silence()

    def _unraisable(self, unraisable: Any) -> None:
        """Print no message for a `KeyboardInterrupt` that Python dropped."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._hook(unraisable)


def _being_handled() -> bool:
    """Whether an `except` or `finally` block runs because of a `KeyboardInterrupt`."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None

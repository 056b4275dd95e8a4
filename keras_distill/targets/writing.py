"""A thread that makes calls in order while the teacher runs."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

# Enough that neither side waits for a short delay of the other.
_WAITING = 8


class InOrder:
    """Runs calls one after another in a thread. A few calls may wait for it.

    An error of a call is raised by a later `put`, or at the end of the block. After an
    error, only the calls of `put_always` are made.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._calls: deque[Future[Any]] = deque()
        self._failed = False

    def put(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function after the earlier calls."""
        while self._calls and (len(self._calls) >= _WAITING or self._calls[0].done()):
            self._calls.popleft().result()
        self._calls.append(self._thread.submit(self._run, function, *args))

    def put_always(self, function: Callable[..., Any]) -> None:
        """Call a function after the earlier calls, even if these raise errors."""
        self._thread.submit(function)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            for call in self._calls:
                call.result()

    def _run(self, function: Callable[..., Any], *args: Any) -> None:
        # A shard without the batch that failed must not be closed as a whole one.
        if self._failed:
            return
        try:
            function(*args)
        except BaseException:
            self._failed = True
            raise

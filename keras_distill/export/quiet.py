"""Converters and calls that talk less, with what they report as errors kept."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from keras_distill import retracing

# Batches of other sizes are no reason to repeat a warning.
_SHAPE = re.compile(r"\((?:(?:None|\d+),? ?)+\)")


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def quiet(*names: str) -> Iterator[list[str]]:
    """Hold back Python warnings and what the loggers `names` say; yield its errors.

    The levels are back at what they were afterwards, whatever happens inside.
    """
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.level, logger.propagate, logger.handlers) for logger in loggers]
    collector = _Collector()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        logger.handlers = [collector]
    try:
        with warnings.catch_warnings():
            # Of converters that call what they themselves will remove.
            warnings.simplefilter("ignore")
            yield collector.messages
    finally:
        for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            logger.handlers = handlers


@contextmanager
def no_remarks() -> Iterator[None]:
    """Hold back what Keras and TensorFlow remark on a model that is only called.

    Who made the model has read of masks that a layer drops when it was made. Functions
    that are traced again, as Keras' grouped convolutions are, are no fault of a caller.
    Other warnings are shown once, however often the model is called.
    """
    with retracing.without_remarks(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"Layer .* was passed an input with a mask attached to it"
        )
        # The filter "once" forgets what it showed when filters change.
        show, shown = warnings.showwarning, set[tuple[str, type[Warning]]]()

        def show_once(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            key = _SHAPE.sub("", str(message)), category
            if key not in shown:
                shown.add(key)
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = show_once
        yield

"""Suppression of warnings and logs of converters and calls, except errors."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from keras_distill import retracing

# Shapes in a warning. It isn't repeated for batches of other sizes.
_SHAPE = re.compile(r"\((?:(?:None|\d+),? ?)+\)")


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def quiet(*names: str) -> Iterator[list[str]]:
    """Suppress Python warnings and the logs of `names`; yield a list of logged errors.

    The loggers are restored afterwards, also after an error.
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
            # Converters warn of their own deprecated functions.
            warnings.simplefilter("ignore")
            yield collector.messages
    finally:
        for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            logger.handlers = handlers


@contextmanager
def no_remarks() -> Iterator[None]:
    """Suppress warnings of Keras and TensorFlow that don't concern a model's caller.

    Keras warns of masks that a layer drops already when the model is made. TensorFlow's
    warnings of retracing, e.g. of Keras' grouped convolutions, aren't the caller's
    fault. Other warnings are shown once, however often the model is called.
    """
    with retracing.without_remarks(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"Layer .* was passed an input with a mask attached to it"
        )
        # The filter "once" would show warnings again after a change of the filters.
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

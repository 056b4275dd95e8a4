"""A filter of TensorFlow's warning that functions are traced often."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_remarks() -> Iterator[None]:
    """Suppress the warning that functions are traced again.

    TensorFlow counts the traces of all models together. This package makes models, or
    calls them in other ways, so the user can't follow the warning's advice.
    """
    logger = logging.getLogger("tensorflow")
    logger.addFilter(_is_other)
    try:
        yield
    finally:
        logger.removeFilter(_is_other)


def _is_other(record: logging.LogRecord) -> bool:
    return "triggered tf.function retracing" not in record.getMessage()

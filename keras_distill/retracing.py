"""TensorFlow's remark that functions are traced often, held back."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_remarks() -> Iterator[None]:
    """Hold back the remark on functions that are traced again.

    TensorFlow counts the traces of all models together. Its advice is no help to a user
    whose models are made, or called in another way, by this package.
    """
    logger = logging.getLogger("tensorflow")
    logger.addFilter(_is_other)
    try:
        yield
    finally:
        logger.removeFilter(_is_other)


def _is_other(record: logging.LogRecord) -> bool:
    return "triggered tf.function retracing" not in record.getMessage()

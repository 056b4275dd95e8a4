import logging

import pytest

from keras_distill.export.quiet import quiet


def test_errors_are_kept_and_the_rest_is_not(caplog):
    logger = logging.getLogger("some.converter")
    with quiet("some") as errors:
        logger.warning("chatter")
        logger.error("op %s is not supported", "X")
    assert errors == ["op X is not supported"]
    assert caplog.records == []


def test_loggers_are_put_back_after_an_error():
    logger = logging.getLogger("some")
    logger.setLevel(logging.INFO)
    before = (logger.level, logger.propagate, list(logger.handlers))
    with pytest.raises(RuntimeError), quiet("some"):
        raise RuntimeError
    assert (logger.level, logger.propagate, list(logger.handlers)) == before

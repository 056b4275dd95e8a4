import logging
import warnings

import pytest

from keras_distill.export.quiet import no_remarks, quiet


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


def test_a_warning_is_shown_once_however_large_the_batch():
    with pytest.warns(UserWarning) as shown, no_remarks():
        for shape in ((None, 1), (4, 1), (1,)):
            with quiet("some"):  # after which Python repeats warnings
                pass
            warnings.warn(f"odd {shape}", UserWarning, stacklevel=1)
        warnings.warn("odd otherwise", UserWarning, stacklevel=1)
    messages = [str(each.message) for each in shown]
    assert messages == ["odd (None, 1)", "odd otherwise"]


def test_a_warning_that_is_an_error_stays_one():
    with warnings.catch_warnings(), pytest.raises(UserWarning), no_remarks():
        warnings.simplefilter("error")
        warnings.warn("odd", UserWarning, stacklevel=1)

"""Filters that keep log lines of C++ libraries out of the standard error."""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def log_lines(level: str) -> re.Pattern[bytes]:
    """Return a pattern of log lines of TensorFlow, absl and XLA to leave out.

    The pattern matches the beginning of a line.

    Args:
        level: A `TF_CPP_MIN_LOG_LEVEL`: "1" leaves out information, "2" also warnings,
            "3" also errors. Fatal errors are never left out.
    """
    letters = "IWE"[: int(level)] if level.isdecimal() else ""
    if not letters:
        return re.compile(rb"(?!)")  # This matches nothing.
    beginning = (
        rf"WARNING: All log messages before absl::InitializeLog\(\) is called "
        rf"|[{letters}]\d{{4}} \d\d:\d\d:\d"
        rf"|\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [{letters}] "
        rf"|To enable the following instructions: "  # The second line of a message.
    )
    return re.compile(beginning.encode())


@contextmanager
def without(
    noise: re.Pattern[bytes],
    *,
    told_by: type[BaseException] | tuple[type[BaseException], ...] = (),
) -> Iterator[None]:
    """Leave out lines that match `noise`, also those that C++ libraries write.

    Such libraries write to the file descriptor and not to `sys.stderr`. All other lines
    are written at the end of the block, also if it raises an error. Without a standard
    error, this does nothing.

    Args:
        noise: The beginning of the lines to leave out.
        told_by: Errors whose message contains the lines. If the block raises one,
            nothing is written.
    """
    _flush()
    try:
        kept = os.dup(2)
    except OSError:
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except told_by:
            _flush()
            file.truncate(0)
            raise
        finally:
            _flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines = [line for line in file if not noise.match(line)]
            with suppress(OSError):
                os.write(2, b"".join(lines))


def silence() -> None:
    """Drop everything that the process writes to its standard error from here on."""
    _flush()
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)


def _flush() -> None:
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()

"""The standard error of the process, without the log lines of C++ libraries."""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def log_lines(level: str) -> re.Pattern[bytes]:
    """Return how log lines of TensorFlow, absl and XLA begin that `level` leaves out.

    Args:
        level: A `TF_CPP_MIN_LOG_LEVEL`: "1" leaves out information, "2" warnings too,
            "3" errors too. Fatal errors always stay.
    """
    letters = "IWE"[: int(level)] if level.isdecimal() else ""
    if not letters:
        return re.compile(rb"(?!)")  # matches nothing
    beginning = (
        rf"WARNING: All log messages before absl::InitializeLog\(\) is called "
        rf"|[{letters}]\d{{4}} \d\d:\d\d:\d"
        rf"|\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [{letters}] "
        rf"|To enable the following instructions: "  # the second line of one
    )
    return re.compile(beginning.encode())


@contextmanager
def without(
    noise: re.Pattern[bytes], *, told_by: type[Exception] | tuple[()] = ()
) -> Iterator[None]:
    """Leave out lines that begin with `noise`, whoever in the process writes them.

    C++ writes to the descriptor, past `sys.stderr`. All other lines are written at the
    end of the block, also where it raises. A process without a standard error is left
    as it is.

    Args:
        noise: How the lines begin that are left out.
        told_by: Errors whose message tells what was written. Where one is raised,
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
    """Drop what the process writes to its standard error from here on."""
    _flush()
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)


def _flush() -> None:
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()

"""Pipelines of Apache Beam that a command runs, and the errors of their workers."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from keras_distill import standard_error

LOCAL = "DirectRunner"

# The last line of a worker's traceback, and the text that Beam adds to it.
_RAISED = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception)): ", re.MULTILINE)
_WHERE = re.compile(r" \[while running '[^']*'\]")
# The errors whose messages are written for users.
_WORDED = ("ImportError", "OSError", "RuntimeError", "TypeError", "ValueError")
# Lines of the workers' logs.
_LOGGED = re.compile(
    rb"(INFO|WARNING|ERROR):[\w.]+:|" + standard_error.log_lines("3").pattern
)


def run(
    transform: Callable[[], Any],
    runner: str,
    *,
    options: Sequence[str],
    workers: int | None,
) -> None:
    """Run a transform; raise an error of a worker again, with a message of one line.

    Args:
        transform: Returns a `PTransform` that is applied to a pipeline.
        runner: The name of Beam's runner.
        options: The runner's options, as `--name=value`.
        workers: The number of processes of the local runner; None for one per core.
    """
    flags = list(options)
    quiet: AbstractContextManager[None] = nullcontext()
    if runner == LOCAL:
        # Beam's `DirectRunner` would download a program, Prism, and run that instead.
        runner = "FnApiRunner"
        flags += [
            "--direct_running_mode=multi_processing",
            f"--direct_num_workers={workers or 0}",
        ]
        # The workers write logs to this process's standard error. At Ctrl-C, they also
        # write tracebacks.
        told_by = (RuntimeError, KeyboardInterrupt)
        quiet = standard_error.without(_LOGGED, told_by=told_by)
    try:
        with quiet:
            _run(transform(), runner, flags)
    except RuntimeError as error:
        raise _cause(str(error)) from error


def _run(transform: Any, runner: str, flags: list[str]) -> None:
    from apache_beam import Pipeline
    from apache_beam.options.pipeline_options import PipelineOptions

    with Pipeline(runner, options=PipelineOptions(flags)) as pipeline:
        _ = pipeline | transform


def _cause(message: str) -> Exception:
    """Return the error of a worker, given the message with which Beam reports it.

    The message contains the worker's traceback, unless the worker died.
    """
    _, *found = _RAISED.split(message)
    if not found:
        return RuntimeError(
            "The pipeline failed. Shards that are whole remain: call the command "
            f"again, and it goes on. Received: {message.strip()}"
        )
    name, text = found[-2:]
    text = _WHERE.sub("", text).strip()
    if name in _WORDED:
        return RuntimeError(text)
    unforeseen: type[Exception] = type(name, (Exception,), {})
    return unforeseen(text)

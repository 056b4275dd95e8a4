"""Workers of one training on this host: start and restart of all together."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

HOST = "127.0.0.1"
# The exit code of a worker that was asked to end and can resume from a saved state.
SAVED = 75
# The time after which workers that don't end are killed.
_SECONDS_TO_END = 30.0
_SECONDS_BETWEEN_LOOKS = 0.1
# The number of lines that are shown of the output of a worker that failed.
_LAST_LINES = 20


class Failure(NamedTuple):
    """The failure of a worker.

    Args:
        worker: The number of the worker.
        code: Its exit code. If a signal ended it: 128 + the signal's number.
    """

    worker: int
    code: int

    def __str__(self) -> str:
        if self.code > 128:
            return f"worker {self.worker} was ended by {_signal_name(self.code - 128)}"
        return f"worker {self.worker} ended with exit code {self.code}"


class _Asked(Exception):
    """This process was asked to end by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def launch(command: Sequence[str], workers: int, *, restarts: int = 0) -> int:
    """Run a command in several processes that form one TensorFlow cluster.

    Each process gets the variable `TF_CONFIG`, from which
    `tf.distribute.MultiWorkerMirroredStrategy` reads the process' role. If one process
    fails, the others can't continue. All are then ended, and started again unless the
    exit code is 75. A program that trains with `keras_distill.online.Backup` resumes.

    The first worker prints to the terminal. The output of the others is kept. If one of
    them fails, the last lines of its output are printed.

    Args:
        command: The program and its arguments.
        workers: The number of processes, from 1 on.
        restarts: The largest number of times that all are started again.

    Returns:
        0 if all workers have ended with 0. Otherwise the exit code of the worker that
        failed first, or 128 + the number of the signal that ended it. If a signal ends
        this process: 75 if all workers have ended with 0 or 75, otherwise 128 + the
        number of the signal.
    """
    with tempfile.TemporaryDirectory() as folder, _signals_raised():
        logs = [Path(folder) / f"worker_{index}.log" for index in range(workers)]
        for left in reversed(range(restarts + 1)):
            with _running(command, logs) as processes:
                try:
                    failed = _first_failure(processes)
                except _Asked as asked:
                    _end(processes)
                    codes = {process.returncode for process in processes}
                    return SAVED if codes <= {0, SAVED} else 128 + asked.number
            if failed is None:
                return 0
            _report(failed, logs[failed.worker])
            if failed.code == SAVED or not left:
                return failed.code
            _print(f"all {workers} workers start again; {left - 1} restarts are left")
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _running(
    command: Sequence[str], logs: Sequence[Path]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the workers; end those that still run after the block."""
    addresses = [f"{HOST}:{port}" for port in free_ports(len(logs))]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for index, log in enumerate(logs):
            task = {"type": "worker", "index": index}
            config = {"cluster": {"worker": addresses}, "task": task}
            with contextlib.ExitStack() as stack:
                # The first one prints to the terminal.
                output = stack.enter_context(log.open("wb")) if index else None
                processes.append(
                    subprocess.Popen(  # noqa: S603 - what the user asks for
                        command,
                        env=os.environ | {"TF_CONFIG": json.dumps(config)},
                        stdout=output,
                        stderr=output and subprocess.STDOUT,
                        # Ctrl-C reaches this process alone, which passes it on.
                        start_new_session=True,
                    )
                )
        yield processes
    finally:
        _end(processes)


def _first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> Failure | None:
    """Wait until a worker has failed, or all have ended well."""
    while True:
        codes = [process.poll() for process in processes]
        for index, code in enumerate(codes):
            if code:
                return Failure(index, code if code > 0 else 128 - code)
        if all(code == 0 for code in codes):
            return None
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask the workers to end, then kill those that don't."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    until = time.monotonic() + _SECONDS_TO_END
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """Raise `_Asked` for Ctrl-C and SIGTERM within the block."""

    def ask(number: int, frame: FrameType | None) -> None:
        # A second signal must not interrupt the end of the workers.
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise _Asked(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(failed: Failure, log: Path) -> None:
    lines = log.read_bytes().splitlines() if log.exists() else []
    for line in lines[-_LAST_LINES:]:
        print(f"  [{failed.worker}] {line.decode(errors='replace')}", file=sys.stderr)
    _print(f"{failed}. The others were ended")


def _print(text: str) -> None:
    print(f"keras-distill: {text}.", file=sys.stderr, flush=True)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback address that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)
        ]
        return [each.getsockname()[1] for each in sockets]

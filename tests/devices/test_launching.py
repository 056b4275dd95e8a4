"""Workers that are started together: their ends, restarts and signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_distill.devices import launching
from keras_distill.devices.launching import SAVED, launch

COMMAND = str(Path(sys.executable).with_name("keras-distill"))
# What each program below begins with.
_BEGIN = """
import json, os, pathlib, signal, sys, time
config = json.loads(os.environ["TF_CONFIG"])
index, folder = config["task"]["index"], pathlib.Path(sys.argv[1])
started = folder / f"started_{index}"
started.write_text(started.read_text() + "." if started.exists() else ".")
"""


def program(body: str, folder: Path) -> list[str]:
    return [sys.executable, "-c", _BEGIN + body, str(folder)]


def starts(folder: Path) -> list[int]:
    return [len(path.read_text()) for path in sorted(folder.glob("started_*"))]


def test_each_worker_knows_its_place(tmp_path: Path) -> None:
    body = "(folder / f'config_{index}').write_text(json.dumps(config))"
    assert launch(program(body, tmp_path), 3) == 0
    found = [json.loads((tmp_path / f"config_{i}").read_text()) for i in range(3)]
    assert [config["task"] for config in found] == [
        {"type": "worker", "index": index} for index in range(3)
    ]
    (addresses,) = {tuple(config["cluster"]["worker"]) for config in found}
    assert len(set(addresses)) == 3
    assert all(address.startswith("127.0.0.1:") for address in addresses)


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        ("sys.exit(7)", 7, "worker 1 ended with exit code 7"),
        ("raise ValueError('no data')", 1, "ValueError: no data"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "worker 1 was ended by SIGKILL"),
    ],
)
def test_one_fails_and_all_end(
    end: str, code: int, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = f"if index == 1: {end}\ntime.sleep(60)"
    begin = time.monotonic()
    assert launch(program(body, tmp_path), 3) == code
    assert time.monotonic() - begin < 30
    assert message in capfd.readouterr().err


def test_all_start_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = "if index == 1 and len(started.read_text()) < 3: sys.exit(5)"
    assert launch(program(body, tmp_path), 2, restarts=3) == 0
    assert starts(tmp_path) == [3, 3]
    assert "2 restarts are left" in capfd.readouterr().err


def test_restarts_have_an_end(tmp_path: Path) -> None:
    assert launch(program("sys.exit(5)", tmp_path), 2, restarts=2) == 5
    assert max(starts(tmp_path)) == 3


def test_a_worker_that_saved_is_not_started_again(tmp_path: Path) -> None:
    # Once both have started: the launcher ends the other one.
    body = f"""
while sum(len(it.read_text()) for it in folder.glob("started_*")) < 2: time.sleep(0.05)
sys.exit({SAVED} if index else 0)
"""
    assert launch(program(body, tmp_path), 2, restarts=2) == SAVED
    assert starts(tmp_path) == [1, 1]


def test_what_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_SECONDS_TO_END", 1.0)
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / "deaf").touch()
while index and not (folder / "deaf").exists(): time.sleep(0.05)
if index: sys.exit(4)
time.sleep(60)
"""
    begin = time.monotonic()
    assert launch(program(body, tmp_path), 2) == 4
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize(
    ("body", "codes"),
    [
        ("time.sleep(60)", {signal.SIGTERM: 143, signal.SIGINT: 130}),
        (
            f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({SAVED}))\n"
            "(folder / f'ready_{index}').touch()\ntime.sleep(60)",
            {signal.SIGTERM: SAVED, signal.SIGINT: SAVED},
        ),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_workers(
    body: str, codes: dict[int, int], number: int, tmp_path: Path
) -> None:
    # A shell starts what it runs in the background with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [COMMAND, "launch", "--workers", "2", "--", *program(body, tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    awaited = "ready_*" if "ready" in body else "started_*"
    while len(list(tmp_path.glob(awaited))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == codes[number]
    assert "Traceback" not in errors
    assert starts(tmp_path) == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "2"], "the program is missing"),
        (["--workers", "0", "--", "true"], "--workers"),
        (["--", "true"], "--workers"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from keras_distill.cli.running import run

    with pytest.raises(SystemExit, match="2"):
        run(["launch", *arguments])
    assert message in capfd.readouterr().err


def test_it_begins_at_once(tmp_path: Path) -> None:
    begin = time.monotonic()
    command = [COMMAND, "launch", "--workers", "1", "--", "true"]
    assert subprocess.run(command, env=dict(os.environ)).returncode == 0
    # TensorFlow alone takes longer to import.
    assert time.monotonic() - begin < 2.5

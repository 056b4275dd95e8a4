"""What is wrong with the arguments is known at once, before anything is imported."""

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_distill.cli import main
from keras_distill.cli.wording import in_options
from keras_distill.version import __version__

COMMAND = str(Path(sys.executable).with_name("keras-distill"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files that are there; nothing reads them before the arguments are right."""
    folder = tmp_path_factory.mktemp("arguments")
    for name in ("m.keras", "d.npz", "broken.json"):
        (folder / name).write_text("{")
    (folder / "export").mkdir()
    return folder


EXPORT = "export m.keras --out o --examples d.npz"
RECORD = "record m.keras --data d.npz --out o"
TRITON = "repository triton export --out o"
WRONG = {
    # what is missing
    "export m.keras --out o": "one of --examples, --calibrate, --evaluate",
    f"{EXPORT} --quantize int8": "--quantize int8 needs --calibrate FILE.npz",
    f"{EXPORT} --quantize integer_only float16": "integer_only needs --calibrate",
    # what has no effect
    f"{EXPORT} --max-drop 0.1": "--max-drop needs --evaluate FILE.npz",
    f"{EXPORT} --metric AUC": "--metric needs --evaluate",
    f"{EXPORT} --labels y": "--labels needs --evaluate",
    f"{EXPORT} --mode max": "--mode needs --evaluate",
    f"{EXPORT} --output y": "--output needs --evaluate",
    f"{EXPORT} --metric-config {{}}": "--metric-config needs --evaluate",
    f"{EXPORT} --calibrate d.npz": "--calibrate is for --quantize int8",
    f"{EXPORT} --to saved_model --quantize float16": "not possible for --to saved_mod",
    f"{EXPORT} --to onnx --quantize integer_only": "--quantize integer_only is not pos",
    f"{RECORD} --num-workers 2": "--num-workers needs --runner DirectRunner",
    f"{RECORD} --runner FlinkRunner --num-workers 2": "--pipeline-option parallelism=8",
    f"{RECORD} --pipeline-option a=b": "--pipeline-option needs --runner",
    f"{RECORD} --samples 8 --dtype float16": "--dtype is not for --samples",
    f"{RECORD} --sample-seed 1": "--sample-seed needs --samples",
    f"{RECORD} --values --probabilities": "--probabilities is not for --values",
    "record m.keras --data export --labels y --out o": "--labels is for --data FILE",
    "compare a=m.keras --data d.npz --out o": "at least two models are compared",
    "compare m.keras --data d.npz --out o": "must be NAME=PATH, not 'm.keras'",
    "compare a=m.keras a=m.keras --data d.npz --out o": "a name of its own",
    "compare a=m.keras b=m.keras --data d.npz --out o --teacher c": "--teacher must be",
    "compare a=m.keras b=m.keras --data d.npz --out o --export c=export": "one of ['a'",
    "verify export --max-drop 0.1": "--max-drop needs --evaluate",
    "verify export --files-only --evaluate d.npz": "which --files-only doesn't",
    # values
    f"{EXPORT} --version 0": "--version: must be a number from 1 on or `next`, not '0'",
    f"{EXPORT} --version newest": "a number from 1 on or `next`, not 'newest'",
    f"{EXPORT} --batch-size 0": "--batch-size: must be a whole number from 1 on",
    f"{EXPORT} --batch-size 1.5": "must be a whole number from 1 on, not '1.5'",
    f"{EXPORT} --tolerance 0": "--tolerance: must be a number above 0, not '0'",
    f"{EXPORT} --tolerance nan": "--tolerance: must be a number above 0, not 'nan'",
    f"{EXPORT} --evaluate d.npz --max-drop -1": "--max-drop: must be a number at least",
    f"{EXPORT} --evaluate no.npz": "--evaluate: must be a file, but there is none at",
    f"{EXPORT} --provenance no.json": "--provenance: must be a file",
    f"{EXPORT} --provenance broken.json": "--provenance: must be a JSON file",
    f"{EXPORT} --metric-config []": "--metric-config: must be JSON in braces",
    "export m.keras --out o --examples no.npz": "--examples: must be a file",
    "record m.keras --data no.npz --out o": "--data: must be a file, but there is none",
    "record m.keras --data train --out o": "or module:function, not 'train'",
    f"{RECORD} --runner R --pipeline-option --a=b": "expected one argument",
    f"{RECORD} --runner R --pipeline-option a-b": "must be NAME=VALUE or NAME, without",
    f"{RECORD} --top-k 0": "--top-k: must be a whole number from 1 on, not '0'",
    f"{RECORD} --top-k 2 --values": "--values: not allowed with argument --top-k",
    "bench export --batch-sizes 1 0": "--batch-sizes: must be a whole number from 1",
    "bench export --calls 0": "--calls: must be a whole number from 1 on, not '0'",
    "bench export --threads 0": "--threads: must be a whole number from 1 on, not '0'",
    "demo --seeds 0 -1": "--seeds: must be a whole number from 0 on, not '-1'",
    "demo --seeds 1 2 1": "--seeds must differ, not 1 2 1",
    "serve export --port 0": "--port: must be a whole number from 1 to 65535, not '0'",
    "serve export --port 8081": "--port and --grpc-port must differ",
    "repository triton export --out o --version 0": "--version: must be a whole number",
    "repository triton export --out o --instances 0": "--instances: must be a whole",
    "repository mlserver export --out o --threads -1": "--threads: must be a whole",
    "repository triton export --out o --name a/b": "--name: must be letters, digits",
    "repository mlserver export --out o --name .x": "--name: must be letters, digits",
    "serve export --name a/b": "--name: must be letters, digits",
    "repository tensorflow-serving export --out o --base-path models": "an absolute pa",
    f"{TRITON} --device gpu --accelerator tensorrt FP16": "as KEY=VALUE, not 'FP16'",
    f"{TRITON} --device gpu --accelerator xla": "must be tensorrt or cuda, not 'xla'",
    f"{TRITON} --accelerator cuda": "--accelerator needs --device gpu",
    f"{TRITON} --max-batch-size 4 --preferred-batch-size 8": "at most --max-batch-siz",
    f"{TRITON} --max-batch-size 1 --max-queue-delay 5": "needs a --max-batch-size abo",
    # what was meant
    "exprt": "Did you mean export?",
    "repository tritn": "Did you mean triton?",
    f"{EXPORT} --to onxx": "Did you mean onnx?",
    f"{EXPORT} --quantise int8": "unrecognized arguments: --quantise int8. Did you m",
    "export m.keras --oot o": "required: --out. Did you mean --out?",
    "verify export --file-only": "Did you mean --files-only?",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_arguments_leave_with_2(line, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as left:
        main(line.split())
    assert left.value.code == 2
    printed = capsys.readouterr()
    command = line.split()[0]
    usage = "keras-distill" if command == "exprt" else f"keras-distill {command}"
    assert printed.err.startswith(f"usage: {usage} ")
    assert WRONG[line] in printed.err.splitlines()[-1]
    assert printed.out == ""


@pytest.mark.parametrize(
    "line",
    [
        "export m.keras --json --out o",
        "export --json",
        f"{EXPORT} --json --version 0",
        "verify export --json --mode max",
        "bench export --threads 0 --json",
    ],
)
def test_wrong_arguments_are_json_too(line, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match="2"):
        main(line.split())
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert printed.err.splitlines()[-1].endswith(f": error: {error}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("export no.keras --out o --examples d.npz", "`MODEL.keras` must be there"),
        ("verify no", "`EXPORT` must be there. Received: 'no'"),
        ("record no.keras --data d.npz --out o", "`TEACHER.keras` must be there"),
        ("bench no", "`EXPORT` must be there"),
        ("bench export --model no.keras", "`--model` must be there"),
        ("serve no", "`EXPORT` must be there"),
        ("repository triton no --out o", "`EXPORT` must be there"),
    ],
)
def test_what_a_command_works_on_is_missing(line, message, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(line.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("keras-distill: error: ")
    assert message in error


@pytest.mark.parametrize(
    ("line", "code", "printed"),
    [
        ("--version", 0, __version__),
        ("--help", 0, "export"),
        ("export --help", 0, "pip install '.[onnx,litert]'\n"),
        ("record --help", 0, "pip install '.[beam]'\n"),
        ("exprt", 2, "Did you mean export?"),
        ("bench export --threads 0", 2, "--threads"),
        ("export no.keras --out o --examples d.npz", 1, "where there is no file"),
    ],
)
def test_answers_at_once_and_imports_nothing(folder, line, code, printed):
    run = [COMMAND, *line.split()]
    environment = {"PYTHONPROFILEIMPORTTIME": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        run, capture_output=True, text=True, cwd=folder, env=environment, timeout=60
    )
    lines = done.stderr.splitlines()
    imported = {it.split("|")[-1].strip() for it in lines if "import time:" in it}
    rest = [it for it in lines if "import time:" not in it]
    assert done.returncode == code
    assert printed in done.stdout + "\n".join(rest)
    assert "keras_distill.cli.running" in imported
    heavy = ("numpy", "keras", "tensorflow", "ml_dtypes", "keras_distill.losses")
    assert imported.isdisjoint(heavy)


def test_takes_half_a_second_at_most():
    """Of the processor's time, for others share the machine."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([COMMAND, "--version"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        )
    assert statistics.median(seconds) < 0.5


def test_errors_of_the_library_name_options(folder, tmp_path, monkeypatch, capsys):
    """Whatever its functions call their arguments."""
    import keras

    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)])
    model.save(tmp_path / "m.keras")
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3), "float32"))
    monkeypatch.chdir(tmp_path)
    assert main("export m.keras --out o --examples d.npz --json".split()) == 1
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert "`--examples` must have shape (None, 4)" in error
    assert "example_batch" not in printed.out + printed.err
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 4), "float32"))
    (tmp_path / "thesis.tex").touch()
    assert main("export m.keras --out . --examples d.npz".split()) == 1
    error = capsys.readouterr().err
    assert "`--out` must be absent, empty or an earlier export" in error
    assert "Received: --out '" in error


@pytest.mark.parametrize(
    ("message", "typed"),
    [
        ("raise `max_drop`.", "raise `--max-drop`."),
        ("give `calibration_data`", "give `--calibrate`"),
        ("`quantize='dynamic_int8'` is", "`--quantize dynamic_int8` is"),
        ("`x` must be 1. Received: x=2, max_drop=3", None),
        ("`axis` is `model(x)`", "`axis` is `model(x)`"),
        (
            "`y` must fit. Received: 1 (ValueError: `quantize` (`max_drop`=1) is odd).",
            None,
        ),
        ("name=1 stays. Received: quantize=['a'].", None),
    ],
)
def test_wording(message, typed):
    options = {
        "max_drop": "--max-drop",
        "calibration_data": "--calibrate",
        "quantize": "--quantize",
    }
    typed = typed or message.replace("max_drop=", "--max-drop ").replace(
        "quantize=", "--quantize "
    )
    assert in_options(message, options) == typed

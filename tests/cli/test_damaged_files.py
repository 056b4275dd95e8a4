"""Every command by every kind of damaged file: one line that leads on, never more."""

import io
import json
import os
import re
import zipfile

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.cli import main
from keras_distill.export import export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in every file that Keras writes of it, its data and its export."""
    folder = tmp_path_factory.mktemp("files")
    model = keras.Sequential(
        [keras.Input((3,), name="x"), layers.Dense(2, name="y")], name="student"
    )
    model.save(folder / "m.keras")
    model.save_weights(folder / "m.weights.h5")
    model.save(folder / "m.h5")
    x = np.random.default_rng(0).random((400, 3)).astype("float32")
    np.savez(folder / "x.npz", x=x)
    np.savez_compressed(folder / "deflated.npz", x=x)
    np.save(folder / "x.npy", x)
    export(model, folder / "served", ["onnx"], example_batch=x)
    return folder


@pytest.fixture
def refused(folder, tmp_path, monkeypatch, capsys):
    """Runs a line that has to fail; returns what it printed last."""
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))

    def run(line, *, code=1):
        try:
            left = main([it.replace("OUT", str(tmp_path / "out")) for it in line])
        except SystemExit as exit:
            left = exit.code
        printed = capsys.readouterr()
        assert left == code, printed.err
        assert printed.out == "" and "Traceback" not in printed.err
        lines = printed.err.splitlines()
        assert len(lines) == 1 or (code == 2 and lines[0].startswith("usage: "))
        assert lines[-1].startswith("keras-distill") and ": error: " in lines[-1]
        assert len(lines[-1]) < 1200
        assert not (tmp_path / "out").exists() and sorted(folder.rglob("*")) == before
        return lines[-1]

    return run


EXPORT = "export m.keras --to onnx --out OUT"
# By option: a command line that reads a data file.
DATA = {
    "--examples": f"{EXPORT} --examples FILE",
    "--evaluate": f"{EXPORT} --examples x.npz --evaluate FILE",
    "--calibrate": f"{EXPORT} --examples x.npz --quantize int8 --calibrate FILE",
    "EXPORT --evaluate": "verify served --evaluate FILE",
}
MODELS = {
    "MODEL.keras": "export FILE --to onnx --out OUT --examples x.npz",
    "--model": "bench served --model FILE --calls 1 --batch-sizes 1",
}
EXPORTS = {
    "verify": "verify FILE",
    "bench": "bench FILE",
    "serve": "serve FILE",
    "triton": "repository triton FILE --out OUT",
    "tensorflow-serving": "repository tensorflow-serving FILE --out OUT",
    "mlserver": "repository mlserver FILE --out OUT",
}
OUTS = {
    "export": "export m.keras --to onnx --examples x.npz --out FILE",
    "mlserver": "repository mlserver served --out FILE",
}


def line(command, path):
    return [str(path) if it == "FILE" else it for it in command.split()]


def archived(**members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("_npy", ".npy"), text)
    return data.getvalue()


def saved(**arrays):
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


def changed(data, at, new):
    return data[:at] + new + data[at + len(new) :]


def flagged(data):
    """Set the flag that members are encrypted."""
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            data = changed(data, at + offset, b"\x01")
            at = data.find(signature, at + 1)
    return data


def shaped(array):
    return array.replace(b"'shape': (400, 3), }      ", b"'shape': (10**13, 3), }   ")


def read(folder, name):
    return (folder / name).read_bytes()


DATA_FILES = {
    "empty": (lambda _: b"", "which is empty"),
    "text": (lambda _: b"x\n1\n", "a file of another kind"),
    "cut": (lambda f: read(f, "x.npz")[:900], "cut short"),
    "cut at the end": (lambda f: read(f, "x.npz")[:-5], "cut short"),
    "npy": (lambda f: read(f, "x.npy"), "single array, as `numpy.save` writes it"),
    "HDF5": (lambda f: read(f, "m.h5"), "an HDF5 file"),
    "keras": (lambda f: read(f, "m.keras"), "'metadata.json' can't be read"),
    "nothing in it": (lambda _: archived(), "which holds none"),
    "changed": (lambda f: changed(read(f, "x.npz"), 900, b"12345"), "'x' can't be"),
    "deflated wrongly": (
        lambda f: changed(read(f, "deflated.npz"), 90, b"\xff" * 200),
        "whose 'x' can't be read",
    ),
    "an empty member": (lambda _: archived(x_npy=b""), "'x' can't be read"),
    "a cut member": (
        lambda f: archived(x_npy=read(f, "x.npy")[:900]),
        "whose 'x' can't be read",
    ),
    "a cut header": (
        lambda f: archived(x_npy=read(f, "x.npy")[:20]),
        "whose 'x' can't be read",
    ),
    "a wrong header": (
        lambda f: archived(x_npy=changed(read(f, "x.npy"), 10, b"{'descr':[")),
        "whose 'x' can't be read",
    ),
    "no such shape": (
        lambda f: archived(x_npy=shaped(read(f, "x.npy"))),
        "whose 'x' can't be read",
    ),
    "encrypted": (lambda f: flagged(read(f, "x.npz")), "encrypted"),
    "objects": (
        lambda _: saved(x=np.array([{}, None], dtype=object)),
        "Object arrays cannot be loaded",
    ),
    "no rows": (
        lambda _: saved(x=np.float32(1), labels=np.zeros(1)),
        "'x' can't be read (it is a single value without rows)",
    ),
    "one label": (
        lambda _: saved(x=np.ones((4, 3), "f4"), labels=np.int64(1)),
        "'labels' can't be read (it is a single value without rows)",
    ),
}


@pytest.mark.parametrize("option", DATA)
@pytest.mark.parametrize("kind", DATA_FILES)
def test_data(kind, option, folder, tmp_path, refused):
    make, words = DATA_FILES[kind]
    path = tmp_path / "data.npz"
    path.write_bytes(make(folder))
    error = refused(line(DATA[option], path))
    named = option.split()[-1]
    assert f"`{named}` must be an .npz file of arrays by input name" in error
    assert words in error and f"'{path}'" in error and "`numpy.savez(" in error


def rewritten(folder, **changes):
    """Return the model's file with members changed, or left out where None."""
    made = io.BytesIO()
    old = zipfile.ZipFile(folder / "m.keras")
    with old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            change = changes.get(name.split(".")[-1] if "h5" in name else name[:4])
            text = change(old.read(name)) if change else old.read(name)
            if text is not None:
                new.writestr(name, text)
    return made.getvalue()


def member(key, change):
    return lambda folder: rewritten(folder, **{key: change})


def config(text):
    return member("conf", lambda _: text)


COPY = "Copy it again, or save the model again"
MODEL_FILES = {
    "empty": (lambda _: b"", "which is empty"),
    "cut": (lambda f: read(f, "m.keras")[:900], "cut short"),
    "data": (lambda f: read(f, "x.npz"), "without metadata.json, config.json"),
    "an array": (lambda f: read(f, "x.npy"), "a single array"),
    "HDF5": (lambda f: read(f, "m.h5"), "Load it in Python with `keras.saving"),
    "HDF5, cut": (lambda f: read(f, "m.h5")[:900], "that is cut short or damaged"),
    "weights": (lambda f: read(f, "m.weights.h5"), "with `load_weights`, save it"),
    "config empty": (config(b""), f"'config.json' in it is damaged.*{COPY}"),
    "config cut": (member("conf", lambda it: it[:99]), f"'config.json' in.*{COPY}"),
    "config bytes": (config(b"\xff\xfe\0"), f"'config.json' in it is.*{COPY}"),
    "config deep": (config(b"[" * 100_000), f"'config.json' in it is.*{COPY}"),
    "config list": (config(b"[]"), "must be a JSON object"),
    "config null": (config(b"null"), "must be a JSON object"),
    "config of nothing": (config(b"{}"), "can't be loaded in safe mode"),
    "config of a loss": (
        lambda f: rewritten(f, conf=lambda _: _serialized(keras.losses.Huber())),
        "must be a `keras.Model`.*Huber",
    ),
    "config of another": (
        member("conf", lambda it: it.replace(b'"units": 2', b'"units": 5')),
        "can't be loaded in safe mode.*could not be loaded",
    ),
    "weights empty": (member("h5", lambda _: b""), f"weights.h5' in it is.*{COPY}"),
    "weights cut": (member("h5", lambda it: it[:4000]), f"weights.h5' in it.*{COPY}"),
    "weights text": (member("h5", lambda _: b"text"), f"weights.h5' in it is.*{COPY}"),
    "weights changed": (
        member("h5", lambda it: it[:600] + b"?" * (len(it) - 600)),
        f"weights.h5' in it is damaged.*{COPY}",
    ),
    "weights left out": (member("h5", lambda _: None), f"holds no weights.*{COPY}"),
    "encrypted": (lambda f: flagged(rewritten(f)), f"is encrypted.*{COPY}"),
}


def _serialized(value):
    return json.dumps(keras.saving.serialize_keras_object(value)).encode()


@pytest.mark.parametrize("option", MODELS)
@pytest.mark.parametrize("kind", MODEL_FILES)
def test_models(kind, option, folder, tmp_path, refused):
    make, words = MODEL_FILES[kind]
    path = tmp_path / "best.keras"
    path.write_bytes(make(folder))
    error = refused(line(MODELS[option], path))
    assert f": error: `{option}` " in error
    assert re.search(words, error), error


def lies(kind, tmp_path):
    """Return a path where no file is that can be read."""
    path = tmp_path / "it.keras"
    if kind == "a broken link":
        path.symlink_to("nowhere")
    elif kind == "a circle of links":
        path.symlink_to(path)
    elif kind == "below a file":
        path.touch()
        return path / "it"
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "too long a name":
        return "a" * 5000
    elif kind == "too long a path":
        return "a/" * 3000
    elif kind == "a NUL":
        return "a\0b"
    elif kind == "no text":
        return "\udcff"
    elif kind == "nothing":
        return ""
    return path


PATHS = (
    "absent",
    "a broken link",
    "a circle of links",
    "below a file",
    "a pipe",
    "too long a name",
    "too long a path",
    "a NUL",
    "no text",
    "nothing",
)


@pytest.mark.parametrize("kind", PATHS)
def test_paths_where_no_file_is(kind, tmp_path, refused):
    """Of every command and option that reads one."""
    path = lies(kind, tmp_path)
    provenance = f"{EXPORT} --examples x.npz --provenance FILE"
    for option, command in {**DATA, "--provenance": provenance}.items():
        error = refused(line(command, path), code=2)
        assert f"argument {option.split()[-1]}: must be a file, but there " in error
    for option, command in MODELS.items():
        error = refused(line(command, path))
        assert f"`{option}` must be there. Received: " in error
    for command in EXPORTS.values():
        assert "`EXPORT` must be there. Received: " in refused(line(command, path))


@pytest.mark.parametrize("kind", PATHS[2:])
def test_paths_where_no_directory_can_be(kind, tmp_path, refused):
    path = lies(kind, tmp_path)
    wrong = kind in PATHS[5:]
    for command in OUTS.values():
        error = refused(line(command, path), code=2 if wrong else 1)
        assert "--out" in error and "Errno" not in error


def test_directories_in_place_of_files(folder, tmp_path, refused):
    for option, command in DATA.items():
        error = refused(line(command, "served"), code=2)
        assert f"{option.split()[-1]}: must be a file, but there is a dir" in error
    for option, command in MODELS.items():
        error = refused(line(command, "served"))
        assert f"`{option}` must be" in error and "directory of an export" in error
    (tmp_path / "models").mkdir()
    for command in EXPORTS.values():
        assert "must hold an export" in refused(line(command, tmp_path / "models"))
        assert "which is a file" in refused(line(command, "x.npz"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_files_without_permission(folder, tmp_path, refused):
    closed = tmp_path / "closed.keras"
    closed.write_bytes(read(folder, "m.keras"))
    closed.chmod(0)
    for command in DATA.values():
        assert "this process may not read" in refused(line(command, closed), code=2)
    for command in MODELS.values():
        assert "this process may not read" in refused(line(command, closed))


def test_json(tmp_path, refused):
    path = tmp_path / "p.json"
    command = f"{EXPORT} --examples x.npz --provenance FILE"
    for text in (b"", b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"[1]", b"9" * 5000):
        path.write_bytes(text)
        assert "must be a JSON file" in refused(line(command, path), code=2)
    path.write_text('{"a": NaN}')
    assert "NaN is no JSON" in refused(line(command, path), code=2)
    command = f"{EXPORT} --evaluate x.npz --metric-config FILE"
    for text in ("{", "[]", '{"a":' * 100_000, f'{{"a": {"9" * 5000}}}'):
        assert "must be JSON in braces" in refused(line(command, text), code=2)


@pytest.mark.parametrize("inside", ["served", "served/models", "./served/../served"])
def test_a_repository_in_its_own_export(inside, refused):
    for server in ("triton", "tensorflow-serving", "mlserver"):
        error = refused(line(f"repository {server} served --out FILE", inside), code=2)
        assert "--out must be elsewhere than EXPORT" in error
    named = refused(line("repository mlserver served --name FILE --out .", "served"))
    assert "`--out` must be elsewhere" in named and "another `--name`" in named

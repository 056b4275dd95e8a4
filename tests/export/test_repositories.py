"""Versions in repositories: whole, numbered, never overwritten; what servers read."""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from keras_distill.export import manifest, repositories
from keras_distill.export.repositories import versions

SERVERS = {
    "triton": repositories.triton,
    "tensorflow_serving": repositories.tensorflow_serving,
    "mlserver": repositories.mlserver,
}
# Relative to the repository, for a version 3 of a model called "student".
LAYOUT = {
    "triton": {"student/config.pbtxt", "student/3/model.onnx"},
    "tensorflow_serving": {
        "models.config",
        "student/3/saved_model.pb",
        "student/3/variables/variables.index",
    },
    "mlserver": {
        "settings.json",
        "student/model-settings.json",
        "student/runtime.py",
        "student/3/model.onnx",
    },
}
FILES = {
    "onnx": ["model.onnx"],
    "onnx_int8": ["model.int8.onnx"],
    "saved_model": [
        "saved_model/saved_model.pb",
        "saved_model/variables/variables.index",
    ],
    "litert": ["model.tflite"],
}


SETTINGS = "model-settings.json"


def imports(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) else []


def described(directory, path):
    data = (directory / path).read_bytes()
    return {
        "path": path,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


@pytest.fixture
def fake(tmp_path):
    """A function that writes an export of files that no runtime would load."""

    def write(where="student", content="a", files=FILES, **signature):
        directory = tmp_path / where
        for path in [path for paths in files.values() for path in paths]:
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_text(f"{content} {path}")
        tensor = {"dtype": "float32", "shape": [None, 4]}
        signature = {
            "inputs": [{"name": "x", **tensor}],
            "outputs": [{"name": "y", **tensor}],
        } | signature
        artefacts = {
            name: {
                "format": name.removesuffix("_int8"),
                "files": [described(directory, path) for path in paths],
            }
            for name, paths in files.items()
        }
        manifest.write(
            {
                "kind": "keras_distill.export",
                "format_version": manifest.FORMAT_VERSION,
                "model": "student",
                "signature": signature,
                "artefacts": artefacts,
            },
            directory,
        )
        return directory

    return write


@pytest.fixture(params=SERVERS)
def server(request):
    return request.param


@pytest.fixture
def lay_out(server):
    return SERVERS[server]


def files_in(directory):
    return {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file()
    }


def contents(directory):
    return {path: (directory / path).read_bytes() for path in files_in(directory)}


class TestEveryServer:
    def test_layout(self, server, lay_out, fake, tmp_path):
        directory = lay_out(fake(), tmp_path / "models", version=3)
        assert directory == tmp_path / "models" / "student" / "3"
        assert files_in(tmp_path / "models") == LAYOUT[server]

    def test_others_may_read_it(self, lay_out, fake, tmp_path):
        umask = os.umask(0o022)
        try:
            lay_out(fake(), tmp_path / "models")
        finally:
            os.umask(umask)
        modes = {it.stat().st_mode & 0o777 for it in (tmp_path / "models").rglob("*")}
        assert modes == {0o755, 0o644}

    def test_the_version_is_what_the_export_is_called(self, lay_out, fake, tmp_path):
        export = fake("student/7")
        assert lay_out(export, tmp_path / "a").name == "7"
        assert lay_out(export, tmp_path / "b", version=2).name == "2"
        (tmp_path / "latest").symlink_to(export)
        assert lay_out(tmp_path / "latest", tmp_path / "c").name == "7"

    def test_else_it_is_the_next(self, lay_out, fake, tmp_path):
        export = fake()
        numbers = [lay_out(export, tmp_path / "models").name for _ in range(2)]
        assert numbers == ["1", "2"]
        lay_out(export, tmp_path / "models", version=40)
        (tmp_path / "models/student/backup-99").mkdir()
        assert lay_out(export, tmp_path / "models").name == "41"

    def test_a_version_is_never_overwritten(self, lay_out, fake, tmp_path):
        lay_out(fake(content="old"), tmp_path / "models", version=3)
        before = contents(tmp_path / "models")
        with pytest.raises(FileExistsError, match="version=3, which is at '.*/3'. Ch"):
            lay_out(fake(content="new"), tmp_path / "models", version=3)
        assert contents(tmp_path / "models") == before

    def test_earlier_versions_stay_as_they_are(self, lay_out, fake, tmp_path):
        first = lay_out(fake(content="old"), tmp_path / "models")
        before = contents(first)
        lay_out(fake(content="new"), tmp_path / "models")
        assert contents(first) == before

    def test_name(self, lay_out, fake, tmp_path):
        directory = lay_out(fake(), tmp_path / "models", name="digits-v2.1_x")
        assert directory.parent.name == "digits-v2.1_x"

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "../x", "a/b", "/x", ".hidden", "a b", "a\n", 'a"']
    )
    def test_names_that_lead_elsewhere(self, lay_out, fake, tmp_path, name):
        with pytest.raises(ValueError, match="`name` must be letters.*Received: name="):
            lay_out(fake(), tmp_path / "models", name=name)
        assert not (tmp_path / "models").exists()

    @pytest.mark.parametrize("version", [0, -1, True])
    def test_versions_that_no_server_takes(self, lay_out, fake, tmp_path, version):
        with pytest.raises(ValueError, match=f"positive.*version={version}"):
            lay_out(fake(), tmp_path / "models", version=version)

    def test_a_file_that_was_changed(self, lay_out, fake, tmp_path):
        export = fake()
        for path in ("model.onnx", "saved_model/saved_model.pb"):
            text = (export / path).read_text()
            (export / path).write_text(text.upper())
        with pytest.raises(RuntimeError, match="has another SHA-256"):
            lay_out(export, tmp_path / "models")
        assert not (tmp_path / "models").exists()

    def test_no_export(self, lay_out, tmp_path):
        with pytest.raises(FileNotFoundError, match="manifest.json. Received:"):
            lay_out(tmp_path, tmp_path / "models")

    def test_an_export_without_what_the_server_reads(self, lay_out, fake, tmp_path):
        export = fake(files={"litert": ["model.tflite"]})
        with pytest.raises(
            ValueError,
            match=r"must hold an artefact in a format that.*, which holds litert",
        ):
            lay_out(export, tmp_path / "models")

    def test_where_nothing_can_be_written(self, lay_out, fake, tmp_path):
        (tmp_path / "file").write_text("mine")
        for repository in (tmp_path / "file", tmp_path / "file" / "models"):
            with pytest.raises(OSError, match="`repository` must be a directory where"):
                lay_out(fake(), repository)
        assert (tmp_path / "file").read_text() == "mine"

    def test_a_first_version_that_fails_leaves_nothing(
        self, lay_out, fake, tmp_path, monkeypatch
    ):
        def full(*paths):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space left"):
            lay_out(fake(), tmp_path / "models")
        assert list((tmp_path / "models").iterdir()) == []

    def test_many_at_a_time_get_numbers_of_their_own(self, lay_out, fake, tmp_path):
        export = fake()
        with ThreadPoolExecutor(4) as pool:
            made = pool.map(lambda _: lay_out(export, tmp_path / "models"), range(8))
            assert sorted(int(it.name) for it in made) == list(range(1, 9))


def test_a_server_that_looks_all_the_time_sees_whole_versions(fake, tmp_path):
    """Names are taken in the middle of writing, where nothing numeric may be there."""
    seen = []
    copy = shutil.copyfile

    def copyfile(source, target):
        seen.append({path.name for path in (tmp_path / "models/student").iterdir()})
        return copy(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "copyfile", copyfile)
        repositories.tensorflow_serving(fake(), tmp_path / "models")
    assert len(seen) == 2
    for (name,) in seen:
        # Triton would take a number at the beginning for a version.
        assert name.startswith(".1.")


KILLED = """
    import os, shutil, signal, sys
    from pathlib import Path
    from keras_distill import atomic
    from keras_distill.export import repositories

    export, parent = sys.argv[1:]
    server = sys.modules["keras_distill.export.repositories.tensorflow_serving"]

    def die(*arguments, **keywords):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_second(source, target, calls=[]):
        calls.append(target)
        if len(calls) == 2:
            # What was copied so far is on the disk, and half of the next file.
            Path(target).write_bytes(Path(source).read_bytes()[:3])
            die()
        return copyfile(source, target)

    copyfile = shutil.copyfile
    moments = {
        "copying": (shutil, "copyfile", die_second),
        "renaming": (atomic, "_swap", die),
        "configuring": (server, "replace_text", die),
    }
    for moment, (module, function, instead) in moments.items():
        if not (child := os.fork()):
            setattr(module, function, instead)
            repositories.tensorflow_serving(export, f"{parent}/{moment}", version=2)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, moment
    print("killed", len(moments))
"""


@pytest.mark.slow("kills many exports; test_publish.py always runs")
def test_sigkill_at_any_moment_leaves_no_half_version(fake, tmp_path):
    moments = ("copying", "renaming", "configuring")
    for moment in moments:
        repositories.tensorflow_serving(fake(content="old"), tmp_path / moment)
    before = {moment: contents(tmp_path / moment / "student/1") for moment in moments}
    export = fake(content="new")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(export), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "killed 3\n", done.stderr[-2000:]
    for moment in moments:
        model = tmp_path / moment / "student"
        numbers = {path.name for path in model.iterdir() if path.name[0] != "."}
        # It is there, or not, as a whole.
        assert numbers == ({"1", "2"} if moment == "configuring" else {"1"})
        assert contents(model / "1") == before[moment]
        if moment == "configuring":
            assert contents(model / "2") == {
                path.removeprefix("saved_model/"): (export / path).read_bytes()
                for path in FILES["saved_model"]
            }
        # The next one cleans up.
        repositories.tensorflow_serving(export, tmp_path / moment)
        assert not [path for path in model.iterdir() if path.name[0] == "."]


def test_replaced_text_is_whole_at_every_moment(tmp_path, monkeypatch):
    path = tmp_path / "config"
    versions.replace_text(path, "old")
    real = Path.replace

    def check(scratch, target):
        assert (scratch.read_text(), target.read_text()) == ("new", "old")
        return real(scratch, target)

    monkeypatch.setattr(Path, "replace", check)
    versions.replace_text(path, "new")
    assert path.read_text() == "new"
    assert [it.name for it in tmp_path.iterdir()] == ["config"]


class TestTensorFlowServing:
    def parsed(self, repository):
        from tensorflow_serving.config import model_server_config_pb2

        text = (repository / "models.config").read_text()
        config = model_server_config_pb2.ModelServerConfig()
        return text_format.Parse(text, config).model_config_list.config

    def test_config_lists_every_model_once(self, fake, tmp_path):
        for name in ("first", "second", "first"):
            repositories.tensorflow_serving(fake(), tmp_path / "models", name=name)
        first, second = self.parsed(tmp_path / "models")
        assert (first.name, second.name) == ("first", "second")
        assert first.base_path == str(tmp_path / "models" / "first")
        assert first.model_platform == "tensorflow"
        assert (Path(first.base_path) / "2" / "saved_model.pb").is_file()

    def test_base_path_is_where_the_server_sees_it(self, fake, tmp_path):
        repositories.tensorflow_serving(
            fake(), tmp_path / "models", base_path="/models"
        )
        assert self.parsed(tmp_path / "models")[0].base_path == "/models/student"
        repositories.tensorflow_serving(
            fake(), tmp_path / "models", base_path="/models"
        )
        with pytest.raises(ValueError, match="`base_path` must be the one that models"):
            repositories.tensorflow_serving(
                fake(), tmp_path / "models", base_path="/elsewhere"
            )
        assert not (tmp_path / "models/student/3").exists()

    def test_base_path_is_absolute(self, fake, tmp_path):
        with pytest.raises(ValueError, match="must be absolute.*'models'"):
            repositories.tensorflow_serving(
                fake(), tmp_path / "models", base_path="models"
            )

    def test_a_path_of_odd_characters(self, fake, tmp_path):
        repository = tmp_path / 'mod"els \\ ü'
        repositories.tensorflow_serving(fake(), repository)
        assert self.parsed(repository)[0].base_path == str(repository / "student")

    def test_what_was_written_by_hand_stays(self, fake, tmp_path):
        config = tmp_path / "models/models.config"
        repositories.tensorflow_serving(fake(), tmp_path / "models")
        policy = "model_version_policy { specific { versions: 1 } }"
        text = config.read_text().replace("model_platform", f"{policy} model_platform")
        config.write_text(f"# mine\n{text}")
        repositories.tensorflow_serving(fake(), tmp_path / "models")
        repositories.tensorflow_serving(fake(), tmp_path / "models", name="other")
        student, other = self.parsed(tmp_path / "models")
        assert student.model_version_policy.specific.versions == [1]
        assert other.name == "other"
        assert config.read_text().startswith("# mine\n")

    def test_a_config_without_a_list(self, fake, tmp_path):
        (tmp_path / "models").mkdir()
        (tmp_path / "models/models.config").write_text("platform_config_map { }")
        with pytest.raises(FileExistsError, match="must hold a `model_config_list"):
            repositories.tensorflow_serving(fake(), tmp_path / "models")
        assert not (tmp_path / "models/student").exists()

    def test_a_version_is_a_saved_model(
        self, exported, conv_model, conv_batch, tmp_path
    ):
        import tensorflow as tf

        directory = repositories.tensorflow_serving(exported[0], tmp_path / "models")
        served = tf.saved_model.load(str(directory))
        outputs = served.signatures["serving_default"](
            **{name: tf.constant(value) for name, value in conv_batch.items()}
        )
        for name, expected in conv_model(conv_batch, training=False).items():
            np.testing.assert_allclose(outputs[name], expected, rtol=1e-5, atol=1e-5)


class TestMLServer:
    def test_the_newest_version_is_served_on_loopback(self, fake, tmp_path):
        for _ in range(2):
            repositories.mlserver(fake(), tmp_path / "models")
        settings = json.loads((tmp_path / "models/student" / SETTINGS).read_text())
        assert settings["name"] == "student"
        assert settings["versions"] == ["2"]
        assert settings["parameters"]["uri"] == "./2/model.onnx"
        assert settings["parameters"]["version"] == "2"
        server = json.loads((tmp_path / "models/settings.json").read_text())
        assert (server["host"], server["parallel_workers"]) == ("127.0.0.1", 0)

    def test_the_runtime_is_that_of_the_package(self, fake, tmp_path):
        directory = repositories.mlserver(fake(), tmp_path / "models")
        template = Path(repositories.__file__).parent / "templates/runtime.py"
        assert (directory.parent / "runtime.py").read_bytes() == template.read_bytes()

    def test_the_runtime_imports_nothing_of_ours(self):
        template = Path(repositories.__file__).parent / "templates/runtime.py"
        imported = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(template.read_text()))
            for name in imports(node)
        }
        allowed = {"mlserver", "numpy", "onnxruntime"}
        assert imported - set(sys.stdlib_module_names) == allowed

    def test_settings_of_the_server_are_the_users(self, fake, tmp_path):
        (tmp_path / "models").mkdir()
        (tmp_path / "models/settings.json").write_text('{"http_port": 9000}')
        repositories.mlserver(fake(), tmp_path / "models")
        text = (tmp_path / "models/settings.json").read_text()
        assert text == '{"http_port": 9000}'

    def test_another_artefact_and_how_to_run_it(self, fake, tmp_path):
        export = fake()
        directory = repositories.mlserver(
            export,
            tmp_path / "models",
            artefact="onnx_int8",
            providers=["CUDAExecutionProvider", "CPUExecutionProvider"],
            threads=2,
        )
        expected = (export / "model.int8.onnx").read_text()
        assert (directory / "model.onnx").read_text() == expected
        settings = json.loads((directory.parent / SETTINGS).read_text())
        assert settings["parameters"]["extra"] == {
            "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"],
            "threads": 2,
        }

    def test_weights_in_a_file_of_their_own_lie_beside_the_model(self, fake, tmp_path):
        export = fake(files={"onnx": ["model.onnx", "model.onnx.data"]})
        directory = repositories.mlserver(export, tmp_path / "models")
        assert files_in(directory) == {"model.onnx", "model.onnx.data"}

    @pytest.mark.parametrize("artefact", ["litert", "saved_model", "nothing"])
    def test_artefacts_that_it_does_not_read(self, fake, tmp_path, artefact):
        expected = rf"\['onnx', 'onnx_int8'\].*artefact='{artefact}'"
        with pytest.raises(ValueError, match=expected):
            repositories.mlserver(fake(), tmp_path / "models", artefact=artefact)

    def test_threads(self, fake, tmp_path):
        with pytest.raises(ValueError, match="`threads` must be 0.*threads=-1"):
            repositories.mlserver(fake(), tmp_path / "models", threads=-1)

    def test_a_dtype_that_the_protocol_lacks(self, fake, tmp_path):
        outputs = [{"name": "y", "dtype": "bfloat16", "shape": [None, 4]}]
        with pytest.raises(ValueError, match="Received: 'y' of bfloat16"):
            repositories.mlserver(fake(outputs=outputs), tmp_path / "models")

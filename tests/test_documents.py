"""Every code block of README and docs runs as it is written, page by page."""

import ast
import configparser
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_distill.cli import running
from keras_distill.devices.launching import free_ports
from keras_distill.installing import advice
from tests.e2e import services

COMMAND = Path(sys.executable).with_name("keras-distill")
ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in (
        "*.md",
        "docs/*.md",
        "examples/*.md",
        "export/**/*.md",
        "bench*/*.md",
    )
    for path in ROOT.glob(pattern)
)


def blocks(page, language):
    text = (ROOT / page).read_text()
    for match in BLOCK.finditer(text):
        if match["language"] == language:
            yield text[: match.start()].count("\n") + 2, match["code"]


def commands(page):
    """The command lines of `keras-distill` in blocks without a language."""
    for _, code in blocks(page, ""):
        for line in code.replace("\\\n", " ").splitlines():
            if line.startswith("keras-distill "):
                yield shlex.split(line, comments=True)[1:]


def run_python(page, names, written=blocks):
    for line, code in written(page, "python"):
        # With the page's own lines in tracebacks.
        tree = ast.parse("\n" * (line - 1) + code)
        exec(compile(tree, str(ROOT / page), "exec"), names)  # noqa: S102
    return names


def fashion_mnist():
    """Images of ten classes that are learned in a few steps."""
    labels = np.arange(160, dtype="uint8") % 10
    images = np.random.default_rng(0).integers(0, 60, (160, 28, 28), dtype="uint8")
    images[np.arange(160), 2 * labels] = 255
    return (images[:128], labels[:128]), (images[128:], labels[128:])


@pytest.fixture(scope="module")
def readme(tmp_path_factory):
    """The README's names and its directory, after all of its blocks."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(keras.datasets.fashion_mnist, "load_data", fashion_mnist)
        names = run_python("README.md", {})
        for file, kind in (("train", "x_train"), ("test", "x_test")):
            labels = {"labels": names["y_test"]} if file == "test" else {}
            images = names[kind].astype("float32")
            np.savez(f"{file}.npz", image=images, **labels)
    return names, folder


@pytest.fixture
def folder(readme, monkeypatch):
    monkeypatch.chdir(readme[1])
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", fashion_mnist)
    return readme[1]


def test_readme(readme):
    names, folder = readme
    assert (folder / "build/student/model.tflite").is_file()
    distiller, student = names["distiller"], names["student"]
    assert distiller.student.name == "student"  # of the last block
    assert [tensor.name for tensor in student.inputs] == ["item"]


@pytest.mark.parametrize(
    "page",
    ["index", "quick_start", "choosing", "methods", "symptoms", "saving", "jax"]
    + ["from_keras_io"],
)
def test_docs_of_the_site(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_python(f"docs/{page}.md", {})
    assert int(names["distiller"].optimizer.iterations) > 0
    if page == "quick_start":  # What the page says.
        assert names["report"].verdict("distilled") == "better"


def test_docs_from_keras_distillation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_python("docs/from_keras_distillation.md", {})
    t, s = names["t"], names["s"]
    assert names["default"].compute_loss(t, s) != names["default"].compute_loss(
        t + 9.0, s + 9.0
    )
    values = names["forward_kl"](t, s), names["forward_kl"](t + 9.0, s + 9.0)
    np.testing.assert_allclose(*values, rtol=1e-5)
    (projector,) = names["hinted"].projectors.values()
    assert projector.count_params() == 8 * 64 + 64


def test_docs_export(readme, folder):
    names = run_python("docs/export.md", {**readme[0], "distiller": first(readme)})
    assert (folder / "models/student/1/model.int8.onnx").is_file()
    assert [tensor.dtype for tensor in names["core"].inputs] == ["int64"]
    assert (folder / "build/colours/saved_model").is_dir()


def first(readme):
    """The distiller of the README's first block: the name is used again later."""
    import keras_distill as kd

    names = readme[0]
    student = keras.saving.load_model(readme[1] / "student.keras")
    distiller = kd.Distiller(student, names["network"](64))
    distiller.compile("adam", names["label_loss"])
    return distiller


def test_docs_privileged_features(folder):
    names = run_python("docs/privileged_features.md", {})
    assert names["recorded"].shape == (1_000, 1)
    assert np.isfinite(names["recorded"]).all()
    assert names["found"].fits == 5 * 2 and names["found"].verdict != "leaks"


def test_docs_any_teacher(folder):
    names = run_python("docs/any_teacher.md", {})
    assert (folder / "build/label/model.tflite").is_file()
    example, student = names["example"], names["student"]
    given, mean = student(example), names["averaged"](example)
    expected = (given["label"] + given["trees"]) / 2
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)


def test_docs_teachers_and_hints(folder):
    names = run_python("docs/teachers_and_hints.md", {})
    assert len(names["result"].students) == 3
    assert (folder / "small").is_dir() and (folder / "shared/run7").is_dir()


@pytest.mark.slow("samples, and trains ten times")
def test_docs_token_models(folder):
    names = run_python("docs/token_models.md", {})
    assert names["written"].tokens.shape == (4, 10)
    assert int(names["supervised"].optimizer.iterations) == 16  # The warmup has 32.
    assert np.isfinite(names["distiller"].history.history["loss"]).all()


def test_docs_devices(folder):
    names = run_python("docs/devices.md", {})
    assert names["distiller"].optimizer.iterations.numpy() == 2


def test_docs_compression(folder):
    names = run_python("docs/compression.md", {})
    teacher, shallow, narrow = (names[n] for n in ("teacher", "shallow", "narrow"))
    assert narrow.get_layer("stem").filters == 8 and (folder / "narrow.keras").is_file()
    assert len(shallow.layers) == len(teacher.layers) - 10


def test_docs_comparing(folder):
    report = run_python("docs/comparing.md", {})["report"]
    assert report.verdict("distilled") in ("better", "no difference shown", "worse")
    assert (folder / "report" / "report.html").stat().st_size < 2_000_000
    assert report.files["distilled"]["litert"] > 0


def test_docs_extending(folder):
    names = run_python("docs/extending.md", {})
    loss, x = names["loaded"].get_compile_config()["distillation_loss"], names["x"]
    assert loss["config"]["order"] == 0.5
    logits = names["model"].predict(x, verbose=0)
    assert abs(float(names["Renyi"](0.5, 2.0)(logits, logits))) < 1e-6
    assert int(names["noisy"].seed.state[1]) > 0  # its noise differs by batch
    ends = [model.get_weights()[0] for model in names["snapshots"].models]
    now = names["student"].get_weights()[0]
    assert np.array_equal(ends[1], now) and not np.array_equal(ends[0], now)


def test_docs_does_it_pay(folder):
    names = run_python("docs/does_it_pay.md", {})
    assert names["answer"].fits == 2 + 4


def test_docs_large_vocabulary(folder):
    names = run_python("docs/large_vocabulary.md", {})
    assert int(names["distiller"].optimizer.iterations) == 4
    (loss,) = names["distiller"].history.history["distillation_loss"]
    assert 0.0 < loss < 0.1


def test_docs_recording(folder):
    names = run_python("docs/recording.md", {})
    recorded = {"recorded", "compact", "views", "with_hidden", "privileged"}
    assert all((folder / name / "manifest.json").is_file() for name in recorded)
    assert names["distiller"].optimizer.iterations.numpy() == 2
    assert set(names["batch"]) == {"item", "teacher"}
    x = next(iter(names["joined"]))
    expected = names["teacher"]().predict(x["inputs"], verbose=0)
    np.testing.assert_allclose(x["teacher"], expected, atol=1e-5)


@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="MLServer has no release for Python 3.13"
)
def test_docs_remote_teacher(folder):
    """Its command runs between the blocks, on ports that are free."""
    (serve,) = commands(page := "docs/remote_teacher.md")
    port, grpc_port = map(str, free_ports(2))
    exporting, *others = blocks(page, "python")
    names = run_python(page, {}, lambda *_: [exporting])
    log = folder / "serve.log"
    assert serve[-4:] == ["--grpc-port", "8081", "--name", "teacher"]
    serve = [grpc_port if it == "8081" else it for it in serve] + ["--port", port]
    with services.running([COMMAND, *serve], log) as process:
        services.wait_for(lambda: "gRPC" in log.read_text(), process, log)
        others = [(line, code.replace("8081", grpc_port)) for line, code in others]
        names = run_python(page, names, lambda *_: others)
    assert names["distiller"].optimizer.iterations.numpy() == 2


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_recipe_of_onnxruntime(folder, monkeypatch):
    monkeypatch.chdir("build/student")
    session = run_python("export/onnxruntime/README.md", {})["session"]
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_no_page_is_left_out():
    run = {
        "README.md",
        "docs/any_teacher.md",
        "docs/choosing.md",
        "docs/comparing.md",
        "docs/compression.md",
        "docs/devices.md",
        "docs/does_it_pay.md",
        "docs/export.md",
        "docs/extending.md",
        "docs/from_keras_distillation.md",
        "docs/from_keras_io.md",
        "docs/index.md",
        "docs/jax.md",
        "docs/large_vocabulary.md",
        "docs/methods.md",
        "docs/privileged_features.md",
        "docs/quick_start.md",
        "docs/recording.md",
        "docs/remote_teacher.md",
        "docs/saving.md",
        "docs/symptoms.md",
        "docs/teachers_and_hints.md",
        "docs/token_models.md",
        "export/onnxruntime/README.md",
    }
    assert {page for page in PAGES if list(blocks(page, "python"))} == run
    languages = {
        match["language"]
        for page in PAGES
        for match in BLOCK.finditer((ROOT / page).read_text())
    }
    assert languages == {"", "python", "kotlin", "swift"}


@pytest.mark.parametrize("page", PAGES)
def test_command_lines_are_right(page, folder):
    """Its options are, and they fit together; EXPORT and the like are the reader's."""
    lines = list(commands(page))
    assert lines or page not in ("README.md", "docs/export.md")
    for line in lines:
        arguments = running._parser().parse_args(line)
        with suppress(FileNotFoundError):
            arguments.check(arguments)


def test_extras_are_installed_in_one_way():
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"])
    for page in PAGES:
        text = (ROOT / page).read_text()
        for quote, named in re.findall(r"pip install ('?\"?)\.\[([a-z,]+)\]", text):
            assert quote == "'" and set(named.split(",")) <= extras, page
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert advice("onnx,litert") in readme
    sources = (ROOT / "keras_distill").rglob("*.py")
    said = {path.name for path in sources if "pip install" in path.read_text()}
    assert said == {"installing.py"}


@pytest.mark.parametrize(
    "example",
    [it.name for it in ROOT.glob("examples/*.py") if "def main" in it.read_text()],
)
def test_a_smoke_run_says_last_what_it_is_worth(example):
    (main,) = (
        node
        for node in ast.parse((ROOT / "examples" / example).read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    last = ast.unparse(main.body[-1])
    assert re.fullmatch(
        r"if \w+\.smoke:\n    print\('A smoke run: its numbers mean nothing\.'\)", last
    )

"""The notebooks run as they are written, and the files have their outputs."""

import resource
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))


def test_there_are_two() -> None:
    names = [path.stem for path in NOTEBOOKS]
    assert names == ["first_distillation", "privileged_features"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs/site")
    from run_notebooks import run

    committed = outputs(nbformat.read(path, as_version=4))
    assert "picture" in committed and "text" in committed  # A reader sees both.
    before = cpu_seconds()
    assert outputs(run(path, tmp_path)) == committed, "run `make notebooks`"
    assert cpu_seconds() - before < 120  # as its first cell says


def cpu_seconds() -> float:
    """Return the CPU time of the processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def outputs(notebook: nbformat.NotebookNode) -> list[str]:
    """Return what kind of output each cell has, in order."""
    kinds = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                assert output.name == "stdout", output.text
                kinds.append("text")
            else:
                picture = "image/png" in output.get("data", {})
                kinds.append("picture" if picture else "value")
    return kinds

"""The site's build fails on what is dead, and describes every public name."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
API = "\n".join(path.read_text() for path in ROOT.glob("docs/api/*.md"))
SOUND = """\
# A

[b](b.md), [below](b.md#below), [here](#a), [code](../examples/run.py),
[folder](../examples)

:::{toctree}
b
:::
"""
FAULTS = {
    "a page that isn't there": "[x](missing.md)",
    "an anchor that this page lacks": "[x](#missing)",
    "an anchor that another page lacks": "[x](b.md#missing)",
    "a file that the repository lacks": "[x](../examples/missing.py)",
    "a file outside of the repository": "[x](../../outside.py)",
    "a picture that isn't there": "![x](missing.png)",
}


def build(folder: Path, index: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Build a site of two pages with the settings of `make docs`."""
    root = folder / "root"
    for name, text in {
        "docs/index.md": index,
        "docs/b.md": "# B\n\n## Below\n\nText\n",
        "examples/run.py": "print(1)\n",
        "../outside.py": "print(2)\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    make = (ROOT / "Makefile").read_text()
    (flags,) = re.findall(r"-m sphinx (.+) -c docs \. build/docs", make)
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *flags.split(), *options]
        + ["-c", ROOT / "docs", root, folder / "site"],
        capture_output=True,
        text=True,
    )


def test_a_sound_site(tmp_path: Path) -> None:
    done = build(tmp_path, SOUND)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "site/docs/index.html").read_text()
    for link in ("b.html#below", "../repository/examples/run.py.html"):
        assert f'href="{link}"' in page
    code = (tmp_path / "site/repository/examples/run.py.html").read_text()
    assert "print" in code
    folder = (tmp_path / "site/repository/examples.html").read_text()
    assert 'href="examples/run.py.html"' in folder


def test_what_is_dead_fails_the_build(tmp_path: Path) -> None:
    faulty = SOUND + "".join(f"\n{fault}\n" for fault in FAULTS.values())
    address = "https://code.example/main"
    done = build(tmp_path, faulty, "-D", f"repository_address={address}")
    assert done.returncode == 1
    lines = {int(it) for it in re.findall(r"index\.md:(\d+):.*WARNING", done.stderr)}
    expected = {faulty[: faulty.index(it)].count("\n") + 1 for it in FAULTS.values()}
    assert lines == expected, done.stderr
    page = (tmp_path / "site/docs/index.html").read_text()
    assert f'href="{address}/examples/run.py"' in page


def test_a_page_in_no_table_of_contents_fails_the_build(tmp_path: Path) -> None:
    done = build(tmp_path, "# A\n")
    assert done.returncode == 1 and "b.md" in done.stderr


def test_no_line_begins_with_a_comment_of_myst() -> None:
    """A code host shows such a line, and the site leaves it out in silence."""
    folders = ("*.md", "docs/**/*.md", "examples/*.md", "export/**/*.md", "bench*/*.md")
    for page in (page for pattern in folders for page in ROOT.glob(pattern)):
        assert not re.search("^%", page.read_text(), re.MULTILINE), page


@pytest.fixture
def public_names(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs/site")
    import public_names

    return public_names


def test_each_module_has_a_place_in_the_api(public_names) -> None:
    modules = {name.rpartition(".")[0] for name in public_names.public_names()}
    described = re.findall(r"automodule:: (\S+)\n   :members:\n", API)
    assert modules - {"keras_distill"} == set(described)
    for name in ("Distiller", "cross_fit"):
        assert f":: keras_distill.{name}\n" in API


def test_a_name_that_no_page_describes_fails_the_build(
    public_names, monkeypatch
) -> None:
    names = list(public_names.public_names())
    assert "keras_distill.losses.ForwardKL" in names
    warned: list[str] = []
    monkeypatch.setattr(
        public_names.logger, "warning", lambda text, name: warned.append(name)
    )
    objects = dict.fromkeys(names[1:])
    env = SimpleNamespace(
        found_docs={"docs/api/index"},
        get_domain=lambda name: SimpleNamespace(objects=objects),
    )
    public_names.check(None, env)
    assert warned == names[:1]


def test_the_arguments_of_a_model(monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs/site")
    from docstrings import _signature

    from keras_distill import Distiller

    given = (None, "class", "Distiller", Distiller, None, "(*args, **kwargs)", None)
    signature, _ = _signature(*given)
    assert signature.startswith("(student, teacher=None, ")


def test_docstrings_as_restructuredtext(monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs/site")
    from docstrings import to_rst

    text = (
        "One |line|, `a|b`, `Input`s.\n\n    e = |x|\n\nArgs:\n    a: One\n"
        "        |thing|.\n\nExample:\n>>> [1,\n...  2]\n[1, 2]"
    )
    assert to_rst(text) == (
        "One \\|line\\|, `a|b`, `Input`\\ s.\n\n::\n\n    e = |x|\n\nArgs:\n"
        "    a: One\n        \\|thing\\|.\n\n"
        "Example:\n    >>> [1,\n    ...  2]\n    [1, 2]"
    )

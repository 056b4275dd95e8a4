"""The page of a report: complete by itself, and readable on a phone."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from keras_distill.report import compare
from tests.report.models import dense, features

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (390, 1200)
# Written into a copy of the page: what a reader at this width would have to scroll.
MEASURING = """<script>
window.onload = () => parent.postMessage(JSON.stringify(
  [window.innerWidth, document.documentElement.scrollWidth,
   [...document.images].every(image => image.naturalWidth > 100)]), "*");
</script>"""
# A window of its own is never narrower than 500 pixels.
FRAME = """<title></title><script>
window.onmessage = message => { document.title = message.data; };
</script><iframe src="page.html" width="WIDTH" height="3000" frameborder="0"></iframe>
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    x = features(2000)
    y = np.abs(x @ np.random.default_rng(1).normal(size=(4, 12))).argmax(-1)
    models = {
        "teacher": dense(12),
        "student alone": dense(12, seed=1),
        "distilled <b>&": dense(12, seed=2),
    }
    names = [f"class number {n}" for n in range(12)]
    report = compare(models, (x, y), batch_sizes=(1, 8), class_names=names)
    return report.write(tmp_path_factory.mktemp("report") / "new" / "report")


PICTURES = [
    f"{name}.png"
    for name in ("size", "calibration", "gains", "confusions", "similarity")
]


def test_files(written):
    found = {path.name for path in written.parent.iterdir()}
    assert found == {"report.html", "report.json", *PICTURES}
    described = json.loads((written.parent / "report.json").read_text())
    assert described["kind"] == "keras_distill.report"
    for name in PICTURES:
        with Image.open(written.parent / name) as image:
            assert image.format == "PNG" and min(image.size) > 300


def test_it_needs_no_other_file(written):
    text = written.read_text()
    assert written.stat().st_size < 2_000_000
    assert "http" not in text.replace("http-equiv", "")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(sources) == 1 + len(PICTURES)
    assert all(each.startswith("data:") for each in sources)


def test_names_are_text(written):
    text = written.read_text()
    assert "distilled &lt;b&gt;&amp;" in text and "distilled <b>" not in text


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", WIDTHS)
def test_in_a_browser(written, width, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(written.read_text().replace("</body>", f"{MEASURING}</body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={tmp_path}", "--window-size=1300,3000"]
    command += [
        "--enable-logging=stderr",
        "--virtual-time-budget=5000",
        "--dump-dom",
        frame.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    title = re.search("<title>(.*?)</title>", done.stdout)
    inner, scrolled, drawn = json.loads(title[1])
    assert inner == width and drawn
    # Tables that are wider scroll by themselves; the page doesn't.
    assert scrolled <= width

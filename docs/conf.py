"""The documentation site: `make docs` builds it from the root of the repository.

The root is the source directory, so that a link between two pages is the same in the
site and on a code host. MyST-NB reads the Markdown pages as myst-parser does, and the
notebooks without pandoc, which nbsphinx would need.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))

# The address under which a reader finds the files of the repository, for instance
# "https://code.example/team/keras-distill/blob/main". With "" the site has a page for
# each file that a page links to, and needs no network.
repository_address = ""

project = "keras_distill"
author = "the maintainers of keras_distill"
release = re.search(
    r'__version__ = "(.+)"', (ROOT / "keras_distill" / "version.py").read_text()
)[1]
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "repository_files",
    "docstrings",
    "public_names",
]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "docs/**.md",
    "docs/**.ipynb",
    "examples/README.md",
    "export/**README.md",
]
exclude_patterns = [".*", "build", "*.egg-info", "demo-output", "docs/site"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}

# Each warning fails `make docs`: a dead link, a dead anchor, a page in no table of
# contents, a public name without a page. Names of other packages have no page here.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!keras_distill\b).*")]

# Anchors as code hosts make them, from headings of all levels that the pages have.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
# Notebooks have their outputs in them; tests/test_notebooks.py runs them.
nb_execution_mode = "off"
highlight_language = "text"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"

html_theme = "furo"
html_title = f"keras_distill {release}"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_extra_path = ["site/root"]  # index.html, which leads to docs/index.html
html_copy_source = False
html_show_copyright = False

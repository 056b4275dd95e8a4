"""Links from a page to a file or a folder of the repository that isn't a page.

Such a link leads to `repository_address` of conf.py, or, without an address, to a page
that shows the file or lists the folder. A file outside of the repository causes a
warning. A link to a path that doesn't exist is left to MyST, which warns of it.
"""

import html
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from docutils import nodes
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.osutil import relative_uri

FOLDER = "repository"
KEY = "repository_files"  # of the metadata of a page: the paths that it links to
Page = tuple[str, dict[str, Any], str]
logger = logging.getLogger(__name__)


class RepositoryFiles(SphinxTransform):
    """Replaces the links of one page."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Replace each link whose path exists in the repository."""
        for node in list(self.document.findall(_is_unresolved)):
            # The collector of images and downloads runs later, and finds none of these.
            path = _in_repository(self.app, self.env.docname, node["reftarget"])
            if path is None:
                if isinstance(node, addnodes.download_reference):
                    message = "No file of the repository: %r"
                    logger.warning(message, node["reftarget"], location=node)
                continue
            link = nodes.reference(refuri=_address(self.app, self.env.docname, path))
            link += node.children
            node.replace_self(link)
            self.env.metadata[self.env.docname].setdefault(KEY, set()).add(path)


def _is_unresolved(node: nodes.Node) -> bool:
    if isinstance(node, addnodes.download_reference):
        return True
    return (
        isinstance(node, addnodes.pending_xref)
        and node["reftype"] == "myst"
        and node["refdomain"] is None
    )


def _in_repository(app: Sphinx, docname: str, target: str) -> str | None:
    """Return the path that a link means, from the root, or None if there is none."""
    root = Path(app.srcdir).resolve()
    path = (root / docname).parent.joinpath(target.partition("#")[0]).resolve()
    if target.startswith("#") or not path.exists() or not path.is_relative_to(root):
        return None
    return path.relative_to(root).as_posix()


def _address(app: Sphinx, docname: str, path: str) -> str:
    if app.config.repository_address:
        return f"{app.config.repository_address.rstrip('/')}/{path}"
    return relative_uri(f"{docname}.html", f"{_page_name(app, path)}.html")


def _page_name(app: Sphinx, path: str) -> str:
    """Return the page of a path: a page of the site, or one that is made of it."""
    root = Path(app.srcdir)
    for candidate in (root / path, root / path / "README.md"):
        docname = app.project.path2doc(str(candidate))
        if docname in app.env.found_docs:
            return docname
    return f"{FOLDER}/{path}"


def pages(app: Sphinx) -> Iterator[Page]:
    """Make a page of each file or folder that a page links to, or that one contains."""
    if app.config.repository_address:
        return
    waiting = {path for data in app.env.metadata.values() for path in data.get(KEY, ())}
    made: set[str] = set()
    while waiting:
        path = waiting.pop()
        name = _page_name(app, path)
        if name in made or not name.startswith(f"{FOLDER}/"):
            continue
        made.add(name)
        file = Path(app.srcdir) / path
        if file.is_dir():
            inside = sorted(
                f"{path}/{it.name}" for it in file.iterdir() if _is_shown(it)
            )
            waiting.update(inside)
            body = _listing(app, name, inside)
        else:
            body = _code(app, file)
        title = html.escape(path)
        yield name, {"title": title, "body": f"<h1>{title}</h1>{body}"}, "page.html"


def _is_shown(path: Path) -> bool:
    return not path.name.startswith((".", "__")) and path.suffix != ".pyc"


def _listing(app: Sphinx, name: str, paths: list[str]) -> str:
    rows = (
        f'<li><a href="{_address(app, name, path)}">'
        f"{html.escape(PurePosixPath(path).name)}</a></li>"
        for path in paths
    )
    return f"<ul>{''.join(rows)}</ul>"


def _code(app: Sphinx, file: Path) -> str:
    try:
        language = get_lexer_for_filename(file.name).aliases[0]
    except ClassNotFound:
        language = "text"
    return app.builder.highlighter.highlight_block(file.read_text(), language)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the links, their pages and the setting."""
    app.add_config_value("repository_address", "", "env", str)
    app.add_transform(RepositoryFiles)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

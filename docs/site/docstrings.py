"""The package's docstrings, which are plain text, as reStructuredText for autodoc."""

import inspect
import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.inspect import stringify_signature

EXAMPLE = re.compile(r"(?<=^Example:\n)>>>.*", re.MULTILINE | re.DOTALL)
IN_BACKTICKS = re.compile(r"(`[^`]*`)")


def to_rst(text: str) -> str:
    """Mark equations and examples as such, and escape what is markup there.

    An equation is an indented block that follows a blank line and a line without
    indentation. An example ends its docstring.
    """
    text = EXAMPLE.sub(lambda it: re.sub("^", "    ", it[0], flags=re.MULTILINE), text)
    before, result = " ", []
    for block in text.split("\n\n"):
        if block.startswith("    ") and not before.startswith(" "):
            block = f"::\n\n{block}"
        elif ">>>" not in block:
            parts = IN_BACKTICKS.split(block)
            parts[::2] = (part.replace("|", r"\|") for part in parts[::2])
            # Markup ends only before a character that isn't of a word: "`Input`s".
            parts[2::2] = (re.sub(r"^(?=\w)", r"\\ ", part) for part in parts[2::2])
            block = "".join(parts)
        result.append(block)
        before = block.splitlines()[-1] if block else ""
    return "\n\n".join(result)


def _on_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    if what == "property" and ": " in IN_BACKTICKS.sub("", lines[0]):
        logging.getLogger(__name__).warning(
            "%s: what is before a colon would be shown as its type: %s", name, lines[0]
        )
    lines[:] = to_rst("\n".join(lines)).split("\n")


def _signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, given: str, returned: Any
) -> tuple[str, Any] | None:
    """Give a class its constructor's arguments, where Keras' `__new__` hides them."""
    if what != "class" or not (given or "").startswith("(*args"):
        return None
    whole = inspect.signature(obj.__init__)
    shown = whole.replace(parameters=list(whole.parameters.values())[1:])
    return stringify_signature(shown, show_annotation=False), returned


def _skip(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out fields of named tuples: the tuple's own text describes them."""
    is_field = (getattr(obj, "__doc__", None) or "").startswith("Alias for field")
    return True if is_field else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Change docstrings before napoleon reads them."""
    app.connect("autodoc-process-docstring", _on_docstring, priority=100)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

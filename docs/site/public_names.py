"""A warning for each public name of the package that the API pages don't describe."""

import importlib
import inspect
from collections.abc import Iterator

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

PACKAGE = "keras_distill"
logger = logging.getLogger(__name__)


def public_names(room: str = PACKAGE) -> Iterator[str]:
    """Return the names in `__all__` of a module and of the public modules in it."""
    module = importlib.import_module(room)
    for name in module.__all__:
        full = f"{room}.{name}"
        if inspect.ismodule(getattr(module, name)):
            yield from public_names(full)
        elif name != "__version__":
            yield full


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of names without a description, in a build that has the API pages."""
    if "docs/api/index" not in env.found_docs:
        return
    described = env.get_domain("py").objects
    for name in public_names():
        if name not in described:
            logger.warning("No page of docs/api describes %s.", name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Check the names once all pages are read."""
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""What a format is: a file name, a writer and the runtime that reads it back."""

import importlib.util
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keras_distill.export.batches import Arrays
from keras_distill.export.serving import Served


@dataclass(frozen=True)
class Loaded:
    """An artefact in its own runtime.

    Attributes:
        inputs: The input names that the runtime asks for.
        outputs: The output names that it gives.
        run: Named arrays in, named arrays out.
    """

    inputs: frozenset[str]
    outputs: frozenset[str]
    run: Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Format:
    """A format that models are exported to.

    Attributes:
        name: What callers pass in `formats`.
        file: Its file or directory inside the export.
        extra: The optional dependencies of this package that it needs, or None.
        modules: Import name to distribution name of those.
        write: Writes the artefact of a served model to a path.
        load: Loads it with its own runtime.
        advice: What to do about models that the format can't hold.
    """

    name: str
    file: str
    extra: str | None
    modules: dict[str, str]
    write: Callable[[Served, Path], None]
    load: Callable[[Path], Loaded]
    advice: str

    def require(self) -> None:
        """Raise `ImportError` where a package that this format needs is missing."""
        for module, distribution in self.modules.items():
            if importlib.util.find_spec(module) is None:
                raise ImportError(
                    f"The format {self.name!r} needs the package {distribution!r}, "
                    "which is not installed. Install it with "
                    f"`pip install keras-distill[{self.extra}]`."
                )

    @contextmanager
    def explaining(self, action: str) -> Iterator[None]:
        """Turn what a converter or runtime raises into an error that helps.

        Errors of the operating system, such as a full disk, pass as they are.
        """
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 800)
            raise RuntimeError(
                f"`model` can't be exported in the format {self.name!r}: {action} "
                f"failed. Received: {reason.rstrip('. ')}. Nothing was published. "
                f"Leave {self.name!r} out of `formats`, or {self.advice}."
            ) from error

"""The formats of artefacts: file names, writers and the runtimes that read them."""

import importlib.util
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from keras_distill.export.batches import Arrays
from keras_distill.export.serving import Served
from keras_distill.installing import advice

# The precision of the model itself. It is always written.
FULL = "full"


@dataclass(frozen=True)
class Loaded:
    """An artefact in its own runtime.

    Attributes:
        inputs: The input names in the runtime.
        outputs: The output names in the runtime.
        run: Computes named outputs from named inputs, in the dtypes of the model.
        integers: Name to `{"dtype", "scale", "zero_point"}`, for inputs and outputs
            that are integers in the file and floats in the model.
        unoptimized: Loads the file without the runtime's optimisations; None if the
            runtime has no such option.
    """

    inputs: frozenset[str]
    outputs: frozenset[str]
    run: Callable[[Arrays], Arrays]
    integers: dict[str, dict[str, Any]] = field(default_factory=dict)
    unoptimized: "Callable[[], Loaded] | None" = None


@dataclass(frozen=True)
class Conversion:
    """The arguments of a writer.

    Attributes:
        served: The model.
        precision: `FULL`, or one of the format's `precisions`.
        calibration: Batches of the model's named inputs, for static quantisation.
    """

    served: Served
    precision: str = FULL
    calibration: Sequence[Arrays] = ()


class Refusal(ValueError):
    """The error of a model that a format can't represent, found without the converter.

    Attributes:
        where: The layers at fault, as text, if `reason` doesn't name them.
        remedy: A remedy other than leaving the format out.
    """

    def __init__(self, reason: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(reason)
        self.where = where
        self.remedy = remedy


@dataclass(frozen=True)
class Diagnosis:
    """The cause of an error.

    Attributes:
        where: The layers and operations at fault, as text.
        remedies: Remedies other than leaving the format out.
        note: A further sentence about the cause.
    """

    where: str = ""
    remedies: tuple[str, ...] = ()
    note: str = ""


class Examine(Protocol):
    """A search for the cause of an error."""

    def __call__(self, target: "Target", error: Exception) -> Diagnosis:
        """Return the layers at fault for an error of a converter or runtime."""

    def of_values(self, target: "Target", error: Exception) -> Diagnosis:
        """Return the first layer whose output differs from Keras'."""


class Load(Protocol):
    """A loader of artefacts, with `threads` threads or the runtime's default."""

    def __call__(self, path: Path, threads: int | None = None) -> Loaded:
        """Load the artefact at `path`."""


@dataclass(frozen=True)
class Format:
    """A format that models are exported to.

    Attributes:
        name: What callers pass in `formats`.
        file: Its file or directory inside the export, in full precision.
        precisions: The precisions that it can be quantised to.
        extra: The name of this package's extra that the format needs, or None.
        modules: Import name to distribution name of the packages that it needs.
        write: Writes the artefact of a conversion to a path. It is called in full
            precision first.
        load: Loads an artefact with its own runtime.
        weights: Counts the values in the weights of a file by type, as
            `{"float32": 10, "int8": 40}`; None if the format isn't quantised.
    """

    name: str
    file: str
    precisions: tuple[str, ...]
    extra: str | None
    modules: dict[str, str]
    write: Callable[[Conversion, Path], None]
    load: Load
    weights: Callable[[Path], dict[str, int]] | None = None

    def require(self) -> None:
        """Raise `ImportError` if a package that this format needs is missing."""
        for module, distribution in self.modules.items():
            if importlib.util.find_spec(module) is None:
                raise ImportError(
                    f"The format {self.name!r} needs the package {distribution!r}, "
                    "which is not installed. Install it with "
                    f"{advice(str(self.extra))}."
                )


@dataclass(frozen=True)
class Target:
    """One artefact: a format in a precision."""

    format: Format
    precision: str = FULL

    @property
    def name(self) -> str:
        """The format's name, with the precision unless it is the model's own."""
        full = self.precision == FULL
        return self.format.name if full else f"{self.format.name}_{self.precision}"

    @property
    def file(self) -> str:
        """The name of the file, e.g. `model.onnx` or `model.int8.onnx`."""
        if self.precision == FULL:
            return self.format.file
        file = Path(self.format.file)
        return f"{file.stem}.{self.precision}{file.suffix}"

    @contextmanager
    def explaining(self, action: str, examine: Examine | None = None) -> Iterator[None]:
        """Replace errors of a converter or runtime by an error with cause and remedy.

        Errors of the operating system, e.g. of a full disk, aren't replaced.

        Args:
            action: What the block does.
            examine: Searches for the cause; None without the model.
        """
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            found = examine(self, error) if examine else Diagnosis()
            failed = f"{action} failed" + (f" in {found.where}" if found.where else "")
            reason = textwrap.shorten(_readable(error), 800).rstrip(". ")
            raise RuntimeError(
                f"`model` can't be exported as {self.name!r}: {failed}. "
                f"Received: {reason}. {self.advice(found)}"
            ) from error

    def advice(self, found: Diagnosis) -> str:
        """Return the note about a cause, and its remedies."""
        note = f"{found.note}. " if found.note else ""
        where = "formats" if self.precision == FULL else "quantize"
        left_out = self.format.name if self.precision == FULL else self.precision
        leave = f"Leave {left_out!r} out of `{where}`"
        return f"{note}{', or '.join([leave, *found.remedies])}."


# LiteRT's converter writes several lines about the location of each error.
_PLACES = re.compile(r".*: note: .*\n?|<unknown>:0: |loc\(.+\): (?=\S)")


def _readable(error: Exception) -> str:
    if isinstance(error, Refusal):
        return str(error)
    return f"{type(error).__name__}: {_PLACES.sub('', str(error))}"


def quantized_weights(target: Target, path: Path) -> dict[str, int]:
    """Return the numbers of values in the weights of a quantised file, by type.

    Raises:
        Refusal: No weight has the type of the target's precision.
    """
    counted = target.format.weights(path) if target.format.weights else {}
    is_float = target.precision == "float16"
    wanted = ("float16",) if is_float else ("int8", "uint8", "int4")
    if not any(counted.get(name) for name in wanted):
        reason = (
            "ONNX leaves convolutions and loops as they are, and LiteRT small weights"
        )
        if not counted:
            reason = "the file has no constant matrices"
        elif target.precision == "float16":
            reason = f"those of the file are {', '.join(sorted(counted))}"
        raise Refusal(f"no weight became {wanted[0]}, as {reason}")
    return counted

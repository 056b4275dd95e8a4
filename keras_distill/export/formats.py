"""The formats of artefacts: file names, a writer, and the runtime that reads it."""

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

# What the model itself computes in; always written.
FULL = "full"


@dataclass(frozen=True)
class Loaded:
    """An artefact in its own runtime.

    Attributes:
        inputs: The input names that the runtime asks for.
        outputs: The output names that it gives.
        run: Named arrays in, named arrays out, both in the dtypes of the model.
        integers: Of inputs and outputs that are integers in the file and floats in
            the model: name to `{"dtype", "scale", "zero_point"}`.
        unoptimized: Loads the same file so that the runtime runs it as it is written;
            None where that can't be asked for.
    """

    inputs: frozenset[str]
    outputs: frozenset[str]
    run: Callable[[Arrays], Arrays]
    integers: dict[str, dict[str, Any]] = field(default_factory=dict)
    unoptimized: "Callable[[], Loaded] | None" = None


@dataclass(frozen=True)
class Conversion:
    """What a writer is given.

    Attributes:
        served: The model.
        precision: `FULL`, or one of those that the format lists.
        calibration: Batches of the model's named inputs, for static quantisation.
    """

    served: Served
    precision: str = FULL
    calibration: Sequence[Arrays] = ()


class Refusal(ValueError):
    """A model that a format can't hold, found out before its converter.

    Attributes:
        where: The layers at fault, as an error names them, where `reason` doesn't.
        remedy: What may help besides leaving the format out.
    """

    def __init__(self, reason: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(reason)
        self.where = where
        self.remedy = remedy


@dataclass(frozen=True)
class Diagnosis:
    """The cause of an error.

    Attributes:
        where: The layers and operations at fault, as an error names them.
        remedies: What may help besides leaving the format out.
        note: What else is known of the cause.
    """

    where: str = ""
    remedies: tuple[str, ...] = ()
    note: str = ""


class Examine(Protocol):
    """Looks for the cause of an error."""

    def __call__(self, target: "Target", error: Exception) -> Diagnosis:
        """Name the layers at fault where a converter or runtime raised."""

    def of_values(self, target: "Target", error: Exception) -> Diagnosis:
        """Name the first layer whose output isn't Keras'."""


class Load(Protocol):
    """Loads an artefact with its own runtime, on `threads` threads or its default."""

    def __call__(self, path: Path, threads: int | None = None) -> Loaded:
        """Load the artefact at `path`."""


@dataclass(frozen=True)
class Format:
    """A format that models are exported to.

    Attributes:
        name: What callers pass in `formats`.
        file: Its file or directory inside the export, in full precision.
        precisions: What it can be quantised to.
        extra: The optional dependencies of this package that it needs, or None.
        modules: Import name to distribution name of those.
        write: Writes the artefact of a conversion to a path; in full precision first.
        load: Loads it with its own runtime.
        weights: Tells how many values the weights of a file have by type, as
            `{"float32": 10, "int8": 40}`; None where nothing is quantised.
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
        """Raise `ImportError` where a package that this format needs is missing."""
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
        """The format's name, and the precision where it isn't the model's own."""
        full = self.precision == FULL
        return self.format.name if full else f"{self.format.name}_{self.precision}"

    @property
    def file(self) -> str:
        """`model.onnx`, or `model.int8.onnx`."""
        if self.precision == FULL:
            return self.format.file
        file = Path(self.format.file)
        return f"{file.stem}.{self.precision}{file.suffix}"

    @contextmanager
    def explaining(self, action: str, examine: Examine | None = None) -> Iterator[None]:
        """Turn what a converter or runtime raises into an error that helps.

        Errors of the operating system, such as a full disk, pass as they are.

        Args:
            action: What is done inside.
            examine: Looks for the cause, where the model is at hand.
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
        """Return what else is known of a cause, and what to do about it."""
        note = f"{found.note}. " if found.note else ""
        where = "formats" if self.precision == FULL else "quantize"
        left_out = self.format.name if self.precision == FULL else self.precision
        leave = f"Leave {left_out!r} out of `{where}`"
        return f"{note}{', or '.join([leave, *found.remedies])}."


# LiteRT's converter locates each error in several lines.
_PLACES = re.compile(r".*: note: .*\n?|<unknown>:0: |loc\(.+\): (?=\S)")


def _readable(error: Exception) -> str:
    if isinstance(error, Refusal):
        return str(error)
    return f"{type(error).__name__}: {_PLACES.sub('', str(error))}"


def quantized_weights(target: Target, path: Path) -> dict[str, int]:
    """Return how many values the weights of a quantised file have by type.

    Raises:
        Refusal: None are of the type that was asked for.
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

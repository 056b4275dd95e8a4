"""The argument parser and the printing that all subcommands share."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeAlias

from keras_distill import installing

# A string, as the class can be subscripted only by type checkers.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Check: TypeAlias = Callable[[argparse.Namespace], None]


class WrongArguments(Exception):
    """An error in the arguments, for which the process exits with code 2.

    Attributes:
        parser: The parser of the arguments.
        message: The error and its remedy.
    """

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.parser = parser

    def report(self) -> None:
        """Print the usage and the message on the standard error."""
        self.parser.print_usage(sys.stderr)
        print(f"{self.parser.prog}: error: {self.message}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """A parser that raises errors as exceptions, with the closest valid argument."""

    def error(self, message: str) -> NoReturn:
        """Raise `WrongArguments`."""
        raise WrongArguments(self, message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; report unknown arguments as this parser, not as its parent."""
        try:
            namespace, left_over = super().parse_known_args(args, namespace)
        except WrongArguments as wrong:
            if wrong.parser is not self:
                raise
            # A required option may be missing because it is misspelt.
            self.error(wrong.message + self._meant(args or ()))
        if left_over:
            meant = self._meant(left_over)
            self.error(f"unrecognized arguments: {' '.join(left_over)}{meant}")
        return namespace, left_over

    def _meant(self, given: Iterable[str]) -> str:
        known = list(self._option_string_actions)
        names = [text.partition("=")[0] for text in given if text.startswith("--")]
        unknown = [
            name for name in names if not any(each.startswith(name) for each in known)
        ]
        return "".join(_meant(name, known) for name in unknown)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        raise argparse.ArgumentError(
            action,
            f"invalid choice: {value!r} (choose from {', '.join(choices)})"
            f"{_meant(str(value), choices)}",
        )


def _meant(text: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(text, list(known), n=1)
    return f". Did you mean {close[0]}?" if close else ""


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    *,
    help: str,
    description: str,
    examples: str,
    check: Check = lambda arguments: None,
    imports: bool = True,
) -> argparse.ArgumentParser:
    """Add a subcommand whose `--help` ends with examples.

    Args:
        commands: The result of `add_subparsers`.
        name: The name of the subcommand.
        run: Called with the parsed arguments; returns an exit code, None for 0.
        help: One line for the list of commands.
        description: A description of the subcommand and its requirements.
        examples: Command lines, one for each line of text.
        check: Called with the parsed arguments before the library is imported; calls
            `arguments.parser.error` if they don't fit together.
        imports: Whether TensorFlow and the package's classes are imported before `run`.
    """
    parser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run, check=check, parser=parser, imports=imports)
    return parser


def needs(what: str, extra: str) -> str:
    """Return lines that say what needs an extra, and which commands install it.

    Args:
        what: A subject with its verb, e.g. "The demo needs".
        extra: The name of the extra.
    """
    return f"{what} more packages. Install them:\n{installing.commands(extra)}"


def print_json(value: Any) -> None:
    """Print a result as JSON."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print a table, with its first column aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        first, *rest = (
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *rest]))

"""What the subcommands' parsers share."""

import argparse
import json
from collections.abc import Callable
from typing import Any, TypeAlias

# Subscripted at type checking alone: the class isn't generic when it runs.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    *,
    help: str,
    description: str,
    examples: str,
) -> argparse.ArgumentParser:
    """Add a subcommand whose `--help` ends with examples.

    Args:
        commands: What `add_subparsers` returned.
        name: What users type.
        run: Called with the parsed arguments; returns an exit code, None for 0.
        help: One line for the list of commands.
        description: What it does and needs.
        examples: Command lines, one a line.
    """
    parser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    return parser


def print_json(value: Any) -> None:
    """Print a result for programs."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print columns: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        first, *rest = (
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *rest]))

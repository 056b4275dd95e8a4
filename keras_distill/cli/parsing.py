"""What the subcommands' parsers share."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

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

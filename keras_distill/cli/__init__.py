"""The command line: arguments in, calls to the library, exit codes out."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: The arguments; those of this process by default.

    Returns:
        The exit code: 0, 1 where the subcommand failed with a message on the standard
        error, 3 where an artefact isn't the model that it was made from, 130 where it
        was interrupted. Wrong arguments leave with 2. With `--json` the standard output
        is one JSON document, `{"error": ...}` where the subcommand failed.
    """
    try:
        # Inside, so that Ctrl-C during the import leaves without a traceback too.
        from keras_distill.cli import running

        return running.run(argv)
    except KeyboardInterrupt:
        return 130

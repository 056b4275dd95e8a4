"""The command line: parses arguments, calls the library, returns exit codes."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: The arguments; those of this process by default.

    Returns:
        The exit code. It is 0; 1 if the subcommand failed, with a message on the
        standard error; 3 if an artefact differs from the model that it was made from;
        130 if the user interrupted it. Wrong arguments exit with code 2. With `--json`
        the standard output is one JSON document, `{"error": ...}` after an error.
    """
    try:
        # Ctrl-C during this import must not print a traceback either.
        from keras_distill.cli import running

        return running.run(argv)
    except KeyboardInterrupt:
        return 130

"""Commands that install optional dependencies, for errors, help and docs."""


def advice(extra: str) -> str:
    """Return the commands that install an extra, as part of a sentence.

    >>> advice("demo").partition(" in a clone")[0]
    "`pip install '.[demo]'`"
    """
    return (
        f"`pip install '.[{extra}]'` in a clone "
        f"(once published, `pip install keras-distill[{extra}]`)"
    )


def commands(extra: str) -> str:
    """Return the commands that install an extra, one to a line.

    >>> print(commands("demo"))
      in a clone of the repository:     pip install '.[demo]'
      once the library is published:    pip install 'keras-distill[demo]'
    """
    return (
        f"  in a clone of the repository:     pip install '.[{extra}]'\n"
        f"  once the library is published:    pip install 'keras-distill[{extra}]'"
    )

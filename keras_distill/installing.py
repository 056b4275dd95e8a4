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

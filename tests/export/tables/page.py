"""The tables of docs/export.md: `python -m tests.export.tables.page` prints them."""

import re

from tests.export.tables.outcomes import TABLES, loops, refused

BEGIN, END = "<!-- begin: what formats refuse -->\n", "<!-- end -->\n"
_UNROLLED = "with `unroll=True`, or a `batch_size`"


def _cell(name, table, key):
    if key in loops(name, table):
        return _UNROLLED
    return "refused" if key in refused(name, table) else "yes"


def _row(table, key):
    cells = [_cell(name, table, key) for name in ("onnx", "litert")]
    label = re.sub(r"^([\w.]+)", r"`\1`", key)
    return label, *cells


def tables():
    """The text between the markers."""
    lines = ["| layers | ONNX | LiteRT |", "| --- | --- | --- |"]
    grouped = {}
    for key in sorted(TABLES["layers"]):
        label, *cells = _row("layers", key)
        if cells != ["yes", "yes"]:
            grouped.setdefault(tuple(cells), []).append(label)
    lines += [f"| {', '.join(v)} | {' | '.join(k)} |" for k, v in grouped.items()]
    lines += ["", "| `keras.ops` and activations | ONNX | LiteRT |", lines[1]]
    grouped = {}
    for key in sorted(TABLES["operations"]):
        label, *cells = _row("operations", key)
        if cells != ["yes", "yes"]:
            grouped.setdefault(tuple(cells), []).append(label)
    lines += [f"| {', '.join(v)} | {' | '.join(k)} |" for k, v in grouped.items()]
    untraceable = ", ".join(f"`{key}`" for key in refused("saved_model", "operations"))
    lines += [
        "",
        "Keras itself can't trace these for a batch of open size, so that no format "
        f"holds them: {untraceable}.",
    ]
    counts = [len(TABLES[t]) for t in ("layers", "activations", "operations")]
    lines += [
        "",
        "Every format holds all others of {} layers, {} activations and {} operations "
        "that were tried.".format(*counts),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(tables(), end="")

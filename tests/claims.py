"""The measured numbers of README and docs, and the results that they are taken from.

`benchmarks/measured/` has a file for each script: what it printed, and the pages that
quote it. `tests/test_claims.py` compares the pages with these files.

    python -m tests.claims             # what the pages claim and no file declares
    python -m tests.claims --reword    # take over words of pages, where numbers agree
"""

import argparse
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "benchmarks" / "measured"
NOT_MEASURED = MEASURED / "not_measured.json"
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "docs/*.md", "examples/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)

_NUMBER = (
    r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:(?<=\d)\.(?=\d)|\.(?=\d)|(?<=\d))\d*(?:e[-+]?\d+)?"
)
NUMBER = re.compile(rf"(?<![\w.,])(?:(?<![\w)])[-+])?{_NUMBER}(?![\w]|[.,]\d)")
_UNIT = (
    r"%|points?|times|x(?! ?\d)|ms|µs|s|seconds?|minutes?|hours?|kB|MB|GB|nats?"
    r"|\w+/s|of a step"
)
# A number that a sentence may only have if a script printed it: with the unit of a
# result, with a deviation, as 1/12, or with decimals; and others in a row with it, as
# the first in "22 to 42 points". Decimals after one of these names are a version.
CLAIM = re.compile(
    rf"(?<![\w.,/+-])(?P<ratio>1/)?(?P<number>[-+]?{_NUMBER})"
    rf"(?: ± (?P<deviation>{_NUMBER}))?(?:\s(?P<unit>{_UNIT})(?![\w/]))?"
    rf"(?![\w]|[.,]\d)"
)
VERSION = re.compile(
    r"\b(?:Python|Keras|TensorFlow|JAX|PyTorch|NumPy|MLServer|Beam|Runtime|version) $"
)
IN_A_ROW = re.compile(r",| to| and| or|, and")


@dataclass(frozen=True)
class Table:
    """A table of a page: plain heads and labels, and the cells as they are written."""

    page: str
    heading: str
    head: str
    rows: tuple[tuple[str, ...], ...]

    @property
    def measured(self) -> bool:
        """Whether half of a column's filled cells begin with a number."""
        columns = list(zip(*self.rows, strict=True))[1:]
        filled = [[plain(cell) for cell in column if cell] for column in columns]
        return any(
            2 * sum(NUMBER.match(cell) is not None for cell in cells) >= len(cells) > 0
            for cells in filled
        )

    @property
    def labels(self) -> list[str]:
        """The first column."""
        return [plain(row[0]) for row in self.rows]

    def described(self) -> dict[str, Any]:
        """The table as a results file has it: labels, then the numbers of each cell."""
        rows = [
            [label, *([_shortest(it) for it in numbers(cell)] for cell in row[1:])]
            for label, row in zip(self.labels, self.rows, strict=True)
        ]
        return {"page": self.page, "head": self.head, "rows": rows}

    def faults(self, declared: dict[str, Any]) -> list[str]:
        """What differs from the results file, as sentences.

        With `"part": true` the results file has some of the rows.
        """
        rows = declared["rows"]
        if declared.get("part"):
            names = [row[0] for row in rows]
            kept = tuple(
                row
                for label, row in zip(self.labels, self.rows, strict=True)
                if label in names
            )
            whole = {"rows": rows}
            return Table(self.page, self.heading, self.head, kept).faults(whole)
        if self.labels != [row[0] for row in rows]:
            return [f"labels are {self.labels}, declared are {[it[0] for it in rows]}"]
        found = []
        for row, measured in zip(self.rows, rows, strict=True):
            for cell, values in zip(row[1:], measured[1:], strict=True):
                if not agree(numbers(cell), values):
                    found.append(f"{measured[0]}: {cell} is written for {values}")
        return found


@dataclass(frozen=True)
class Figure:
    """A number in a sentence of a page."""

    page: str
    number: Decimal
    sentence: str


def agree(written: Sequence[Decimal], measured: Sequence[float]) -> bool:
    """Return whether measured values, rounded as the page rounds, are the written."""
    if len(written) != len(measured):
        return False
    for number, value in zip(written, measured, strict=True):
        half = Decimal((0, (5,), int(number.as_tuple().exponent) - 1))
        if abs(Decimal(str(value)) - number) > half:
            return False
    return True


def results() -> dict[str, dict[str, Any]]:
    """Return all results files by name, but the list of what isn't measured."""
    return {
        path.name: json.loads(path.read_text())
        for path in sorted(MEASURED.glob("*.json"))
        if path != NOT_MEASURED
    }


def plain(text: str) -> str:
    """Return text without emphasis, code marks and the targets of links."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"\*\*|`", "", text).replace(r"\|", "|").strip()


def numbers(cell: str) -> list[Decimal]:
    """Return the numbers of a cell, but not those within code."""
    text = plain(re.sub(r"`[^`]*`", " ", cell))
    return [Decimal(it.replace(",", "")) for it in NUMBER.findall(text)]


def tables(page: str, text: str | None = None) -> Iterator[Table]:
    """Yield the tables of a page, or of a text in its place."""
    heading = ""
    lines = _without_code(text or (ROOT / page).read_text()).splitlines()
    for number, line in enumerate(lines):
        if line.startswith("#"):
            heading = plain(line.lstrip("# "))
        if re.fullmatch(r"\|(?: *:?-+:? *\|)+", line):
            end = number + 1
            while end < len(lines) and lines[end].startswith("|"):
                end += 1
            head, *rows = (
                tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1])
                for row in (lines[number - 1], *lines[number + 1 : end])
            )
            yield Table(page, heading, " | ".join(map(plain, head)), tuple(rows))


def figures(page: str, text: str | None = None) -> Iterator[Figure]:
    """Yield the measured numbers of the sentences of a page, or of a text."""
    text = _without_code(text or (ROOT / page).read_text())
    lines = [it for it in text.splitlines() if not it.startswith(("|", "#"))]
    # Numbers within code are settings, names and shapes.
    text = re.sub(r"`[^`]*`", lambda it: re.sub(r"\d", "#", it[0]), "\n".join(lines))
    for paragraph in re.split(r"\n\s*\n|\n(?=- |\d+\. )", text):
        paragraph = " ".join(plain(paragraph).split())
        for sentence in re.split(r"(?<=[.?!]) (?=[A-Z`\"])", paragraph):
            for number in _claimed(sentence):
                yield Figure(page, number, sentence)


def _claimed(sentence: str) -> list[Decimal]:
    found: list[Decimal] = []
    matches = list(CLAIM.finditer(sentence))
    versions = set()
    for number, match in enumerate(matches):
        before = sentence[: match.start()]
        if VERSION.search(before) or (
            number - 1 in versions and _in_a_row(sentence, matches[number - 1], match)
        ):
            versions.add(number)
    claimed = False
    for number, match in reversed(list(enumerate(matches))):
        decimals = "." in match["number"] or "e-" in match["number"]
        row = number + 1 < len(matches) and _in_a_row(
            sentence, match, matches[number + 1]
        )
        claimed = number not in versions and bool(
            match["unit"]
            or match["deviation"]
            or match["ratio"]
            or decimals
            or (claimed and row)
        )
        if claimed:
            found += [
                Decimal(match[part].replace(",", ""))
                for part in ("deviation", "number")
                if match[part]
            ]
    return found[::-1]


def _in_a_row(sentence: str, first: re.Match[str], second: re.Match[str]) -> bool:
    between = sentence[first.end() : second.start()].rstrip()
    return IN_A_ROW.fullmatch(between) is not None


def _without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def _shortest(number: Decimal) -> float | int:
    return int(number) if number == number.to_integral_value() else float(number)


def undeclared() -> tuple[list[Table], list[Figure]]:
    """Return the measured tables and numbers of all pages that no file declares."""
    exempt = json.loads(NOT_MEASURED.read_text())
    files = [*results().values(), exempt]
    declared = set()
    parts: dict[tuple[str, str], set[str]] = {}
    for file in files:
        for it in file["tables"]:
            labels = [row[0] for row in it.get("rows", [])]
            if it.get("part"):
                parts.setdefault((it["page"], it["head"]), set()).update(labels)
            else:
                declared.add((it["page"], it["head"], *labels))
    stated: dict[str, list[float]] = {}
    for file in files:
        for it in file["sentences"]:
            stated.setdefault(it["page"], []).extend(it["numbers"])
    missing_tables, missing_figures = [], []
    for page in PAGES:
        for table in tables(page):
            names = {(page, table.head), (page, table.head, *table.labels)}
            whole = set(table.labels) <= parts.get((page, table.head), set())
            if table.measured and not (whole or names & declared):
                missing_tables.append(table)
        for figure in figures(page):
            if not any(agree([figure.number], [it]) for it in stated.get(page, [])):
                missing_figures.append(figure)
    return missing_tables, missing_figures


def sentences(found: Sequence[Figure]) -> list[dict[str, Any]]:
    """Return figures as a results file has them, by sentence."""
    grouped: dict[tuple[str, str], list[float | int]] = {}
    for figure in found:
        values = grouped.setdefault((figure.page, figure.sentence), [])
        values.append(_shortest(figure.number))
    return [
        {"page": page, "about": about, "numbers": values}
        for (page, about), values in grouped.items()
    ]


def written(file: dict[str, Any]) -> str:
    """Return the text of a results file: a line for each row and each sentence."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    def table(it: dict[str, Any]) -> str:
        described = [f"{line(key)}: {line(it[key])}" for key in it if key != "rows"]
        rows = ",\n        ".join(map(line, it.get("rows", [])))
        if rows:
            described.append(f'"rows": [\n        {rows}\n      ]')
        return "{\n      " + ",\n      ".join(described) + "\n    }"

    parts = [
        f"{line(key)}: {line(value)}"
        for key, value in file.items()
        if key not in ("tables", "sentences")
    ]
    for key, text in ("tables", table), ("sentences", line):
        entries = ",\n    ".join(map(text, file[key]))
        parts.append(f'"{key}": ' + (f"[\n    {entries}\n  ]" if entries else "[]"))
    return "{\n  " + ",\n  ".join(parts) + "\n}\n"


def reword() -> None:
    """Take over heads and labels of pages, where all numbers of a table agree."""
    for name, file in results().items():
        for declared in file["tables"]:
            for table in tables(declared["page"]):
                rows = declared["rows"]
                if declared.get("part"):
                    continue
                if len(table.rows) == len(rows) and all(
                    agree(numbers(cell), values)
                    for row, measured in zip(table.rows, rows, strict=True)
                    for cell, values in itertools.zip_longest(
                        row[1:], measured[1:], fillvalue=""
                    )
                ):
                    declared["head"] = table.head
                    for row, label in zip(rows, table.labels, strict=True):
                        row[0] = label
        (MEASURED / name).write_text(written(file))


def main() -> None:
    """Print what no file declares, as the text for one, or take over words."""
    parser = argparse.ArgumentParser(description="The measured numbers of the pages.")
    parser.add_argument("--reword", action="store_true")
    if parser.parse_args().reword:
        reword()
    missing, found = undeclared()
    described = [table.described() for table in missing]
    print(written({"tables": described, "sentences": sentences(found)}))


if __name__ == "__main__":
    main()

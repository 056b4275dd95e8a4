"""Every measured number of README and docs is one that a script printed.

CONTRIBUTING.md says under "Add a measured number" what to do where a test fails.
"""

import json

import pytest

from tests import claims
from tests.claims import ROOT

RESULTS = claims.results()
DECLARED = [(name, it) for name, file in RESULTS.items() for it in file["tables"]]


@pytest.mark.parametrize("name", RESULTS)
def test_a_results_file_says_where_its_numbers_are_from(name):
    file = RESULTS[name]
    assert (ROOT / file["script"]).is_file()
    assert file["script"] in file["command"] or name == "demo.json"
    assert file["machine"] and file["date"] and file["commit"]
    assert file["tables"] or file["sentences"]
    assert (claims.MEASURED / name).read_text() == claims.written(file)


@pytest.mark.parametrize(
    ("name", "declared"), DECLARED, ids=lambda it: it if isinstance(it, str) else ""
)
def test_tables_have_the_numbers_of_the_results(name, declared):
    found = [
        table
        for table in claims.tables(declared["page"])
        if table.head == declared["head"]
        and (declared.get("part") or table.labels[0] == declared["rows"][0][0])
    ]
    where = f"{declared['page']}: the table '{declared['head']}' of {name}"
    assert len(found) == 1, f"{where} is there {len(found)} times"
    assert not (faults := found[0].faults(declared)), (where, faults)


@pytest.mark.parametrize("page", claims.PAGES)
def test_every_claim_is_declared(page):
    tables, figures = claims.undeclared()
    heads = [f"under '{it.heading}': {it.head}" for it in tables if it.page == page]
    said = [f"{it.number} in: {it.sentence}" for it in figures if it.page == page]
    advice = "CONTRIBUTING.md, 'Add a measured number'; `python -m tests.claims`"
    assert not heads + said, f"{page} has numbers that no results file has. {advice}"


def test_nothing_is_declared_that_no_page_has():
    exempt = json.loads(claims.NOT_MEASURED.read_text())
    for entry in exempt["tables"]:
        heads = [table.head for table in claims.tables(entry["page"])]
        assert entry["head"] in heads and entry["why"], entry
    for file in (exempt, *RESULTS.values()):
        for entry in file["sentences"]:
            written = [it.number for it in claims.figures(entry["page"])]
            for number in entry["numbers"]:
                assert any(claims.agree([it], [number]) for it in written), entry


PAGE = """# A page

Ours takes {sentence}, with `alpha=0.25`, Keras 3.15, Python 3.11 or 3.12, in 3 steps.

```python
x = 0.5
```

| | accuracy | which |
| --- | --- | --- |
| alone | 86.4 ± 0.5 | `top 3` |
| **ours** | {cell} | 1,000 rows (1/12.4) |
"""


@pytest.mark.parametrize(
    ("sentence", "numbers"),
    [
        ("1.5 times as long", ["1.5"]),
        ("22 to 42 points more", ["22", "42"]),
        ("27, 61 and 70 % of it", ["27", "61", "70"]),
        ("1,234 ms", ["1234"]),
        ("86.4 ± 0.5", ["86.4", "0.5"]),
        ("1/12 of the memory", ["12"]),
        ("+.0046 more", ["0.0046"]),
        ("6e-8 at most", ["6E-8"]),
        ("images of 28 x 28", []),
        ("two of 3 seeds", []),
        ("ResNet-20 and version 1.2", []),
    ],
)
def test_what_a_claim_is(sentence, numbers):
    page = PAGE.format(sentence=sentence, cell="87.0")
    assert [str(it.number) for it in claims.figures("a page", page)] == numbers


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        ("**87.04**", None),
        ("87.0", None),
        ("87", None),
        ("87.1", "87.1 is written for [87.04]"),
        ("", "is written for [87.04]"),
        ("87.04 ± 0.10", "is written for [87.04]"),
    ],
)
def test_a_table_agrees_with_measured_numbers(cell, fault):
    (table,) = claims.tables("a page", PAGE.format(sentence="long", cell=cell))
    assert table.measured and table.heading == "A page"
    rows = [["alone", [86.41, 0.5], []], ["ours", [87.04], [1000, 1, 12.4]]]
    faults = table.faults({"rows": rows})
    assert (fault in faults[0]) if fault else not faults
    rows[0][0], rows[1][0] = rows[1][0], rows[0][0]
    assert "labels are" in table.faults({"rows": rows})[0]


def test_a_part_of_a_table(monkeypatch):
    (table,) = claims.tables("a page", PAGE.format(sentence="long", cell="87.0"))
    part = {"rows": [["ours", [87.04], [1000, 1, 12.4]]], "part": True}
    assert not table.faults(part)
    part["rows"][0][1] = [87.2]
    assert "87.0 is written for [87.2]" in table.faults(part)[0]
    part["rows"][0][0] = "theirs"
    assert "labels are" in table.faults(part)[0]

    monkeypatch.setattr(claims, "PAGES", ["a page"])
    monkeypatch.setattr(claims, "figures", lambda page: iter(()))
    monkeypatch.setattr(claims, "tables", lambda page: iter([table]))
    names = [["alone"], ["ours"]]
    files = {
        name[0]: {
            "tables": [
                {"page": "a page", "head": table.head, "part": True, "rows": [name]}
            ],
            "sentences": [],
        }
        for name in names
    }
    monkeypatch.setattr(claims, "results", lambda: files)
    assert claims.undeclared() == ([], [])
    del files["ours"]
    assert claims.undeclared() == ([table], [])


def test_a_table_of_words_is_not_measured():
    (table,) = claims.tables(
        "a page", "| want | take |\n| --- | --- |\n| a | at most 0.2 |\n| b | c |\n"
    )
    assert not table.measured

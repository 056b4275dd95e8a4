"""Every activation, layer and operation of Keras: what each format makes of it.

A case either agrees with Keras, or is refused by its name. Agreeing cases are exported
as one model with an output each. Refused cases are too: the error has to name them.
"""

import contextlib
import re
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_distill.export import export
from tests import slow
from tests.export.tables import operations
from tests.export.tables.activations import NOT_AN_ACTIVATION
from tests.export.tables.case import batch, model_of, operations_of
from tests.export.tables.layers import LAYERS, NOT_IN_A_MODEL, classes
from tests.export.tables.outcomes import (
    OVER_ROWS,
    TABLES,
    held,
    loops,
    refused,
)
from tests.export.tables.page import BEGIN, END, tables

# Of conversions, and of state before anything is converted.
REFUSALS = (RuntimeError, ValueError)
FORMATS = ("saved_model", "onnx", "litert")
ALL = [(name, table) for name in FORMATS for table in TABLES]
# In every run: the usual layers have tests of their own in test_layers.py.
QUICK = "activations"


def marked(tables):
    """Mark all tables but one as slow."""
    slow = pytest.mark.slow("exports each layer and operation of Keras")
    return [
        pytest.param(name, table, marks=() if table == QUICK else slow)
        for name, table in tables
    ]


def base(name):
    """`Conv2D` of `Conv2D of groups`."""
    return re.split(r"[, ]", name)[0]


def rows(cases, size):
    return batch({name for case in cases.values() for name in case.inputs()}, size)


class TestTheTablesAreComplete:
    def test_activations(self):
        names = {n for n in dir(keras.activations) if not n.startswith("_")}
        assert names == set(TABLES["activations"]) | NOT_AN_ACTIVATION

    def test_layers(self):
        assert classes() == {base(name) for name in LAYERS} | set(NOT_IN_A_MODEL)

    def test_operations(self):
        names = {n for n in dir(keras.ops) if not n.startswith("_")}
        images = {n for n in dir(keras.ops.image) if not n.startswith("_")}
        names |= {f"image.{n}" for n in images}
        spaces = (keras.ops.linalg, keras.ops.nn, keras.ops.numpy)
        assert {n for s in spaces for n in dir(s) if not n.startswith("_")} <= names
        listed = {n for v in operations.NOT_IN_A_MODEL.values() for n in v.split()}
        assert names == {base(n) for n in TABLES["operations"]} | listed

    @pytest.mark.parametrize(("name", "table"), ALL)
    def test_outcomes(self, name, table):
        others = [
            *refused(name, table),
            *loops(name, table),
        ]
        assert len(set(others)) == len(others)
        assert set(others) <= set(TABLES[table])


def warned_of_rows(cases):
    if OVER_ROWS.isdisjoint(cases):
        return contextlib.nullcontext()
    return pytest.warns(UserWarning, match="The rows of a batch change each other's")


def check(cases, formats, directory, runtimes):
    model = model_of(cases)
    with warned_of_rows(cases):
        export(model, directory, formats, example_batch=rows(cases, 7))
    given = rows(cases, 4)
    expected = model(given, training=False)
    for name in formats:
        outputs = runtimes[name](directory, given)
        assert set(outputs) == set(cases), name
        for key, want in expected.items():
            compare(outputs[key], np.asarray(want), f"{key} in {name}")


def compare(given, want, label):
    assert given.dtype == want.dtype, label
    if want.dtype.kind == "f":
        scale = max(np.abs(want).max(), 1e-3)
        np.testing.assert_allclose(
            given, want, rtol=1e-5, atol=2e-5 * scale, err_msg=label
        )
    else:
        np.testing.assert_array_equal(given, want, err_msg=label)


@pytest.mark.parametrize(("name", "table"), marked(ALL))
def test_agrees(name, table, tmp_path, runtimes):
    cases = held(name, table)
    # LiteRT is converted from the SavedModel: both of one export are compared.
    if name == "saved_model":
        cases = {k: v for k, v in cases.items() if k not in held("litert", table)}
    formats = ["saved_model", "litert"] if name == "litert" else [name]
    for key in OVER_ROWS & set(cases):
        check({key: cases.pop(key)}, formats, tmp_path / key, runtimes)
    # The time that tf2onnx takes grows faster than the model.
    size = 30 if name == "onnx" else len(cases)
    keys = list(cases)
    for begin in range(0, len(keys), size or 1):
        part = {key: cases[key] for key in keys[begin : begin + size]}
        check(part, formats, tmp_path / str(begin), runtimes)


def named_in(message):
    """The paths and classes that an error names."""
    return re.findall(r"'([\w/]+)' \((\w+)(?: of \w+)?\)", message)


def refusal(cases, name, directory):
    """Return an error's text, and the cases whose layers it names."""
    model = model_of(cases)
    with warned_of_rows(cases), pytest.raises(REFUSALS) as caught:
        export(model, directory, [name], example_batch=rows(cases, 7))
    assert not directory.exists()
    message = str(caught.value)
    found = {}
    for path, kind in named_in(message):
        own, *inner = path.split("/")
        layer = next(o for o in model.operations if o.name == own)
        assert inner or type(layer).__name__ == kind
        found |= {k: kind for k, v in operations_of(model).items() if own in v}
    return message, found


@pytest.mark.parametrize(("name", "table"), marked(x for x in ALL if refused(*x)))
def test_refused_by_name(name, table, tmp_path):
    left = {key: TABLES[table][key] for key in refused(name, table)}
    while left:
        message, found = refusal(left, name, tmp_path / "out")
        assert found, message
        for word in ("unroll", "compute in float32", "quantize=", "16 bits"):
            assert word not in message
        if table != "layers":
            assert "preprocessing" not in message
        left = {key: case for key, case in left.items() if key not in found}


@pytest.mark.parametrize(
    "key", slow.but(["LSTM", "GRUCell"], loops("litert", "layers"), "exports")
)
def test_loops_in_litert(key, tmp_path):
    message, found = refusal({key: LAYERS[key]}, "litert", tmp_path / "out")
    assert list(found) == [key]
    assert "`unroll=True` or the export a `batch_size`" in message
    assert "preprocessing" not in message and "in float32" not in message


def test_the_page_has_the_tables():
    page = Path(__file__).parents[2] / "docs" / "export.md"
    _, rest = page.read_text().split(BEGIN)
    written, _ = rest.split(END)
    assert written == tables(), "run `python -m tests.export.tables.page`"

"""Audits: what each fit reads, what is refused before the first, and real verdicts."""

import sys
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_distill.losses import BinarySoftTargets
from keras_distill.privileged import Audit, audit
from keras_distill.privileged.fits import Fits

ROWS, ITEM = 2_000, 120
RNG = np.random.default_rng(0)
TASTE = RNG.normal(size=(ITEM, 1)) / ITEM**0.5
X = {
    "item": RNG.normal(size=(ROWS, ITEM)).astype("float32"),
    "noise": RNG.normal(size=(ROWS, 1)).astype("float32"),
}
# Dwell time depends on the item, and purchases on nothing but dwell time.
X["dwell"] = (X["item"] @ TASTE + RNG.normal(0, 0.5, (ROWS, 1))).astype("float32")
Y = (RNG.random((ROWS, 1)) < 1 / (1 + np.exp(-2 * X["dwell"]))).astype("float32")
X["label_like"] = (8 * Y - 4 + RNG.normal(size=Y.shape)).astype("float32")


def model(*privileged: str) -> keras.Model:
    """Build a linear model, which trusts privileged features more than the item.

    Its weights begin at zero, so that the verdicts don't depend on random weights.
    Backends draw different ones.
    """
    read = {"item": keras.Input((ITEM,), name="item")}
    read |= {name: keras.Input((1,), name=name) for name in privileged}
    decay = {"item": keras.regularizers.L2(0.3 if privileged else 0.0)}
    logits = [
        layers.Dense(1, kernel_initializer="zeros", kernel_regularizer=decay.get(name))(
            value
        )
        for name, value in read.items()
    ]
    return keras.Model(read, ops.sum(ops.stack(logits), axis=0))


def settings(**given: Any) -> dict[str, Any]:
    return {
        "optimizer": keras.optimizers.Adam(0.05),
        "loss": keras.losses.BinaryCrossentropy(from_logits=True),
        "distillation_loss": BinarySoftTargets(),
        "alpha": 0.9,
        "jit_compile": False,
        # JAX compiles each of the steps of an execution.
        "steps_per_execution": 10 if keras.backend.backend() == "tensorflow" else 1,
        **given,
    }


def run(*features: str, **given: Any) -> Audit:
    features = features or ("dwell",)
    arguments = {
        "build_student": model,
        "build_teacher": lambda: model(*features),
        "data": (X, Y),
        "privileged_features": list(features),
        "compile": settings,
        "batch_size": 50,
        "folds": 1,
        "seeds": 3,
        "verbose": 0,
        **given,
    }
    return audit(**arguments)


def test_a_mediator_of_noisy_labels_pays(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(epochs=3, seeds=4, verbose=1)
    assert found.verdict == "pays" and found.fits == 20, str(found)
    assert found.columns["dwell"].verdict == "helps"
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4 and printed[1].startswith("seed 1: student alone 0.")


def test_its_shuffled_values_do_not() -> None:
    shuffled = {**X, "dwell": RNG.permutation(X["dwell"])}
    found = run(data=(shuffled, Y), epochs=1, seeds=2)
    assert found.verdict == "doesn't", str(found)


def test_a_column_that_all_but_is_the_label_leaks() -> None:
    found = run("label_like", "noise", epochs=3, seeds=2)
    assert found.verdict == "leaks", str(found)
    assert found.leading == ["label_like"]


class Fit:
    """What one fit was given."""

    def __init__(self, rows: Any, seed: int, given: Mapping[str, Any]) -> None:
        self.rows, self.seed = rows, seed
        self.is_student = bool(given.get("privileged_features"))
        self.student, self.teacher = self, given.get("teacher")


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[Fit]:
    """Replace fits by losses that grow with the row, and are lower under a teacher."""
    made: list[Fit] = []

    def fit(self: Fits, build: Any, rows: Any, seed: int, **given: Any) -> Fit:
        self.count += 1
        made.append(Fit(rows, seed, given))
        return made[-1]

    def score(self: Fits, one: Fit, rows: Any) -> np.ndarray:
        taught = one.teacher is not None
        row = rows[0]["row"].ravel() / ROWS
        return 1.0 + row + 0.001 * one.seed - 0.1 * taught * (1 + row)

    monkeypatch.setattr(Fits, "_fitted", fit)
    monkeypatch.setattr(Fits, "_scored", score)
    return made


WITH_ROW = {**X, "row": np.arange(ROWS)[:, None]}


def test_no_fit_reads_a_row_of_its_test_or_later_ones(fitted: list[Fit]) -> None:
    time = RNG.permutation(ROWS)
    seen: list[tuple[int, int]] = []
    found = run(data=(WITH_ROW, Y), time=time, folds=3, seeds=2)
    assert found.fits == len(fitted) == 5 * 3 * 2 and found.rows == ROWS // 2
    for number in range(0, len(fitted), 5):
        of_fold = [time[fit.rows[0]["row"].ravel()] for fit in fitted[number:][:5]]
        assert all(set(of_one) == set(of_fold[0]) for of_one in of_fold)
        seen.append((len(of_fold[0]), of_fold[0].max() + 1))
    assert seen == 2 * [(1000, 1000), (1333, 1333), (1666, 1666)]


def test_the_control_permutes_the_privileged_features_alone(fitted: list[Fit]) -> None:
    run("dwell", "noise", data=(WITH_ROW, Y, np.ones(ROWS)), seeds=2)
    control, teacher, under_control, alone, privileged = fitted[:5]
    assert under_control.teacher is control and privileged.teacher is teacher
    assert alone.teacher is None and alone.rows is privileged.rows is teacher.rows
    assert under_control.rows is control.rows
    assert {fit.seed for fit in fitted[:5]} == {0} != {fitted[5].seed}
    (cut, *others), (whole, *same) = control.rows, teacher.rows
    for mine, theirs in zip(others, same, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for name in ("item", "row"):
        np.testing.assert_array_equal(cut[name], whole[name])
    both, cut_both = (
        np.hstack([x["dwell"], x["noise"]]) for x in (whole, cut)
    )  # rows of all privileged features move together
    moved = (cut_both != both).any(axis=1)
    assert moved.mean() > 0.99
    np.testing.assert_array_equal(
        *(it[np.argsort(it[:, 0])] for it in (both, cut_both))
    )


def test_groups_and_the_most_recent_rows(fitted: list[Fit]) -> None:
    users = np.arange(ROWS)[:, None] % 7
    found = run(data=(WITH_ROW, Y), groups=users, max_rows=400, seeds=2)
    assert found.groups == 7 and found.rows == 200
    assert fitted[0].rows[0]["row"].min() == ROWS - 400
    assert run(data=(WITH_ROW, Y), folds=2, seeds=2).groups == 20


def test_seeds_of_every_fit_follow_the_given_one(fitted: list[Fit]) -> None:
    run(data=(WITH_ROW, Y), folds=2, seeds=2, seed=70)
    assert [fit.seed for fit in fitted[::5]] == [70, 71, 72, 73]


def reads_dwell() -> keras.Model:
    return model("dwell")


def without(column: str, **changed: np.ndarray) -> tuple[dict[str, np.ndarray], Any]:
    return {k: v for k, v in {**X, **changed}.items() if k != column}, Y


MISSING = np.where(np.arange(ROWS)[:, None] == 5, np.nan, X["dwell"])


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"build_student": model()}, "`build_student` must be a function.*Functional"),
        ({"compile": {"loss": "mse"}}, "`compile` must be a function.*mse"),
        ({"build_teacher": lambda: None}, "`build_teacher` must return.*None"),
        ({"seeds": 1}, "`seeds` must be 2 or more.*seeds=1"),
        ({"epochs": 0}, "`epochs` must be 1 or more.*epochs=0"),
        ({"data": X}, "must be .x, y..*dict"),
        ({"data": (X, None)}, "a label for each row.*'NoneType'"),
        ({"data": (X["item"], Y)}, "dict of columns as `x`.*ndarray"),
        ({"data": (X, Y[:-1])}, "same number of rows.*'1': 1999"),
        ({"privileged_features": "dwell"}, "a list of names.*'dwell'"),
        ({"privileged_features": []}, "must name a column"),
        ({"privileged_features": ["dwel"]}, r"\['dwel'\] aren't among.*'dwell'"),
        ({"time": np.arange(9)}, r"`time` must have a value.*\(9,\) for 2000 rows"),
        ({"time": np.full(ROWS, np.nan)}, "`time` must not have missing.*2000 of 2000"),
        ({"groups": np.zeros(ROWS)}, "`groups` must have two.*1 group"),
        ({"max_rows": 19}, "Lower `folds`.*Received: 19 rows"),
        ({"data": without("", dwell=MISSING)}, "`x/dwell` must not have.*1 of 2000"),
        ({"data": (X, np.full((ROWS, 1), np.nan))}, "`y` must not have missing"),
        ({"data": without("", dwell=0 * Y)}, r"must vary.*x/dwell is \[0.\] in all"),
        ({"data": (X, 0 * Y + 1)}, r"must vary.*y is \[1.\] in all of the first 1000"),
        ({"build_student": reads_dwell}, r"declares privileged features.*\['dwell'\]"),
        ({"build_teacher": model}, r"must declare all.*\['item'\] without \['dwell'\]"),
        ({"data": without("item")}, r"doesn't hold: \['item'\]"),
        ({"compile": dict}, "with a `loss`. Received: {}"),
        (
            {"compile": lambda: settings(alpha=0.0)},
            "`alpha` must be above 0.*alpha=0.0",
        ),
        ({"compile": lambda: settings(label_mask="l")}, r"\['label_mask'\].*'l'"),
        ({"score": lambda y, p, w: 1.0}, r"value for each row.*shape \(\) for 8 rows"),
    ],
)
def test_errors_come_before_the_first_fit(
    given: dict[str, Any], error: str, fitted: list[Fit]
) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        run(**given)
    assert not fitted


def test_says_how_to_install(
    monkeypatch: pytest.MonkeyPatch, fitted: list[Fit]
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"\[tuning\]"):
        run()
    assert not fitted

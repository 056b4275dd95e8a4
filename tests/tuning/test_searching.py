"""The search: alone is one of its points, and a stopped one goes on."""

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_distill.tuning import Setting, search
from keras_distill.tuning.fits import Fits

X = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
Y = X.argmax(-1)


def run(**given: Any) -> Any:
    arguments = {
        "build_student": lambda: None,
        "teacher": lambda x: x,
        "train": (X, Y),
        "held_out": (X, Y),
        "compile": dict,
        "verbose": 0,
        **given,
    }
    return search(**arguments)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[Setting]:
    """Replace fits: the gain of a setting is that of alpha, less its square."""
    made: list[Setting] = []

    def fit(self: Fits, setting: Setting, seed: int) -> tuple[float, int]:
        made.append(setting)
        return setting.alpha, seed

    def score(self: Fits, model: Any, part: str, blocks: int) -> list[float]:
        alpha, seed = model
        noise = np.random.default_rng([seed, int(100 * alpha)]).normal(0, 0.01, blocks)
        return list((alpha - alpha**2) + noise)

    monkeypatch.setattr(Fits, "_fitted", fit)
    monkeypatch.setattr(Fits, "_scores", score)
    return made


def test_finds_a_gain_and_counts_the_fits(fitted: list[Setting]) -> None:
    answer = run()
    assert fitted[0] == Setting(0.0) and answer.setting.alpha == 0.5
    assert answer.verdict == "helps" and answer.fits == len(fitted) == 10 + 2 * 5
    assert "Verdict: helps." in str(answer)
    assert answer.compile_arguments()["alpha"] == 0.5


def test_recommends_alone_where_distillation_hurts(fitted: list[Setting]) -> None:
    answer = run(direction="min")
    assert answer.verdict == "hurts" and answer.setting == Setting(0.0)
    assert answer.compile_arguments() == {"alpha": 0.0}


def test_a_stopped_search_goes_on(
    fitted: list[Setting], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(directory=tmp_path)
    path = tmp_path / "fits.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:20])  # a line that was cut
    fitted.clear()
    assert run(directory=tmp_path).gain == whole.gain
    assert capsys.readouterr().out == ""
    assert len(fitted) == 2 and all(map(json.loads, path.read_text().splitlines()))
    with pytest.raises(ValueError, match="overwrite=True"):
        run(directory=tmp_path, epochs=2)
    assert run(directory=tmp_path, epochs=2, overwrite=True).fits == whole.fits


def test_few_trials_are_random_and_alone_is_among_them(fitted: list[Setting]) -> None:
    answer = run(max_trials=4)
    assert Setting(0.0) in answer.scores and len(answer.scores) <= 5


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"teacher": None}, "`teacher` must be.*None"),
        ({"compile": {"loss": "mse"}}, "`compile` must be"),
        ({"held_out": None}, "`held_out` must be.*NoneType"),
        ({"held_out": (X, None)}, "with labels"),
        ({"held_out": (X[:9], Y[:9])}, "20 rows"),
        ({"alphas": [2.0]}, "`alphas`"),
        ({"temperatures": [0.0]}, "`temperatures`"),
        ({"objective": "joy"}, "`direction`.*joy"),
        ({"seeds": 1}, "`seeds`.*seeds=1"),
        ({"max_trials": 1}, "`max_trials`.*1"),
    ],
)
def test_errors_show_the_value(given: dict, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        run(**given)


def test_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras_tuner", None)
    with pytest.raises(ImportError, match=r"\[tuning\]"):
        run()


def test_an_unknown_objective_lists_the_known_ones() -> None:
    def build() -> keras.Model:
        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])

    with pytest.raises(ValueError, match=r"one of \['loss'\].*'accuracy'"):
        run(build_student=build, compile=lambda: {"optimizer": "sgd", "loss": "mse"},
            train=(X, X), held_out=(X, X))  # fmt: skip

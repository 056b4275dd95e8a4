"""Files that earlier versions wrote load, and training goes on from them equally."""

import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_distill as kd
from tests import slow
from tests.earlier.trainers import (
    CASES,
    WITH_RANDOM_NUMBERS,
    Case,
    predicted,
    results,
)
from tests.earlier.writing import FILES

VERSIONS = sorted(path.stem for path in FILES.glob("*.zip"))
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"

Expected = dict[str, np.ndarray]


@pytest.fixture(scope="module", params=VERSIONS)
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The unpacked files of one version."""
    unpacked = tmp_path_factory.mktemp(request.param)
    with zipfile.ZipFile(FILES / f"{request.param}.zip") as file:
        file.extractall(unpacked)
    return unpacked


def expected_of(name: str, folder: Path) -> Expected:
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)


def loaded(name: str, folder: Path) -> Case:
    """Return a case whose trainer, and saved teacher, come from files."""
    made = CASES[name]()
    if name == "ensemble":
        made.teacher = keras.saving.load_model(folder / f"{name}.teacher.keras")
    path = folder / f"{name}.keras"
    if made.teacher is None:
        made.trainer = keras.saving.load_model(path)
    else:
        made.trainer = kd.Distiller.load(path, teacher=made.teacher)
    return made


def assert_equal(name: str, got: Expected, expected: Expected) -> None:
    assert set(got) == set(expected)
    if name in WITH_RANDOM_NUMBERS and not ON_TENSORFLOW:
        expected = {what: expected[what] for what in ("prediction", "iterations")}
    for what, value in expected.items():
        np.testing.assert_allclose(
            got[what], value, rtol=1e-5, atol=1e-6, err_msg=f"{name}: {what}"
        )


def test_there_are_files() -> None:
    assert "0.1.0" in VERSIONS


def test_they_say_who_wrote_them(folder: Path) -> None:
    assert (folder / "written_by.txt").read_text().startswith("keras-distill ")


# Every run reads one file of each case, or both.
NAMES = sorted(CASES)


@pytest.mark.parametrize("name", slow.but(NAMES[::2], NAMES, "fits"))
def test_a_keras_file_goes_on(name: str, folder: Path) -> None:
    got = results(name, loaded(name, folder))
    assert_equal(name, got, expected_of(name, folder))


@pytest.mark.parametrize("name", slow.but(NAMES[1::2], NAMES, "fits"))
def test_a_weights_file_goes_on(name: str, folder: Path) -> None:
    made, expected = CASES[name](), expected_of(name, folder)
    before = predicted(name, made)
    assert np.abs(before - expected["prediction"]).max() > 1e-3
    if not made.trainer.optimizer.built:
        made.trainer.optimizer.build(made.trainer.trainable_variables)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Keras only warns of what it leaves out
        made.trainer.load_weights(folder / f"{name}.weights.h5")
    assert_equal(name, results(name, made), expected)

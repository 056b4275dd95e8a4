"""What the package offers is there, whether its modules wait or not."""

import inspect
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from keras import layers

import keras_distill as kd


def test_all_names_are_there() -> None:
    for name in kd.__all__:
        assert getattr(kd, name) is not None and name in dir(kd)
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        kd.distil  # noqa: B018


MODULES = {
    "keras_distill": kd,
    **{
        name: getattr(kd, name)
        for name in kd.__all__
        if inspect.ismodule(getattr(kd, name))
    },
    "hints.losses": kd.hints.losses,
    "losses.vocabulary": kd.losses.vocabulary,
}


@pytest.mark.parametrize("name", MODULES)
def test_a_list_of_names_has_the_public_ones_alone(name: str) -> None:
    module = MODULES[name]
    assert dir(module) == sorted(module.__all__)
    for public in dir(module):
        value = getattr(module, public)
        # Theirs, and not what a module happens to import.
        own = getattr(value, "__module__", None) or getattr(value, "__name__", "")
        assert public == "__version__" or own.startswith("keras_distill.")


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", "export"])
@pytest.mark.parametrize("cls", [kd.Distiller, kd.online.MutualLearning])
def test_signatures_are_those_of_keras(cls: type[keras.Model], method: str) -> None:
    seen = inspect.signature(getattr(cls, method))
    assert seen == inspect.signature(getattr(keras.Model, method))


def test_export_waits_until_it_is_asked_for() -> None:
    code = (
        "import sys, keras_distill as kd; "
        "assert 'keras_distill.export' not in sys.modules; kd.export.export"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_are_read_where_only_the_package_was_imported(tmp_path: Path) -> None:
    def peer(name: str) -> keras.Model:
        return keras.Sequential([keras.Input((2,)), layers.Dense(3)], name=name)

    kd.online.MutualLearning([peer("a"), peer("b")]).save(tmp_path / "peers.keras")
    kd.teachers.Ensemble([peer("a"), peer("b")]).save(tmp_path / "ensemble.keras")
    code = (
        "import sys, keras, keras_distill; "
        "[keras.saving.load_model(path) for path in sys.argv[1:]]"
    )
    paths = map(str, sorted(tmp_path.iterdir()))
    subprocess.run([sys.executable, "-c", code, *paths], check=True)

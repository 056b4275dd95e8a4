"""What the package offers is there, whether its modules wait or not."""

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

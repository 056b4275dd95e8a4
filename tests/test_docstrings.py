"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import keras_distill

MODULES = [
    info.name
    for info in pkgutil.walk_packages(keras_distill.__path__, "keras_distill.")
    if not info.name.endswith("__main__")  # importing it would run it
]


def public_classes():
    rooms = (
        "callbacks",
        "hints",
        "losses",
        "metrics",
        "online",
        "privileged",
        "schedules",
        "sequence",
        "students",
        "targets",
        "teachers",
        "tuning",
    )
    namespaces = [getattr(keras_distill, name) for name in rooms]
    namespaces += [keras_distill.hints.losses, keras_distill.losses.vocabulary]
    for namespace in (keras_distill, *namespaces):
        for name, value in vars(namespace).items():
            own = getattr(value, "__module__", "").startswith("keras_distill")
            if own and inspect.isclass(value) and not inspect.isabstract(value):
                yield name, value


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where examples may write
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_public_classes_have_an_example():
    without = {
        f"{cls.__module__}.{name}"
        for name, cls in public_classes()
        if ">>>" not in inspect.getdoc(cls)
    }
    # built by the package, not by its users
    assert without <= {"keras_distill.values.Value"}

"""What all tests share: the mark of tests that only TensorFlow can run."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that are marked `tensorflow_only` on other backends."""
    marked = [
        (item, mark)
        for item in items
        if (mark := item.get_closest_marker("tensorflow_only")) is not None
    ]
    if not marked:
        return
    import keras  # Takes seconds, which tests without Keras needn't wait for.

    if keras.backend.backend() == "tensorflow":
        return
    for item, mark in marked:
        (reason,) = mark.args
        item.add_marker(pytest.mark.skip(reason=f"TensorFlow only: {reason}"))

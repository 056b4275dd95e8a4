"""The order of the test files, and the mark of tests that only TensorFlow can run.

Each file runs in one process, because its tests share fixtures. Long files begin first:
one that began last would run while the other processes have nothing left to do.
"""

import gc
import os

import pytest

# As in the Makefile. JAX sets another level when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# A collection looks at a million objects of TensorFlow's and Keras' modules each time.
gc.set_threshold(50_000, 20, 50)

# In the order of their duration; each takes more than half a minute.
LONG = (
    "export/test_tables.py",
    "losses/test_compiled.py",
    "golden/test_golden.py",
    "devices/test_workers.py",
    "devices/test_sharded.py",
    "distiller/test_every_backend.py",
    "cli/test_export.py",
    "distiller/test_mirrored.py",
    "export/test_layers.py",
    "online/test_peers_resume.py",
    "distiller/test_resume.py",
    "test_documents.py",
    "cli/test_interrupts.py",
    "cli/test_demo.py",
    "devices/test_resuming.py",
    "export/test_quantization.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by their file, and skip those of TensorFlow on other backends."""
    items.sort(key=_place)
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


def _place(item: pytest.Item) -> int:
    path = item.path.as_posix()
    ends = (number for number, end in enumerate(LONG) if path.endswith(end))
    return next(ends, len(LONG))

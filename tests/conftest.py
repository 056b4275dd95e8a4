"""The order of the test files: those that take long begin first.

Each file runs in one process, for it shares fixtures. A long file that began last would
run while the other processes have nothing left to do.
"""

import pytest

# In the order of their duration; each takes more than half a minute.
LONG = (
    "export/test_tables.py",
    "export/test_kills.py",
    "e2e/test_fresh_environments.py",
    "cli/test_export.py",
    "online/test_generations.py",
    "distiller/test_mirrored.py",
    "export/test_layers.py",
    "test_generalized_distillation.py",
    "online/test_processes.py",
    "online/test_peers_resume.py",
    "distiller/test_resume.py",
    "test_documents.py",
    "cli/test_interrupts.py",
    "cli/test_demo.py",
    "export/test_quantization.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by the file that they are in."""

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        ends = (number for number, end in enumerate(LONG) if path.endswith(end))
        return next(ends, len(LONG))

    items.sort(key=place)

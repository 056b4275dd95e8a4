"""Files, classes and functions are short enough to be read at one sitting."""

import textwrap
from pathlib import Path

import pytest

from tests.source import PACKAGE, function_lengths, method_counts, modules

DISTILLER_LINES = 300
METHODS = 20
FUNCTION_LINES = 40


def long_functions(package: Path = PACKAGE) -> dict[str, int]:
    """Return the functions above the limit with their lines of code."""
    return {
        f"{module}.{name}": length
        for module, path in modules(package).items()
        for name, length in function_lengths(path)
        if length > FUNCTION_LINES
    }


def large_classes(package: Path = PACKAGE) -> dict[str, int]:
    """Return the classes above the limit with their numbers of methods."""
    return {
        f"{module}.{name}": count
        for module, path in modules(package).items()
        for name, count in method_counts(path)
        if count > METHODS
    }


def listed(found: dict[str, int]) -> str:
    """Return a line for each name, which pytest doesn't shorten."""
    return "\n".join(f"{name}: {size}" for name, size in sorted(found.items()))


def test_the_trainer_is_read_at_one_sitting() -> None:
    lines = len((PACKAGE / "distiller.py").read_text().splitlines())
    assert lines <= DISTILLER_LINES


def test_no_class_is_large() -> None:
    found = large_classes()
    assert not found, listed(found)


def test_no_function_is_long() -> None:
    found = long_functions()
    assert not found, listed(found)


class TestTheCounting:
    """The tests above find nothing only if the counting is right."""

    @pytest.fixture
    def house(self, tmp_path: Path) -> Path:
        package = tmp_path / "house"
        package.mkdir()
        return package

    def test_counts_lines_of_code_only(self, house: Path) -> None:
        path = house / "room.py"
        path.write_text(
            textwrap.dedent('''
                class A:
                    """Docs."""

                    @property
                    def f(self):  # a comment beside code
                        """Return a text

                        of two lines.
                        """
                        # a comment alone

                        return """
                        two more
                        """

                    def g(
                        self,
                    ):
                        def inner():
                            pass
                        return inner
            ''')
        )
        assert dict(function_lengths(path)) == {"A.f": 4, "A.g": 6, "A.g.inner": 2}
        assert dict(method_counts(path)) == {"A": 2}

    @pytest.mark.parametrize("excess", [0, 1])
    def test_the_limits(self, house: Path, excess: int) -> None:
        body = "    x = 1\n" * (FUNCTION_LINES - 1 + excess)
        methods = "".join(
            f"    def m{number}(self): pass\n" for number in range(METHODS + excess)
        )
        (house / "room.py").write_text(f"def f():\n{body}\nclass A:\n{methods}")
        assert len(long_functions(house)) == excess
        assert len(large_classes(house)) == excess

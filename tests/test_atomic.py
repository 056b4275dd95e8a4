"""Files and directories are complete at every moment, old or new."""

import os
import threading
from pathlib import Path

import pytest

from keras_distill import atomic
from keras_distill.atomic import replacing


def anything(directory: Path) -> None:
    """The check of a directory that may always be replaced."""


def write_word(directory: Path, word: str) -> None:
    with replacing(directory, anything) as scratch:
        (scratch / "word").write_text(word)


def word_in(directory: Path) -> str:
    return (directory / "word").read_text()


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(params=["exchange", "two renames"])
def swapping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system call, and as on file systems that lack it."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)


class TestFiles:
    def test_new_and_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "student.keras"
        for word in ("old", "new"):
            atomic.replace(path, lambda scratch, word=word: scratch.write_text(word))
            assert path.read_text() == word
        assert names_in(path.parent) == ["student.keras"]

    def test_the_writer_gets_a_hidden_path_of_the_same_suffixes(
        self, tmp_path: Path
    ) -> None:
        seen = []

        def write(scratch: Path) -> None:
            seen.append(scratch)
            scratch.write_text("x")

        atomic.replace(tmp_path / "student.weights.h5", write)
        assert seen[0].parent == tmp_path
        assert seen[0].name.startswith(".")
        assert seen[0].suffixes[-2:] == [".weights", ".h5"]

    def test_an_error_leaves_the_old_one(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")

        def fail(scratch: Path) -> None:
            scratch.write_text("ha")
            raise RuntimeError

        with pytest.raises(RuntimeError):
            atomic.replace(path, fail)
        assert path.read_text() == "old"
        atomic.replace(path, lambda scratch: scratch.write_text("new"))
        assert names_in(tmp_path) == ["file"]


@pytest.mark.usefixtures("swapping")
def test_new_and_replaced(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    write_word(out, "old")
    assert word_in(out) == "old"
    write_word(out, "new")
    assert word_in(out) == "new"
    assert names_in(out.parent) == ["out"]


@pytest.mark.usefixtures("swapping")
def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    write_word(tmp_path, "first")
    assert word_in(tmp_path) == "first"


def test_others_may_read_it(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        write_word(tmp_path / "out", "x")
    finally:
        os.umask(umask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_one(
    tmp_path: Path, error: type[BaseException]
) -> None:
    write_word(tmp_path / "out", "old")
    with pytest.raises(error), replacing(tmp_path / "out", anything) as scratch:
        (scratch / "word").write_text("new")
        raise error
    assert word_in(tmp_path / "out") == "old"
    assert names_in(tmp_path) == ["out"]


def test_a_second_rename_that_fails_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_word(tmp_path / "out", "old")
    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    with pytest.raises(OSError), replacing(tmp_path / "out", anything) as scratch:
        (scratch / "word").write_text("new")
        real = type(scratch).rename

        def rename(path: Path, target: Path) -> Path:
            if path == scratch:
                raise OSError(5, "Input/output error")
            return real(path, target)

        monkeypatch.setattr(type(scratch), "rename", rename)
    assert word_in(tmp_path / "out") == "old"


def test_the_check_is_called_first_and_last(tmp_path: Path) -> None:
    calls = []

    def check(directory: Path) -> None:
        calls.append(names_in(tmp_path))

    with replacing(tmp_path / "out", check) as scratch:
        pass
    assert calls == [[], [scratch.name]]


def test_another_check_may_come_first(tmp_path: Path) -> None:
    calls = []
    with replacing(
        tmp_path / "out",
        lambda directory: calls.append("last"),
        check_first=lambda directory: calls.append("first"),
    ):
        assert calls == ["first"]
    assert calls == ["first", "last"]


def test_a_check_that_fails_at_last_keeps_what_came_meanwhile(tmp_path: Path) -> None:
    def check(directory: Path) -> None:
        if directory.exists():
            raise FileExistsError("it exists")

    with pytest.raises(FileExistsError, match="it exists"):
        with replacing(tmp_path / "out", check):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "word").write_text("of another")
    assert word_in(tmp_path / "out") == "of another"
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("parent", ["file", "/proc/self"])
def test_where_nothing_can_be_written(tmp_path: Path, parent: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="where this process can write.*out'") as caught:
        write_word(tmp_path / parent / "out", "new")
    assert caught.value.errno


def test_leftovers_of_killed_writers_are_cleaned(tmp_path: Path) -> None:
    out = tmp_path / "out"
    leftover = tmp_path / ".out.keras-distill-0badf00d"
    of_another = tmp_path / ".out2.keras-distill-0badf00d"
    others = [tmp_path / name for name in ("out2", ".out", ".out.keras-distill-old")]
    for path in (leftover, of_another, *others):
        path.mkdir()
        (path / "half").write_text("x")
    write_word(out, "new")
    assert not leftover.exists()
    assert not of_another.exists()
    assert all((path / "half").exists() for path in others)


def test_names_of_scratch_directories(tmp_path: Path) -> None:
    with replacing(tmp_path / "out.v2", anything) as scratch:
        assert atomic.target_name(scratch) == "out.v2"
    assert atomic.target_name(Path(f"{scratch}.old")) == "out.v2"
    assert atomic.target_name(tmp_path / "out.v2") is None


def test_a_running_writer_keeps_its_scratch_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with replacing(out, anything) as running:
        (running / "word").write_text("slow")
        write_word(out, "fast")
        assert word_in(out) == "fast"
        assert running.exists()
    assert word_in(out) == "slow"


def test_a_writer_inside_of_a_scratch_directory(tmp_path: Path) -> None:
    with replacing(tmp_path / "out", anything) as scratch:
        write_word(scratch / "student", "x")
        write_word(scratch / "student", "y")
    assert word_in(tmp_path / "out" / "student") == "y"


@pytest.mark.usefixtures("swapping")
def test_writers_to_one_place_at_the_same_time(tmp_path: Path) -> None:
    """The directory of one of them stays, complete, and nothing is left over."""
    barrier = threading.Barrier(6)
    done: list[str] = []

    def run(word: str) -> None:
        barrier.wait()
        for _ in range(10):
            write_word(tmp_path / "out", word)
        done.append(word)

    threads = [threading.Thread(target=run, args=[str(i)]) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list("012345")
    assert word_in(tmp_path / "out") in done
    assert names_in(tmp_path) == ["out"]


def test_killed_between_two_renames_the_old_one_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    aside = tmp_path / ".out.keras-distill-0badf00d.old"
    aside.mkdir()
    (aside / "word").write_text("old")
    with pytest.raises(RuntimeError), replacing(out, anything):
        assert word_in(out) == "old"
        raise RuntimeError
    assert word_in(out) == "old"
    assert not aside.exists()

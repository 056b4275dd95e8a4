import importlib.util
import json
import sys

import numpy as np
import pytest

from keras_distill import demo
from keras_distill.atomic import replacing
from keras_distill.demo import data, training
from keras_distill.demo.pictures import soften
from keras_distill.demo.results import check_replaceable

OURS = json.dumps({"kind": "keras_distill.demo"})


@pytest.mark.parametrize("module", ["sklearn", "matplotlib", "ai_edge_litert"])
def test_missing_extra_names_its_remedy(module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    assert importlib.util.find_spec(module) is None
    with pytest.raises(ImportError, match=r"pip install keras-distill\[demo\]") as seen:
        demo.run(tmp_path / "out")
    assert module in str(seen.value)


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_refuses_seeds(seeds, tmp_path):
    with pytest.raises(ValueError, match=r"different integers >= 0. Received: seeds="):
        demo.run(tmp_path / "out", seeds=seeds)


def test_both_students_start_from_the_same_weights():
    first, second, other = (demo.training.models.student(seed) for seed in (0, 0, 1))
    for ours, same in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(ours, same)
    assert np.any(first.weights[0].numpy() != other.weights[0].numpy())


def test_distillation_reads_no_label_and_leaves_the_teacher_alone():
    digits, budget = data.load(), training.Budget(epochs=1, steps_per_epoch=2)
    split = data.split(digits, seed=0)
    teacher = training.models.teacher(seed=0)
    before = [weight.numpy() for weight in teacher.weights]
    nonsense = split._replace(
        labelled=split.labelled._replace(labels=1 - split.labelled.labels % 2)
    )
    students = [
        training.train_distilled(teacher, it, budget, 0).model
        for it in (split, nonsense)
    ]
    for true, false in zip(*(student.weights for student in students), strict=True):
        np.testing.assert_array_equal(true, false)
    for now, then in zip(teacher.weights, before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_soften_by_hand():
    logits = np.log(np.array([[4.0, 1.0]], "float32"))
    np.testing.assert_allclose(soften(logits, 1.0), [[0.8, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(soften(logits, 2.0), [[2 / 3, 1 / 3]], rtol=1e-6)


def test_replacing_puts_the_whole_in_place_of_an_earlier_demo(tmp_path):
    out = tmp_path / "new" / "out"
    for text in ("first", "second"):
        with replacing(out, check_replaceable) as scratch:
            (scratch / "results.json").write_text(OURS)
            (scratch / "demo.png").write_text(text)
        assert {path.name for path in out.iterdir()} == {"results.json", "demo.png"}
        assert (out / "demo.png").read_text() == text
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_error_inside_leaves_what_was_there(tmp_path):
    out = tmp_path / "out"
    with (
        pytest.raises(RuntimeError, match="mid"),
        replacing(out, check_replaceable) as scratch,
    ):
        (scratch / "results.json").touch()
        raise RuntimeError("mid")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["thesis.tex", "results.json"])
def test_refuses_what_no_demo_wrote(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(FileExistsError, match="absent, empty or an earlier demo"):
        check_replaceable(tmp_path)


def test_refuses_what_a_user_added_to_a_demo(tmp_path):
    (tmp_path / "results.json").write_text(OURS)
    check_replaceable(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        check_replaceable(tmp_path)


def test_refuses_a_file(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(NotADirectoryError, match="must be a directory"):
        check_replaceable(tmp_path / "out")

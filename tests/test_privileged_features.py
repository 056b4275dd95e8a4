"""The example on real tables: what its models learn from, and what that is worth."""

import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from tests.scripts import imported


@pytest.fixture(scope="module")
def example():
    with imported("examples/privileged_features.py") as module:
        yield module


@pytest.fixture(scope="module")
def splits(example):
    """Split a task's table, of which columns may be replaced by functions of it."""

    def split(name, seed=0, **replaced):
        task = example.tabular.TASKS[name]
        try:
            table = example.tabular.read(task)
        except ConnectionError as error:
            pytest.skip(str(error))
        table |= {column: make(table) for column, make in replaced.items()}
        return example.tabular.split(task, table, seed)

    return split


TABLE = 'school;G1;G3\n"GP";"7";11\n"MS";-1;0\n'


def check(table):
    """Assert that a table is `TABLE`."""
    assert list(table["school"]) == ["GP", "MS"]
    np.testing.assert_array_equal(table["G1"], np.array([7.0, -1.0], "float32"))


def zipped(path, name, content):
    """Write an archive with one file, and return its bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path.read_bytes()


def test_a_table_that_is_nowhere_names_its_address_and_the_remedy(example, tmp_path):
    task = example.tabular.TASKS["bank"]._replace(url="http://127.0.0.1:9/bank.zip")
    with pytest.raises(ConnectionError, match=r"bank-full.*127\.0\.0\.1:9.*--data-dir"):
        example.tabular.read(task, tmp_path)


@pytest.mark.parametrize("where", ["", "student_performance"])
@pytest.mark.parametrize("form", ["file", "archive"])
def test_a_table_is_found_in_the_folder_or_one_below(where, form, example, tmp_path):
    folder, task = tmp_path / where, example.tabular.TASKS["students"]
    folder.mkdir(exist_ok=True)
    if form == "file":
        (folder / task.file).write_text(TABLE)
    else:
        zipped(folder / task.archive, task.file, TABLE)
    check(example.tabular.read(task, tmp_path))


def test_a_table_that_is_nowhere_is_downloaded_once(example, tmp_path, monkeypatch):
    task = example.tabular.TASKS["students"]
    inner = zipped(tmp_path / "inner", task.file, TABLE)
    zipped(tmp_path / "student+performance.zip", task.archive, inner)
    served = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    get_file = partial(keras.utils.get_file, cache_dir=tmp_path / "keras")
    monkeypatch.setattr(keras.utils, "get_file", get_file)
    with ThreadingHTTPServer(("127.0.0.1", 0), served) as server:
        threading.Thread(target=server.serve_forever).start()
        name = Path(task.url).name
        task = task._replace(url=f"http://127.0.0.1:{server.server_port}/{name}")
        try:
            check(example.tabular.read(task, tmp_path / "empty"))
        finally:
            server.shutdown()
    check(example.tabular.read(task, tmp_path / "empty"))


@pytest.mark.parametrize(
    "name, labelled, rows, tested, mean",
    [("students", 50, 350, 299, 11.9), ("bank", 300, 10_300, 34_911, 0.117)],
)
def test_only_labelled_rows_bring_their_label(
    name, labelled, rows, tested, mean, splits
):
    x, y, test = splits(name)
    assert len(y) == rows and len(test["y"]) == tested
    np.testing.assert_array_equal(x["labelled"], np.arange(rows) < labelled)
    assert y[:labelled].any() and not y[labelled:].any()
    assert abs(test["y"].mean() - mean) < 0.03 * mean


def test_every_row_is_dealt_once_and_anew_by_each_seed(splits):
    def number(table):
        return np.arange(len(table["G1"]), dtype="float32")

    dealt = []
    for seed in (0, 0, 1):
        x, _, test = splits("students", seed, G1=number)
        both = np.concatenate([x["privileged"][:, 0], test["privileged"][:, 0]])
        dealt.append(np.argsort(both))
        assert len(np.unique(both)) == 649
    np.testing.assert_array_equal(dealt[0], dealt[1])
    assert not np.array_equal(dealt[0], dealt[2])


def test_labels_stay_with_their_rows(splits):
    x, y, test = splits("students", G1=lambda table: table["G3"])
    told = np.concatenate([x["privileged"][:50, 0], test["privileged"][:, 0]])
    labels = np.concatenate([y[:50, 0], test["y"][:, 0]])
    np.testing.assert_allclose(np.corrcoef(told, labels)[0, 1], 1.0, atol=1e-5)


def test_the_student_reads_neither_privileged_columns_nor_the_label(splits):
    x, _, test = splits("students")
    columns = dict.fromkeys(("G1", "G2", "G3"), lambda table: np.flip(table["G1"]))
    changed, _, changed_test = splits("students", **columns)
    np.testing.assert_array_equal(x["x"], changed["x"])
    np.testing.assert_array_equal(test["x"], changed_test["x"])
    assert not np.array_equal(x["privileged"], changed["privileged"])


def test_rows_to_test_have_no_part_in_the_scales(splits):
    x, _, test = splits("bank")
    np.testing.assert_allclose(x["privileged"].mean(), 0.0, atol=1e-4)
    np.testing.assert_allclose(x["privileged"].std(), 1.0, atol=1e-4)
    assert abs(test["privileged"].mean()) > 1e-3


def ridge(x, y, weight, penalty):
    """Return the predictions of the linear model that minimises the weighted error."""
    x = np.column_stack([x, np.ones(len(x))])
    penalties = np.diag([penalty] * (x.shape[1] - 1) + [0.0])
    return x @ np.linalg.solve((x.T * weight) @ x + penalties, x.T @ (weight * y))


def test_training_on_labels_is_ridge_regression(example, splits):
    x, y, _ = splits("students")
    x = {name: values[:50] for name, values in x.items()}
    model = example.trained(example.RECIPES["students"], ["x"], x, y[:50])
    expected = ridge(x["x"], y[:50, 0], np.full(50, 1 / 50), 50.0 / 50)
    np.testing.assert_allclose(model({"x": x["x"]})[:, 0], expected, atol=1e-3)


def test_distilling_is_ridge_regression_on_what_both_say(example, splits):
    x, y, _ = splits("students")
    x["said"] = x["privileged"][:, :1] + 12.0
    y[50:] = 99.0  # isn't read
    teacher = kd.teachers.Recorded("said")
    model = example.trained(example.RECIPES["students"], ["x"], x, y, teacher)
    expected = ridge(
        np.concatenate([x["x"], x["x"][:50]]),
        np.concatenate([x["said"][:, 0], y[:50, 0]]),
        np.repeat([0.9 / 350, 0.1 / 50], [350, 50]),
        50.0 / 350,
    )
    np.testing.assert_allclose(model({"x": x["x"]})[:, 0], expected[:350], atol=0.03)


def test_unlabelled_rows_pass_on_the_columns_and_nothing_else(example, splits):
    recipe, gains = example.RECIPES["students"], []
    for seed in range(2):
        x, y, test = splits("students", seed)
        labelled = {name: values[:50] for name, values in x.items()}
        errors = []
        for reads in example.READS.values():
            teacher = example.trained(recipe, reads, labelled, y[:50])
            student = example.trained(recipe, ["x"], x, y, teacher)
            errors += [example.measure(recipe, m, test)[0] for m in (teacher, student)]
        alone, control, teacher, privileged = errors
        assert teacher < 0.6 * alone
        gains.append((alone - control, alone - privileged))
    of_control, of_privileged = np.transpose(gains)
    assert np.all(abs(of_control) < 0.15)
    assert np.all(of_privileged > 0.2)


@pytest.fixture
def untraced():
    """Run what Keras compiles step by step, which few steps are faster in."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore:.*run_functions_eagerly")
def test_the_bank_has_every_variant_beside_its_control(example, splits, untraced):
    x, y, test = splits("bank")
    recipe = example.RECIPES["bank"]._replace(steps=2)
    models = example.train(recipe, x, y)
    assert len(models) == 2 + 2 * 2 * 3
    for key, model in models.items():
        assert list(model.input) == (
            ["x", "privileged"] if key == example.TEACHER else ["x"]
        )
        assert (*key[:2], example.CONTROL) in models or key[0] == ""
        auc, log_loss, calibration = example.measure(recipe, model, test)
        assert 0.5 < auc < 0.95 and log_loss < np.log(2) and calibration > 1.0
    said = {key: np.array(model.get_weights()[0]) for key, model in models.items()}
    students = [key for key in models if key != example.TEACHER]
    different = {said[key].tobytes() for key in students}
    assert len(different) == len(students)


def test_the_table_compares_with_the_student_alone_and_with_the_control(
    example, capsys
):
    example.print_table(
        {
            example.ALONE: [(1.0, 5.0), (2.0, 6.0), (3.0, 7.0)],
            example.TEACHER: [(0.0, 0.0)] * 3,
            ("all rows", "together", "self-distilled"): [(2.0,), (2.0,), (4.0,)],
            ("all rows", "together", "privileged"): [(3.0,), (5.0,), (4.0,)],
        }
    )
    alone, teacher, control, privileged = capsys.readouterr().out.splitlines()
    assert alone.split()[2:] == ["2.0000", "(1.0000)", "6.0000", "(1.0000)"]
    assert teacher.split()[2:] == ["0.0000", "(0.0000)"] * 2
    # differences of 1, 0, 1: their mean is two standard errors
    assert control.split()[4:] == ["2.6667", "(1.1547)", "+0.6667", "+2.0", "0.18"]
    # 2, 3, 1: 2 sqrt(3) standard errors; 1, 3, 0: 4/3 / sqrt(7/9) of them
    assert privileged.split()[4:7] == ["4.0000", "(1.0000)", "+2.0000"]
    assert privileged.split()[7:] == ["+3.5", "0.074", "+1.3333", "+1.5", "0.27"]

"""Members that are wrong of an example say less of it."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.teachers import CorrectnessWeighted, Ensemble
from tests.distiller.models import (
    CLASSES,
    assert_same_weights,
    crossentropy,
    data,
    forward_kl,
    label_loss,
    mlp,
)

X, Y = data()
ONE_HOT = np.eye(CLASSES, dtype="float32")[Y]


def says(rows: Any) -> Any:
    return lambda x: np.asarray(rows, "float32")


def says_always(name: str, *logits: float) -> Any:
    """A teacher of that name that says the same of every row."""

    def said(x: Any) -> Any:
        rows = keras.ops.shape(keras.tree.flatten(x)[0])[0]
        return keras.ops.tile(keras.ops.array([logits], "float32"), (rows, 1))

    said.__name__ = name
    return said


def by_hand(said: Any, labels: Any, wrong_weight: float = 0.75) -> np.ndarray:
    """The weighted mean, a row at a time, of logits `(members, rows, classes)`."""
    said, count = np.asarray(said, "float64"), len(said)
    rows = []
    for row, label in enumerate(labels):
        right = [member[row].argmax() == label for member in said]
        if all(right) or not any(right):
            weights = np.ones(count)
        else:
            share = (count - sum(right)) * (1 - wrong_weight) / sum(right)
            weights = np.where(right, 1 + share, wrong_weight)
        assert weights.sum() == pytest.approx(count)
        rows.append((weights[:, None] * said[:, row]).sum(0) / count)
    return np.stack(rows)


class TestValues:
    def test_two_teachers(self) -> None:
        # both right, the first right, the second right, both wrong
        first = [[4, 0], [4, 0], [0, 4], [0, 4]]
        second = [[8, 0], [0, 8], [8, 0], [0, 8]]
        teacher = CorrectnessWeighted([says(first), says(second)])
        said = teacher(X[:4], labels=np.zeros(4, int))
        expected = [[6, 0], [2.5, 3], [5, 1.5], [0, 6]]
        np.testing.assert_allclose(said, expected)

    def test_four_teachers(self) -> None:
        # three, two, one of four are right: they weigh 13/12, 1.25, 1.75
        said = np.zeros((4, 3, 2))
        for row, right in enumerate([3, 2, 1]):
            said[:right, row, 0] = 12
            said[right:, row, 1] = 12
        teacher = CorrectnessWeighted([says(member) for member in said])
        found = teacher(X[:3], labels=np.zeros(3, int))
        expected = [[9.75, 2.25], [7.5, 4.5], [5.25, 6.75]]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_allclose(by_hand(said, [0, 0, 0]), expected)

    @pytest.mark.parametrize("wrong_weight", [0.0, 0.3, 0.75, 1.0])
    def test_of_models(self, wrong_weight: float) -> None:
        members = [mlp(seed=seed) for seed in range(4)]
        said = [member(X) for member in members]
        teacher = CorrectnessWeighted(members, wrong_weight)
        expected = by_hand(said, Y, wrong_weight)
        np.testing.assert_allclose(teacher(X, labels=Y), expected, atol=1e-6)
        if wrong_weight == 1.0:
            np.testing.assert_allclose(expected, np.mean(said, 0), atol=1e-6)

    @pytest.mark.parametrize(
        "labels",
        [Y[:, None], list(Y), ONE_HOT, 0.8 * ONE_HOT + 0.1, Y.astype("float32")],
        ids=["column", "list", "one-hot", "smoothed", "float"],
    )
    def test_labels_in_other_forms(self, labels: Any) -> None:
        members = [mlp(seed=seed) for seed in range(2)]
        teacher = CorrectnessWeighted(members)
        expected = teacher(X, labels=Y)
        np.testing.assert_array_equal(teacher(X, labels=labels), expected)
        assert not np.allclose(expected, teacher.plain()(X))

    def test_probabilities(self) -> None:
        teacher = CorrectnessWeighted(
            [says([[0, 0]]), says([[0, np.log(3)]])], 0.5, combine="probabilities"
        )
        p = np.exp(teacher(X[:1], labels=[1]))
        # the first's argmax is class 0: weights 1/4 and 3/4
        np.testing.assert_allclose(p, [[0.3125, 0.6875]], rtol=1e-6)

    def test_sigmoid_units_each_by_itself(self) -> None:
        teacher = CorrectnessWeighted(
            [says([[2, -2, 2]]), says([[-4, -4, 4]])], activation="sigmoid"
        )
        said = teacher(X[:1], labels=np.array([[1, 0, 0]]))
        np.testing.assert_allclose(said, [[1.25 - 1.5, -3, 3]])

    @pytest.mark.parametrize("shape", [(4,), (4, 1)])
    def test_one_sigmoid_unit(self, shape: Any) -> None:
        first, second = [[2], [2], [-2], [-2]], [[4], [-4], [4], [-4]]
        teacher = CorrectnessWeighted([says(first), says(second)], activation="sigmoid")
        said = teacher(X[:4], labels=np.ones(4).reshape(shape))
        np.testing.assert_allclose(said, [[3], [1.25 - 1.5], [-0.75 + 2.5], [-3]])

    def test_sequences_and_another_axis(self) -> None:
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(2, 3, 5, 4)).astype("float32")
        ids = rng.integers(0, 4, (3, 5))
        last = CorrectnessWeighted([says(member) for member in logits])
        expected = by_hand(logits.reshape(2, 15, 4), ids.reshape(15))
        found = last(X[:3], labels=ids)
        np.testing.assert_allclose(found, expected.reshape(3, 5, 4), atol=1e-6)
        for axis in (1, -2):
            first = CorrectnessWeighted(
                [says(np.moveaxis(member, -1, 1)) for member in logits], axis=axis
            )
            moved = np.moveaxis(first(X[:3], labels=ids), 1, -1)
            np.testing.assert_allclose(moved, found, atol=1e-6)

    def test_several_outputs(self) -> None:
        heads = [{"a": [[4, 0]], "b": [[0, 4]]}, {"a": [[0, 4]], "b": [[0, 8]]}]
        members = [
            lambda x, h=head: {k: np.asarray(v, "float32") for k, v in h.items()}
            for head in heads
        ]
        zero = np.zeros((1, 1))
        said = CorrectnessWeighted(members)(X[:1], labels={"a": zero, "b": zero})
        np.testing.assert_allclose(said["a"], [[2.5, 1.5]])
        np.testing.assert_allclose(said["b"], [[0, 6]])

    def test_rows_without_a_label_get_the_plain_mean(self) -> None:
        members = [mlp(seed=seed) for seed in range(2)]
        teacher = CorrectnessWeighted(members)
        labelled = np.arange(len(X)) % 3 > 0
        garbage = np.where(labelled, Y, 99)
        plain = np.mean([member(X) for member in members], 0)
        expected = np.where(labelled[:, None], teacher(X, labels=Y), plain)
        for mask in (labelled, labelled[:, None]):
            said = teacher(X, labels=garbage, labelled=mask)
            np.testing.assert_allclose(said, expected, atol=1e-6)

    @pytest.mark.parametrize("combine", ["logits", "probabilities"])
    def test_extreme_and_masked_logits(self, combine: str) -> None:
        members = [says([[1e4, 0, -np.inf]]), says([[0, 1e4, -np.inf]])]
        teacher = CorrectnessWeighted(members, 0.0, combine=combine)
        said = np.asarray(teacher(X[:1], labels=[0]))
        assert not np.isnan(said).any()
        assert said.argmax() == 0


class TestTeaching:
    def fitted(self, teacher: Any, x: Any = X, y: Any = Y, **kwargs: Any) -> Any:
        weights = {
            name: kwargs.pop(name)
            for name in ("sample_weight", "class_weight")
            if name in kwargs
        }
        distiller = kd.Distiller(mlp(seed=9), teacher)
        compiled = {"distillation_loss": kd.losses.ForwardKL(2.0), **kwargs}
        distiller.compile(keras.optimizers.SGD(0.3), crossentropy(), **compiled)
        distiller.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, **weights)
        return distiller

    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_the_student_learns_the_weighted_mean(self, jit_compile: bool) -> None:
        members = [mlp(seed=seed) for seed in range(3)]
        said = by_hand([member(X) for member in members], Y).astype("float32")
        taught = self.fitted(CorrectnessWeighted(members), jit_compile=jit_compile)

        class Recalls:
            def __call__(self, x: Any) -> Any:
                return keras.ops.take(said, keras.ops.cast(x[:, 4], "int32"), axis=0)

        numbered = np.concatenate([X, np.arange(len(X))[:, None]], 1).astype("float32")
        keras.utils.set_random_seed(0)
        student = mlp(seed=9)
        inputs = keras.Input((5,))
        reads_four = keras.Model(inputs, student(inputs[:, :4]))
        expected = kd.Distiller(reads_four, Recalls())
        expected.compile(
            keras.optimizers.SGD(0.3),
            crossentropy(),
            distillation_loss=kd.losses.ForwardKL(2.0),
        )
        expected.fit(numbered, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        assert_same_weights(taught.student, student, atol=1e-6)

    def test_label_masks(self) -> None:
        members = [says_always("one", 4, 0, 0), says_always("two", 0, 4, 0)]
        inputs = keras.Input((4,), name="x")
        keras.utils.set_random_seed(0)
        student = keras.Model({"x": inputs}, layers.Dense(CLASSES)(inputs))
        distiller = kd.Distiller(student, CorrectnessWeighted(members))
        output = np.asarray(student({"x": X}))
        distiller.compile(
            keras.optimizers.SGD(0.0),
            crossentropy(),
            distillation_loss=kd.losses.ForwardKL(),
            label_mask="labelled",
        )
        labelled = np.arange(len(X)) % 2 > 0
        garbage = np.where(labelled, Y, 99)
        history = distiller.fit(
            {"x": X, "labelled": labelled}, garbage, batch_size=24, verbose=0
        ).history
        said = np.tile([[[4, 0, 0]], [[0, 4, 0]]], (1, len(X), 1))
        weighted = by_hand(said, Y)
        weighted[~labelled] = [2, 2, 0]
        expected = forward_kl(weighted, output).mean()
        assert history["distillation_loss"][0] == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("kind", ["sample_weight", "class_weight"])
    def test_weights_act(self, kind: str) -> None:
        members = [mlp(seed=seed) for seed in range(2)]
        given = {0: 0.5, 1: 2.0, 2: 1.0}
        weights = np.array([given[label] for label in Y])
        distiller = kd.Distiller(mlp(seed=9), CorrectnessWeighted(members))
        distiller.compile(
            keras.optimizers.SGD(0.0),
            crossentropy(),
            distillation_loss=kd.losses.ForwardKL(),
        )
        passed = given if kind == "class_weight" else weights
        logs = distiller.fit(X, Y, batch_size=24, verbose=0, **{kind: passed}).history
        said, output = by_hand([member(X) for member in members], Y), mlp(seed=9)(X)
        for name, values in (
            ("distillation_loss", forward_kl(said, output)),
            ("student_loss", label_loss(Y, output)),
        ):
            assert logs[name][0] == pytest.approx((values * weights).mean(), rel=1e-5)

    def test_members_are_logged(self) -> None:
        members = [says_always("one", 4, 0, 0), says_always("two", 0, 4, 0)]
        teacher = CorrectnessWeighted(members, log_losses=True)
        history = self.fitted(teacher).fit(X, Y, verbose=0).history
        assert {"one_distillation_loss", "two_distillation_loss"} <= set(history)

    def test_within_an_ensemble(self) -> None:
        members = [mlp(seed=seed) for seed in range(2)]
        taught = self.fitted(Ensemble([CorrectnessWeighted(members)]))
        expected = self.fitted(CorrectnessWeighted(members))
        assert_same_weights(taught.student, expected.student)

    def test_labels_by_name_for_a_list_of_outputs(self) -> None:
        x = keras.Input((4,))
        heads = [layers.Dense(CLASSES, name=name)(x) for name in ("a", "b")]
        student = keras.Model(x, heads)
        teacher = CorrectnessWeighted([keras.models.clone_model(student)])
        distiller = kd.Distiller(student, teacher)
        distiller.compile("sgd", {"a": crossentropy(), "b": crossentropy()})
        distiller.fit(X, {"a": Y, "b": Y}, verbose=0)

    def test_without_labels(self) -> None:
        distiller = kd.Distiller(mlp(), CorrectnessWeighted([mlp(seed=1)]))
        distiller.compile("sgd", alpha=1.0)
        with pytest.raises(ValueError, match="needs the label.*labels=None"):
            distiller.fit(X, verbose=0)

    def test_labels_serve_it_alone(self) -> None:
        """At alpha 1 the student itself reads none."""
        distiller = kd.Distiller(mlp(), CorrectnessWeighted([mlp(seed=1)]))
        distiller.compile("sgd", alpha=1.0)
        history = distiller.fit(X, Y, verbose=0).history
        assert "student_loss" not in history


class TestAsAModel:
    def test_save_and_load(self, tmp_path: Path) -> None:
        teacher = CorrectnessWeighted(
            [mlp(seed=1), mlp(seed=2)], 0.25, combine="probabilities", name="board"
        )
        teacher.save(tmp_path / "board.keras")
        loaded = keras.saving.load_model(tmp_path / "board.keras")
        assert loaded.wrong_weight == 0.25
        assert loaded.name == "board"
        np.testing.assert_array_equal(
            loaded(X, labels=Y), np.asarray(teacher(X, labels=Y))
        )

    @pytest.mark.parametrize("method", ["predict", "evaluate", "__call__"])
    def test_without_labels(self, method: str) -> None:
        teacher = CorrectnessWeighted([mlp(seed=1)])
        teacher.compile(loss=crossentropy())
        given = (X, Y) if method == "evaluate" else (X,)
        with pytest.raises(ValueError, match=r"needs the label.*teacher\.plain\(\)"):
            getattr(teacher, method)(*given)

    def test_plain(self) -> None:
        teacher = CorrectnessWeighted([mlp(1), mlp(2)], combine="probabilities")
        plain = teacher.plain()
        assert type(plain) is Ensemble
        expected = Ensemble(teacher.models, combine="probabilities")
        np.testing.assert_array_equal(plain(X), np.asarray(expected(X)))


class TestErrors:
    @pytest.mark.parametrize("wrong_weight", [-0.1, 1.1, float("nan")])
    def test_wrong_weight(self, wrong_weight: float) -> None:
        with pytest.raises(ValueError, match=r"in \[0, 1\]. Received: wrong_weight="):
            CorrectnessWeighted([mlp()], wrong_weight)

    def test_an_output_without_labels(self) -> None:
        def heads(x: Any) -> Any:
            return {"a": np.zeros((1, 2)), "b": np.zeros((1, 2))}

        teacher = CorrectnessWeighted([heads], name="board")
        with pytest.raises(ValueError, match=r"`board`.*of output \['b'\].*'a': \(1,"):
            teacher(X[:1], labels={"a": np.zeros(1)})

    def test_labels_of_another_shape(self) -> None:
        with pytest.raises(ValueError, match=r"with or without.*shape \(24, 7\)"):
            CorrectnessWeighted([mlp()])(X, labels=np.zeros((24, 7)))
        sigmoid = CorrectnessWeighted([mlp()], activation="sigmoid")
        with pytest.raises(ValueError, match=r"each sigmoid unit.*shape \(24,\)"):
            sigmoid(X, labels=Y)

    def test_a_label_that_is_no_class(self) -> None:
        with pytest.raises(ValueError, match="ids of classes.*from 0.* to 7"):
            CorrectnessWeighted([mlp()])(X, labels=np.where(Y == 2, 7, Y))

    def test_one_unit(self) -> None:
        with pytest.raises(ValueError, match='one unit.*activation="sigmoid"'):
            CorrectnessWeighted([says(np.zeros((24, 1)))])(X, labels=Y)

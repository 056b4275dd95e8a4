"""The mean of what several models say, as a model and as a teacher."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.teachers import Ensemble, Recorded
from tests.distiller.models import (
    CLASSES,
    CountsCalls,
    Subclassed,
    assert_same_weights,
    crossentropy,
    data,
    forward_kl,
    log_softmax,
    mlp,
)

X, Y = data()
NAMED = {"x": X, "extra": np.cos(X[:, :2])}


def says(*logits: float, dtype: str = "float32") -> Any:
    """A teacher that says the same of every row."""
    return lambda x: np.tile(np.asarray(logits, dtype), (len(x), 1))


def reader(*names: str, seed: int = 0, **kwargs: Any) -> keras.Model:
    """A Functional model that declares some of `NAMED`."""
    keras.utils.set_random_seed(seed)
    inputs = {name: keras.Input((NAMED[name].shape[1],), name=name) for name in names}
    seen = list(inputs.values())
    joined = layers.Concatenate()(seen) if len(seen) > 1 else seen[0]
    return keras.Model(inputs, layers.Dense(CLASSES)(joined), **kwargs)


def two_heads(seed: int, as_dict: bool) -> keras.Model:
    keras.utils.set_random_seed(seed)
    x = keras.Input((4,))
    heads = {
        "kind": layers.Dense(CLASSES, name="kind")(x),
        "click": layers.Dense(1, name="click")(x),
    }
    return keras.Model(x, heads if as_dict else list(heads.values()))


def built(model: keras.Model, x: Any = X) -> keras.Model:
    model(x)
    return model


def fitted(teacher: Any, x: Any = X, **kwargs: Any) -> kd.Distiller:
    student = reader("x", seed=9) if isinstance(x, dict) else mlp(seed=9)
    distiller = kd.Distiller(student, teacher)
    compiled = {"distillation_loss": kd.losses.ForwardKL(2.0), **kwargs}
    distiller.compile(keras.optimizers.SGD(0.3), crossentropy(), **compiled)
    distiller.fit(x, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return distiller


class TestValues:
    def test_mean_of_logits(self) -> None:
        members = [mlp(seed=seed) for seed in range(3)]
        expected = np.mean([member(X) for member in members], axis=0)
        np.testing.assert_allclose(Ensemble(members)(X), expected, atol=1e-6)

    def test_weights_count_by_their_shares(self) -> None:
        ensemble = Ensemble([says(4, 0), says(0, 8)], weights=[6, 2])
        np.testing.assert_allclose(ensemble(X[:1]), [[3.0, 2.0]])
        assert ensemble.shares == [0.75, 0.25]

    def test_mean_of_probabilities(self) -> None:
        members = [mlp(seed=seed) for seed in range(2)]
        ensemble = Ensemble(members, [1, 3], combine="probabilities")
        p = [np.exp(log_softmax(member(X))) for member in members]
        expected = np.log(0.25 * p[0] + 0.75 * p[1])
        np.testing.assert_allclose(ensemble(X), expected, atol=1e-6)

    def test_mean_of_sigmoid_probabilities(self) -> None:
        ensemble = Ensemble(
            [says(2, -1), says(0, 3)], combine="probabilities", activation="sigmoid"
        )
        p = (1 / (1 + np.exp([-2.0, 1.0])) + 1 / (1 + np.exp([0.0, -3.0]))) / 2
        np.testing.assert_allclose(ensemble(X[:1])[0], np.log(p / (1 - p)), rtol=1e-5)

    @pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
    def test_extreme_logits(self, activation: str) -> None:
        members = [says(1e4, -1e4, 0), says(-1e4, -1e4, 0)]
        logits = Ensemble(members, activation=activation)(X[:1])
        np.testing.assert_allclose(logits, [[0, -1e4, 0]])
        mean = Ensemble(members, combine="probabilities", activation=activation)
        said = np.asarray(mean(X[:1]))
        assert np.isfinite(said).all()
        if activation == "softmax":  # half of each: classes 0 and 2
            np.testing.assert_allclose(np.exp(said), [[0.5, 0, 0.5]])
        else:
            np.testing.assert_allclose(said, [[0, -1e4, 0]], atol=1e-3)

    @pytest.mark.parametrize("combine", ["logits", "probabilities"])
    def test_a_masked_class(self, combine: str) -> None:
        members = [says(1, -np.inf, 0), says(3, -np.inf, 0)]
        said = np.asarray(Ensemble(members, combine=combine)(X[:1]))
        assert said[0, 1] == -np.inf
        assert np.isfinite(said[0, [0, 2]]).all()

    def test_a_class_that_one_member_rules_out(self) -> None:
        members = [says(0, -np.inf), says(0, 0)]
        said = Ensemble(members, combine="probabilities")(X[:1])
        np.testing.assert_allclose(np.exp(said), [[0.75, 0.25]], rtol=1e-6)

    def test_the_class_axis(self) -> None:
        first = [lambda x: x, lambda x: 2 * x]
        x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
        said = Ensemble(first, combine="probabilities", axis=1)(x)
        np.testing.assert_allclose(np.exp(said).sum(1), 1.0, rtol=1e-5)

    def test_members_of_other_precisions(self) -> None:
        half = keras.Sequential(
            [keras.Input((4,)), layers.Dense(CLASSES, dtype="mixed_float16")]
        )
        ensemble = Ensemble([half, mlp()])
        assert ensemble(X).dtype == "float32"
        expected = (np.asarray(half(X), "float32") + mlp()(X)) / 2
        np.testing.assert_allclose(ensemble(X), expected, atol=1e-6)
        assert Ensemble([half])(X).dtype == "float32"

    @pytest.mark.parametrize("as_dict", [True, False])
    def test_several_outputs(self, as_dict: bool) -> None:
        members = [two_heads(seed, as_dict) for seed in range(2)]
        said = Ensemble(members, [1, 3])(X)
        keras.tree.map_structure(
            lambda s, a, b: np.testing.assert_allclose(
                s, 0.25 * a + 0.75 * b, atol=1e-6
            ),
            said,
            *[member(X) for member in members],
        )

    def test_an_ensemble_of_ensembles(self) -> None:
        inner = Ensemble([says(8, 0), says(0, 0)])
        outer = Ensemble([inner, says(0, 4)])
        np.testing.assert_allclose(outer(X[:1]), [[2, 2]])
        assert not outer.weights

    def test_any_number(self) -> None:
        np.testing.assert_allclose(Ensemble([says(1, 2)])(X[:1]), [[1, 2]])
        many = Ensemble([says(i, -i) for i in range(20)])
        np.testing.assert_allclose(many(X[:1]), [[9.5, -9.5]], rtol=1e-6)


class TestInputs:
    def test_each_member_reads_its_own_keys(self) -> None:
        members = [reader("x", seed=1), reader("x", "extra", seed=2)]
        ensemble = Ensemble(members)
        expected = (members[0]({"x": X}) + members[1](NAMED)) / 2
        np.testing.assert_allclose(
            ensemble.predict(NAMED, verbose=0), expected, atol=1e-6
        )

    def test_a_privileged_feature_teaches(self) -> None:
        members = [reader("x", seed=1), reader("x", "extra", seed=2)]

        def said(x: Any) -> Any:
            return (members[0]({"x": x["x"]}) + members[1](x)) / 2

        distiller = kd.Distiller(
            reader("x", seed=9), Ensemble(members), privileged_features=["extra"]
        )
        distiller.compile(
            keras.optimizers.SGD(0.3),
            crossentropy(),
            distillation_loss=kd.losses.ForwardKL(2.0),
        )
        distiller.fit(NAMED, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        expected = fitted(said, NAMED)
        assert_same_weights(distiller.student, expected.student, atol=1e-6)

    def test_a_missing_input_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"'late'.*\['extra'\]"):
            Ensemble([reader("x"), reader("extra", name="late")])({"x": X})

    def test_subclassed_members_arent_given_what_is_withheld(self) -> None:
        masked = {**NAMED, "labelled": np.ones(len(X))}
        everything = built(Subclassed(), NAMED)
        teacher = Ensemble([everything, reader("x")])
        distiller = kd.Distiller(reader("x", seed=9), teacher)
        distiller.compile("sgd", crossentropy(), label_mask="labelled")
        distiller.fit(masked, Y, verbose=0)

    def test_of_privileged_features_alone_is_told(self) -> None:
        members = [reader("extra", seed=1), Ensemble([reader("extra", seed=2)])]
        student = kd.Distiller(
            reader("x"), Ensemble(members), privileged_features=["extra"]
        )
        with pytest.warns(UserWarning, match=r"alone, \['extra'\], at alpha 0.9"):
            student.compile("sgd", crossentropy(), alpha=0.9)
        with_another = Ensemble([*members, reader("x", seed=3)])
        assert with_another.declares == ["extra", "x"]
        assert Ensemble([*members, lambda x: x]).declares is None

    def test_recorded_answers_are_for_no_other_model(self) -> None:
        said = np.asarray(mlp(seed=1)(X))
        everything = built(Subclassed(), {"x": X})
        teacher = Ensemble([everything, Recorded("said")], log_losses=True)
        assert teacher.reads == ("said",)
        student = Subclassed()
        distiller = kd.Distiller(student, teacher)
        distiller.compile("sgd", crossentropy())
        history = distiller.fit({"x": X, "said": said}, Y, verbose=0).history
        assert student.hidden.kernel.shape[0] == 4
        assert "Recorded_distillation_loss" in history


class TestTeaching:
    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_it_teaches_as_the_mean_would(self, jit_compile: bool) -> None:
        members = [mlp(seed=seed) for seed in range(2)]
        taught = fitted(Ensemble(members), jit_compile=jit_compile)
        expected = fitted(lambda x: (members[0](x) + members[1](x)) / 2)
        assert_same_weights(taught.student, expected.student, atol=1e-6)

    def test_members_run_once_a_step_and_stay_as_they_are(self) -> None:
        counters, members = [CountsCalls(), CountsCalls()], []
        for counter in counters:
            hidden = [counter, layers.BatchNormalization(), layers.Dense(CLASSES)]
            members.append(keras.Sequential([keras.Input((4,)), *hidden]))
        norms = [member.layers[1].get_weights() for member in members]
        before = [counter.count for counter in counters]
        distiller = fitted(Ensemble(members, log_losses=True))
        steps = int(distiller.optimizer.iterations)
        for counter, count in zip(counters, before, strict=True):
            assert counter.count == count + steps
        for member, values in zip(members, norms, strict=True):
            for weight, value in zip(
                member.layers[1].get_weights(), values, strict=True
            ):
                np.testing.assert_array_equal(weight, value)
        assert all(member.trainable for member in members)

    def test_evaluation_doesnt_run_them(self) -> None:
        counter = CountsCalls()
        member = keras.Sequential([keras.Input((4,)), counter, layers.Dense(CLASSES)])
        distiller = fitted(Ensemble([member]))
        count = counter.count
        distiller.evaluate(X, Y, verbose=0)
        assert counter.count == count

    def test_it_isnt_in_the_checkpoint(self, tmp_path: Path) -> None:
        path = tmp_path / "run.weights.h5"
        distiller = fitted(Ensemble([mlp(seed=1), mlp(seed=2)]))
        distiller.save_weights(path)
        alone = fitted(mlp(seed=1))
        alone.load_weights(path)
        assert_same_weights(alone.student, distiller.student)
        config = distiller.get_config()
        assert "teacher" not in config

    def test_a_student_among_its_members_is_refused(self) -> None:
        student = mlp()
        distiller = kd.Distiller(student, Ensemble([student, mlp(seed=1)]))
        with pytest.raises(ValueError, match="weights that its fixed teacher holds"):
            distiller.compile("sgd", crossentropy())

    def test_a_member_that_xla_cant_compile_keeps_it_off(self) -> None:
        member = mlp()
        member.layers[0].supports_jit = False
        distiller = kd.Distiller(mlp(seed=1), Ensemble([member]))
        distiller.compile("sgd", crossentropy())
        assert not distiller.jit_compile

    def test_it_doesnt_train_with_its_student(self) -> None:
        distiller = kd.Distiller(mlp(), Ensemble([mlp(seed=1)]))
        with pytest.raises(TypeError, match="Ensemble teaches by what others"):
            distiller.compile("sgd", crossentropy(), teacher_loss=crossentropy())


class TestLogs:
    NAMES = ["first_distillation_loss", "first_1_distillation_loss"]

    def history(self, **kwargs: Any) -> tuple[dict[str, Any], list[Any]]:
        members = [mlp(seed=1), mlp(seed=2)]
        for member in members:
            member.name = "first"
        distiller = kd.Distiller(mlp(seed=9), Ensemble(members, log_losses=True))
        distiller.compile(
            keras.optimizers.SGD(0.0),
            crossentropy(),
            distillation_loss=kd.losses.ForwardKL(2.0),
            **kwargs,
        )
        history = distiller.fit(
            X, Y, batch_size=8, validation_data=(X, Y), verbose=0
        ).history
        return history, members

    @pytest.mark.parametrize(
        "kwargs", [{}, {"jit_compile": True}, {"steps_per_execution": 2}], ids=str
    )
    def test_the_loss_against_each_member(self, kwargs: Any) -> None:
        history, members = self.history(**kwargs)
        student = mlp(seed=9)(X)
        for name, member in zip(self.NAMES, members, strict=True):
            expected = forward_kl(member(X), student, 2.0).mean()
            assert history[name][0] == pytest.approx(expected, rel=1e-5)
        mean = (members[0](X) + members[1](X)) / 2
        expected = forward_kl(mean, student, 2.0).mean()
        assert history["distillation_loss"][0] == pytest.approx(expected, rel=1e-5)

    def test_not_in_evaluation(self) -> None:
        history, _ = self.history()
        assert {name for name in history if name.startswith("val_")} == {"val_loss"}

    def test_of_several_outputs_it_is_the_sum(self) -> None:
        members = [two_heads(seed, as_dict=True) for seed in range(2)]
        student = two_heads(9, as_dict=True)
        distiller = kd.Distiller(student, Ensemble(members, log_losses=True))
        distiller.compile(keras.optimizers.SGD(0.0), distillation_loss="mse", alpha=1.0)
        history = distiller.fit(X, batch_size=24, verbose=0).history
        said, output = members[1](X), two_heads(9, as_dict=True)(X)
        expected = sum(float(np.mean((said[k] - output[k]) ** 2)) for k in said)
        name = f"{members[1].name}_distillation_loss"
        assert history[name][0] == pytest.approx(expected, rel=1e-5)

    def test_sample_weights_act(self) -> None:
        member = mlp(seed=1)
        distiller = kd.Distiller(mlp(seed=9), Ensemble([member], log_losses=True))
        distiller.compile(
            keras.optimizers.SGD(0.0),
            crossentropy(),
            distillation_loss=kd.losses.ForwardKL(),
        )
        weights = np.linspace(0, 2, len(X))
        logs = distiller.fit(X, Y, sample_weight=weights, batch_size=24, verbose=0)
        expected = (forward_kl(member(X), mlp(seed=9)(X)) * weights).mean()
        name = f"{member.name}_distillation_loss"
        assert logs.history[name][0] == pytest.approx(expected, rel=1e-5)

    def test_they_are_none_unless_asked_for(self) -> None:
        distiller = fitted(Ensemble([mlp(seed=1)]))
        assert [m.name for m in distiller.metrics if "distillation" in m.name] == [
            "distillation_loss"
        ]

    def test_another_teacher_brings_its_own(self) -> None:
        distiller = fitted(Ensemble([mlp(seed=1)], log_losses=True))
        other = mlp(seed=2)
        other.name = "other"
        distiller.teacher = Ensemble([other], log_losses=True)
        history = distiller.fit(X, Y, verbose=0).history
        assert {n for n in history if n.endswith("_distillation_loss")} == {
            "other_distillation_loss"
        }


class TestNothingToSay:
    """A teacher that returns None leaves the student to the labels."""

    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_training_is_that_with_alpha_0(self, jit_compile: bool) -> None:
        silent = fitted(lambda x: None, jit_compile=jit_compile)
        expected = fitted(mlp(seed=1), alpha=0.0, jit_compile=jit_compile)
        assert_same_weights(silent.student, expected.student)

    def test_only_what_there_is_is_logged(self) -> None:
        distiller = fitted(lambda x: None)
        history = distiller.fit(X, Y, verbose=0, validation_data=(X, Y)).history
        assert sorted(history) == ["loss", "student_loss", "val_loss"]
        assert history["loss"] == history["student_loss"]

    def test_it_may_find_its_voice(self) -> None:
        distiller = fitted(lambda x: None)
        distiller.teacher = mlp(seed=1)
        history = distiller.fit(X, Y, verbose=0).history
        assert history["distillation_loss"][0] > 0.0

    def test_without_labels_there_is_nothing_to_learn(self) -> None:
        distiller = kd.Distiller(mlp(), lambda x: None)
        distiller.compile("sgd", alpha=1.0)
        with pytest.raises(ValueError, match="no targets.*None from the teacher"):
            distiller.fit(X, verbose=0)

    def test_members_of_an_ensemble_must_speak(self) -> None:
        def silent(x: Any) -> None:
            return None

        with pytest.raises(ValueError, match="None from the member 'silent'"):
            fitted(Ensemble([mlp(seed=1), silent]))


class TestAsAModel:
    def test_evaluate(self) -> None:
        members = [mlp(seed=1), mlp(seed=2)]
        ensemble = Ensemble(members)
        ensemble.compile(loss=crossentropy(), metrics=["accuracy"])
        found = ensemble.evaluate(X, Y, verbose=0, return_dict=True)
        mean = np.asarray(members[0](X) + members[1](X)) / 2
        assert found["accuracy"] == pytest.approx(np.mean(mean.argmax(1) == Y))

    def test_save_and_load(self, tmp_path: Path) -> None:
        members = [reader("x", seed=1), built(Subclassed(), NAMED)]
        members.append(Ensemble([reader("extra", seed=3)]))
        ensemble = Ensemble(
            members,
            [1, 2, 3],
            combine="probabilities",
            axis=1,
            log_losses=True,
            name="board",
        )
        ensemble.save(tmp_path / "board.keras")
        loaded = keras.saving.load_model(tmp_path / "board.keras")
        np.testing.assert_array_equal(
            loaded.predict(NAMED, verbose=0), ensemble.predict(NAMED, verbose=0)
        )
        for name in ("name", "shares", "combine", "activation", "axis", "log_losses"):
            assert getattr(loaded, name) == getattr(ensemble, name)
        assert loaded.member_names == ensemble.member_names

    @pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="TensorFlow exports"
    )
    def test_export(self, tmp_path: Path) -> None:
        import tensorflow as tf

        ensemble = Ensemble([mlp(seed=1), built(Subclassed())], name="board")
        kd.export.export(
            ensemble, tmp_path / "out", formats=["saved_model"], example_batch=X
        )
        served = tf.saved_model.load(str(tmp_path / "out" / "saved_model"))
        said = served.signatures["serving_default"](input=tf.constant(X))["output"]
        np.testing.assert_allclose(said, ensemble(X), atol=1e-6)

    def test_a_callable_cant_be_saved(self) -> None:
        with pytest.raises(TypeError, match=r"saved.*Received: members \['lambda'\]"):
            Ensemble([mlp(), lambda x: x]).get_config()

    def test_shared_weights_cant_be_saved(self) -> None:
        member = mlp()
        with pytest.raises(ValueError, match="share weights.*8 weights .*4 of them"):
            Ensemble([member, member]).get_config()


class TestErrors:
    @pytest.mark.parametrize("models", [mlp(), None, "models", {"a": mlp()}])
    def test_no_list(self, models: Any) -> None:
        with pytest.raises(TypeError, match="must be a list .*Received: models="):
            Ensemble(models)

    def test_no_member(self) -> None:
        with pytest.raises(ValueError, match=r"at least one.*Received: models=\[\]"):
            Ensemble([])

    def test_no_model(self) -> None:
        with pytest.raises(TypeError, match="callable of a batch.*'resnet'"):
            Ensemble([mlp(), "resnet"])
        with pytest.raises(TypeError, match="must hold no None"):
            Ensemble([mlp(), None])

    def test_unbuilt(self) -> None:
        with pytest.raises(ValueError, match="'raw' isn't built"):
            Ensemble([mlp(), Subclassed(name="raw")])

    @pytest.mark.parametrize(
        "weights", [[1], [1, 0], [1, -1], [1, np.nan], [1, np.inf], [[1], [1]]], ids=str
    )
    def test_weights(self, weights: Any) -> None:
        with pytest.raises(ValueError, match="a positive number.*for 2 models"):
            Ensemble([mlp(), mlp()], weights)

    @pytest.mark.parametrize("name", ["combine", "activation"])
    def test_unknown_mean(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"`{name}` must be one of.*'median'"):
            Ensemble([mlp()], **{name: "median"})

    def test_outputs_that_differ(self) -> None:
        with pytest.raises(ValueError, match="one structure and shape.*2.*3"):
            Ensemble([says(1, 2), says(1, 2, 3)])(X)

    def test_an_output_named_as_a_log(self) -> None:
        """Only where there are several does Keras log them by name."""

        def model(*heads: str) -> keras.Model:
            x = keras.Input((4,))
            outputs = {name: layers.Dense(CLASSES, name=name)(x) for name in heads}
            return keras.Model(x, outputs, name="a")

        def distiller(*heads: str) -> kd.Distiller:
            teacher = Ensemble([model(*heads)], log_losses=True)
            return kd.Distiller(model(*heads), teacher)

        names = "a_distillation", "b"
        with pytest.raises(ValueError, match=r"named \['a_distillation'\]"):
            distiller(*names).compile("sgd", dict.fromkeys(names, crossentropy()))
        only = distiller("a_distillation")
        only.compile("sgd", crossentropy())
        logs = only.train_on_batch(X, np.zeros(len(X)), return_dict=True)
        assert {"a_distillation_loss", "student_loss"} <= set(logs)

"""A teacher with another resolution, normalisation or order of classes."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_distill as kd
from keras_distill.batch import Batch
from keras_distill.teachers import (
    EMA,
    Adapted,
    CorrectnessWeighted,
    Ensemble,
    Lesson,
    Recorded,
    Teacher,
)
from keras_distill.teachers.base import as_teacher, ask
from tests.distiller.models import (
    CLASSES,
    Subclassed,
    assert_same_weights,
    crossentropy,
    data,
    mlp,
)

X, Y = data()
ORDER = [2, 0, 1]
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype("uint8")


def numpy(x: Any) -> Any:
    return keras.tree.map_structure(ops.convert_to_numpy, x)


def taught(teacher: Any, x: Any = X, **kwargs: Any) -> Any:
    """The targets for a batch, which `fit` hands over as tensors."""
    x = keras.tree.map_structure(ops.convert_to_tensor, x)
    return numpy(ask(as_teacher(teacher), Batch(inputs=x, **kwargs)).targets)


def convolutional(size: int = 16) -> keras.Model:
    """A teacher of images that are larger than the student's."""
    keras.utils.set_random_seed(1)
    image = keras.Input((size, size, 3), name="image")
    hidden = layers.Flatten()(layers.Conv2D(2, 3, activation="relu")(image))
    return keras.Model(image, layers.Dense(CLASSES)(hidden))


def two_heads(as_dict: bool = True) -> keras.Model:
    keras.utils.set_random_seed(2)
    x = keras.Input((4,))
    heads = {
        "kind": layers.Dense(CLASSES, name="kind")(x),
        "click": layers.Dense(1, name="click")(x),
    }
    return keras.Model(x, heads if as_dict else list(heads.values()))


@keras.saving.register_keras_serializable(package="tests")
def doubled(x: Any) -> Any:
    return 2.0 * x


def not_registered(x: Any) -> Any:
    return 2.0 * x


class TestValues:
    def test_nothing_adapted(self) -> None:
        teacher = mlp(1)
        np.testing.assert_array_equal(taught(Adapted(teacher)), taught(teacher))

    def test_inputs_and_outputs(self) -> None:
        teacher = mlp(1)
        adapted = Adapted(teacher, lambda x: 3.0 * x - 1.0, outputs=ORDER)
        expected = numpy(teacher(3.0 * X - 1.0))[:, ORDER]
        np.testing.assert_allclose(taught(adapted), expected, atol=1e-6)
        np.testing.assert_allclose(numpy(adapted(X)), expected, atol=1e-6)
        np.testing.assert_allclose(adapted.predict(X, verbose=0), expected, atol=1e-6)

    def test_another_resolution(self) -> None:
        teacher = convolutional()
        resizing = layers.Resizing(16, 16)
        x = IMAGES.astype("float32") / 255.0
        expected = numpy(teacher(resizing(x)))
        np.testing.assert_allclose(
            taught(Adapted(teacher, resizing), x), expected, atol=1e-6
        )

    @pytest.mark.parametrize(
        "inputs",
        [layers.Rescaling(1 / 127.5, -1.0), lambda x: x / 127.5 - 1.0],
        ids=["layer", "function"],
    )
    def test_images_in_uint8(self, inputs: Any) -> None:
        teacher = convolutional(8)
        expected = numpy(teacher(IMAGES.astype("float32") / 127.5 - 1.0))
        found = taught(Adapted(teacher, inputs), IMAGES)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_resized_images_are_not_rounded(self) -> None:
        resizing = layers.Resizing(16, 16)
        expected = numpy(resizing(IMAGES.astype("float32")))
        assert not np.allclose(expected, expected.round())
        found = taught(Adapted(lambda x: x, resizing), IMAGES)
        np.testing.assert_allclose(found, expected, atol=1e-4)

    def test_ids_in_uint8_stay_ids(self) -> None:
        table = np.arange(8.0, dtype="float32")
        ids = np.array([[3, 1], [0, 7]], "uint8")

        def looked_up(ids: Any) -> Any:
            assert keras.backend.standardize_dtype(ids.dtype) == "uint8"
            return ops.take(table, ops.cast(ids, "int32"), axis=0)

        adapted = Adapted(lambda x: x, looked_up)
        np.testing.assert_array_equal(taught(adapted, ids), ids.astype("float32"))

    def test_fewer_classes_than_the_teacher(self) -> None:
        teacher = mlp(1)
        adapted = Adapted(teacher, outputs=np.array([2, 1]))
        expected = numpy(teacher(X))[:, [2, 1]]
        np.testing.assert_array_equal(taught(adapted), expected)

    @pytest.mark.parametrize("as_dict", [True, False])
    def test_several_outputs_by_name(self, as_dict: bool) -> None:
        teacher = two_heads(as_dict)
        adapted = Adapted(teacher, outputs={"kind": ORDER, "click": lambda x: -x})
        outputs = numpy(teacher(X))
        found = taught(adapted)
        kind, click = ("kind", "click") if as_dict else (0, 1)
        assert type(found) is type(outputs)
        np.testing.assert_allclose(found[kind], outputs[kind][:, ORDER], atol=1e-6)
        np.testing.assert_allclose(found[click], -outputs[click], atol=1e-6)
        some = taught(Adapted(teacher, outputs={"click": lambda x: -x}))
        np.testing.assert_allclose(some[kind], outputs[kind], atol=1e-6)

    def test_one_function_of_several_outputs(self) -> None:
        teacher = two_heads()
        adapted = Adapted(teacher, outputs=lambda outputs: outputs["kind"])
        np.testing.assert_allclose(taught(adapted), numpy(teacher(X))["kind"])

    def test_nested_outputs(self) -> None:
        def nested(x: Any) -> Any:
            return {"a": [x, 2.0 * x], "b": x}

        adapted = Adapted(nested, outputs=lambda t: {"a": t["a"][::-1], "b": t["b"]})
        found = taught(adapted)
        np.testing.assert_array_equal(found["a"][0], 2.0 * X)
        np.testing.assert_array_equal(found["a"][1], X)

    def test_the_model_is_called_for_inference(self) -> None:
        teacher = Subclassed()
        teacher(X)
        expected = numpy(teacher(X, training=False))
        np.testing.assert_allclose(taught(Adapted(teacher)), expected)
        np.testing.assert_allclose(numpy(Adapted(teacher)(X, training=True)), expected)


class TestInputsByName:
    BATCH = {"image": IMAGES, "size": np.ones((6, 1), "float32"), "id": np.arange(6)}

    def both(self) -> keras.Model:
        image = keras.Input((16, 16, 3), name="image")
        size = keras.Input((1,), name="size")
        joined = layers.Concatenate()([layers.Flatten()(image), size])
        out = layers.Dense(CLASSES)(joined)
        return keras.Model({"image": image, "size": size}, out)

    def expected(self, teacher: keras.Model) -> Any:
        image = layers.Resizing(16, 16)(IMAGES.astype("float32"))
        size = ops.convert_to_tensor(self.BATCH["size"])
        return numpy(teacher({"image": image, "size": size}))

    def test_a_function_gets_what_the_model_reads(self) -> None:
        teacher, resizing = convolutional(), layers.Resizing(16, 16)
        expected = numpy(teacher(resizing(IMAGES.astype("float32"))))
        found = taught(Adapted(teacher, resizing), self.BATCH)
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    def test_a_function_of_a_dict(self) -> None:
        seen: list[Any] = []

        def resized(x: Any) -> Any:
            seen.append(sorted(x))
            return {**x, "image": layers.Resizing(16, 16)(x["image"])}

        teacher = self.both()
        found = taught(Adapted(teacher, resized), self.BATCH)
        np.testing.assert_allclose(found, self.expected(teacher), rtol=1e-4)
        assert seen == [["image", "size"]]

    def test_functions_by_key(self) -> None:
        teacher = self.both()
        adapted = Adapted(teacher, {"image": layers.Resizing(16, 16)})
        found = taught(adapted, self.BATCH)
        np.testing.assert_allclose(found, self.expected(teacher), rtol=1e-4)
        found = adapted.predict(self.BATCH, verbose=0)
        np.testing.assert_allclose(found, self.expected(teacher), rtol=1e-4)
        assert adapted.declares == ["image", "size"]

    def test_the_function_may_change_the_dtype(self) -> None:
        ids = keras.Input((2,), dtype="int32", name="ids")
        embedded = layers.Flatten()(layers.Embedding(5, 3)(ids))
        teacher = keras.Model(ids, embedded)
        x = {"ids": np.array([[0.2, 0.4]], "float32")}
        adapted = Adapted(teacher, lambda x: ops.cast(10.0 * x, "int32"))
        expected = numpy(teacher(np.array([[2, 4]])))
        np.testing.assert_allclose(taught(adapted, x), expected)
        with pytest.raises(TypeError, match="'ids' .* declared as int32"):
            taught(Adapted(teacher), x)

    def test_a_batch_without_the_key(self) -> None:
        adapted = Adapted(self.both(), {"img": lambda x: x})
        with pytest.raises(ValueError, match=r"functions of \['img'\], keys \['id', "):
            taught(adapted, self.BATCH)
        with pytest.raises(ValueError, match="keys None"):
            taught(adapted, IMAGES)

    def test_a_model_without_declared_inputs_isnt_given_what_is_withheld(self) -> None:
        def keys(x: Any) -> Any:
            assert sorted(x) == ["id", "size"]
            return x["size"]

        adapted = Adapted(keys, lambda x: x)
        taught(adapted, self.BATCH, withheld=["image"])


class TestOrders:
    @pytest.mark.parametrize(
        ("order", "message"),
        [
            ([0, 1, 1], r"at most once.*\[0, 1, 1\], with \[1\] more than once"),
            ([0, 1, 3], r"3 classes, from 0 to 2.*\[0, 1, 3\], with \[3\]"),
            ([0, -1], r"from 0 on.*\[0, -1\], with \[-1\]"),
            ([], r"at least one. Received: outputs=\[\]"),
            ([[0, 1]], "at least one"),
        ],
        ids=str,
    )
    def test_wrong_values(self, order: Any, message: str) -> None:
        with pytest.raises(ValueError, match=f"`outputs` must hold.*{message}"):
            Adapted(mlp(), outputs=order)

    @pytest.mark.parametrize("order", [[0.0, 1.0], [True, False], ["a"]], ids=str)
    def test_wrong_kinds(self, order: Any) -> None:
        with pytest.raises(TypeError, match="whole numbers. Received: outputs="):
            Adapted(mlp(), outputs=order)

    def test_a_class_that_a_function_lacks(self) -> None:
        adapted = Adapted(lambda x: x, outputs=[0, 4])
        with pytest.raises(ValueError, match=r"4 classes, from 0 to 3.*with \[4\]"):
            taught(adapted)

    def test_a_student_of_another_number_of_classes(self) -> None:
        adapted = Adapted(mlp(), outputs=[0, 1])
        with pytest.raises(ValueError, match="student's 3 classes.*, 2 indices"):
            taught(adapted, output=np.zeros((24, 3), "float32"))
        by_name = Adapted(two_heads(), outputs={"kind": [0, 1]})
        student = {"kind": np.zeros((24, 3)), "click": np.zeros((24, 1))}
        with pytest.raises(ValueError, match=r"`outputs\['kind'\]`.*student's 3"):
            taught(by_name, output=student)

    def test_by_name(self) -> None:
        with pytest.raises(ValueError, match=r"`outputs\['kind'\]` must hold.*\[3\]"):
            Adapted(two_heads(), outputs={"kind": [0, 1, 3]})
        with pytest.raises(ValueError, match=r"for \['sort'\].*\['kind', 'click'\]"):
            Adapted(two_heads(as_dict=False), outputs={"sort": ORDER})
        with pytest.raises(ValueError, match="teacher has several"):
            Adapted(two_heads(), outputs=ORDER)


class TestWrapping:
    def test_what_the_model_is_asked_for(self) -> None:
        members = [mlp(1), Recorded("said")]
        ensemble = Ensemble(members, log_losses=True)
        adapted = Adapted(ensemble, outputs=ORDER)
        assert adapted.reads == ("said",)
        assert adapted.declares is None
        assert adapted.logged_members == ensemble.logged_members
        assert not adapted.changes
        assert adapted.as_layer() is ensemble
        assert {id(v) for v in adapted.state} == {id(v) for v in members[0].variables}
        assert Adapted(lambda x: x).as_layer() is None

    def test_the_state_has_that_of_layers(self) -> None:
        normalization = layers.Normalization()
        normalization.adapt(X)
        teacher = mlp(1)
        adapted = Adapted(teacher, normalization)
        variables = [*teacher.variables, *normalization.variables]
        assert {id(v) for v in adapted.state} == {id(v) for v in variables}
        expected = numpy(teacher(normalization(X)))
        np.testing.assert_allclose(taught(adapted), expected, atol=1e-5)

    def test_an_ensemble_with_its_members(self) -> None:
        members = [mlp(1), mlp(2)]
        adapted = Adapted(Ensemble(members, log_losses=True), outputs=ORDER)
        lesson = ask(adapted, Batch(inputs=X))
        for member, found in zip(members, lesson.members.values(), strict=True):
            expected = numpy(member(X))[:, ORDER]
            np.testing.assert_allclose(numpy(found), expected, atol=1e-6)

    def test_an_ensemble_reads_the_keys_of_its_members(self) -> None:
        image = keras.Input((16, 16, 3), name="image")
        member = keras.Model({"image": image}, layers.Flatten()(image))
        seen: list[Any] = []

        def resized(x: Any) -> Any:
            seen.append(sorted(x))
            return {"image": layers.Resizing(16, 16)(x["image"])}

        x = {"image": IMAGES, "id": np.arange(6)}
        found = taught(Adapted(Ensemble([member]), resized), x)
        assert found.shape == (6, 16 * 16 * 3)
        assert seen == [["image"]]

    def test_recorded_outputs(self) -> None:
        said = np.array([[1.0, 2.0, 3.0]], "float32")
        adapted = Adapted(Recorded("said"), outputs=ORDER)
        assert list(adapted.reads) == ["said"]
        found = taught(adapted, {"x": X[:1], "said": said}, withheld=["said"])
        np.testing.assert_array_equal(found, said[:, ORDER])

    def test_a_teacher_of_ones_own(self) -> None:
        class Labels(Teacher):
            def teach(self, batch: Batch) -> Lesson:
                return Lesson(ops.one_hot(batch.labels, CLASSES))

        found = taught(Adapted(Labels(), outputs=ORDER), labels=Y)
        np.testing.assert_array_equal(found, np.eye(CLASSES)[Y][:, ORDER])

    def test_no_targets(self) -> None:
        adapted = Adapted(lambda x: None, outputs=ORDER)
        assert ask(adapted, Batch(inputs=X)).targets is None

    def test_within_an_ensemble(self) -> None:
        first, second = mlp(1), mlp(2)
        adapted = Adapted(second, lambda x: -x, outputs=ORDER)
        expected = (numpy(first(X)) + numpy(second(-X))[:, ORDER]) / 2
        ensemble = Ensemble([first, adapted])
        np.testing.assert_allclose(taught(ensemble), expected, atol=1e-6)
        np.testing.assert_allclose(numpy(ensemble(X)), expected, atol=1e-6)

    def test_within_a_correctness_weighted_ensemble(self) -> None:
        # Both members are always right, once the second has the student's classes.
        right = np.eye(CLASSES, dtype="float32")[Y]
        members = [
            lambda x: right,
            Adapted(lambda x: right[:, [1, 2, 0]], outputs=ORDER),
        ]
        teacher = CorrectnessWeighted(members, 0.0)
        np.testing.assert_allclose(taught(teacher, labels=Y), right, atol=1e-6)


class TestFiles:
    def adapted(self) -> Adapted:
        return Adapted(
            convolutional(),
            {"image": layers.Resizing(16, 16)},
            outputs=ORDER,
            name="adapted",
        )

    def test_save_and_load(self, tmp_path: Path) -> None:
        teacher = self.adapted()
        teacher.save(tmp_path / "teacher.keras")
        loaded = keras.saving.load_model(tmp_path / "teacher.keras")
        assert loaded.name == "adapted"
        x = {"image": IMAGES}
        np.testing.assert_allclose(taught(loaded, x), taught(teacher, x), atol=1e-5)

    def test_registered_functions(self, tmp_path: Path) -> None:
        teacher = Adapted(
            two_heads(), doubled, outputs={"kind": ORDER, "click": doubled}
        )
        teacher.save(tmp_path / "teacher.keras")
        loaded = keras.saving.load_model(tmp_path / "teacher.keras")
        keras.tree.map_structure(
            np.testing.assert_array_equal, taught(loaded), taught(teacher)
        )

    def test_within_an_ensemble(self, tmp_path: Path) -> None:
        ensemble = Ensemble([mlp(1), Adapted(mlp(2), doubled, outputs=ORDER)])
        ensemble.save(tmp_path / "ensemble.keras")
        loaded = keras.saving.load_model(tmp_path / "ensemble.keras")
        np.testing.assert_array_equal(taught(loaded), taught(ensemble))

    @pytest.mark.parametrize(
        "kwargs",
        [
            {"inputs": not_registered},
            {"outputs": not_registered},
            {"inputs": lambda x: x},
            {"outputs": {"dense": not_registered}},
        ],
        ids=["inputs", "outputs", "a lambda", "outputs by name"],
    )
    def test_functions_that_arent_registered(self, kwargs: Any) -> None:
        (name,) = kwargs
        with pytest.raises(TypeError, match=f"are registered with.*Received: {name}"):
            Adapted(mlp(), **kwargs).get_config()

    def test_a_function_as_the_model(self) -> None:
        with pytest.raises(TypeError, match="saved.*Received: model=<function"):
            Adapted(lambda x: x).get_config()


class TestErrors:
    @pytest.mark.parametrize("model", [None, "resnet", 3])
    def test_no_model(self, model: Any) -> None:
        with pytest.raises(TypeError, match="must be a Keras model or a callable"):
            Adapted(model)

    def test_unbuilt(self) -> None:
        with pytest.raises(ValueError, match="'raw' isn't built"):
            Adapted(Subclassed(name="raw"))

    @pytest.mark.parametrize("name", ["inputs", "outputs"])
    def test_no_function(self, name: str) -> None:
        with pytest.raises(TypeError, match=f"`{name}` must be a function.*'resize'"):
            Adapted(mlp(), **{name: "resize"})
        with pytest.raises(TypeError, match=rf"`{name}\['a'\]` must be a function"):
            Adapted(mlp(), **{name: {"a": 3}})

    def test_a_teacher_that_follows(self) -> None:
        with pytest.raises(TypeError, match="follows its student can't be adapted"):
            Adapted(EMA(mlp()))

    def test_classes_of_a_teacher_that_reads_labels(self) -> None:
        teacher = CorrectnessWeighted([mlp()])
        with pytest.raises(TypeError, match="Adapt its members instead"):
            Adapted(Ensemble([teacher]), outputs=ORDER)
        adapted = Adapted(teacher, lambda x: x)
        expected = taught(teacher, labels=Y)
        np.testing.assert_array_equal(taught(adapted, labels=Y), expected)


class TestInFit:
    def fitted(self, teacher: Any, **kwargs: Any) -> kd.Distiller:
        distiller = kd.Distiller(mlp(seed=9), teacher)
        distiller.compile(
            keras.optimizers.SGD(0.3),
            crossentropy(),
            distillation_loss=kd.losses.ForwardKL(2.0),
            **kwargs,
        )
        distiller.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return distiller

    def test_it_teaches_as_one_adapted_by_hand(self) -> None:
        teacher = mlp(1)

        def by_hand(x: Any) -> Any:
            return ops.take(teacher(3.0 * x), ORDER, axis=-1)

        adapted = self.fitted(Adapted(teacher, lambda x: 3.0 * x, outputs=ORDER))
        expected = self.fitted(by_hand)
        assert_same_weights(adapted.student, expected.student, atol=1e-6)

    def test_its_label_loss_is_logged(self) -> None:
        teacher = Adapted(mlp(1), outputs=ORDER)
        distiller = kd.Distiller(mlp(seed=9), teacher)
        distiller.compile("sgd", crossentropy(), log_teacher=True)
        logs = distiller.fit(X, Y, batch_size=24, verbose=0).history
        teacher.compile(loss=crossentropy())
        expected = teacher.evaluate(X, Y, verbose=0)
        assert logs["teacher_loss"][0] == pytest.approx(expected, rel=1e-5)

    def test_hints_find_layers_of_its_model(self) -> None:
        teacher = Adapted(mlp(1, units=5), outputs=ORDER)
        student = mlp(seed=9)
        guided, hint = student.layers[0].name, teacher.model.layers[0].name
        distiller = kd.Distiller(
            student, teacher, hints=[kd.hints.Hint(guided=guided, hint=hint)]
        )
        distiller.compile("sgd", crossentropy())
        logs = distiller.fit(X, Y, verbose=0).history
        assert any("hint" in name or guided in name for name in logs)


def test_an_ensemble_of_views_of_one_model() -> None:
    views: Any = [lambda x: x, lambda x: x[..., ::-1], lambda x: 2.0 * x]
    model = mlp(seed=1)
    teacher = Ensemble([Adapted(model, inputs=view) for view in views])
    given = [X, X[..., ::-1], 2.0 * X]
    expected = np.mean([numpy(model(x)) for x in given], axis=0)
    np.testing.assert_allclose(numpy(teacher(X)), expected, atol=1e-6)
    distiller = kd.Distiller(mlp(), teacher)
    distiller.compile("adam", crossentropy(), alpha=0.5)
    assert np.isfinite(distiller.fit(X, Y, verbose=0).history["loss"]).all()
    with pytest.raises(ValueError, match="members share weights"):
        teacher.get_config()

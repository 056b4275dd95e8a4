"""What every distillation loss shares: a Keras loss, a temperature, a teacher."""

import json
import re
import warnings
from functools import partial

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops
from keras.optimizers.schedules import PolynomialDecay

from keras_distill import losses
from tests.losses import neutral, reference

TEMPERED = {
    "SoftTargets": losses.SoftTargets,
    "ForwardKL": losses.ForwardKL,
    "ReverseKL": losses.ReverseKL,
    "Jeffreys": losses.Jeffreys,
    "TotalVariation": losses.TotalVariation,
    "GeneralizedJSD": partial(losses.GeneralizedJSD, 0.3, normalize=True),
    "BinarySoftTargets": losses.BinarySoftTargets,
    "BinaryKL": partial(losses.BinarySoftTargets, subtract_entropy=True),
}
ALL = {**TEMPERED, "LogitMSE": losses.LogitMSE}
SOFTMAX = [name for name in TEMPERED if not name.startswith("Binary")]

RNG = np.random.default_rng(5)
# (batch, time, classes)
TEACHER, STUDENT = (2.0 * RNG.standard_normal((2, 3, 4, 5))).astype("float32")
HEATING = PolynomialDecay(1.0, 10, 5.0)


def decoupled(**kwargs):
    labels = np.arange(12).reshape(3, 4) % 5
    return losses.DecoupledKD(**kwargs).with_labels(labels)


def standardized(**kwargs):
    return losses.Standardized(losses.ForwardKL(**kwargs))


# A value depends on more than two rows, or the arguments are those of a loss inside.
SPECIAL = {
    "DecoupledKD": decoupled,
    "DIST": losses.DIST,
    "Standardized": standardized,
}
EVERY = {**ALL, **SPECIAL}


def rows(x):
    return x.reshape(-1, x.shape[-1])


def all_of(name):
    """The loss's value of every (sequence, position), from the loss itself."""
    return np.asarray(EVERY[name](reduction="none")(TEACHER, STUDENT))


class TestTeacher:
    @pytest.mark.parametrize("name", EVERY)
    def test_gets_no_gradient(self, name):
        _, (to_teacher, to_student) = neutral.value_and_gradient(
            EVERY[name](), TEACHER, STUDENT
        )
        assert neutral.is_stopped(to_teacher)
        assert np.abs(to_student).max() > 0.0

    def test_gets_none_from_probabilities_either(self):
        loss = losses.ForwardKL(from_logits=False)
        _, gradient = neutral.value_and_gradient(
            lambda p: loss(p, p), neutral.softmax(TEACHER)
        )
        assert np.isfinite(gradient).all()


class TestTemperature:
    @pytest.mark.parametrize("name", [*TEMPERED, "DecoupledKD", "DIST"])
    def test_its_square_is_applied_once(self, name):
        """loss(T; T t, T s) = T**2 loss(1; t, s), but for what is bounded."""
        temperature = 4.0  # exact in floats
        power = 0 if name == "TotalVariation" else 2

        def value_and_gradient(loss, scale):
            return neutral.value_and_gradient(
                lambda s: loss(scale * TEACHER, s), scale * STUDENT
            )

        value, gradient = value_and_gradient(EVERY[name](), 1.0)
        hot_value, hot_gradient = value_and_gradient(
            EVERY[name](temperature=temperature), temperature
        )
        np.testing.assert_allclose(hot_value, temperature**power * value, rtol=1e-6)
        np.testing.assert_allclose(
            hot_gradient, temperature ** (power - 1) * gradient, rtol=1e-5, atol=1e-7
        )

    @pytest.mark.skipif(
        not neutral.IS_TENSORFLOW,
        reason="JAX compiles variables as constants, unless a trainer passes them",
    )
    @pytest.mark.parametrize("compiler", neutral.compilers())
    def test_assignment_acts_in_a_traced_function(self, compiler):
        loss = losses.ForwardKL(1.0)
        traces = []

        def traced(student):
            traces.append(None)
            return loss(TEACHER, student)

        value_and_gradient = neutral.compilers()[compiler](
            neutral.differentiated(traced)
        )
        for temperature in (1.0, 4.0, 0.5):
            loss.temperature = temperature
            value, (gradient,) = value_and_gradient(ops.convert_to_tensor(STUDENT))
            expected, expected_gradient = reference.forward_kl(
                rows(TEACHER.astype("float64")),
                rows(STUDENT.astype("float64")),
                temperature,
            )
            np.testing.assert_allclose(value, expected.mean(), rtol=1e-5)
            np.testing.assert_allclose(
                12 * rows(np.asarray(gradient)), expected_gradient, rtol=1e-4, atol=1e-5
            )
        assert len(traces) == 1
        assert loss.temperature == 0.5

    def test_schedule_is_read_at_the_step(self):
        loss = losses.ReverseKL(HEATING)
        assert loss.temperature is HEATING

        def at(step):
            loss.step = step
            try:
                return loss(TEACHER, STUDENT)
            finally:
                loss.step = 0

        at, *_ = (compiled(at) for compiled in neutral.compilers().values())
        for step, temperature in ((0, 1.0), (5, 3.0), (10, 5.0), (99, 5.0)):
            np.testing.assert_allclose(
                at(ops.convert_to_tensor(np.int64(step))),
                losses.ReverseKL(temperature)(TEACHER, STUDENT),
                rtol=1e-6,
            )

    @pytest.mark.parametrize("value", [0, 0.0, -1, float("nan"), float("inf")])
    @pytest.mark.parametrize("name", [*TEMPERED, *SPECIAL])
    def test_must_be_positive_and_finite(self, name, value):
        message = re.escape(
            f"`temperature` must be positive and finite. Received: temperature={value}"
        )
        with pytest.raises(ValueError, match=message):
            EVERY[name](temperature=value)
        loss = EVERY[name](temperature=2.0)
        with pytest.raises(ValueError, match=message):
            loss.temperature = value
        assert loss.temperature == 2.0

    @pytest.mark.parametrize("value", ["hot", "4", None, [2.0], True])
    def test_must_be_a_number_or_a_schedule(self, value):
        message = re.escape(f"Received: temperature={value!r} of type")
        with pytest.raises(TypeError, match=message):
            losses.ForwardKL(value)

    def test_schedule_must_start_positive(self):
        with pytest.raises(ValueError, match="temperature=a schedule that is"):
            losses.ForwardKL(PolynomialDecay(0.0, 10, 1.0))


class TestProbabilities:
    @pytest.mark.parametrize("name", SOFTMAX)
    def test_are_the_logits_of_their_logarithm(self, name):
        p, q = (neutral.softmax(x).copy() for x in (TEACHER, STUDENT))
        p[0, 0] = [0.0, 0.5, 0.5, 0.0, 0.0]
        q[0, 0] = [0.0, 0.25, 0.75, 0.0, 0.0]
        tiny = np.finfo("float32").tiny
        from_probabilities = TEMPERED[name](
            temperature=2.0, from_logits=False, reduction="none"
        )
        from_logits = TEMPERED[name](temperature=2.0, reduction="none")
        np.testing.assert_allclose(
            from_probabilities(p, q),
            from_logits(np.log(np.maximum(p, tiny)), np.log(np.maximum(q, tiny))),
            rtol=1e-5,
            atol=1e-6,
        )
        # and so at T=1 the probabilities themselves
        at_one = TEMPERED[name](from_logits=False, reduction="none")
        np.testing.assert_allclose(
            at_one(p, q)[1:],
            TEMPERED[name](reduction="none")(TEACHER, STUDENT)[1:],
            rtol=1e-4,
            atol=1e-6,
        )

    def test_with_zeros_against_hand_computed_values(self):
        p, q = [[0.0, 0.5, 0.5, 0.0]], [[0.0, 0.25, 0.25, 0.5]]  # m: 0, 3/8, 3/8, 1/4
        for loss_class, expected in (
            (losses.ForwardKL, np.log(2.0)),
            (losses.SoftTargets, np.log(4.0)),
            (losses.TotalVariation, 0.5),
            (
                losses.GeneralizedJSD,
                0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3) + 0.25 * np.log(2.0),
            ),
        ):
            value = loss_class(from_logits=False)(p, q)
            np.testing.assert_allclose(value, expected, rtol=1e-6)

    def test_round_to_float16_and_back(self):
        p, q = (neutral.softmax(x).astype("float16") for x in (TEACHER, STUDENT))
        loss = losses.ForwardKL(2.0, from_logits=False)
        value, _ = reference.forward_kl(
            rows(np.log(p.astype("float64"))), rows(np.log(q.astype("float64"))), 2.0
        )
        np.testing.assert_allclose(loss(p, q), value.mean(), rtol=1e-5)


class TestShapes:
    @pytest.mark.parametrize("name", EVERY)
    def test_other_axis_equals_transposed(self, name):
        for axis in (1, -2):
            loss = EVERY[name](axis=axis, reduction="none")
            np.testing.assert_allclose(
                loss(TEACHER.swapaxes(1, 2), STUDENT.swapaxes(1, 2)),
                all_of(name),
                rtol=1e-5,
                atol=1e-6,
            )

    @pytest.mark.parametrize("name", [*ALL, "Standardized"])
    def test_ranks(self, name):
        loss = EVERY[name](reduction="none")
        assert loss(TEACHER, STUDENT).shape == (3, 4)
        np.testing.assert_allclose(
            loss(rows(TEACHER), rows(STUDENT)), all_of(name).ravel(), rtol=1e-6
        )
        if not name.startswith("Binary"):  # where rank 1 is a batch of one-unit heads
            one = loss(TEACHER[0, 0], STUDENT[0, 0])
            assert one.shape == ()
            np.testing.assert_allclose(one, all_of(name)[0, 0], rtol=1e-6)

    @pytest.mark.parametrize("name", [*ALL, "DIST", "Standardized"])
    def test_empty_batch(self, name):
        assert EVERY[name](reduction="none")(TEACHER[:0], STUDENT[:0]).shape == (0, 4)

    @neutral.only_tensorflow
    def test_unknown_dimensions(self):
        import tensorflow as tf

        loss = losses.ForwardKL(2.0)
        any_shape = tf.TensorSpec((None, None, None), tf.float32)
        value = tf.function(loss.__call__, input_signature=[any_shape] * 2)
        np.testing.assert_allclose(
            value(TEACHER, STUDENT), loss(TEACHER, STUDENT), rtol=1e-6
        )

    @pytest.mark.parametrize("shape", [(3, 4), (3, 4, 6), (4, 4, 5), (3, 4, 1)])
    @pytest.mark.parametrize("name", EVERY)
    def test_must_agree(self, name, shape):
        message = re.escape(f"teacher output {shape}, student output (3, 4, 5)")
        with pytest.raises(ValueError, match=f"same shape; .*{message}"):
            EVERY[name]()(np.zeros(shape), STUDENT)

    @pytest.mark.parametrize("name", EVERY)
    def test_must_have_the_axis(self, name):
        for axis in (3, -4):
            with pytest.raises(
                ValueError, match=rf"`axis` must be .*axis={axis} .* \(3, 4, 5\)"
            ):
                EVERY[name](axis=axis)(TEACHER, STUDENT)


class TestKerasReduction:
    @pytest.mark.parametrize("name", [*ALL, "DecoupledKD", "Standardized"])
    def test_reductions(self, name):
        each = all_of(name)
        weight = np.arange(12.0, dtype="float32").reshape(3, 4)
        for reduction, expected in (
            ("sum", (each * weight).sum()),
            ("sum_over_batch_size", (each * weight).mean()),
            ("mean_with_sample_weight", (each * weight).sum() / weight.sum()),
            ("none", each * weight),
            (None, each * weight),
        ):
            loss = EVERY[name](reduction=reduction)
            np.testing.assert_allclose(
                loss(TEACHER, STUDENT, sample_weight=weight), expected, rtol=1e-5
            )

    @pytest.mark.parametrize("name", [*ALL, "Standardized"])
    def test_weights_per_sample(self, name):
        weight = np.array([0.0, 1.0, 3.0], "float32")
        loss = EVERY[name](reduction="none")
        np.testing.assert_allclose(
            loss(TEACHER, STUDENT, sample_weight=weight[:, None]),
            all_of(name) * weight[:, None],
            rtol=1e-6,
        )
        np.testing.assert_allclose(
            loss(TEACHER[:, 0], STUDENT[:, 0], sample_weight=weight),
            all_of(name)[:, 0] * weight,
            rtol=1e-6,
        )

    def test_unknown_reduction(self):
        with pytest.raises(ValueError, match="Received: reduction=average"):
            losses.ForwardKL(reduction="average")

    @pytest.mark.parametrize("name", [*ALL, "DecoupledKD", "Standardized"])
    def test_mask_of_the_student(self, name):
        """Masked positions count neither in the sum nor in the mean."""
        mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool)
        student = keras.layers.Masking()(STUDENT * mask[..., None])
        weight = RNG.random((3, 4)).astype("float32")
        each = all_of(name)
        np.testing.assert_allclose(
            EVERY[name]()(TEACHER, student), each[mask].mean(), rtol=1e-5
        )
        np.testing.assert_allclose(
            EVERY[name](reduction="sum")(TEACHER, student), each[mask].sum(), rtol=1e-5
        )
        np.testing.assert_allclose(
            EVERY[name]()(TEACHER, student, sample_weight=weight),
            (each * weight)[mask].sum() / mask.sum(),
            rtol=1e-5,
        )


class TestDtype:
    @pytest.mark.parametrize("name", EVERY)
    def test_narrow_results_of_wide_maths(self, name):
        """As good as the dtype of the result, although T**2 * KL is a difference."""
        for dtype, rounding in ((np.float16, 2.0**-11), (ml_dtypes.bfloat16, 2.0**-8)):
            loss = EVERY[name](dtype=np.dtype(dtype).name, reduction="none")
            value = loss(TEACHER, STUDENT)
            assert value.dtype == dtype
            expected = EVERY[name](reduction="none")(
                TEACHER.astype(dtype), STUDENT.astype(dtype)
            )
            np.testing.assert_allclose(
                ops.cast(value, "float32"), expected, rtol=rounding, atol=1e-6
            )

    def test_float64(self):
        loss = losses.ForwardKL(2.0, dtype="float64", reduction="none")
        teacher, student = TEACHER.astype("float64") / 3, STUDENT.astype("float64") / 3
        with neutral.float64():
            value = loss(teacher, student)
        assert value.dtype == "float64"
        expected, _ = reference.forward_kl(rows(teacher), rows(student), 2.0)
        np.testing.assert_allclose(np.ravel(value), expected, rtol=1e-12)


class TestSerialisation:
    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize("by", ["config", "saving", "losses"])
    def test_round_trip(self, name, by):
        arguments = {"axis": 1, "reduction": "sum", "name": "kd", "dtype": "float64"}
        if name in TEMPERED:
            arguments |= {"temperature": 2.5, "from_logits": False}
        loss = ALL[name](**arguments)
        again = copy(loss, by)
        assert type(again) is type(loss)
        assert again.get_config() == loss.get_config()
        p, q = (neutral.softmax(x, axis=1) for x in (TEACHER, STUDENT))
        with neutral.float64():
            np.testing.assert_array_equal(again(p, q), loss(p, q))
        for argument, value in arguments.items():
            assert getattr(again, argument) == value

    @pytest.mark.parametrize("by", ["config", "saving", "losses"])
    def test_of_a_schedule(self, by):
        again = copy(losses.GeneralizedJSD(0.2, HEATING), by)
        assert again.temperature.get_config() == HEATING.get_config()
        again.step = 5
        np.testing.assert_allclose(
            again(TEACHER, STUDENT),
            losses.GeneralizedJSD(0.2, 3.0)(TEACHER, STUDENT),
            rtol=1e-6,
        )

    def test_keeps_the_arguments_of_subclasses(self):
        assert copy(losses.GeneralizedJSD(0.2, normalize=True), "saving").normalize
        assert copy(losses.GeneralizedJSD(0.2), "saving").beta == 0.2
        binary = losses.BinarySoftTargets(subtract_entropy=True)
        assert copy(binary, "saving").subtract_entropy

    def test_holds_the_assigned_temperature(self):
        loss = losses.ForwardKL(1.0)
        loss.temperature = 3.0
        assert copy(loss, "saving").temperature == 3.0


def copy(loss, by):
    if by == "config":
        config = json.loads(json.dumps(loss.get_config()))
        return type(loss).from_config(config)
    module = getattr(keras, by)
    serialize = getattr(module, "serialize_keras_object", None) or module.serialize
    deserialize = getattr(module, "deserialize_keras_object", None)
    deserialize = deserialize or module.deserialize
    return deserialize(json.loads(json.dumps(serialize(loss))))


class TestWarningOfProbabilities:
    def test_eager_once_for_each_output(self):
        loss = losses.ForwardKL(name="kd")
        p = neutral.softmax(TEACHER)
        with pytest.warns(match="The teacher's output looks like prob.*from_logits"):
            loss(p, STUDENT)
        with pytest.warns(match="The student's .* `kd` .*Remove .* softmax"):
            loss(TEACHER, p)
        loss(p, p)  # warned already; another warning were an error

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_eager_of_rounded_probabilities(self, dtype):
        p = neutral.rounded(neutral.softmax(TEACHER), dtype)
        with pytest.warns(match="The student's output looks like probabilities"):
            losses.ReverseKL()(TEACHER, p)

    @neutral.only_tensorflow
    def test_in_a_graph_by_operation(self):
        import tensorflow as tf

        loss = losses.ForwardKL()

        @tf.function(autograph=False)
        def value(teacher, student):
            return loss(tf.stop_gradient(tf.nn.softmax(teacher)), student)

        with pytest.warns(match="The teacher's output looks like probabilities"):
            value(TEACHER, STUDENT)

    @neutral.only_tensorflow
    @pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
    def test_in_fit(self, policy):
        model = keras.Sequential(
            [keras.Input((5,)), keras.layers.Dense(5, "softmax", dtype=policy)]
        )
        model.compile(loss=losses.ForwardKL())
        with pytest.warns(match="The student's output looks like probabilities"):
            model.train_on_batch(rows(TEACHER), rows(TEACHER))

    @neutral.only_tensorflow
    def test_of_a_sigmoid(self):
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, "sigmoid")])
        model.compile(loss=losses.BinarySoftTargets())
        with pytest.warns(match="The student's .* Remove the model's final sigmoid"):
            model.train_on_batch(rows(TEACHER), np.zeros((12, 1)))

    def test_not_of_what_is_said_to_be_probabilities(self):
        p, q = neutral.softmax(TEACHER), neutral.softmax(STUDENT)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            losses.ForwardKL(from_logits=False)(p, q)

    def test_not_of_logits(self):
        """Neither small nor positive logits, nor hidden layers with a softmax."""
        inputs = keras.Input((5,))
        hidden = keras.layers.Dense(5, "softmax")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(5)(hidden))
        model.compile(loss=losses.ForwardKL())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.train_on_batch(rows(TEACHER), rows(TEACHER))
            for loss in (losses.ForwardKL(), losses.BinarySoftTargets()):
                for logits in (
                    np.zeros((3, 5)),
                    np.full((3, 5), 0.5),
                    RNG.random((3, 5)),
                    np.array([[0.5, 0.5, 0.0], [1.0, 0.0, -0.1]]),
                    np.eye(3) * 9.0,
                ):
                    loss(logits, logits)


def student_model():
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(5, kernel_initializer=keras.initializers.Constant(0.1)),
        ]
    )


class TestPlainKeras:
    """The losses without a `Distiller`: `y` is what the teacher said."""

    @pytest.mark.parametrize(
        ("name", "run_eagerly"),
        [("ForwardKL", False), ("BinarySoftTargets", True), ("LogitMSE", True)],
    )
    def test_one_step_of_fit(self, name, run_eagerly):
        expected = {
            "ForwardKL": reference.forward_kl,
            "BinarySoftTargets": reference.binary_cross_entropy,
            "LogitMSE": reference.logit_mse,
        }[name]
        x, teacher = rows(STUDENT), rows(TEACHER)
        model = student_model()
        before, _ = (w.astype("float64") for w in model.get_weights())
        model.compile(keras.optimizers.SGD(0.5), ALL[name](), run_eagerly=run_eagerly)
        history = model.fit(x, teacher, batch_size=12, verbose=0)
        value, gradient = expected(teacher.astype("float64"), x @ before, 1.0)
        np.testing.assert_allclose(history.history["loss"], value.mean(), rtol=1e-5)
        after, bias = model.get_weights()
        np.testing.assert_allclose(
            after, before - 0.5 * x.T @ gradient / 12, rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(bias, -0.5 * gradient.mean(0), rtol=1e-4, atol=1e-6)

    @pytest.mark.skipif(
        not neutral.IS_TENSORFLOW,
        reason="a step of Keras' own trainer on JAX gets no variables of losses",
    )
    def test_callback_changes_the_temperature_in_fit(self):
        loss = losses.ForwardKL(1.0)

        class Hotter(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                loss.temperature = 1.0 + 3.0 * epoch

        x, teacher = rows(STUDENT), rows(TEACHER)
        model = student_model()
        model.compile(keras.optimizers.SGD(0.0), loss)
        history = model.fit(x, teacher, epochs=2, callbacks=[Hotter()], verbose=0)
        student = x @ model.get_weights()[0]
        for epoch, temperature in ((0, 1.0), (1, 4.0)):
            value, _ = reference.forward_kl(
                teacher.astype("float64"), student.astype("float64"), temperature
            )
            np.testing.assert_allclose(
                history.history["loss"][epoch], value.mean(), rtol=1e-5
            )

    def test_masks_of_an_embedding(self):
        ids = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [4, 3, 2, 1]])
        mask = ids > 0
        model = keras.Sequential(
            [
                keras.Input((4,), dtype="int32"),
                keras.layers.Embedding(5, 5, mask_zero=True),
                keras.layers.Dense(5),
            ]
        )
        teacher = np.where(mask[..., None], TEACHER, 1e3).astype("float32")
        value, _ = reference.forward_kl(
            TEACHER[mask].astype("float64"),
            model.predict(ids, verbose=0)[mask].astype("float64"),
            2.0,
        )
        model.compile(keras.optimizers.SGD(0.1), losses.ForwardKL(2.0))
        history = model.fit(ids, teacher, verbose=0)
        np.testing.assert_allclose(history.history["loss"], value.mean(), rtol=1e-5)

    def test_load_model(self, tmp_path):
        x, teacher = rows(STUDENT), rows(TEACHER)
        model = student_model()
        model.compile("sgd", losses.GeneralizedJSD(0.2, HEATING, name="kd"))
        model.fit(x, teacher, verbose=0)
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        assert again.loss.get_config() == model.loss.get_config()
        np.testing.assert_allclose(
            again.evaluate(x, teacher, verbose=0),
            model.evaluate(x, teacher, verbose=0),
            rtol=1e-6,
        )


def test_abstract_classes_are_not_built():
    for abstract in (losses.DistillationLoss, losses.TemperedLoss):
        with pytest.raises(TypeError, match="abstract"):
            abstract()

"""DecoupledKD: the target class, the others, and where the labels come from."""

import json
import re
from functools import partial

import keras
import numpy as np
import pytest
from keras import ops

import keras_distill as kd
from keras_distill.batch import Batch
from keras_distill.losses import DecoupledKD, ForwardKL
from tests import slow
from tests.distiller.models import CLASSES, crossentropy, data, label_loss, mlp
from tests.losses import cases, neutral, reference
from tests.losses.test_divergences import DTYPES, assert_close, value_and_gradient

RNG = np.random.default_rng(11)
TEACHER, STUDENT = (3.0 * RNG.standard_normal((2, 16, 6))).astype("float32")
LABELS = RNG.integers(0, 6, 16)
ONE_HOT = np.eye(6, dtype="float32")[LABELS]
BATCHES = {name: b for name, b in cases.batches().items() if name != "two classes"}
EACH = {"reduction": "none"}


def expected(teacher, student, temperature, *, labels, alpha=1.0, beta=8.0):
    return reference.decoupled(
        teacher.astype("float64"),
        student.astype("float64"),
        temperature,
        labels=labels,
        alpha=alpha,
        beta=beta,
    )


def each(**kwargs):
    loss = DecoupledKD(2.0, **EACH).with_labels(LABELS, **kwargs)
    return np.asarray(loss(TEACHER, STUDENT))


class TestValue:
    def test_by_hand(self):
        """p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2)."""
        p, q = [[0.5, 0.25, 0.25]], [[0.25, 0.25, 0.5]]
        loss = DecoupledKD(alpha=2.0, beta=3.0, from_logits=False).with_labels([0])
        of_target = 0.5 * np.log(2.0) + 0.5 * np.log(2 / 3)
        of_others = 0.5 * np.log(1.5) + 0.5 * np.log(0.75)
        np.testing.assert_allclose(
            loss(p, q), 2.0 * of_target + 3.0 * of_others, rtol=1e-6
        )

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 50.0])
    @pytest.mark.parametrize("target", ["the teacher's", "the student's", "any"])
    def test_agrees_with_float64(self, target, temperature, dtype):
        rounding = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
        for batch, (teacher, student) in BATCHES.items():
            teacher = teacher.astype(DTYPES[dtype])
            student = student.astype(DTYPES[dtype])
            labels = {
                "the teacher's": teacher.argmax(-1),
                "the student's": student.argmax(-1),
                "any": np.arange(len(teacher)) % 10,
            }[target]
            loss = DecoupledKD(temperature, alpha=1.5, beta=2.0, **EACH)
            value, gradient = value_and_gradient(
                loss.with_labels(labels), teacher, student
            )
            expected_value, expected_gradient = expected(
                teacher, student, temperature, labels=labels, alpha=1.5, beta=2.0
            )
            # where both models mask the label's class
            finite = np.isfinite(expected_value)
            assert finite.sum() >= len(finite) - 3
            for got, right, relative, what in (
                (value, expected_value, 1e-5, "value"),
                (gradient, expected_gradient, 1e-5 + rounding, "gradient"),
            ):
                assert np.isfinite(got).all()
                assert_close(
                    got[finite],
                    right[finite],
                    relative=relative,
                    absolute=3e-6 * temperature**2,
                    what=f"{what}, {batch}",
                )

    def test_gradient_of_the_reference_is_its_finite_difference(self):
        teacher, student = TEACHER.astype("float64"), STUDENT.astype("float64")
        at = partial(expected, teacher, temperature=3.0, labels=LABELS)
        _, gradient = at(student)
        for index in range(6):
            step = 1e-6 * np.eye(6)[index]
            difference = at(student + step)[0] - at(student - step)[0]
            np.testing.assert_allclose(
                difference / 2e-6, gradient[:, index], rtol=1e-5, atol=1e-6
            )

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 50.0])
    def test_zero_with_zero_gradient_at_equality(self, temperature):
        for teacher, _ in BATCHES.values():
            logits = teacher.astype("float32")
            loss = DecoupledKD(temperature, **EACH).with_labels(logits.argmax(-1))
            value, gradient = value_and_gradient(loss, logits, logits)
            assert np.abs(value).max() == 0.0
            np.testing.assert_allclose(gradient, 0.0, atol=1e-6 * temperature)

    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_forward_kl_weighs_the_others_by_their_probability(self, temperature):
        def part(alpha, beta):
            loss = DecoupledKD(temperature, alpha=alpha, beta=beta, **EACH)
            return np.asarray(loss.with_labels(LABELS)(TEACHER, STUDENT))

        log_p = reference.tempered(TEACHER.astype("float64"), temperature)
        others = 1.0 - np.exp(log_p[np.arange(16), LABELS])
        np.testing.assert_allclose(
            part(1.0, 0.0) + others * part(0.0, 1.0),
            ForwardKL(temperature, **EACH)(TEACHER, STUDENT),
            rtol=1e-5,
        )
        np.testing.assert_allclose(
            part(2.0, 3.0), 2.0 * part(1.0, 0.0) + 3.0 * part(0.0, 1.0), rtol=1e-5
        )

    def test_default_weights_are_the_papers(self):
        loss = DecoupledKD()
        assert (loss.alpha, loss.beta, loss.temperature) == (1.0, 8.0, 1.0)


class TestLabels:
    @pytest.mark.parametrize(
        "labels",
        [
            LABELS,
            LABELS[:, None],
            LABELS.astype("float32"),
            LABELS.tolist(),
            ONE_HOT,
            ONE_HOT.astype(bool),
            ONE_HOT.astype("int64"),
            0.9 * ONE_HOT + 0.1 / 6,
        ],
        ids=["ids", "column", "floats", "list", "one-hot", "bool", "int", "smoothed"],
    )
    def test_forms(self, labels):
        loss = DecoupledKD(2.0, **EACH).with_labels(labels)
        value, _ = expected(TEACHER, STUDENT, 2.0, labels=LABELS)
        np.testing.assert_allclose(loss(TEACHER, STUDENT), value, rtol=1e-5)

    @pytest.mark.parametrize("one_hot", [False, True])
    def test_other_axes(self, one_hot):
        """(batch, height, classes, width), labels without the classes or one-hot."""
        shape = (2, 4, 6, 2)
        teacher, student = (
            x.reshape(2, 4, 2, 6).swapaxes(2, 3) for x in (TEACHER, STUDENT)
        )
        assert teacher.shape == shape
        labels = LABELS.reshape(2, 4, 2)
        if one_hot:
            labels = ONE_HOT.reshape(2, 4, 2, 6).swapaxes(2, 3)
        for axis in (2, -2):
            loss = DecoupledKD(2.0, axis=axis, **EACH).with_labels(labels)
            np.testing.assert_allclose(
                loss(teacher, student), each().reshape(2, 4, 2), rtol=1e-6
            )

    @neutral.only_tensorflow
    @pytest.mark.parametrize(
        ("labels", "shape"),
        [
            (LABELS, (None,)),
            (LABELS[:, None], (None, 1)),
            (ONE_HOT, (None, 6)),
            (ONE_HOT, (None, None)),
        ],
    )
    def test_unknown_dimensions(self, labels, shape):
        import tensorflow as tf

        logits = tf.TensorSpec((None, 6), tf.float32)
        loss = DecoupledKD(2.0, **EACH)

        @tf.function(
            input_signature=[tf.TensorSpec(shape, labels.dtype), logits, logits]
        )
        def value(labels, teacher, student):
            return loss.with_labels(labels)(teacher, student)

        np.testing.assert_allclose(value(labels, TEACHER, STUDENT), each(), rtol=1e-6)
        if shape == (None, None):
            with pytest.raises(tf.errors.InvalidArgumentError):
                value(ONE_HOT[:, :1], TEACHER, STUDENT)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_are_not_cast_to_the_dtype_of_the_loss(self, dtype):
        """Class 257 is 256 in bfloat16."""
        teacher, student = RNG.standard_normal((2, 3, 4001)).astype("float32")
        labels = np.array([257, 3001, 4000])
        loss = DecoupledKD(dtype=dtype, **EACH).with_labels(labels)
        rounded = [neutral.rounded(x, dtype) for x in (teacher, student)]
        wide = DecoupledKD(**EACH).with_labels(labels)
        np.testing.assert_allclose(
            ops.cast(loss(teacher, student), "float32"), wide(*rounded), rtol=2.0**-8
        )

    def test_leave_the_loss_as_it_was(self):
        loss = DecoupledKD(2.0)
        bound = loss.with_labels(LABELS)
        with pytest.raises(ValueError, match="needs the label of each example"):
            loss(TEACHER, STUDENT)
        loss.temperature = 3.0  # which the copy shares
        value, _ = expected(TEACHER, STUDENT, 3.0, labels=LABELS)
        np.testing.assert_allclose(bound(TEACHER, STUDENT), value.mean(), rtol=1e-5)

    def test_of_a_batch(self):
        record = Batch(labels=LABELS, labelled=LABELS > 2)
        loss = DecoupledKD(2.0).for_batch(record)
        np.testing.assert_allclose(
            loss(TEACHER, STUDENT), each()[LABELS > 2].mean(), rtol=1e-6
        )

    def test_missing(self):
        message = (
            "`kd` needs the label of each example. Give `fit` labels for this output; "
            "elsewhere call it as `loss.with_labels(labels)(teacher_output, "
            "student_output)`. Received: labels=None"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            DecoupledKD(name="kd")(TEACHER, STUDENT)

    @pytest.mark.parametrize(
        "labels", [LABELS[:4], LABELS[:, None, None], ONE_HOT[:, :4], 3]
    )
    def test_of_another_shape(self, labels):
        shape = re.escape(f"of shape {np.shape(labels)} for outputs of shape (16, 6)")
        with pytest.raises(ValueError, match=f"`kd` reads must have.*{shape}, axis=-1"):
            DecoupledKD(name="kd").with_labels(labels)(TEACHER, STUDENT)

    @pytest.mark.parametrize("wrong", [-1, 6, np.nan])
    def test_that_are_no_class(self, wrong):
        labels = np.where(np.arange(16) == 3, wrong, LABELS)
        loss = DecoupledKD(name="kd", **EACH).with_labels(labels)
        with pytest.raises(ValueError, match="`kd` reads must be ids.*labels from"):
            loss(TEACHER, STUDENT)

    @pytest.mark.parametrize("wrong", [-1, 6, np.nan])
    @pytest.mark.parametrize("compiler", neutral.compilers())
    def test_that_are_no_class_in_a_compiled_step(self, compiler, wrong):
        labels = np.where(np.arange(16) == 3, wrong, LABELS)
        loss = DecoupledKD(name="kd", **EACH)

        def called(labels):
            return loss.with_labels(labels)(TEACHER, STUDENT)

        call = neutral.compilers()[compiler](called)
        labels = ops.convert_to_tensor(labels)
        if compiler == "graph":
            import tensorflow as tf

            with pytest.raises(tf.errors.InvalidArgumentError, match="ids of classes"):
                call(labels)
            return
        np.testing.assert_array_equal(np.isnan(call(labels)), np.arange(16) == 3)

    @pytest.mark.parametrize("classes", [1, 2])
    def test_of_too_few_classes(self, classes):
        shape = re.escape(f"shape (16, {classes}), axis=-1")
        loss = DecoupledKD().with_labels(np.zeros(16, int))
        with pytest.raises(ValueError, match=shape):
            loss(TEACHER[:, :classes], STUDENT[:, :classes])


class TestWhatCounts:
    @pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "none"])
    def test_sample_weights(self, reduction):
        weight = RNG.random(16).astype("float32")
        loss = DecoupledKD(2.0, reduction=reduction).with_labels(LABELS)
        values = each() * weight
        right = {"sum_over_batch_size": values.mean(), "sum": values.sum()}
        np.testing.assert_allclose(
            loss(TEACHER, STUDENT, weight), right.get(reduction, values), rtol=1e-5
        )

    @pytest.mark.parametrize("rank", [1, 2])
    @pytest.mark.parametrize("missing", [-1, 99])
    def test_rows_with_a_label(self, missing, rank):
        labelled = np.arange(16) % 3 > 0
        labels = np.where(labelled, LABELS, missing)
        mask = labelled.reshape((16, 1)[:rank])
        loss = DecoupledKD(2.0).with_labels(labels, labelled=mask)
        value, gradient = value_and_gradient(loss, TEACHER, STUDENT)
        right, right_gradient = expected(
            TEACHER, STUDENT, 2.0, labels=labels * labelled
        )
        np.testing.assert_allclose(value, right[labelled].mean(), rtol=1e-5)
        np.testing.assert_allclose(
            gradient,
            right_gradient * labelled[:, None] / labelled.sum(),
            rtol=1e-4,
            atol=1e-6,
        )

    def test_no_row_with_a_label(self):
        loss = DecoupledKD(2.0).with_labels(LABELS, labelled=np.zeros(16, bool))
        value, gradient = value_and_gradient(loss, TEACHER, STUDENT)
        assert value == 0.0
        np.testing.assert_array_equal(gradient, 0.0)

    def test_both_masks(self):
        """One row a sequence; a label mask, and Keras' own of the time steps."""
        teacher, student = TEACHER.reshape(4, 4, 6), STUDENT.reshape(4, 4, 6)
        labels, values = LABELS.reshape(4, 4), each().reshape(4, 4)
        steps = RNG.random((4, 4)) < 0.6
        sequences = np.array([True, False, True, True])
        masked = keras.layers.Masking()(student * steps[..., None])
        loss = DecoupledKD(2.0).with_labels(labels, labelled=sequences)
        np.testing.assert_allclose(
            loss(teacher, masked),
            values[steps & sequences[:, None]].mean(),
            rtol=1e-5,
        )


class TestArguments:
    @pytest.mark.parametrize("argument", ["alpha", "beta"])
    @pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
    def test_weights_are_checked(self, argument, value):
        message = f"`{argument}` must be finite and not negative. Received: {argument}="
        with pytest.raises(ValueError, match=message + str(value)):
            DecoupledKD(**{argument: value})

    def test_round_trip(self):
        arguments = {
            "temperature": 2.5,
            "alpha": 0.5,
            "beta": 2.0,
            "from_logits": False,
            "axis": 1,
            "reduction": "sum",
            "name": "kd",
            "dtype": "float64",
        }
        loss = DecoupledKD(**arguments).with_labels(LABELS)
        serialised = json.dumps(keras.saving.serialize_keras_object(loss))
        again = keras.saving.deserialize_keras_object(json.loads(serialised))
        assert again.get_config() == loss.get_config() == arguments
        p, q = (neutral.softmax(x) for x in (TEACHER, STUDENT))
        with neutral.float64():
            assert again.with_labels(LABELS)(p, q) == loss(p, q)


# In training.

X, Y = data()
LABELLED = np.arange(24) % 3 > 0


def compiled(**kwargs):
    distiller = kd.Distiller(mlp(0), mlp(1))
    arguments = {
        "loss": crossentropy(),
        "distillation_loss": DecoupledKD(2.0, beta=2.0),
        "alpha": 0.7,
        **kwargs,
    }
    distiller.compile(keras.optimizers.SGD(0.5), **arguments)
    return distiller


def of_rows(labels=Y):
    t, s = np.asarray(mlp(1)(X)), np.asarray(mlp(0)(X))
    value, _ = expected(t, s, 2.0, labels=labels, beta=2.0)
    return value, label_loss(labels, s)


class TestInFit:
    @pytest.mark.parametrize(
        ("form", "jit_compile"),
        [
            ("ids", False),
            ("column", False),
            ("one-hot", False),
            ("one-hot", True),
            pytest.param("ids", True, marks=pytest.mark.slow("XLA")),
            pytest.param("column", True, marks=pytest.mark.slow("XLA")),
        ],
    )
    def test_values_and_one_update(self, form, jit_compile):
        labels = {"ids": Y, "column": Y[:, None], "one-hot": np.eye(CLASSES)[Y]}[form]
        loss = crossentropy()
        if form == "one-hot":
            loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        distiller = compiled(loss=loss, jit_compile=jit_compile)
        before = distiller.student.get_weights()
        history = distiller.fit(X, labels, batch_size=24, verbose=0).history
        soft, hard = (values.mean() for values in of_rows())
        np.testing.assert_allclose(history["distillation_loss"], soft, rtol=1e-5)
        np.testing.assert_allclose(history["student_loss"], hard, rtol=1e-5)
        np.testing.assert_allclose(history["loss"], 0.3 * hard + 0.7 * soft, rtol=1e-5)
        t, s = np.asarray(mlp(1)(X)), np.asarray(mlp(0)(X))
        _, gradient = expected(t, s, 2.0, labels=Y, beta=2.0)
        q = np.exp(s - s.max(-1, keepdims=True))
        toward_labels = q / q.sum(-1, keepdims=True) - np.eye(CLASSES)[Y]
        step = (0.7 * gradient + 0.3 * toward_labels).mean(0)
        after = distiller.student.get_weights()
        np.testing.assert_allclose(before[-1] - after[-1], 0.5 * step, atol=1e-6)

    def test_sample_and_class_weights(self):
        weights = RNG.random(24).astype("float32")
        of_class = {0: 0.5, 1: 2.0, 2: 1.0}
        distiller = compiled()
        logs = distiller.train_on_batch(X, Y, sample_weight=weights, return_dict=True)
        soft, _ = of_rows()
        right = (weights * soft).mean()
        np.testing.assert_allclose(logs["distillation_loss"], right, rtol=1e-5)
        history = compiled().fit(X, Y, 24, class_weight=of_class, verbose=0).history
        right = (np.array([of_class[y] for y in Y]) * soft).mean()
        np.testing.assert_allclose(history["distillation_loss"], right, rtol=1e-5)

    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_rows_without_a_label_are_left_out(self, jit_compile):
        student, teacher = named(0), named(1)
        distiller = kd.Distiller(student, teacher)
        distiller.compile(
            keras.optimizers.SGD(0.5),
            crossentropy(),
            distillation_loss=DecoupledKD(2.0, beta=2.0),
            label_mask="labelled",
            jit_compile=jit_compile,
        )
        t, s = np.asarray(teacher(X)), np.asarray(student(X))
        value, _ = expected(t, s, 2.0, labels=Y, beta=2.0)
        labels = np.where(LABELLED, Y, -1)
        batch = {"x": X, "labelled": LABELLED}
        logs = distiller.train_on_batch(batch, labels, return_dict=True)
        np.testing.assert_allclose(
            logs["distillation_loss"], value[LABELLED].mean(), rtol=1e-5
        )
        np.testing.assert_allclose(
            logs["student_loss"], label_loss(Y, s)[LABELLED].mean(), rtol=1e-5
        )

    def test_labels_without_a_label_loss(self):
        distiller = compiled(loss=None, alpha=1.0)
        logs = distiller.train_on_batch(X, Y, return_dict=True)
        np.testing.assert_allclose(logs["loss"], of_rows()[0].mean(), rtol=1e-5)

    def test_no_labels(self):
        distiller = compiled(loss=None, alpha=1.0)
        with pytest.raises(ValueError, match="needs the label of each example. Give"):
            distiller.train_on_batch(X)

    def test_schedule(self):
        heating = keras.optimizers.schedules.PolynomialDecay(1.0, 4, 5.0)
        distiller = compiled(distillation_loss=DecoupledKD(heating))
        for temperature in (1.0, 2.0):
            s = np.asarray(distiller.student(X))
            logs = distiller.train_on_batch(X, Y, return_dict=True)
            value, _ = expected(np.asarray(mlp(1)(X)), s, temperature, labels=Y)
            distiller.reset_metrics()
            assert logs["temperature"] == temperature
            np.testing.assert_allclose(
                logs["distillation_loss"], value.mean(), rtol=1e-4
            )

    def test_load(self, tmp_path):
        distiller = compiled()
        distiller.train_on_batch(X, Y)
        distiller.save(tmp_path / "run.keras")
        loaded = kd.Distiller.load(tmp_path / "run.keras", teacher=distiller.teacher)
        logs = [d.train_on_batch(X, Y, return_dict=True) for d in (distiller, loaded)]
        np.testing.assert_allclose(
            logs[0]["distillation_loss"], logs[1]["distillation_loss"], rtol=1e-6
        )


def named(seed, structure=None):
    """A model with an input `x`; outputs `kind` and `other` where it has two."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,), name="x")
    kind = keras.layers.Dense(CLASSES, name="kind")(inputs)
    other = keras.layers.Dense(CLASSES, name="other")(inputs)
    outputs = {
        None: kind,
        "list": [kind, other],
        "dict": {"kind": kind, "other": other},
    }[structure]
    return keras.Model(inputs, outputs)


class TestSeveralOutputs:
    OTHER = (Y + 1) % CLASSES

    @pytest.mark.parametrize("structure", ["list", "dict"])
    @pytest.mark.parametrize("labels", ["list", "dict"])
    @pytest.mark.parametrize("one_loss", slow.but([False], [False, True], "fits"))
    def test_each_reads_its_own_labels(self, structure, labels, one_loss):
        student, teacher = named(0, structure), named(1, structure)
        losses = {"kind": DecoupledKD(2.0, beta=2.0), "other": DecoupledKD(alpha=3.0)}
        distiller = kd.Distiller(student, teacher)
        distiller.compile(
            keras.optimizers.SGD(0.5),
            {"kind": crossentropy(), "other": crossentropy()},
            distillation_loss=losses["kind"] if one_loss else losses,
        )
        y = {"list": [Y, self.OTHER], "dict": {"kind": Y, "other": self.OTHER}}[labels]
        pairs = [
            [np.asarray(output) for output in keras.tree.flatten(model(X))]
            for model in (teacher, student)
        ]
        (kind_t, other_t), (kind_s, other_s) = pairs
        value = expected(kind_t, kind_s, 2.0, labels=Y, beta=2.0)[0].mean()
        arguments = (
            {"temperature": 2.0, "beta": 2.0}
            if one_loss
            else {"temperature": 1.0, "alpha": 3.0}
        )
        value += expected(other_t, other_s, labels=self.OTHER, **arguments)[0].mean()
        logs = distiller.train_on_batch(X, y, return_dict=True)
        np.testing.assert_allclose(logs["distillation_loss"], value, rtol=1e-5)

    def test_a_label_mask_of_one(self):
        """Rows without a label are left out there alone."""
        student, teacher = named(0, "dict"), named(1, "dict")
        distiller = kd.Distiller(student, teacher)
        distiller.compile(
            keras.optimizers.SGD(0.5),
            distillation_loss=DecoupledKD(),
            alpha=1.0,
            label_mask={"kind": "labelled", "other": None},
        )
        t, s = teacher(X), student(X)
        kind, other = (
            expected(np.asarray(t[key]), np.asarray(s[key]), 1.0, labels=labels)[0]
            for key, labels in (("kind", Y), ("other", self.OTHER))
        )
        logs = distiller.train_on_batch(
            {"x": X, "labelled": LABELLED},
            {"kind": np.where(LABELLED, Y, 99), "other": self.OTHER},
            return_dict=True,
        )
        np.testing.assert_allclose(
            logs["distillation_loss"], kind[LABELLED].mean() + other.mean(), rtol=1e-5
        )

    def test_an_output_without_labels(self):
        """The other is taught by its teacher alone."""
        student, teacher = named(0, "dict"), named(1, "dict")
        distiller = kd.Distiller(student, teacher)
        distiller.compile(
            keras.optimizers.SGD(0.5),
            distillation_loss={"kind": DecoupledKD(), "other": ForwardKL()},
            alpha=1.0,
        )
        t, s = teacher(X), student(X)
        kind = (np.asarray(outputs["kind"]) for outputs in (t, s))
        value = expected(*kind, 1.0, labels=Y)[0].mean()
        value += ForwardKL()(t["other"], s["other"])
        logs = distiller.train_on_batch(X, {"kind": Y}, return_dict=True)
        np.testing.assert_allclose(logs["distillation_loss"], value, rtol=1e-5)

    @pytest.mark.parametrize("labels", [{"kind": Y}, [Y]], ids=["dict", "list"])
    def test_structured_labels_of_one_output(self, labels):
        student, teacher = named(0), named(1)
        t, s = np.asarray(teacher(X)), np.asarray(student(X))
        value, _ = expected(t, s, 1.0, labels=Y)
        distiller = kd.Distiller(student, teacher)
        # Keras' own losses don't take them
        distiller.compile("sgd", distillation_loss=DecoupledKD(), alpha=1.0)
        logs = distiller.train_on_batch(X, labels, return_dict=True)
        np.testing.assert_allclose(logs["distillation_loss"], value.mean(), rtol=1e-5)

"""OnPolicyDistiller: its batches, its steps by hand, context, files, errors."""

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import keras_distill as kd
from keras_distill import losses
from keras_distill.sequence import OnPolicyDistiller, TokenLoss, generate, logits_of
from tests import slow
from tests.backends import tensorflow_only
from tests.distiller.models import assert_same_weights, crossentropy
from tests.losses import reference as of_classes
from tests.sequence import reference
from tests.sequence.texts import (
    COMPLETIONS,
    END,
    PADDING,
    PROMPTS,
    REFERENCES,
    ROWS,
    on_policy,
    token_model,
)
from tests.sequence.writers import gpt2, llama, needs_hub

SGD = {"learning_rate": 0.5, "momentum": 0.9}
HOW = [{}, {"run_eagerly": True}, {"jit_compile": False}]
NAMES = {
    "forward_kl",
    "reverse_kl",
    "teacher_agreement",
    "student_entropy",
    "teacher_entropy",
}


def arrays(
    rows: Any = ROWS, length: int = 7
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, next tokens and their weights, by hand."""
    tokens = np.full((len(rows), length), PADDING)
    weight = np.zeros((len(rows), length), "float32")
    for row, (prompt, completion) in enumerate(rows):
        ids = [*prompt, *completion]
        tokens[row, : len(ids)] = ids
        weight[row, len(prompt) : len(ids)] = 1.0
    return tokens[:, :-1], tokens[:, 1:], weight[:, 1:]


def compiled(distiller: Any, **kwargs: Any) -> Any:
    optimizer = keras.optimizers.SGD(**{**SGD, **kwargs.pop("sgd", {})})
    distiller.compile(optimizer, kwargs.pop("loss", None), **kwargs)
    return distiller


def supervised(student: Any = None, loss: Any = None, **kwargs: Any) -> kd.Distiller:
    distiller = kd.Distiller(student or token_model(0, 4), token_model(1))
    kwargs = {"distillation_loss": TokenLoss(losses.GeneralizedJSD()), **kwargs}
    return compiled(distiller, **{"alpha": 1.0, **kwargs, "loss": loss})


def logged(distiller: Any, *batch: Any) -> dict[str, float]:
    logs: dict[str, float] = distiller.train_on_batch(*batch, return_dict=True)
    return logs


@pytest.mark.parametrize("how", HOW, ids=str)
def test_without_its_own_texts_it_is_supervised_to_the_bit(how: Any) -> None:
    plain, ours = supervised(**how), compiled(on_policy(student_fraction=0.0), **how)
    for _ in range(2):
        logs = logged(ours, REFERENCES)
        expected = logged(plain, *arrays())
        same = {name: logs[name] for name in expected}
        assert same == expected
    assert set(logs) - set(expected) == {*NAMES, "student_fraction"}
    assert_same_weights(ours.student, plain.student)


def test_with_a_label_loss_it_is_supervised_to_the_bit() -> None:
    with_labels = {
        "loss": crossentropy(reduction="mean_with_sample_weight"),
        "weighted_metrics": ["accuracy"],
        "alpha": 0.25,
        "jit_compile": False,
    }
    plain = supervised(**with_labels)
    ours = compiled(on_policy(student_fraction=0.0), **with_labels)
    logs, expected = logged(ours, REFERENCES), logged(plain, *arrays())
    assert {name: logs[name] for name in expected} == expected
    assert {"student_loss", "accuracy"} < set(expected)
    assert_same_weights(ours.student, plain.student)
    evaluated = ours.evaluate(REFERENCES, verbose=0, return_dict=True)
    assert set(evaluated) == {"loss", "accuracy"}
    x, y, weight = arrays()
    expected = plain.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
    assert evaluated == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_a_step_on_what_the_student_writes_by_hand(how: Any) -> None:
    """It is a step of a `Distiller` on the completions of the same random numbers.

    Writing neither draws numbers of dropout nor moves statistics of a batch.
    """
    students = [token_model(0, 4, noisy=True) for _ in range(2)]
    ours = compiled(on_policy(students[0]), **how)
    plain = supervised(students[1], **how)
    for seed in range(2):  # The second step writes with the weights after the first.
        numbers = keras.random.SeedGenerator(5)
        numbers.state.assign([5, seed])
        tokens, is_completion = (
            ops.convert_to_numpy(each)
            for each in generate(
                ours.student, PROMPTS, max_new_tokens=4, end_token=END, seed=numbers
            )
        )
        assert is_completion.any(axis=1).all()
        weight = is_completion[:, 1:].astype("float32")
        expected = logged(plain, tokens[:, :-1], tokens[:, 1:], weight)
        logs = logged(ours, PROMPTS)
        for name, value in expected.items():
            assert logs[name] == pytest.approx(value, rel=1e-5), name
        # The teacher is the same before and after the step.
        x = ops.convert_to_tensor(tokens[:, :-1])
        logits = ops.convert_to_numpy(logits_of(ours.teacher, x))
        entropy = reference.compared(logits, logits)["teacher_entropy"]
        mean = entropy[weight > 0].mean()
        assert logs["teacher_entropy"] == pytest.approx(mean, rel=1e-4)
    assert_same_weights(ours.student, plain.student, atol=1e-6)


def test_a_schedule_decides_who_writes() -> None:
    """Step 0 takes the references, and step 1 what the student writes."""
    fraction = kd.schedules.LateStart(1)
    ours = compiled(on_policy(student_fraction=fraction), jit_compile=False)
    plain = supervised(jit_compile=False)
    logged(plain, *arrays())
    assert logged(ours, REFERENCES)["student_fraction"] == 0.0
    assert_same_weights(ours.student, plain.student)
    numbers = keras.random.SeedGenerator(0)
    # Each step with references draws who writes, and what the student would write.
    numbers.state.assign([5, 3])
    tokens, is_completion = generate(
        ours.student, PROMPTS, max_new_tokens=4, end_token=END, seed=numbers
    )
    weight = ops.convert_to_numpy(is_completion)[:, 1:].astype("float32")
    tokens = ops.convert_to_numpy(tokens)
    logged(plain, tokens[:, :-1], tokens[:, 1:], weight)
    assert logged(ours, REFERENCES)["student_fraction"] == 1.0
    assert_same_weights(ours.student, plain.student, atol=1e-6)


def test_a_fraction_of_the_batches_is_the_students() -> None:
    """References are of one token, so the numbers of tokens show who wrote."""
    ours = compiled(on_policy(student_fraction=0.25, end_token=None))
    x = {"prompts": PROMPTS[:1], "completions": COMPLETIONS[:1, :1]}
    batches = (ours.make_batch(x, training=True) for _ in range(96))
    counts = [int(ops.sum(weight)) for _, _, weight in batches]
    assert set(counts) == {1, 4}
    # Four standard deviations of a binomial distribution.
    assert abs(counts.count(4) / 96 - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 96)
    ours.student_fraction = 1.0
    assert int(ops.sum(ours.make_batch(x, training=True)[2])) == 4


def expected_loss(teacher: Any, student: Any, rows: Any, contexts: Any = None) -> float:
    """The mean over tokens of the forward KL, row by row without any padding."""
    values = []
    for row, (prompt, completion) in enumerate(rows):
        context = contexts[row] if contexts else []
        ids = [*context, *prompt, *completion[:-1]]
        t, s = (
            ops.convert_to_numpy(logits_of(model, ops.convert_to_tensor([tokens])))[0]
            for model, tokens in ((teacher, ids), (student, ids[len(context) :]))
        )
        count = len(completion)
        t, s = (x[-count:].astype("float64") for x in (t, s))
        values += list(of_classes.forward_kl(t, s, 1.0)[0])
    return float(np.mean(values))


CONTEXTS = [[6, 6, 5], [2], [4, 3], [5, 0, 5]]


def test_the_teacher_reads_a_context_and_predicts_the_same_tokens() -> None:
    teacher = token_model(1)
    distiller = on_policy(teacher=teacher, privileged_context="hint")
    compiled(distiller, distillation_loss=TokenLoss(losses.ForwardKL()))
    hints = np.array([[6, 6, 5], [0, 0, 2], [4, 3, 0], [5, 0, 5]])
    expected = expected_loss(teacher, distiller.student, ROWS, CONTEXTS)
    without = expected_loss(teacher, distiller.student, ROWS)
    assert abs(expected - without) > 1e-2
    for padding in ([(0, 0), (0, 2)], [(0, 0), (2, 0)]):
        x = {**REFERENCES, "hint": np.pad(hints, padding)}
        logs = distiller.evaluate(x, verbose=0, return_dict=True)
        assert set(logs) == {"loss", "distillation_loss", *NAMES}
        assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-5)
        assert logs["forward_kl"] == pytest.approx(expected, rel=1e-5)
    logs = logged(distiller, {"prompts": PROMPTS, "hint": hints})
    assert np.isfinite(list(logs.values())).all()


def test_the_teacher_may_be_the_student_with_a_context() -> None:
    """An average that forgets at once is the student after its last update."""
    student = token_model(0, 4)
    teacher = kd.teachers.EMA(student, decay=0.0)
    distiller = on_policy(student, teacher, privileged_context="hint")
    compiled(distiller)
    hints = np.tile([[4, 2]], (4, 1))
    x = {"prompts": PROMPTS, "hint": hints}
    assert logged(distiller, x)["distillation_loss"] > 1e-3
    assert_same_weights(teacher.model, student, atol=1e-7)
    # Without a context they are equal. Nothing is left to learn.
    empty = {"prompts": PROMPTS, "hint": 0 * hints}
    logs = distiller.evaluate(empty, verbose=0, return_dict=True)
    assert logs["distillation_loss"] == pytest.approx(0.0, abs=1e-7)
    assert logs["teacher_agreement"] == 1.0


def test_members_of_an_ensemble_read_the_context_too() -> None:
    members = [token_model(1), token_model(2)]
    teacher = kd.teachers.Ensemble(members, log_losses=True)
    distiller = on_policy(teacher=teacher, privileged_context="hint")
    compiled(distiller, distillation_loss=TokenLoss(losses.ForwardKL()))
    hints = np.array([[6, 6, 5], [0, 0, 2], [4, 3, 0], [5, 0, 5]])
    distiller.student_fraction = 0.0
    student = distiller.student
    expected = [expected_loss(member, student, ROWS, CONTEXTS) for member in members]
    logs = logged(distiller, {**REFERENCES, "hint": hints})
    found = [value for name, value in logs.items() if name.startswith("model")]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "reduction", slow.but(["token"], ["token", "sequence"], "fits")
)
def test_appended_padding_changes_nothing(reduction: str) -> None:
    """At both sides of prompts and completions, and a row of padding only."""

    def trained(x: Any) -> Any:
        loss = TokenLoss(losses.ReverseKL(), reduction=reduction)
        ours = compiled(on_policy(student_fraction=0.0), distillation_loss=loss)
        return logged(ours, x), ours.student

    longer = {
        "prompts": np.pad(PROMPTS, [(0, 1), (2, 1)]),
        "completions": np.pad(COMPLETIONS, [(0, 1), (1, 3)]),
    }
    logs, student = trained(REFERENCES)
    logs_of_longer, other = trained(longer)
    assert logs_of_longer == pytest.approx(logs, rel=1e-5)
    assert_same_weights(student, other, atol=1e-6)


@pytest.mark.parametrize(
    "reduction",
    ["token", pytest.param("sequence", marks=pytest.mark.slow("traces two steps"))],
)
def test_accumulated_batches_are_one_batch(reduction: str) -> None:
    """They have 4, 3 and 2 tokens, and one has a row without a completion."""
    rows = [ROWS[2], ROWS[0], ([2, 2], []), ROWS[1]]
    prompts, completions = np.zeros((4, 3), int), np.zeros((4, 4), int)
    for row, (prompt, completion) in enumerate(rows):
        prompts[row, : len(prompt)] = prompt
        completions[row, : len(completion)] = completion
    x = {"prompts": prompts, "completions": completions}
    loss = TokenLoss(losses.GeneralizedJSD(), reduction=reduction)
    parts = [slice(0, 1), slice(1, 3), slice(3, 4)]

    def trained(adds: int | None) -> Any:
        ours = compiled(
            on_policy(student_fraction=0.0),
            distillation_loss=loss,
            sgd={"gradient_accumulation_steps": adds},
        )
        for _ in range(2):
            for part in parts if adds else [slice(None)]:
                logs = logged(ours, {name: ids[part] for name, ids in x.items()})
                assert logs["loss"] == pytest.approx(logs["distillation_loss"])
        return ours.student

    assert_same_weights(trained(3), trained(None), atol=2e-6)


def test_a_run_is_repeatable_and_resumes(tmp_path: Path) -> None:
    """Also between two batches whose gradients are added, and with other numbers."""

    def build(seed: int = 5) -> Any:
        return compiled(
            on_policy(student_fraction=0.5, privileged_context="hint", seed=seed),
            sgd={"gradient_accumulation_steps": 2},
        )

    x = {**REFERENCES, "hint": np.full((4, 2), 3)}

    def losses_of(distiller: Any, batches: int) -> list[float]:
        return [logged(distiller, x)["loss"] for _ in range(batches)]

    whole = build()
    expected = losses_of(whole, 8)
    assert len(set(expected)) > 4
    stopped = build()
    assert losses_of(stopped, 5) == expected[:5]
    stopped.save(tmp_path / "distiller.keras")
    resumed = OnPolicyDistiller.load(tmp_path / "distiller.keras", whole.teacher)
    assert losses_of(resumed, 3) == expected[5:]
    assert_same_weights(resumed.student, whole.student)
    of_models = {"name": None, "student": None}
    assert resumed.get_config() | of_models == stopped.get_config() | of_models
    assert losses_of(build(seed=6), 8) != expected


@needs_hub
@pytest.mark.parametrize("make", [gpt2, llama])
def test_models_of_keras_hub(make: Any) -> None:
    student, teacher = make(seed=0), make(seed=1)
    ours = compiled(on_policy(student, teacher, student_fraction=0.5))
    logs = logged(ours, REFERENCES)
    assert logs["distillation_loss"] > 0.0 and np.isfinite(logs["loss"])
    loss = TokenLoss(losses.ForwardKL())
    compiled(ours, distillation_loss=loss)
    logs = ours.evaluate(REFERENCES, verbose=0, return_dict=True)
    expected = expected_loss(teacher, student, ROWS)
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-4)


def test_fit_with_validation_and_a_dataset_of_dicts() -> None:
    ours = compiled(on_policy(student_fraction=0.5))
    fit = {"epochs": 2, "batch_size": 2, "verbose": 0}
    history = ours.fit(REFERENCES, validation_data=(PROMPTS,), **fit).history
    names = {"loss", "distillation_loss", *NAMES}
    assert set(history) == names | {"alpha", "student_fraction"} | {
        f"val_{name}" for name in names
    }
    assert np.isfinite(list(history.values())).all()
    x, _, _ = arrays()
    predicted = ops.convert_to_numpy(logits_of(ours.student, ops.convert_to_tensor(x)))
    np.testing.assert_allclose(ours.predict(x, verbose=0), predicted, rtol=1e-5)


@pytest.mark.slow("XLA compiles each length")
@tensorflow_only("a `tf.data.Dataset` of which shapes aren't known")
def test_batches_of_several_lengths() -> None:
    import tensorflow as tf

    ours = compiled(on_policy(student_fraction=0.5), jit_compile=True)
    wider = {name: np.pad(ids, [(0, 0), (0, 2)]) for name, ids in REFERENCES.items()}
    spec = tf.TensorSpec((None, None), tf.int32)
    data = tf.data.Dataset.from_generator(
        lambda: [REFERENCES, wider],
        output_signature={"prompts": spec, "completions": spec},
    )
    data = data.apply(tf.data.experimental.assert_cardinality(2))
    fit = {"validation_data": data, "shuffle": False, "verbose": 0}
    history = ours.fit(data, **fit).history
    assert np.isfinite(list(history.values())).all()
    one, *others = (ours.evaluate(x, verbose=0) for x in (REFERENCES, wider))
    assert others[0] == pytest.approx(one, rel=1e-5)


def test_a_batch_without_any_completion_teaches_nothing() -> None:
    ours = compiled(on_policy())
    before = ours.student.get_weights()
    logs = logged(ours, np.zeros((2, 3), int))
    assert logs["loss"] == logs["forward_kl"] == 0.0
    for old, new in zip(before, ours.student.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("end_token", "completions", "expected"),
    [
        # What follows the first end token is left out.
        (1, [[4, 1, 5, 1], [1, 1, 0, 0]], [[4, 1], [1]]),
        # An end token that is the token of padding, too.
        (0, [[4, 5, 0, 0], [4, 4, 4, 4]], [[4, 5, 0], [4, 4, 4, 4]]),
        # Without an end token, all of a completion.
        (None, [[0, 4, 1, 0], [0, 0, 0, 0]], [[4, 1], []]),
    ],
)
def test_references(end_token: Any, completions: Any, expected: Any) -> None:
    ours = compiled(on_policy(end_token=end_token))
    prompts = np.array([[2, 0], [3, 2]])
    x = {"prompts": prompts, "completions": np.array(completions)}
    rows = list(zip([[2], [3, 2]], expected, strict=True))
    _, tokens, expected_weight = arrays(rows, length=6)
    batch, _, weight = ours.make_batch(x, training=False)
    np.testing.assert_array_equal(weight, expected_weight)
    np.testing.assert_array_equal(batch["token_ids"][:, 1:], tokens[:, :-1])
    masked = {**x, "completion_mask": np.array([[0, 1, 0, 0], [1, 0, 0, 0]])}
    _, _, weight = ours.make_batch(masked, training=False)
    np.testing.assert_array_equal(ops.sum(weight, axis=1), [1, 1])


def test_other_kinds_of_models_read_the_same_tokens() -> None:
    """Named inputs, a mask among them; a function; a fixed length."""
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")
    plain, fixed = token_model(0, 4), keras.Input((8,), dtype="int32")
    shown = ops.expand_dims(ops.cast(mask, "float32"), -1)
    named = keras.Model(
        {"token_ids": tokens, "padding_mask": mask}, plain(tokens) * shown
    )
    teacher = token_model(1)
    of_fixed = keras.Model(fixed, teacher(fixed))
    values = []
    for student, of_student in (
        (plain, teacher),
        (named, lambda tokens: teacher(tokens)),
        (keras.Model(fixed, plain(fixed)), of_fixed),
    ):
        ours = compiled(on_policy(student, of_student))
        values.append(ours.evaluate(REFERENCES, verbose=0, return_dict=True)["loss"])
    assert values == pytest.approx(values[:1] * 3, rel=1e-6)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"max_new_tokens": 0}, ValueError, "`max_new_tokens` must be a whole number"),
        ({"student_fraction": 1.5}, ValueError, "must be in [0, 1]. Received: "),
        ({"student_fraction": "all"}, TypeError, "`student_fraction` must be a float"),
        ({"temperature": -1.0}, ValueError, "`temperature` must be at least 0"),
        ({"privileged_context": "prompts"}, ValueError, "a key of `x` of its own"),
        ({"hints": []}, TypeError, "`OnPolicyDistiller` doesn't take `hints`"),
        ({"loss": "mse"}, TypeError, "goes into `distiller.compile(loss='mse')`"),
    ],
    ids=str,
)
def test_wrong_arguments(given: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        on_policy(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metrics": ["accuracy"]}, "Pass them as `weighted_metrics`"),
        ({"teacher_loss": "mse"}, "doesn't take ['teacher_loss']"),
        ({"loss": crossentropy()}, "`student_fraction` must be 0"),
    ],
    ids=["metrics", "teacher_loss", "loss"],
)
def test_wrong_arguments_of_compile(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        on_policy().compile("sgd", **given)


def test_a_label_loss_must_leave_out_padding() -> None:
    with pytest.raises(ValueError, match='reduction="mean_with_sample_weight"'):
        on_policy(student_fraction=0.0).compile("sgd", crossentropy())


@pytest.mark.parametrize(
    ("x", "given", "message"),
    [
        ({"completions": PROMPTS}, {}, "Received: keys ['completions']"),
        ({"prompts": PROMPTS, "prompt_mask": PROMPTS[0]}, {}, "of shape (3,)"),
        ({"prompts": PROMPTS, "completion_mask": PROMPTS}, {}, "may be left out"),
        ({**REFERENCES, "weights": PROMPTS}, {}, "Received: keys ['completions', "),
        (PROMPTS, {"privileged_context": "hint"}, "Received: keys ['prompts']"),
        (PROMPTS, {"student_fraction": 0.5}, "student_fraction=0.5, no completions"),
        (PROMPTS.astype("float32"), {}, "must be token ids, whole numbers"),
        (PROMPTS, {"end_token": 99}, "`end_token` must be a token id from 0 to 6"),
        (PROMPTS, {"student": keras.Sequential([])}, "must be built"),
        (
            PROMPTS,
            {"student": token_model(0), "teacher": token_model(1, vocabulary=9)},
            "must have one vocabulary",
        ),
    ],
    ids=[
        "prompts",
        "shape",
        "mask",
        "key",
        "context",
        "references",
        "floats",
        "end",
        "built",
        "size",
    ],
)
def test_wrong_texts_and_models(x: Any, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        compiled(on_policy(**given), run_eagerly=True).train_on_batch(x)


def test_rows_longer_than_the_context_of_the_student() -> None:
    tokens = keras.Input((6,), dtype="int32")
    student = keras.Model(tokens, token_model(0)(tokens))
    with pytest.raises(ValueError, match="7 tokens, prompt and completion together"):
        compiled(on_policy(student), run_eagerly=True).train_on_batch(PROMPTS)


@pytest.mark.parametrize("what", ["labels", "weights"])
def test_prompts_have_no_labels(what: str) -> None:
    given = {"y": PROMPTS, "sample_weight": np.ones(4) if what == "weights" else None}
    with pytest.raises(ValueError, match="neither labels nor weights"):
        compiled(on_policy(), run_eagerly=True).train_on_batch(PROMPTS, **given)

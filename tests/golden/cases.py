"""Short deterministic fits: what a change of the trainer's shape must not change.

Each case makes a trainer and the arguments of its `fit`. All numbers come from NumPy,
no rows are shuffled, and only the cases of `WITH_RANDOM_NUMBERS` draw any, so that
backends can be compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.optimizers.schedules import PolynomialDecay

import keras_distill as kd
from keras_distill import losses
from keras_distill.hints import Hint
from keras_distill.online import MutualLearning
from tests.golden.models import (
    CLASSES,
    FEATURES,
    ROWS,
    AddsLoss,
    classes,
    conv_net,
    crossentropy,
    features,
    filled,
    heads,
    mlp,
    named,
    random,
    some,
    weights,
)

BATCH_SIZE, EPOCHS = 8, 4
X, Y, W = features(), classes(), weights()
SIZE = features(3, 2)
LABELS = {"kind": Y, "size": SIZE}
LABELLED = some(4)
IMAGES = features(5, 4, 4, 2)
SGD = keras.optimizers.SGD


@dataclass
class Fit:
    """A compiled trainer, the arguments of its `fit`, and the models it changes."""

    trainer: keras.Model
    given: dict[str, Any]
    models: Mapping[str, Any]
    callbacks: Sequence[keras.callbacks.Callback] = ()
    # fits in a row; the trainer is saved and loaded between them
    resumed: bool = False
    teacher: Any = None


CASES: dict[str, Callable[[], Fit]] = {}
# Random numbers are drawn, by each backend in its own way.
WITH_RANDOM_NUMBERS = {"dropout", "EMA_with_dropout"}
# What only TensorFlow has.
OF_TENSORFLOW = {"XLA"}


def case(make: Callable[[], Fit]) -> Callable[[], Fit]:
    """Add a case under its function's name."""
    CASES[make.__name__] = make
    return make


def distilled(
    student: keras.Model | None = None,
    teacher: Any = None,
    *,
    x: Any = X,
    y: Any = Y,
    fit: dict[str, Any] | None = None,
    hints: Sequence[Hint] = (),
    privileged: Sequence[str] = (),
    callbacks: Sequence[keras.callbacks.Callback] = (),
    models: Mapping[str, Any] | None = None,
    optimizer: Any = None,
    resumed: bool = False,
    **compiled: Any,
) -> Fit:
    """Return a fit of a `Distiller`; what isn't given is plain."""
    student = mlp(0) if student is None else student
    teacher = mlp(1, 9) if teacher is None else teacher
    distiller = kd.Distiller(
        student, teacher, privileged_features=privileged, hints=hints
    )
    for number, projector in enumerate(distiller.projectors.values()):
        filled(projector, 10 + number)
    optimizer = SGD(0.1, momentum=0.9) if optimizer is None else optimizer
    loss = compiled.pop("loss", crossentropy())
    # The default of the version whose numbers these are.
    compiled.setdefault("distillation_loss", kd.losses.ForwardKL(4.0))
    distiller.compile(optimizer, loss, **compiled)
    of_models = {"student": student, **(models or {}), **distiller.projectors}
    given = {"x": x, "y": y, **(fit or {})}
    return Fit(distiller, given, of_models, callbacks, resumed, teacher)


def at_each_epoch(act: Callable[[int], None]) -> keras.callbacks.Callback:
    """Return a callback that acts before each epoch."""
    return keras.callbacks.LambdaCallback(on_epoch_begin=lambda n, logs=None: act(n))


# Alpha and temperature.


@case
def fixed_alpha_and_temperature() -> Fit:
    return distilled(alpha=0.3, distillation_loss=losses.ForwardKL(2.0))


@case
def defaults() -> Fit:
    return distilled()


@case
def labels_alone() -> Fit:
    return distilled(alpha=0.0)


@case
def teacher_alone() -> Fit:
    return distilled(y=None, loss=None, alpha=1.0)


@case
def teacher_alone_beside_labels() -> Fit:
    return distilled(alpha=1.0, metrics=["accuracy"])


@case
def scheduled_alpha() -> Fit:
    return distilled(alpha=PolynomialDecay(0.9, 15, 0.1))


@case
def late_start() -> Fit:
    return distilled(alpha=kd.schedules.LateStart(7, 0.8))


@case
def scheduled_temperature() -> Fit:
    loss = losses.ForwardKL(PolynomialDecay(5.0, 12, 1.0))
    return distilled(distillation_loss=loss)


@case
def alpha_of_a_callback() -> Fit:
    fit = distilled()
    trainer = fit.trainer

    def act(epoch: int) -> None:
        trainer.alpha = 0.9 - 0.2 * epoch

    fit.callbacks = [at_each_epoch(act)]
    return fit


@case
def temperature_of_a_callback() -> Fit:
    loss = losses.ForwardKL(4.0)

    def act(epoch: int) -> None:
        loss.temperature = 4.0 - epoch

    return distilled(distillation_loss=loss, callbacks=[at_each_epoch(act)])


# Several outputs.


def two_heads(structure: Any, **kwargs: Any) -> Fit:
    given: dict[str, Any] = {
        "loss": structure(crossentropy(), "mse"),
        "distillation_loss": structure(losses.ForwardKL(2.0), "mse"),
        "y": structure(Y, SIZE),
        **kwargs,
    }
    return distilled(heads(0, structure), heads(1, structure), **given)


def as_dict(kind: Any, size: Any) -> Any:
    return {"kind": kind, "size": size}


def as_list(kind: Any, size: Any) -> Any:
    return [kind, size]


def as_tuple(kind: Any, size: Any) -> Any:
    return (kind, size)


@case
def outputs_as_a_dict() -> Fit:
    return two_heads(as_dict)


@case
def outputs_as_a_list() -> Fit:
    return two_heads(as_list, metrics=[["accuracy"], ["mae"]])


@case
def outputs_as_a_tuple() -> Fit:
    return two_heads(as_tuple)


@case
def alpha_by_output() -> Fit:
    alpha = {"kind": PolynomialDecay(0.9, 15, 0.1), "size": 0.7}
    return two_heads(as_dict, alpha=alpha)


@case
def loss_weights_and_alpha_by_output() -> Fit:
    weights_of = {"kind": 0.3, "size": 2.0}
    return two_heads(as_dict, alpha={"kind": 0.2, "size": 0.6}, loss_weights=weights_of)


@case
def an_output_without_a_teacher() -> Fit:
    distillation_loss = as_dict(losses.ForwardKL(2.0), None)
    return two_heads(as_dict, distillation_loss=distillation_loss)


@case
def an_output_without_labels() -> Fit:
    return two_heads(as_dict, loss=as_dict(crossentropy(), None), y=as_dict(Y, SIZE))


@case
def weights_by_output() -> Fit:
    sample_weight = as_dict(W, weights(7))
    return two_heads(as_dict, fit={"sample_weight": sample_weight})


# Which rows count, and how much.


@case
def label_mask() -> Fit:
    student, teacher = named(0, ["x"]), named(1, ["x"])
    x = {"x": X, "labelled": LABELLED}
    return distilled(student, teacher, x=x, label_mask="labelled", alpha=0.4)


@case
def label_masks_by_output() -> Fit:
    x = {"x": X, "a": LABELLED, "b": some(5)}
    return two_heads(as_dict, x=x, label_mask={"kind": "a", "size": "b"})


@case
def label_mask_and_weights() -> Fit:
    student, teacher = named(0, ["x"]), named(1, ["x"])
    x = {"x": X, "labelled": LABELLED}
    return distilled(
        *(student, teacher),
        x=x,
        label_mask="labelled",
        fit={"sample_weight": W},
        weighted_metrics=["accuracy"],
    )


@case
def label_mask_by_unit() -> Fit:
    student, teacher = named(0, ["x"]), named(1, ["x"])
    x = {"x": X, "labelled": some(6, 0.5, CLASSES)}
    return distilled(
        *(student, teacher),
        x=x,
        y=some(7, 0.5, CLASSES).astype("float32"),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        distillation_loss=losses.BinarySoftTargets(2.0),
        label_mask="labelled",
    )


@case
def sample_weights() -> Fit:
    return distilled(fit={"sample_weight": W}, weighted_metrics=["accuracy"])


@case
def class_weights() -> Fit:
    return distilled(fit={"class_weight": {0: 0.5, 1: 2.0, 2: 1.0}})


@case
def weights_without_labels() -> Fit:
    y = np.zeros(ROWS)
    return distilled(y=y, loss=None, alpha=1.0, fit={"sample_weight": W})


@case
def padded_sequences() -> Fit:
    def tagger(seed: int) -> keras.Model:
        model = keras.Sequential(
            [
                keras.Input((5,), dtype="int32"),
                layers.Embedding(6, 4, mask_zero=True),
                layers.SimpleRNN(5, return_sequences=True),
                layers.Dense(CLASSES),
            ]
        )
        return filled(model, seed)

    x = random(8).integers(0, 6, (ROWS, 5)).astype("int32")
    y = random(9).integers(0, CLASSES, (ROWS, 5))
    return distilled(tagger(0), tagger(1), x=x, y=y)


# What a student's layers add and keep.


@case
def regularisers() -> Fit:
    regularizer = keras.regularizers.L2(0.05)
    activity = keras.regularizers.L1(0.02)
    student = mlp(0, kernel_regularizer=regularizer, activity_regularizer=activity)
    return distilled(student)


@case
def add_loss() -> Fit:
    return distilled(mlp(0, 5, AddsLoss()), alpha=0.25)


@case
def add_loss_without_labels() -> Fit:
    return distilled(mlp(0, 5, AddsLoss()), y=None, loss=None, alpha=1.0)


@case
def batch_normalization() -> Fit:
    student = mlp(0, 5, layers.BatchNormalization())
    return distilled(student, mlp(1, 9, layers.BatchNormalization()))


@case
def dropout() -> Fit:
    return distilled(mlp(0, 5, layers.Dropout(0.3, seed=3)))


# Hints.


def hinted(*hints: Hint, **kwargs: Any) -> Fit:
    return distilled(conv_net(0, 2), conv_net(1, 3), x=IMAGES, hints=hints, **kwargs)


@case
def a_hint_with_a_projector() -> Fit:
    return hinted(Hint("conv", "norm", weight=0.3, name="conv_hint"))


@case
def hints_with_a_scheduled_weight() -> Fit:
    return hinted(
        Hint("pool", "pool", weight=PolynomialDecay(0.5, 12, 0.0), name="pool_hint"),
        Hint("conv", "conv", loss=kd.hints.losses.AttentionTransfer(), projector=None),
        fit={"sample_weight": W},
    )


@case
def hints_between_examples() -> Fit:
    of = kd.hints.losses
    return hinted(
        Hint("pool", "pool", loss=of.RelationalDistance(), projector=None, name="d"),
        Hint("pool", "pool", loss=of.RelationalAngle(), projector=None, name="a"),
        Hint("norm", "norm", loss=of.SimilarityPreserving(), projector=None, name="s"),
    )


# Teachers.


@case
def ensemble() -> Fit:
    members = [mlp(1, 9), mlp(2, 7)]
    for member, name in zip(members, ("first", "second"), strict=True):
        member.name = name
    teacher = kd.teachers.Ensemble(members, log_losses=True)
    return distilled(teacher=teacher)


@case
def ensemble_of_probabilities() -> Fit:
    members = [mlp(1, 9), mlp(2, 7), mlp(3, 4)]
    teacher = kd.teachers.Ensemble(members, combine="probabilities")
    return distilled(teacher=teacher)


@case
def correctness_weighted() -> Fit:
    teacher = kd.teachers.CorrectnessWeighted([mlp(1, 9), mlp(2, 7)])
    return distilled(teacher=teacher)


@case
def EMA() -> Fit:
    student = mlp(0, 5, layers.BatchNormalization())
    teacher = kd.teachers.EMA(student, decay=0.8)
    return distilled(student, teacher, models={"teacher": teacher.model})


@case
def EMA_with_dropout() -> Fit:
    student = mlp(0, 5, layers.Dropout(0.3, seed=3))
    teacher = kd.teachers.EMA(student, decay=0.8)
    return distilled(student, teacher, models={"teacher": teacher.model})


@case
def recorded() -> Fit:
    x = {"x": X, "teacher_logits": features(11, CLASSES)}
    return distilled(named(0, ["x"]), kd.teachers.Recorded("teacher_logits"), x=x)


@case
def a_callable() -> Fit:
    return distilled(teacher=lambda x: 2.0 * x[:, :CLASSES] - 0.5)


@case
def a_teacher_of_privileged_features() -> Fit:
    x = {"x": X, "later": features(12)}
    return distilled(
        named(0, ["x"]), named(1, ["x", "later"]), x=x, privileged=["later"]
    )


@case
def a_logged_teacher() -> Fit:
    return distilled(log_teacher=True, fit={"sample_weight": W})


# A teacher that trains.


@case
def a_teacher_that_trains() -> Fit:
    teacher = mlp(1, 9, layers.BatchNormalization())
    return distilled(
        teacher=teacher,
        models={"teacher": teacher},
        teacher_loss=crossentropy(),
        teacher_optimizer=keras.optimizers.Adam(0.02),
        teacher_metrics=["accuracy"],
    )


@case
def shared_layers() -> Fit:
    inputs = {name: keras.Input((FEATURES,), name=name) for name in ("x", "later")}
    shared = layers.Dense(5, "tanh", name="shared")
    of_x = shared(inputs["x"])
    both = layers.Concatenate()([of_x, inputs["later"]])
    student = keras.Model({"x": inputs["x"]}, layers.Dense(CLASSES)(of_x))
    teacher = keras.Model(inputs, layers.Dense(CLASSES)(both))
    filled(teacher, 1)
    filled(student, 0)
    return distilled(
        *(student, teacher),
        x={"x": X, "later": features(12)},
        privileged=["later"],
        models={"teacher": teacher},
        teacher_loss=crossentropy(),
    )


# Peers.


def peers(count: int, **kwargs: Any) -> Fit:
    of_peers = [mlp(seed, 4 + seed) for seed in range(count)]
    for number, peer in enumerate(of_peers):
        peer.name = f"peer{number}"
    constructor = {
        name: kwargs.pop(name) for name in ("combine", "staleness") if name in kwargs
    }
    mutual = MutualLearning(of_peers, **constructor)
    fit = kwargs.pop("fit", {})
    mutual.compile(SGD(0.1, momentum=0.9), crossentropy(), **kwargs)
    return Fit(mutual, {"x": X, "y": Y, **fit}, {peer.name: peer for peer in of_peers})


@case
def two_peers() -> Fit:
    return peers(2, metrics=["accuracy"], fit={"sample_weight": W})


@case
def three_peers_of_probabilities() -> Fit:
    return peers(3, combine="probabilities", alpha=PolynomialDecay(0.9, 15, 0.1))


@case
def stale_peers() -> Fit:
    return peers(2, staleness=3)


# How the step runs.


@case
def accumulated_gradients() -> Fit:
    optimizer = keras.optimizers.Adam(0.05, gradient_accumulation_steps=2)
    return distilled(optimizer=optimizer, alpha=PolynomialDecay(0.9, 8, 0.1))


@case
def several_steps_an_execution() -> Fit:
    return distilled(steps_per_execution=3, alpha=PolynomialDecay(0.9, 15, 0.1))


@case
def XLA() -> Fit:
    return distilled(jit_compile=True)


@case
def eager() -> Fit:
    return distilled(run_eagerly=True)


@case
def mixed_bfloat16() -> Fit:
    return distilled(mlp(0, 5, dtype="mixed_bfloat16"))


@case
def mixed_float16() -> Fit:
    policy = keras.DTypePolicy("mixed_float16")
    inputs = keras.Input((FEATURES,))
    hidden = layers.Dense(5, "tanh", dtype=policy)(inputs)
    outputs = layers.Dense(CLASSES, dtype=policy)(hidden)
    student = filled(keras.Model(inputs, outputs, dtype=policy), 0)
    return distilled(student)


@case
def clipped_and_decayed() -> Fit:
    optimizer = keras.optimizers.AdamW(0.05, weight_decay=0.1, clipnorm=0.2)
    return distilled(optimizer=optimizer)


@case
def validated() -> Fit:
    held_out = (features(13), classes(14))
    return distilled(metrics=["accuracy"], fit={"validation_data": held_out})


@case
def resumed() -> Fit:
    schedule = PolynomialDecay(0.9, 30, 0.1)
    return distilled(
        alpha=schedule, optimizer=keras.optimizers.Adam(0.05), resumed=True
    )


# Losses.


def with_loss(loss: Any) -> Callable[[], Fit]:
    return lambda: distilled(distillation_loss=loss())


for make in (
    lambda: losses.ReverseKL(2.0),
    lambda: losses.GeneralizedJSD(0.3, temperature=2.0),
    lambda: losses.Jeffreys(2.0),
    lambda: losses.SoftTargets(2.0),
    lambda: losses.TotalVariation(),
    lambda: losses.DecoupledKD(temperature=2.0),
    lambda: losses.DIST(),
    lambda: losses.LogitMSE(),
    lambda: losses.Standardized(losses.ForwardKL(2.0)),
):
    CASES[f"loss_{type(make()).__name__}"] = with_loss(make)


@case
def loss_of_Keras() -> Fit:
    return distilled(distillation_loss=keras.losses.Huber())


@case
def loss_of_lists() -> Fit:
    x = {"x": X, "valid": some(15, 0.8, CLASSES)}
    return distilled(
        *(named(0, ["x"]), named(1, ["x"])),
        x=x,
        distillation_loss=losses.ListwiseSoftTargets(2.0, mask="valid"),
    )


def ranked(distillation_loss: Any) -> Fit:
    group = random(16).integers(0, 3, ROWS)
    return distilled(
        *(named(0, ["x"], 1), named(1, ["x"], 1)),
        x={"x": X, "query": group},
        y=some(17, 0.5).astype("float32"),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        distillation_loss=distillation_loss,
    )


@case
def loss_of_groups() -> Fit:
    return ranked(losses.ListwiseSoftTargets(2.0, group="query"))


@case
def loss_of_pairs_in_groups() -> Fit:
    return ranked(losses.PairwiseSoftTargets(group="query"))


@case
def loss_of_calibrated_groups() -> Fit:
    return ranked(losses.CalibratedListwise(group="query"))


@case
def loss_of_probabilities() -> Fit:
    teacher = keras.Sequential([mlp(1, 9), layers.Softmax()])
    loss = losses.ForwardKL(2.0, teacher_from_logits=False)
    return distilled(teacher=teacher, distillation_loss=loss)

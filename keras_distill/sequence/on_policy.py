"""On-policy distillation: training on completions that the student writes."""

import warnings
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill import arguments, backend
from keras_distill.losses import GeneralizedJSD
from keras_distill.sequence import token_batch
from keras_distill.sequence.generation import Completions, generate
from keras_distill.sequence.models import declared_length
from keras_distill.sequence.sampling import Sampling, check_count
from keras_distill.sequence.token_batch import Texts
from keras_distill.sequence.token_loss import TokenLoss
from keras_distill.sequence.token_step import TokenStep
from keras_distill.teachers.base import TeacherLike
from keras_distill.types import Nested, Tensor
from keras_distill.values import Value

# Arguments of `Distiller.compile` that act on labels or on a teacher that trains.
_NOT_TAKEN = (
    "label_mask",
    "distillation_loss_weights",
    "teacher_loss",
    "teacher_optimizer",
    "teacher_metrics",
    "metrics",
)


@keras.saving.register_keras_serializable(package="keras_distill")
class OnPolicyDistiller(TokenStep):
    r"""Trains a token model with a teacher on completions that the model writes.

    When a student writes, it reads prefixes of its own. Training on given texts never
    shows it such prefixes. Here, each step draws `u` from `[0, 1)`. If
    `u < student_fraction`, the student completes the prompts. Otherwise the step uses
    the batch's reference completions. The rest of the step is that of a `Distiller`:
    both models read the tokens, and `distillation_loss` compares their predictions of
    each token of the completions. No gradient passes through the sampling. The whole
    step is one compiled function.

    `fit` takes prompts, token ids of shape `(batch, time)`, or a dict:

    - `"prompts"`: the prompts, padded at one or both ends;
    - `"completions"`: reference completions, which end with the end token. Needed
      unless `student_fraction` is 1. Tokens after the first end token are ignored;
    - the key that `privileged_context` names, if it is given;
    - `"prompt_mask"`, `"completion_mask"`, `privileged_context + "_mask"`: True at
      tokens and False at padding. By default, the padding tokens at both ends of a row
      are padding.

    There are no labels. `fit` logs `student_fraction`, the loss, and these means over
    the tokens of completions: `forward_kl`, `reverse_kl`, `student_entropy` and
    `teacher_entropy`, at temperature 1 and in nats, and `teacher_agreement`, the share
    of tokens for which both models' most probable token is the same. `evaluate` uses
    the reference completions. Without them, the student writes completions.
    `distiller(x)` and `distiller.predict(x)` call the student, on token ids.

    Args:
        student: A built causal model: token ids `(batch, time)` to logits `(batch,
            time, vocabulary)`, as in `generate`. Start from a student that was trained
            on such texts.
        teacher: A causal model of the same vocabulary, or another teacher that reads
            token ids, as in `Distiller`: `teachers.EMA(student)`, an ensemble, a
            function.
        max_new_tokens: The most tokens that the student writes after a prompt.
        end_token: The token that ends a completion and is its last one. With None, all
            completions have `max_new_tokens` tokens.
        padding_token: The token of padding. Defaults to 0.
        student_fraction: The share of batches whose completions the student writes, in
            [0, 1]. A float, which a callback may assign, or a `LearningRateSchedule` of
            the optimiser's updates. 0 is supervised distillation. Defaults to 1.
        temperature: Divides the logits that the student samples from. The temperature
            of the loss is another one. Defaults to 1: the student's own distribution.
        top_k: Sample from the `top_k` most probable tokens. Defaults to None: from all.
        top_p: Of these, sample from the most probable ones that together have at least
            this probability. Defaults to None: from all.
        privileged_context: The key of tokens that only the teacher reads, before the
            prompt, such as a hint, a worked answer or a document. Defaults to None.
        seed: An integer makes a run repeatable. Saved files contain the random state.
            Defaults to None.
        name: Name of the model.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        TypeError: If `student_fraction` is neither a number nor a schedule.
        ValueError: If the student isn't built, or an argument is out of its range.

    Example:
        >>> import numpy as np
        >>> def model(units):
        ...     return keras.Sequential(
        ...         [keras.Input((None,), dtype="int32"), keras.layers.Embedding(6, 8),
        ...          keras.layers.GRU(units, return_sequences=True),
        ...          keras.layers.Dense(6)])
        >>> distiller = OnPolicyDistiller(
        ...     model(4), model(16), max_new_tokens=4, end_token=1, seed=0)
        >>> distiller.compile("adam")
        >>> prompts = np.array([[2, 3], [4, 0], [5, 2], [3, 3]])  # 0 is padding
        >>> history = distiller.fit(prompts, verbose=0)
        >>> sorted(history.history)[:4]
        ['alpha', 'distillation_loss', 'forward_kl', 'loss']

    Reference:
        Agarwal et al. 2024, "On-Policy Distillation of Language Models: Learning from
        Self-Generated Mistakes", https://arxiv.org/abs/2306.13649, algorithm 1.
    """

    @arguments.explained
    def __init__(
        self,
        student: keras.Model,
        teacher: TeacherLike | None = None,
        *,
        max_new_tokens: int,
        end_token: int | None,
        padding_token: int = 0,
        student_fraction: float | LearningRateSchedule = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        privileged_context: str | None = None,
        seed: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_count("max_new_tokens", max_new_tokens)
        Sampling(temperature, top_k, top_p)  # Raises errors for wrong arguments.
        _check_context(privileged_context)
        arguments.check_known(
            type(self).__name__, kwargs, arguments.parameters(keras.Layer.__init__)
        )
        fraction = _fraction(student_fraction)
        super().__init__(student, teacher, name=name, **kwargs)
        _check_built(student)
        self._begin(student_fraction=fraction)
        self.max_new_tokens = max_new_tokens
        self.end_token = end_token
        self.padding_token = padding_token
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.privileged_context = privileged_context
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    @property
    def student_fraction(self) -> float | LearningRateSchedule:
        """The share of batches whose completions the student writes. Assign a float."""
        return self._own.values["student_fraction"].value

    @student_fraction.setter
    def student_fraction(self, value: float) -> None:
        self._own.values["student_fraction"].value = value

    @arguments.explained
    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        *,
        distillation_loss: Any = None,
        alpha: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configure training.

        Args:
            optimizer: As in `keras.Model.compile`. With gradient accumulation, a
                `TokenLoss` is the mean over the tokens of all batches of an update.
            loss: The label loss on reference completions, which needs
                `student_fraction=0`. It must be a `keras.losses.Loss` with
                `reduction="mean_with_sample_weight"`, the mean over the completions'
                tokens. Defaults to None.
            distillation_loss: As in `Distiller.compile`. Defaults to
                `TokenLoss(GeneralizedJSD())`.
            alpha: The weight of the distillation loss, as in `Distiller.compile`.
                Defaults to 1 without `loss`, and to 0.5 with it.
            **kwargs: `check_teacher`, `weighted_metrics` (on reference completions, in
                `evaluate` and in training with a `loss`), `run_eagerly`,
                `steps_per_execution`, `jit_compile`, `auto_scale_loss`, as in
                `Distiller.compile`.

        Raises:
            ValueError: If `loss` has another reduction, if there is a `loss` and
                `student_fraction` isn't 0, or if an argument isn't for token models.
        """
        loss = None if loss is None else keras.losses.get(loss)
        self._check_compile(loss, kwargs)
        if distillation_loss is None:
            distillation_loss = TokenLoss(GeneralizedJSD())
        if alpha is None:
            alpha = 1.0 if loss is None else 0.5
        ours = {"distillation_loss": distillation_loss, "alpha": alpha}
        with warnings.catch_warnings():
            # Students of keras-hub have methods that prepare texts. `x` has token ids.
            warnings.filterwarnings("ignore", "The student has its own")
            super().compile(optimizer, loss, **ours, **kwargs)

    def write(self, prompts: Tensor, prompt_mask: Tensor) -> Completions:
        """Return the student's completions of prompts, within a step.

        Args:
            prompts: Int32 token ids of shape `(batch, time)`.
            prompt_mask: True at the tokens of prompts. Rows without tokens get no
                completion.
        """
        return generate(
            self.student,
            prompts,
            max_new_tokens=self.max_new_tokens,
            end_token=self.end_token,
            padding_token=self.padding_token,
            prompt_mask=prompt_mask,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed_generator,
        )

    def make_batch(self, x: Nested, training: bool) -> tuple[Nested, Nested, Tensor]:
        """Return inputs, labels and token weights of a step."""
        texts = token_batch.read(
            x,
            context=self.privileged_context,
            end_token=self.end_token,
            padding_token=self.padding_token,
        )
        rows = self._chosen(texts) if training else self._evaluated_rows(texts)
        x, labels, weight = token_batch.as_batch(
            rows,
            texts,
            padding_token=self.padding_token,
            length=declared_length(self.student),
        )
        is_labelled = self.loss is not None or (
            not training and self._compile_metrics is not None
        )
        has_labels = is_labelled and texts.completions is not None
        return x, labels if has_labels else None, weight

    def _evaluated_rows(self, texts: Texts) -> Completions:
        if texts.completions is None:
            return self.write(texts.prompts, texts.prompt_mask)
        length = ops.shape(texts.prompts)[1] + ops.shape(texts.completions)[1]
        return token_batch.references(texts, length, self.padding_token)

    def _chosen(self, texts: Texts) -> Completions:
        """Return the student's completions or the references, chosen at random."""
        fraction = self._own.values["student_fraction"]
        if texts.completions is None and fraction.value != 1.0:
            raise ValueError(
                "Batches that the student doesn't write need 'completions' in `x`. "
                f"Received: student_fraction={fraction.value}, no completions"
            )
        share = fraction.at(backend.updates(self.optimizer, self._lent.batches))
        fraction.update_state(share)
        if texts.completions is None:
            return self.write(texts.prompts, texts.prompt_mask)
        number = keras.random.uniform((), dtype="float32", seed=self.seed_generator)
        writes = number < share
        # If the student doesn't write, all prompts are masked, and the loop ends at
        # once. In a branch of a condition, JAX couldn't update the random state.
        mask = ops.logical_and(texts.prompt_mask, writes)
        written = self.write(texts.prompts, mask)
        room = ops.shape(texts.completions)[1]  # A tensor if it isn't known.
        largest = max if isinstance(room, int) else ops.maximum
        length = ops.shape(texts.prompts)[1] + largest(self.max_new_tokens, room)
        written = token_batch.padded(written, length, self.padding_token)
        given = token_batch.references(texts, length, self.padding_token)
        return Completions(
            *(ops.where(writes, *both) for both in zip(written, given, strict=True))
        )

    def _check_compile(self, loss: Any, others: dict[str, Any]) -> None:
        given = {name: others.get(name) for name in _NOT_TAKEN}
        given = {name: value for name, value in given.items() if value is not None}
        if given:
            remedy = (
                "Pass them as `weighted_metrics`, which leave out prompts and padding"
                if "metrics" in given
                else "Leave them out"
            )
            raise ValueError(
                f"An `OnPolicyDistiller` doesn't take {list(given)}. {remedy}. "
                f"Received: {given}"
            )
        if loss is None:
            return
        if self.student_fraction != 0.0:
            raise ValueError(
                "A label loss needs reference completions in each batch, so "
                "`student_fraction` must be 0. Received: student_fraction="
                f"{self.student_fraction}, loss={loss}"
            )
        if getattr(loss, "reduction", None) != "mean_with_sample_weight":
            raise ValueError(
                "The label loss must be a mean over the tokens of completions: pass "
                "`keras.losses.SparseCategoricalCrossentropy(from_logits=True, "
                'reduction="mean_with_sample_weight")`. Received: loss='
                f"{loss}, reduction={getattr(loss, 'reduction', None)}"
            )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, with a teacher only if it changes."""
        config = super().get_config()
        del config["privileged_features"], config["hints"]
        return {
            **config,
            "max_new_tokens": self.max_new_tokens,
            "end_token": self.end_token,
            "padding_token": self.padding_token,
            "student_fraction": keras.saving.serialize_keras_object(
                self.student_fraction
            ),
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "privileged_context": self.privileged_context,
            "seed": self.seed,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "OnPolicyDistiller":
        """Build the distiller from `get_config`'s result."""
        fraction = keras.saving.deserialize_keras_object(
            config["student_fraction"], custom_objects=custom_objects
        )
        config = {**config, "student_fraction": fraction}
        return super().from_config(config, custom_objects)


def _fraction(value: float | LearningRateSchedule) -> Value:
    return Value(
        "student_fraction",
        value,
        requirement="in [0, 1]",
        accepts=lambda number: 0.0 <= number <= 1.0,
    )


def _check_built(student: keras.Model) -> None:
    if not student.built:
        raise ValueError(
            f"The student '{student.name}' must be built: call it on token ids first. "
            f"Received: a model of type {type(student).__name__}"
        )


def _check_context(name: Any) -> None:
    """Raise ValueError unless the key of a context is free."""
    if name is None:
        return
    taken = ["prompts", "completions", "prompt_mask", "completion_mask"]
    if not isinstance(name, str) or name in taken:
        raise ValueError(
            "`privileged_context` must be a key of `x` of its own, a string. Received: "
            f"privileged_context={name!r}"
        )

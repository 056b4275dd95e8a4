"""Speculative distillation: the teacher replaces improbable tokens of the student."""

from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill import arguments
from keras_distill.sequence.generation import Completions
from keras_distill.sequence.on_policy import OnPolicyDistiller
from keras_distill.sequence.sampling import check_count
from keras_distill.sequence.speculative import propose_and_check
from keras_distill.sequence.token_batch import Texts
from keras_distill.teachers.base import TeacherLike
from keras_distill.types import Tensor

# The log's name for the share of tokens that the teacher replaced.
_REPLACED = "replaced_fraction"


@keras.saving.register_keras_serializable(package="keras_distill")
class SpeculativeDistiller(OnPolicyDistiller):
    """Trains a token model on completions that it proposes and its teacher corrects.

    It differs from an `OnPolicyDistiller` in training: a token of the student is
    replaced if `teacher_top_k` or more tokens are more probable for the teacher (see
    `propose_and_check`). A weak student would otherwise write prefixes on which the
    teacher's predictions are poor. Few tokens of a good student are replaced. `fit`
    also logs `replaced_fraction`, the share of replaced tokens. `evaluate` replaces no
    tokens.

    Args:
        student: A built causal model, as in `OnPolicyDistiller`.
        teacher: A causal Keras model of the same vocabulary.
        max_new_tokens: The most tokens that a completion has.
        end_token: The token that ends a completion and is its last one. With None, all
            completions have `max_new_tokens` tokens.
        padding_token: The token of padding. Defaults to 0.
        teacher_top_k: The teacher keeps a token of the student that is among the
            teacher's `teacher_top_k` most probable tokens. Defaults to 25.
        block: The number of tokens that the student proposes before the teacher checks
            them in one call. The result doesn't depend on it. Defaults to 4.
        student_fraction: The share of batches whose completions are proposed, in
            [0, 1], as in `OnPolicyDistiller`. On the other batches, the student learns
            from the reference completions. Defaults to 1.
        temperature: Divides the student's logits, from which it samples. The teacher
            samples at temperature 1. Defaults to 1.
        top_k: The student samples from its `top_k` most probable tokens. Defaults to
            None: from all.
        top_p: Of these, it samples from the most probable ones that together have at
            least this probability. Defaults to None: from all.
        seed: An integer makes a run repeatable. Saved files contain the random state.
            Defaults to None.
        name: Name of the model.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        TypeError: If `student_fraction` is neither a number nor a schedule; in `fit`,
            if the teacher isn't a Keras model.
        ValueError: If the student isn't built, or an argument is out of its range; in
            `fit`, if the teacher has another vocabulary.

    Example:
        >>> import numpy as np
        >>> def model(units):
        ...     return keras.Sequential(
        ...         [keras.Input((None,), dtype="int32"), keras.layers.Embedding(6, 8),
        ...          keras.layers.GRU(units, return_sequences=True),
        ...          keras.layers.Dense(6)])
        >>> distiller = SpeculativeDistiller(
        ...     model(4), model(16), max_new_tokens=4, end_token=1, teacher_top_k=3)
        >>> distiller.compile("adam")
        >>> prompts = np.array([[2, 3], [4, 0], [5, 2], [3, 3]])  # 0 is padding
        >>> history = distiller.fit(prompts, verbose=0)
        >>> 0 <= history.history["replaced_fraction"][0] <= 1
        True

    Reference:
        Xu et al. 2024, "Speculative Knowledge Distillation: Bridging the
        Teacher-Student Gap Through Interleaved Sampling",
        https://arxiv.org/abs/2410.11325.
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
        teacher_top_k: int = 25,
        block: int = 4,
        student_fraction: float | LearningRateSchedule = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_count("teacher_top_k", teacher_top_k)
        check_count("block", block)
        arguments.check_known(
            type(self).__name__, kwargs, arguments.parameters(keras.Layer.__init__)
        )
        super().__init__(
            student,
            teacher,
            max_new_tokens=max_new_tokens,
            end_token=end_token,
            padding_token=padding_token,
            student_fraction=student_fraction,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            name=name,
            **kwargs,
        )
        self._own.of_making[_REPLACED] = keras.metrics.Mean(_REPLACED)
        self.teacher_top_k = teacher_top_k
        self.block = block

    def write(self, prompts: Tensor, prompt_mask: Tensor) -> Completions:
        """Return completions that the student proposes and the teacher corrects."""
        if not isinstance(self.teacher, keras.Model):
            raise TypeError(
                "The teacher must be a causal Keras model, which checks the tokens "
                "that the student proposes. For another teacher, use an "
                f"`OnPolicyDistiller`. Received: teacher={self.teacher!r}"
            )
        written = propose_and_check(
            self.student,
            self.teacher,
            prompts,
            max_new_tokens=self.max_new_tokens,
            teacher_top_k=self.teacher_top_k,
            block=self.block,
            end_token=self.end_token,
            padding_token=self.padding_token,
            prompt_mask=prompt_mask,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed_generator,
        )
        self._own.of_making[_REPLACED].update_state(
            written.is_replaced, sample_weight=written.is_completion
        )
        return Completions(written.tokens, written.is_completion)

    def _evaluated_rows(self, texts: Texts) -> Completions:
        if texts.completions is None:
            # The evaluated completions are the student's alone.
            return super().write(texts.prompts, texts.prompt_mask)
        return super()._evaluated_rows(texts)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, with a teacher only if it changes."""
        config = super().get_config()
        del config["privileged_context"]
        return {**config, "teacher_top_k": self.teacher_top_k, "block": self.block}

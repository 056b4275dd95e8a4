"""A trainer whose steps use variables that it doesn't own."""

from collections.abc import Sequence

import keras

from keras_distill import backend


class Borrower(keras.Model):
    """A model whose compiled step on JAX gets borrowed variables as arguments.

    JAX's trainer makes the arguments from `non_trainable_variables`. A variable that
    isn't among them is a constant in the step. `weights` and files don't hold borrowed
    variables.
    """

    @property
    def _borrowed(self) -> Sequence[keras.Variable]:
        """The variables that a step reads or changes, even if the model owns some."""
        return ()

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        """The state that a step reads or changes, without trainable weights."""
        own: list[keras.Variable] = super().non_trainable_variables
        if backend.is_tensorflow():
            return own
        others = {id(variable): variable for variable in self._borrowed}
        # No variable may be here twice, because JAX reuses its memory.
        taken = [*super().variables, *self.trainable_variables, *self.metrics_variables]
        for variable in taken:
            others.pop(id(variable), None)
        return [*own, *others.values()]

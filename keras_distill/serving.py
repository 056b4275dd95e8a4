"""A trainer whose student serves, and is exported with its provenance."""

from typing import Any

import keras

from keras_distill.inputs import served
from keras_distill.signatures import like
from keras_distill.types import Nested


class ServesStudent(keras.Model):
    """A model that holds a `student`, which is exported in its place."""

    student: keras.Model
    teacher: Any
    privileged_features: tuple[str, ...]

    @like(keras.Model.export)
    def export(self, *args: Any, **kwargs: Any) -> Any:
        """Export the student, as `keras.Model.export` does."""
        return self.student.export(*args, **kwargs)

    def serving_model(self) -> keras.Model:
        """Return the student, which `keras_distill.export` exports."""
        return self.student

    def serving_inputs(self, inputs: Nested) -> Nested:
        """Return the part of a training batch that the student reads."""
        withheld: tuple[str, ...] = self._withheld
        return served(self.student, inputs, withheld=withheld)

    def provenance(self) -> dict[str, Any]:
        """Return how the student was trained, for the manifest of its export.

        Returns:
            Values that JSON can hold: the teacher's name, `alpha`, the distillation
            loss with its temperature, the privileged features, the number of steps.

        Raises:
            RuntimeError: The distiller isn't compiled.
        """
        if not self.compiled:
            raise RuntimeError("`provenance` is of a distiller that was compiled.")
        config = self.get_compile_config()
        return {
            "teacher": getattr(self.teacher, "name", type(self.teacher).__name__),
            "alpha": config["alpha"],
            "distillation_loss": config["distillation_loss"],
            "privileged_features": list(self.privileged_features),
            "steps": int(self.optimizer.iterations),
        }

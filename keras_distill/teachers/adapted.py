"""A teacher whose inputs or outputs differ from the student's."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.batch import Batch
from keras_distill.inputs import declared_names, select
from keras_distill.teachers import base
from keras_distill.teachers.adapters import (
    Adapter,
    ClassOrder,
    as_adapters,
    images_as_floats,
    serialized,
)
from keras_distill.teachers.base import (
    FollowingTeacher,
    Lesson,
    Teacher,
    TeacherLike,
    as_teacher,
)
from keras_distill.teachers.correctness import CorrectnessWeighted
from keras_distill.teachers.reach import reached_variables
from keras_distill.types import Nested


@keras.saving.register_keras_serializable(package="keras_distill")
class Adapted(keras.Model, Teacher):
    r"""A teacher with another resolution, normalisation or order of classes.

    `t = outputs(model(inputs(x)))`. The student reads `x` as it is, and learns from
    `t`. An adapted teacher is a Keras model: evaluate it on the student's data and
    labels to check the adaptation before it teaches.

    The model is called with `training=False`.

    Args:
        model: The teacher: a built Keras model or layer, another teacher such as
            `Ensemble`, or a callable that takes the inputs of a batch.
        inputs: A function that is applied to the inputs of the model, e.g. a Keras
            layer such as `keras.layers.Resizing(224, 224)`. If the batch is a dict, the
            function gets a dict of the keys that the model declares, or a tensor if the
            model has one `keras.Input` that isn't in a dict. Or a dict of functions by
            key, for some of the inputs. Images (uint8 tensors of three axes or more)
            are first cast to float32, so that arithmetic on them neither overflows nor
            rounds. Defaults to None: the model reads the batch as it is.
        outputs: A function of the whole structure of the model's outputs, e.g.
            `lambda logits: logits[:, :10]`. Or an order of classes: a sequence with the
            teacher's class index for each of the student's classes. Or a dict of
            functions and sequences by output name, for some of the outputs. Defaults to
            None: the outputs aren't changed.
        name: Name of the model.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        TypeError: If the model, `inputs` or `outputs` isn't of a kind listed above, if
            the model follows a student, or if `outputs` adapts a `CorrectnessWeighted`.
            Adapt the members of the latter instead.
        ValueError: If a Keras model isn't built, or if an order of classes has
            an index twice, or an index that no class of the teacher has. If the model
            doesn't declare its outputs, the indices are checked when it is called.

    Example:
        The teacher has the classes cat, dog, fox; the student has dog and cat.

        >>> import numpy as np
        >>> teacher = Adapted(
        ...     lambda x: x @ np.eye(3, dtype="float32"),
        ...     inputs=keras.layers.Rescaling(1 / 255),
        ...     outputs=[1, 0],
        ... )
        >>> x = np.array([[255.0, 0.0, 51.0]], "float32")
        >>> keras.ops.convert_to_numpy(teacher(x)).round(3).tolist()
        [[0.0, 1.0]]
    """

    def __init__(
        self,
        model: TeacherLike,
        inputs: Adapter | Mapping[str, Adapter] | None = None,
        *,
        outputs: Adapter
        | Sequence[int]
        | Mapping[str, Adapter | Sequence[int]]
        | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        _check_model(model, outputs)
        # The model casts its inputs to its own dtype.
        super().__init__(name=name, **{"autocast": False, **kwargs})
        self.model = model
        # Keras uses the names `inputs` and `outputs` for tensors of Functional models.
        self.adapt_inputs = as_adapters("inputs", inputs)
        self.adapt_outputs = as_adapters("outputs", outputs, may_be_orders=True)
        self._check_known_outputs()
        # The model is built, and no weights are added to it.
        self.built = True

    @property
    def reads(self) -> Sequence[str]:
        """Keys of the inputs that hold outputs recorded for the model."""
        return as_teacher(self.model).reads

    @property
    def declares(self) -> Sequence[str] | None:
        """Names of the model's inputs; None where they aren't known."""
        return as_teacher(self.model).declares

    @property
    def logged_members(self) -> Sequence[str]:
        """Names of the model's members against which losses are logged."""
        return as_teacher(self.model).logged_members

    @property
    def changes(self) -> bool:
        """Whether the model changes while it teaches."""
        return as_teacher(self.model).changes

    @property
    def state(self) -> Sequence[keras.Variable]:
        """The variables of the model and of the functions that adapt it, each once."""
        functions = self.adapt_inputs, self.adapt_outputs
        return reached_variables(
            list(as_teacher(self.model).state), self.variables, functions
        )

    def as_layer(self) -> keras.Layer | None:
        """Return the model in which hints look up the teacher's layers."""
        return as_teacher(self.model).as_layer()

    def call(self, inputs: Nested, training: bool | None = None) -> Nested:
        """Return the adapted outputs. The model is called with `training=False`."""
        seen = self._adapted_inputs(inputs)
        return self._adapted_outputs(base.call(self.model, seen))

    def teach(self, batch: Batch) -> Lesson:
        """Return the adapted outputs of the model and of its logged members."""
        seen = self._adapted_inputs(batch.inputs, batch.withheld)
        lesson = base.checked_lesson(
            as_teacher(self.model), batch._replace(inputs=seen)
        )
        self._check_length(batch.output)
        members = {
            name: self._adapted_outputs(member)
            for name, member in lesson.members.items()
        }
        return Lesson(self._adapted_outputs(lesson.targets), members)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments.

        Raises:
            TypeError: If the model isn't a Keras layer, or if a function is neither a
                Keras layer nor registered with Keras.
        """
        if not isinstance(self.model, keras.Layer):
            raise TypeError(
                "An adapted teacher can be saved where its model is a Keras model or "
                "layer: other callables have no config. Make it a layer, or save what "
                f"it is made of. Received: model={self.model!r}"
            )
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.model),
            "inputs": serialized("inputs", self.adapt_inputs),
            "outputs": serialized("outputs", self.adapt_outputs),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "Adapted":
        """Build the teacher from `get_config`'s result."""
        made = {
            name: keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
            for name in ("model", "inputs", "outputs")
        }
        return cls(**{**config, **made})

    def _adapted_inputs(self, x: Nested, withheld: Sequence[str] = ()) -> Nested:
        """Return the inputs of the model."""
        functions = self.adapt_inputs
        if functions is None:
            return x
        if not isinstance(functions, Mapping):
            return functions(images_as_floats(self._read(x, withheld)))
        if not isinstance(x, Mapping) or any(key not in x for key in functions):
            keys = sorted(x) if isinstance(x, Mapping) else None
            raise ValueError(
                "`inputs` holds functions of keys that the batch doesn't hold. Pass a "
                "dict with these keys as `x`, or one function as `inputs`. Received: "
                f"functions of {sorted(functions)}, keys {keys}"
            )
        adapted = {
            key: function(images_as_floats(x[key]))
            for key, function in functions.items()
        }
        return {**x, **adapted}

    def _read(self, x: Nested, withheld: Sequence[str]) -> Nested:
        """Return the part of the inputs that the model reads."""
        if not isinstance(self.model, Teacher):
            # The dtypes that the model declares are those after the function.
            return select(self.model, x, withheld=withheld, check_dtypes=False)
        if not isinstance(x, Mapping):
            return x
        names = self.declares
        kept = x if names is None else [*names, *self.reads]
        hidden = [key for key in withheld if key not in self.reads]
        return _with_keys(x, kept, hidden)

    def _adapted_outputs(self, outputs: Nested) -> Nested:
        """Return the outputs of the model, adapted to the student's."""
        functions = self.adapt_outputs
        if functions is None or outputs is None:
            return outputs
        outputs = keras.tree.map_structure(ops.convert_to_tensor, outputs)
        if isinstance(functions, Mapping):
            return self._by_name(functions, outputs)
        return functions(outputs)

    def _by_name(self, functions: Mapping[str, Adapter], outputs: Nested) -> Nested:
        """Return the outputs, of which the named ones are adapted by functions."""
        if isinstance(outputs, Mapping):
            names = list(outputs)
        else:
            names = list(getattr(self.model, "output_names", None) or ())
        unknown = [name for name in functions if name not in names]
        flat = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
        flat = flat if isinstance(flat, list | tuple) else [flat]
        if unknown or len(names) != len(flat):
            raise ValueError(
                "The keys of `outputs` must be names of the model's outputs. Received: "
                f"outputs for {sorted(functions)}, a model with outputs {names}"
            )
        adapted = [
            functions[name](output) if name in functions else output
            for name, output in zip(names, flat, strict=True)
        ]
        if isinstance(outputs, Mapping):
            return dict(zip(names, adapted, strict=True))
        return adapted if isinstance(outputs, list | tuple) else adapted[0]

    def _check_known_outputs(self) -> None:
        """Check orders of classes now if the model declares its outputs."""
        model, functions = self.model, self.adapt_outputs
        if not isinstance(model, keras.Model) or declared_names(model) is None:
            return
        # A Sequential model has an `output` only once another layer has called it.
        is_sequential = isinstance(model, keras.Sequential)
        output = model.outputs[0] if is_sequential else model.output
        if isinstance(functions, Mapping):
            orders = {k: f for k, f in functions.items() if isinstance(f, ClassOrder)}
            if orders:
                self._by_name(orders, output)
        elif isinstance(functions, ClassOrder):
            functions(output)

    def _check_length(self, student: Nested) -> None:
        """Raise ValueError unless orders have an index for each student's class."""
        functions = self.adapt_outputs
        if not isinstance(functions, Mapping):
            functions, student = {"": functions}, {"": student}
        for name, order in functions.items():
            output = student.get(name) if isinstance(student, Mapping) else None
            if isinstance(order, ClassOrder) and output is not None:
                order.check_length(output)


def _check_model(model: Any, outputs: Any) -> None:
    if model is None:
        raise TypeError("`model` must be a Keras model or a callable. Received: None")
    if isinstance(model, FollowingTeacher):
        raise TypeError(
            "A teacher that follows its student can't be adapted: nobody would tell "
            f"it of updates. Received: {model!r}"
        )
    as_teacher(model)
    layers = model._flatten_layers() if isinstance(model, keras.Layer) else ()
    if outputs is not None and any(isinstance(m, CorrectnessWeighted) for m in layers):
        raise TypeError(
            "A `CorrectnessWeighted` compares its members' outputs to the student's "
            "labels, so `outputs` would come too late. Adapt its members instead. "
            f"Received: model={model!r}, outputs={outputs!r}"
        )


def _with_keys(x: Any, kept: Any, hidden: Sequence[str]) -> dict[str, Any]:
    return {
        key: _with_keys(item, kept, hidden) if isinstance(item, Mapping) else item
        for key, item in x.items()
        if key in kept and key not in hidden
    }

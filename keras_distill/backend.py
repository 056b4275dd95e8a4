"""Functions that depend on the backend that Keras runs on."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from keras_distill.types import Nested, Tensor

# Operations of TensorFlow that write variables, such as those of seeds.
_WRITING_OPS = re.compile("Assign|ResourceScatter|Rng")

# Operations of TensorFlow that keep the values of an activation, and which of their
# inputs holds them.
_TRANSPARENT_OPS = {
    "Cast": 0,
    "CheckNumerics": 0,
    "Identity": 0,
    "Maximum": 0,
    "Minimum": 0,
    "Reshape": 0,
    "SelectV2": 1,
    "StopGradient": 0,
    "Transpose": 0,
}


def name() -> str:
    """Return the name of the backend, e.g. `"jax"`."""
    return str(keras.backend.backend())


def is_tensorflow() -> bool:
    """Return whether Keras runs on TensorFlow."""
    return bool(keras.backend.backend() == "tensorflow")


def is_jax() -> bool:
    """Return whether Keras runs on JAX."""
    return bool(keras.backend.backend() == "jax")


def replicas() -> int:
    """Return the number of devices among which Keras divides the loss of a batch."""
    if not is_tensorflow():
        return 1
    import tensorflow as tf

    count: int = tf.distribute.get_strategy().num_replicas_in_sync
    return count


def sum_over_replicas(x: Tensor) -> Tensor:
    """Return the sum of a number over the devices that share a batch."""
    if replicas() == 1 or in_cross_replica_context():
        return x
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, x)


def is_traced(x: Any) -> bool:
    """Return whether a tensor has no values yet, e.g. while a step is compiled."""
    if is_tensorflow():
        import tensorflow as tf

        return bool(tf.is_symbolic_tensor(x))
    if is_jax():
        import jax

        return isinstance(x, jax.core.Tracer | keras.KerasTensor)
    return isinstance(x, keras.KerasTensor)


def keras_mask(x: Tensor) -> Tensor | None:
    """Return the mask that a Keras layer has attached to its output, or None."""
    # Keras' own function, because JAX's tensors have no attributes.
    from keras.src.backend.common.masking import get_keras_mask

    return get_keras_mask(x)


def assert_in_graph(holds: Tensor, message: str, values: Sequence[Tensor]) -> None:
    """Raise `message` when a TensorFlow graph runs in which a condition is False.

    XLA and JAX leave assertions out: code that they compile can't raise errors.

    Args:
        holds: The condition, a boolean scalar.
        message: The text of the `tf.errors.InvalidArgumentError`.
        values: Tensors that are printed after the message.
    """
    if is_tensorflow():
        import tensorflow as tf

        tf.debugging.Assert(holds, [message, *values])


def check_finite(x: Tensor, message: str) -> Tensor:
    """Return a tensor, or raise `message` if it holds NaN or infinity.

    In a TensorFlow graph, the error is raised when the graph runs.
    """
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)):
        return x
    if is_tensorflow():
        import tensorflow as tf

        return tf.debugging.check_numerics(x, message)
    if not bool(keras.ops.all(keras.ops.isfinite(x))):
        raise invalid_values(message)
    return x


def invalid_values(message: str) -> Exception:
    """Return the error that an operation of the backend raises for wrong values."""
    if is_tensorflow():
        import tensorflow as tf

        error: Exception = tf.errors.InvalidArgumentError(None, None, message)
        return error
    return FloatingPointError(message)


def compiles(model: keras.Model) -> bool:
    """Return whether the steps of a model can't raise errors about values."""
    return is_jax() or bool(model.jit_compile)


def updates(
    optimizer: keras.optimizers.Optimizer,
    counted: keras.Variable,
    batches_ago: int = 0,
) -> Tensor:
    """Return the number of updates that an optimiser has made so far.

    Args:
        optimizer: The optimiser, whose own count is read on TensorFlow and Torch.
        counted: The number of batches that were trained on, which is read on JAX: its
            trainer hides the optimiser's variables from the loss.
        batches_ago: Return the number as it was this many batches ago.
    """
    if not (is_jax() or batches_ago):
        return optimizer.iterations
    batches = counted if is_jax() else _counting(optimizer)._iterations
    steps = optimizer.gradient_accumulation_steps or 1
    return (keras.ops.add(batches, 0) - batches_ago) // steps


def accumulated_batches(optimizer: keras.optimizers.Optimizer) -> Tensor:
    """Return how many batches' gradients an optimiser has added for its next update.

    Call it within the step; on JAX, within the `make` of `on_made_batch`.
    """
    return ops.mod(_counting(optimizer)._iterations, batches_per_update(optimizer))


def batches_per_update(optimizer: keras.optimizers.Optimizer) -> int:
    """Return the number of batches whose gradients an optimiser adds for an update."""
    return _counting(optimizer).gradient_accumulation_steps or 1


def scale_accumulated(optimizer: keras.optimizers.Optimizer, factor: Tensor) -> None:
    """Multiply the gradients that an optimiser has added for its next update.

    Call it within the step; on JAX, within the `make` of `on_made_batch`.
    """
    for gradient in _counting(optimizer)._accumulated_gradients:
        if gradient is not None:
            gradient.assign(gradient * ops.cast(factor, gradient.dtype))


def batches_seen(optimizer: keras.optimizers.Optimizer) -> int:
    """Return the number of an optimiser's batches. Call it between two steps."""
    return int(keras.ops.convert_to_numpy(_counting(optimizer)._iterations))


def _counting(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimiser that counts: of a `LossScaleOptimizer`, the inner one."""
    inner: keras.optimizers.Optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return inner


def count(batches: keras.Variable) -> None:
    """Count a batch in the running step on JAX, where `updates` reads the count."""
    if is_jax():
        batches.assign(keras.ops.add(batches, 1))


def on_made_batch(
    step: Callable[..., Any], model: keras.Model, make: Callable[[Any], Any], *args: Any
) -> Any:
    """Return the result of a step of Keras' trainer on a batch made from its data.

    No gradient passes through `make`.

    Args:
        step: `train_step` or `test_step` of `keras.Model`.
        model: The model whose step it is.
        make: Returns the batch for the data. It reads and assigns variables of the
            model and, in training, of its optimiser.
        *args: The arguments of the step: on JAX, the state and the data; elsewhere the
            data.
    """
    if not is_jax():
        return step(make(*args))
    state, data = args
    variables = [model.trainable_variables, model.non_trainable_variables]
    if len(state) == 4:
        variables.append(model.optimizer.variables)
    variables.append(model.metrics_variables)
    pairs = [
        pair
        for of_kind, values in zip(variables, state, strict=True)
        for pair in zip(of_kind, values, strict=True)
    ]
    with keras.StatelessScope(state_mapping=pairs) as scope:
        batch = make(data)
    state = tuple([scope.get_current_value(v) for v in kind] for kind in variables)
    return step(state, batch)


def after_update(result: Any, model: keras.Model, action: Callable[[], None]) -> Any:
    """Run an action on a model after a step of Keras' trainer; return the result.

    Args:
        result: The result of `keras.Model.train_step`: on JAX, the logs and the state
            after the step; elsewhere, the logs of a step that has updated the model.
        model: The model that trains.
        action: Reads and assigns variables of the model.
    """
    if not is_jax():
        action()
        return result
    logs, (trainable, non_trainable, *others) = result
    pairs = [
        *zip(model.trainable_variables, trainable, strict=True),
        *zip(model.non_trainable_variables, non_trainable, strict=True),
    ]
    with keras.StatelessScope(state_mapping=pairs) as scope:
        action()
    changed = [scope.get_current_value(v) for v in model.non_trainable_variables]
    return logs, (trainable, changed, *others)


def _trainers_scope() -> Any:
    """Return the scope in which JAX's trainer computes the loss; None outside of it."""
    # A scope refers to the scope around it.
    with keras.StatelessScope(initialize_variables=False) as within:
        return within.original_scope


@contextmanager
def collecting_losses() -> Iterator[None]:
    """Collect the losses that layers add when they run in a step.

    Keras' JAX trainer collects such losses in the pass of its own model only. For other
    models, `Layer.losses` would hold weight regularisers only.
    """
    outer = _trainers_scope()
    if outer is None:
        yield
        return
    before, outer.collect_losses = outer.collect_losses, True
    try:
        yield
    finally:
        outer.collect_losses = before


def assign_where(
    pairs: Sequence[tuple[keras.Variable, keras.Variable]], condition: Tensor
) -> None:
    """Assign values in a step if a condition is True; otherwise, change nothing.

    Args:
        pairs: The variables that are assigned, each with the variable whose value it
            gets. The step must not train any of them.
        condition: A boolean scalar.
    """
    if not is_tensorflow():
        for variable, other in pairs:
            old, new = ops.convert_to_tensor(variable), ops.convert_to_tensor(other)
            variable.assign(ops.where(condition, new, old))
        return
    import tensorflow as tf

    values = [(variable.value, other.value) for variable, other in pairs]

    def assign(strategy: Any, condition: Tensor) -> None:
        for variable, other in values:
            strategy.extended.update(
                variable,
                lambda old, new, due: old.assign(tf.where(due, new, old)),
                args=(other, condition),
                group=False,
            )

    # As optimisers do: variables that several devices mirror are assigned from outside
    # of the devices.
    tf.distribute.get_replica_context().merge_call(assign, args=(condition,))


def before_gradients(loss: Tensor) -> Tensor:
    """Return a loss that a TensorFlow graph computes before any of its gradients.

    A check within the loss then raises its error before any weight is updated. Each
    gradient is a multiple of a number that waits for the loss.
    """
    if not is_tensorflow():
        return loss
    import tensorflow as tf

    with tf.control_dependencies([loss]):
        one = tf.identity(tf.ones((), loss.dtype))
    return loss * one


def ends_data(error: BaseException) -> bool:
    """Return whether an error tells Keras that the data have ended."""
    if isinstance(error, StopIteration):
        return True
    if not is_tensorflow():
        return False
    import tensorflow as tf

    return isinstance(error, tf.errors.OutOfRangeError)


def giving_back(step: Callable[..., Any], model: keras.Model) -> Callable[..., Any]:
    """Return a step that gives its model's variables their values back after an error.

    JAX's trainer removes the values from a model's variables, passes them to the step,
    and stores the values that the step returns.

    Args:
        step: The function of the trainer that runs one or more steps.
        model: The model.
    """
    if not is_jax():
        return step

    def careful_step(state: Any, iterator: Any) -> Any:
        try:
            return step(state, iterator)
        except StopIteration:
            raise
        except BaseException:
            names = ["trainable_variables", "non_trainable_variables"]
            if len(state) == 4:
                names.append("optimizer_variables")
            names.append("metrics_variables")
            values = [value for values in state for value in values]
            # A step that had begun to run has used up the memory of its arguments.
            if not any(value.is_deleted() for value in values):
                model._jax_state = dict(zip(names, state, strict=False))
                model._jax_state_synced = False
                model.jax_state_sync()
            raise

    return careful_step


def is_of_inner_trace(x: Tensor) -> bool:
    """Return whether a tensor was made in a loop or a condition that has ended.

    JAX raises an error of its own if such a tensor is used.
    """
    if not is_tensorflow():
        return False
    import tensorflow as tf

    if not tf.is_symbolic_tensor(x):
        return False
    graph = getattr(x, "graph", None)
    return graph is not None and graph is not tf.compat.v1.get_default_graph()


def after_check(
    x: Tensor, holds: Tensor, message: str, values: Sequence[Tensor]
) -> Tensor:
    """Return a tensor that a TensorFlow graph computes once a condition has held.

    Everything computed from it waits for the check, including updates of variables.

    Args:
        x: The tensor.
        holds: The condition, a boolean scalar.
        message: The text of the `tf.errors.InvalidArgumentError`.
        values: Tensors that are printed after the message.
    """
    import tensorflow as tf

    check = tf.debugging.Assert(holds, [message, *values])
    # Outside of a graph, the check has run already, and has returned None.
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(x)


@contextmanager
def known_writes(message: str) -> Iterator[None]:
    """Raise `message` if the block assigns variables that JAX's trainer doesn't know.

    The trainer would drop the assigned values. Other backends assign all variables.

    Raises:
        TypeError: If there is such a variable.
    """
    scope = _trainers_scope() if is_jax() else None
    if scope is None:
        yield
        return
    before = set(scope.state_mapping)
    yield
    if not before.issuperset(scope.state_mapping):
        raise TypeError(message)


def writes_state(call: Callable[[], Any]) -> set[str]:
    """Return the names of the operations or variables with which a call writes state.

    TensorFlow traces the call and doesn't run it. Other backends run it, or trace it
    within a step, and drop the written values.
    """
    if not is_tensorflow():
        with _Writes() as scope:
            call()
        written: set[str] = scope.names
        return written
    import tensorflow as tf

    graph = tf.__internal__.FuncGraph("called_again")
    with graph.as_default():
        call()
    traced = graph.as_graph_def()
    nodes = [*traced.node, *(n for f in traced.library.function for n in f.node_def)]
    return {node.op for node in nodes if _WRITING_OPS.search(node.op)}


class _Writes(keras.StatelessScope):
    """A scope that records which variables are assigned, and keeps their values.

    Variables have the values that the scope around it gives them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def add_update(self, update: tuple[keras.Variable, Tensor]) -> None:
        self.names.add(f"Assign {update[0].path}")
        super().add_update(update)

    def get_current_value(self, variable: keras.Variable) -> Tensor | None:
        value = super().get_current_value(variable)
        if value is None and self.original_scope is not None:
            value = self.original_scope.get_current_value(variable)
        return value


def widest_float() -> str:
    """Return the dtype for maths that needs more digits than float32.

    JAX has float64 only where `jax_enable_x64` is set.
    """
    if is_jax():
        import jax.numpy as jnp

        return str(jnp.result_type(float))
    return "float64"


def exact_matmul(x: Tensor, y: Tensor) -> Tensor:
    """Return the product of two matrices in the precision of their dtype.

    JAX would multiply float32 in fewer digits on accelerators.
    """
    if is_jax():
        import jax.numpy as jnp

        return jnp.matmul(x, y, precision="highest")
    return ops.matmul(x, y)


def one_by_one(
    count: Tensor, body: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return the state after `state = body(i, *state)` for each `i` below `count`.

    In `ops.fori_loop`, TensorFlow would run up to ten passes at the same time, each
    with its own memory.

    Args:
        count: The number of passes, an integer scalar.
        body: Returns the state after a pass. Tensors keep their shapes.
        state: The state before the first pass.
    """
    if not is_tensorflow():
        looped: tuple[Tensor, ...] = ops.fori_loop(
            0, count, lambda i, state: body(i, *state), state
        )
        return looped
    import tensorflow as tf

    _, *state = tf.while_loop(
        lambda i, *_: i < count,
        lambda i, *state: (i + 1, *body(i, *state)),
        (tf.zeros((), "int32"), *state),
        parallel_iterations=1,
    )
    return tuple(state)


def comes_from(output: Tensor, operation: str) -> bool:
    """Return whether an operation computes a tensor of a TensorFlow graph.

    Operations that keep the values, such as a cast or a reshape, may follow it.
    Returns False for other tensors.

    Args:
        output: The tensor.
        operation: TensorFlow's name of the operation, e.g. `"Softmax"`.
    """
    if not (is_tensorflow() and is_traced(output)):
        return False
    found = output.op
    while found.type in _TRANSPARENT_OPS:
        found = found.inputs[_TRANSPARENT_OPS[found.type]].op
    return bool(found.type == operation)


def has_rank(x: Tensor) -> bool:
    """Return whether a tensor's rank is known. Only TensorFlow has unknown ranks."""
    return not is_tensorflow() or x.shape.rank is not None


def with_shape(x: Tensor, shape: Sequence[int | None]) -> Tensor:
    """Return a tensor with a static shape, which TensorFlow checks in each step.

    On other backends, shapes are always known, and the tensor is returned unchanged.
    """
    if not is_tensorflow():
        return x
    import tensorflow as tf

    return tf.ensure_shape(x, shape)


def reshaped_as(x: Tensor, other: Tensor, message: str) -> Tensor:
    """Return a TensorFlow tensor of unknown rank in the shape of another.

    Args:
        x: The tensor.
        other: The tensor that has the shape.
        message: The text of the error that a step raises if the shapes differ by more
            than a last dimension of 1. Both shapes are printed after it.
    """
    import tensorflow as tf

    shapes = tf.shape(x), tf.shape(other)
    # Shapes of different ranks can't be compared as numbers, so they become text.
    s, t = (
        tf.strings.reduce_join(tf.strings.as_string(shape), separator=",")
        for shape in shapes
    )
    fits = (s == t) | (s + ",1" == t) | (s == t + ",1")
    with tf.control_dependencies([tf.debugging.Assert(fits, [message, *shapes])]):
        return tf.ensure_shape(tf.reshape(x, shapes[1]), other.shape)


def in_cross_replica_context() -> bool:
    """Return whether a `tf.distribute` strategy runs code outside of its devices.

    Keras builds models there on tensors that don't have the data's dtypes.
    """
    if not is_tensorflow():
        return False
    import tensorflow as tf

    return bool(
        tf.distribute.has_strategy() and tf.distribute.in_cross_replica_context()
    )


def dataset_spec(data: Any) -> Nested:
    """Return the specs of the elements of a `tf.data.Dataset`; None for other data.

    Trainers on every backend accept such data sets.
    """
    # No data set can exist before the user has imported TensorFlow.
    tf = sys.modules.get("tensorflow")
    if tf is None or not isinstance(data, tf.data.Dataset):
        return None
    return data.element_spec


def limit_tensorflow_threads(threads: int) -> None:
    """Let TensorFlow use this many threads. Call it before TensorFlow computes."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def inside_xla(x: Any) -> bool:
    """Return whether XLA compiles the function that computes a tensor."""
    if not is_tensorflow():
        # XLA compiles all that JAX traces.
        return is_jax() and is_traced(x)
    import tensorflow as tf

    return tf.__internal__.get_enclosing_xla_context() is not None


def traced(function: Callable[[Nested], Any], specs: Nested) -> Any:
    """Trace a function of tensors without running it, and return its symbolic result.

    Args:
        function: The function.
        specs: `KerasTensor`s in the structure of its argument.
    """
    from keras.src.backend import compute_output_spec

    return compute_output_spec(function, specs)


def compiled(
    function: Callable[..., Any], models: Callable[[], Sequence[keras.Model]]
) -> Callable[..., Any]:
    """Return a function of tensors that reads the variables of models, compiled.

    Args:
        function: The function. It must not assign the variables.
        models: Returns the models, which the compiled function doesn't keep alive.
    """
    if is_tensorflow():
        import tensorflow as tf

        graph = tf.function(function, autograph=False)
        # A call of `graph` would warn of retracing where several models have one.
        return lambda *args: graph.get_concrete_function(*args)(*args)
    if not is_jax():
        return function
    import jax

    @jax.jit
    def stateless(values: list[Tensor], *args: Tensor) -> Any:
        variables = [v for model in models() for v in model.variables]
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return function(*args)

    def call(*args: Tensor) -> Any:
        values = [v.value for model in models() for v in model.variables]
        return stateless(values, *args)

    return call

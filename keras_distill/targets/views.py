"""Augmented views of examples, the same for teacher and student."""

from collections.abc import Callable, Sequence
from typing import Any

from keras_distill.targets import fingerprints
from keras_distill.types import Nested, Tensor

# Takes an example and a seed for `tf.random.stateless_*`; returns the example's view.
Augment = Callable[[Nested, Tensor], Nested]


def seeds(seed: int, content: Tensor, view: Any) -> Tensor:
    """Return a seed for each row's view, of shape (rows, 2) in int32.

    The seed depends on the row's content and not on its position, so that a shuffled
    data set has the same views.

    Args:
        seed: The seed of the recording.
        content: The content hashes of the rows.
        view: The number of the view.
    """
    import tensorflow as tf

    of_all = [tf.constant(seed, tf.int64), tf.cast(view, tf.int64)]
    parts = [content, *(tf.broadcast_to(part, tf.shape(content)) for part in of_all)]
    drawn = tf.fingerprint(tf.stack(parts, axis=1))
    return tf.bitcast(tf.reshape(drawn, (-1, 2, 4)), tf.int32)


def view_of(
    augment: Augment,
    x: Nested,
    *,
    seed: int,
    content: Tensor,
    view: Any,
    keys: Sequence[str],
) -> tuple[Nested, Tensor]:
    """Return a view of a batch, and the content hashes of its rows.

    Args:
        augment: Makes the view of an example.
        x: The inputs of the batch.
        seed: The seed of the recording.
        content: The content hashes of the rows of `x`.
        view: The number of the view.
        keys: The keys that the hashes cover.
    """
    made = augmented(augment, x, seeds(seed, content, view))
    return made, fingerprints.of_inputs(made, keys)


def augmented(augment: Augment, x: Nested, row_seeds: Tensor) -> Nested:
    """Return a view of each row of the inputs of a batch."""
    import tensorflow as tf

    row = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape[1:], t.dtype), x)
    one = tf.function(augment, autograph=False)
    result = one.get_concrete_function(
        row, tf.TensorSpec((2,), tf.int32)
    ).structured_outputs
    try:
        tf.nest.assert_same_structure(x, result)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`augment` must return an example with the structure of the one that it is "
            f"given. Received: {result} for {row}"
        ) from error
    signature = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), result)
    return tf.map_fn(
        lambda given: augment(*given),
        (x, row_seeds),
        fn_output_signature=signature,
        parallel_iterations=16,
    )

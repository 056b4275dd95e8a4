"""Students with a part of the blocks of their teacher."""

from collections.abc import Sequence

import keras

from keras_distill.students.blocks import Block, blocks_of
from keras_distill.students.graph import Rebuilding, checked


def drop_layers(
    teacher: keras.Model,
    keep: Sequence[str | int] | None = None,
    *,
    every: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Return a copy of the teacher, with its weights, without some of its blocks.

    A block is a part whose output has the shape of its input, so that it can be left
    out: a sub-model, a residual branch, a layer of a transformer encoder, or one of
    several layers of equal width in a row. Blocks that repeat each other form a stage.

    Args:
        teacher: A Functional or Sequential model. It isn't changed.
        keep: The blocks to keep, each by the name of any of its layers or by its index
            among all blocks. Layers outside of blocks are always kept.
        every: Instead of `keep`: keep the first block of each stage, and every second
            (`every=2`) or third block after it.
        name: The name of the student.

    Returns:
        An uncompiled Keras model with weights of its own. Its layers have the teacher's
        names, and all of them are trainable.

    Raises:
        ValueError: If the teacher has no block, or if `keep` names no block. In the
            second case, the error lists the blocks.

    Example:
    >>> import keras
    >>> import keras_distill as kd
    >>> hidden = [keras.layers.Dense(64, "relu", name=f"hidden_{i}") for i in range(4)]
    >>> teacher = keras.Sequential(
    ...     [keras.Input((64,)), *hidden, keras.layers.Dense(3, name="logits")]
    ... )
    >>> student = kd.students.drop_layers(teacher, every=2)
    >>> [layer.name for layer in student.layers]
    ['hidden_0', 'hidden_2', 'logits']
    """
    checked(teacher, "drop_layers")
    if (keep is None) == (every is None):
        raise TypeError(
            "`drop_layers` takes one of `keep` and `every`. "
            f"Received: keep={keep!r}, every={every!r}"
        )
    blocks = blocks_of(teacher)
    if not blocks:
        raise ValueError(
            "The teacher has no block that can be dropped: none of its layers gives an "
            f"output of the shape of its input. Received: teacher={teacher.name!r}"
        )
    kept = _every(blocks, every) if keep is None else _named(blocks, keep)
    dropped = [block for place, block in enumerate(blocks) if place not in kept]
    skipped = {id(node) for block in dropped for node in block.nodes}
    bypassed = {}
    for block in dropped:
        for segment in block.segments:
            (last,) = (
                node
                for node in segment.nodes
                if any(tensor is segment.exit for tensor in node.outputs)
            )
            bypassed[id(last)] = segment.entry
    rebuilding = Rebuilding(skipped=skipped, bypassed=bypassed)
    return rebuilding.model(teacher, name or f"{teacher.name}_student")


def _every(blocks: list[Block], every: int | None) -> set[int]:
    if not isinstance(every, int) or isinstance(every, bool) or every < 2:
        raise ValueError(f"`every` must be an integer above 1. Received: every={every}")
    return {place for place, block in enumerate(blocks) if block.place % every == 0}


def _named(blocks: list[Block], keep: Sequence[str | int]) -> set[int]:
    names = [block.name for block in blocks]
    if isinstance(keep, str):
        raise TypeError(f"`keep` takes a list of blocks. Received: keep={keep!r}")
    result = set()
    for wanted in keep:
        if isinstance(wanted, str):
            found = [p for p, block in enumerate(blocks) if block.holds(wanted)]
        else:
            found = [p for p in range(len(blocks)) if wanted in (p, p - len(blocks))]
        if not found:
            raise ValueError(
                f"`keep` has {wanted!r}, which isn't in a block that can be dropped. "
                f"The blocks are those of {names}; all other layers always stay. "
                f"Received: keep={list(keep)}"
            )
        result.update(found)
    return result

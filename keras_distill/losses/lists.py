"""Lists of items in a batch: their layouts in tensors, their masks and weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_distill.losses import checks
from keras_distill.types import Tensor


@dataclass(frozen=True)
class Lists:
    """The items that form each list.

    Scores have shape `(rows, items)`. Either each row is a list, or one row has all
    items of the batch. In the second case there is a list for each item, with all items
    of its group. So the list of a group is repeated, and only the list of the group's
    first item counts.

    Args:
        members: Boolean `(lists, items)`: whether the item belongs to the list.
        first: Boolean `(lists,)`: whether the list is the first of its group. None if
            each row is a list.
        item_weight: The factor of an item's term in the loss, a number or
            `(rows, items)`.
    """

    members: Tensor
    first: Tensor | None = None
    item_weight: Tensor | float = 1.0

    @property
    def rivals(self) -> Tensor:
        """Boolean `(rows, items, items)`: the members of each item's list.

        If all items of a row are in one list, it only broadcasts to that shape.
        """
        return self.members[:, None] if self.first is None else self.members[None]

    def once(self, condition: Tensor) -> Tensor:
        """Return a boolean per list, with False for repetitions of a list."""
        if self.first is None:
            return condition
        return ops.logical_and(condition, self.first)


def arranged(
    given: Mapping[str, Any], y_pred: Tensor, sample_weight: Tensor, mask: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the arguments of a Keras loss for scores, a mask and group ids.

    Keras casts all arguments to the dtype of the loss, in which different ids may
    become equal. So this function replaces ids by booleans, from which `read` makes the
    lists.

    Args:
        given: The teacher's output under `"scores"`, and optionally `"mask"` and
            `"group"`.
        y_pred: The student's output.
        sample_weight: Weights of lists or items, or None.
        mask: The Keras mask of the student's output, or None.

    Returns:
        `y_true`, `y_pred`, and the weights per list or None.
    """
    group = given.get("group")
    flat = group is not None
    student = _scores(y_pred, "student", flat=flat)
    teacher = _scores(given["scores"], "teacher", flat=flat)
    checks.check_same_shape(teacher, student)
    valid = ops.ones_like(student, dtype="bool")
    masks = {
        "The mask": given.get("mask"),
        "The Keras mask of the student's output": mask,
    }
    for what, each in masks.items():
        if each is not None:
            each = ops.cast(_like(student, each, what, flat=flat), "bool")
            valid = ops.logical_and(valid, each)

    def where_valid(x: Tensor) -> Tensor:
        # Masked values may be NaN, and the gradient of 0 * NaN is NaN.
        return ops.where(valid, x, 0)

    y_true = {"scores": where_valid(teacher), "members": valid}
    if flat:
        same = _same_group(group, student)
        y_true["members"] = ops.logical_and(same, valid)
        seen_before = ops.any(ops.tril(same, k=-1), axis=-1)
        y_true["first"] = ops.logical_not(seen_before)
    if sample_weight is not None:
        sample_weight = ops.convert_to_tensor(sample_weight)
        if _is_per_item(sample_weight, flat=flat):
            weight = _like(student, sample_weight, "`sample_weight`", flat=flat)
            y_true["item_weight"] = where_valid(weight)
            sample_weight = None
    return y_true, where_valid(student), sample_weight


def read(y_true: Mapping[str, Tensor], dtype: str) -> Lists:
    """Return the lists of arguments from `arranged`, with weights in `dtype`."""
    booleans = {
        key: ops.cast(y_true[key], "bool")
        for key in ("members", "first")
        if key in y_true
    }
    return Lists(
        **booleans, item_weight=ops.cast(y_true.get("item_weight", 1.0), dtype)
    )


def _rows(x: Tensor, *, flat: bool) -> Tensor | None:
    """Return `x` as `(rows, items)`, or None where its shape doesn't allow it."""
    # This isn't a squeeze, because `backend.comes_from` finds activations through a
    # reshape only.
    rank = len(x.shape)
    if flat:
        of_items = rank == 1 or (rank == 2 and x.shape[1] in (1, None))
        return ops.reshape(x, (1, -1)) if of_items else None
    if rank == 3 and x.shape[2] in (1, None):
        return ops.reshape(x, ops.shape(x)[:2])
    return x if rank == 2 else None


def _scores(output: Any, whose: str, *, flat: bool) -> Tensor:
    output = ops.convert_to_tensor(output)
    rows = _rows(output, flat=flat)
    if flat and rows is None:
        raise ValueError(
            f"The {whose}'s output must have shape (batch,) or (batch, 1) where `group`"
            f" ids tell which rows form a list. Received: shape {tuple(output.shape)}"
        )
    if rows is None or (not flat and rows.shape[1] == 1):
        raise ValueError(
            f"The {whose}'s output must have shape (batch, list_size) or (batch, "
            "list_size, 1), with lists of two items or more. Where each row is one "
            "item, say which rows form a list: name the input that holds their ids, "
            "`group='session_id'`, or call `loss({'scores': teacher_output, 'group': "
            f"ids}}, student_output)`. Received: shape {tuple(output.shape)}"
        )
    return rows


def _like(scores: Tensor, x: Any, what: str, *, flat: bool) -> Tensor:
    x = ops.convert_to_tensor(x)
    rows = _rows(x, flat=flat)
    agree = rows is not None and all(
        size == expected or None in (size, expected)
        for size, expected in zip(rows.shape, scores.shape, strict=True)
    )
    if not agree:
        expected = tuple(scores.shape)[1 if flat else 0 :]
        raise ValueError(
            f"{what} must have the shape of the scores, {expected}. Received: shape "
            f"{tuple(x.shape)}"
        )
    return rows


def _same_group(group: Any, scores: Tensor) -> Tensor:
    """Return `(items, items)`: whether both have the same id."""
    # JAX would convert NumPy's 64-bit integers to 32 bits, and has no strings.
    ids = group if ops.is_tensor(group) else np.asarray(group)
    if "float" in str(ids.dtype):
        raise ValueError(
            "`group` ids must be integers or strings: large floats collide. Received: "
            f"ids of dtype {ids.dtype}"
        )
    shape, rows = tuple(ids.shape), scores.shape[1]
    if len(shape) == 2 and shape[1] in (1, None):
        ids = ids[:, 0]
    sizes = {*ids.shape, rows} - {None}
    if len(ids.shape) != 1 or len(sizes) > 1:
        raise ValueError(
            "`group` ids must have shape (batch,) or (batch, 1), an id for each row of "
            f"the outputs. Received: ids of shape {shape} for {rows} rows"
        )
    # `ops.equal` doesn't compare strings.
    return ops.convert_to_tensor(ids[:, None] == ids[None, :])


def _is_per_item(weight: Tensor, *, flat: bool) -> bool:
    rank = len(weight.shape)
    return rank > 0 if flat else rank == 3 or (rank == 2 and weight.shape[1] != 1)

"""Data sets with the outputs of a teacher that is a NumPy function."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill.targets import checks, elements
from keras_distill.targets.conversions import CONVERSIONS, converted

if TYPE_CHECKING:
    import tensorflow as tf


def from_function(
    predict: Callable[[Any], Any],
    dataset: "tf.data.Dataset",
    *,
    outputs: str | Mapping[str, str],
    key: str = "teacher",
) -> "tf.data.Dataset":
    """Return the data set with the outputs of a teacher that is a NumPy function.

    The teacher may be anything that Python can call: trees of scikit-learn or LightGBM,
    an ONNX file, a service. `teachers.Recorded(key)` reads its outputs, which are
    converted to logits, in `fit` and in `targets.record`.

    This call runs `predict` on the first batch. Later, `predict` runs on each batch of
    each epoch, while a step trains. To run it only once for each row, keep the result
    with `.cache()`, or in files with `targets.record`.

    Args:
        predict: A function of `x` of a batch in NumPy: an array, or a dict of arrays.
            Text is `str`; bytes that aren't UTF-8 are decoded with `"surrogateescape"`.
            Returns an array of shape `(rows,)` or `(rows, units)`, or a dict of arrays.
        dataset: Batches `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)` of dense
            tensors, as for `fit`.
        outputs: The kind of `predict`'s outputs. If it returns a dict, a dict of kinds
            by name.

            - `"probabilities"`: The probability of one event, `(rows,)` or `(rows, 1)`,
              becomes `log(p / (1 - p))` for a student with one sigmoid unit.
              Probabilities of classes, `(rows, classes)`, become `log(p)` for a student
              with a softmax. 0 counts as 1.2e-38, the smallest normal float32.
            - `"log_odds"`: log-odds of one event, or of several that don't exclude each
              other, for sigmoid units. They are logits already.
            - `"logits"`: scores before a softmax, or numbers of a regression.

            All are computed in float64 and returned in float32. `(rows,)` becomes
            `(rows, 1)`.
        key: The key of `x` for the output. If there are several outputs, each has the
            key `f"{key}_{name}"`.

    Returns:
        The batches. Their `x` is a dict that also has the keys of the outputs. If `x`
        was a tensor, its key is `"inputs"`, which a student with one input reads.

    Raises:
        TypeError: An argument is of a wrong type.
        ValueError: An argument isn't usable, or an output of the first batch has
            a wrong shape, NaN, or values that its kind can't have. A later batch with
            such an output raises `tf.errors.InvalidArgumentError` when it is read.

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> from keras_distill import targets
        >>> data = tf.data.Dataset.from_tensor_slices(np.array([[1.0], [3.0]]))
        >>> def chance(x):
        ...     return x[:, 0] / 4
        >>> taught = targets.from_function(
        ...     chance, data.batch(2), outputs="probabilities"
        ... )
        >>> for x in taught:
        ...     print(x["teacher"].numpy())
        [[-1.0986123]
         [ 1.0986123]]

    Reference: Bucila, Caruana, Niculescu-Mizil 2006, "Model compression".
    """
    if not callable(predict):
        raise TypeError(
            "`predict` must be a function of the inputs of a batch, such as "
            "`model.predict_proba`. Received: predict of type "
            f"{type(predict).__name__}"
        )
    checks.check_dataset_type(dataset)
    named = _named(outputs)
    keys = {name: key if name is None else f"{key}_{name}" for name in named}
    for each in keys.values():
        checks.check_key(dataset.element_spec, each)
    return _Stage(predict, named, keys).applied(dataset)


def _named(outputs: Any) -> dict[str | None, str]:
    """Return the kinds of the outputs by name. A single output has the name None."""
    named = outputs if isinstance(outputs, Mapping) else {None: outputs}
    known = all(isinstance(it, str) and it in CONVERSIONS for it in named.values())
    if not named or not known:
        raise ValueError(
            f"`outputs` must say what `predict` returns, one of {sorted(CONVERSIONS)}, "
            f"or a dict of this by output. Received: outputs={outputs!r}"
        )
    return dict(named)


@dataclasses.dataclass(frozen=True)
class _Stage:
    """The stage of the data that calls the function.

    Args:
        predict: The function.
        outputs: The kinds of its outputs by name.
        keys: The keys of its outputs in the batches, by name.
    """

    predict: Callable[[Any], Any]
    outputs: Mapping[str | None, str]
    keys: Mapping[str | None, str]

    def applied(self, dataset: "tf.data.Dataset") -> "tf.data.Dataset":
        """Return the data set with the outputs."""
        import tensorflow as tf

        spec = elements.inputs_of(dataset.element_spec)
        first = next(iter(dataset), None)
        if first is None:
            raise checks.empty()
        shapes = [
            logits.shape[1:]
            for logits in self.logits(spec, *tf.nest.flatten(elements.inputs_of(first)))
        ]

        def checked(*tensors: Any) -> list[Any]:
            given = self.logits(spec, *tensors)
            for name, logits, shape in zip(self.keys, given, shapes, strict=True):
                if logits.shape[1:] != shape:
                    raise ValueError(
                        f"{_label(name)} must have the same shape in each batch. "
                        f"Received: {logits.shape[1:]} after {shape}, without the rows"
                    )
            return given

        def attach(*parts: Any) -> Any:
            batch = parts if isinstance(dataset.element_spec, tuple) else parts[0]
            x = elements.inputs_of(batch)
            tensors = tf.nest.flatten(x)
            flat = tf.numpy_function(checked, tensors, [tf.float32] * len(self.keys))
            for logits, shape in zip(flat, shapes, strict=True):
                logits.set_shape([tensors[0].shape[0], *shape])
            added = dict(zip(self.keys.values(), flat, strict=True))
            return elements.with_inputs(batch, elements.as_dict(x) | added)

        return elements.ahead(dataset.map(elements.mapped(attach)))

    def logits(self, spec: Any, *tensors: Any) -> list[np.ndarray]:
        """Return the logits of a batch, given its inputs one after the other."""
        import tensorflow as tf

        arrays = [_numpy(tensor) for tensor in tensors]
        given = self.predict(tf.nest.pack_sequence_as(spec, arrays))
        if None in self.outputs:
            given = {None: given}
        elif not isinstance(given, Mapping) or set(given) != set(self.outputs):
            names = sorted(given) if isinstance(given, Mapping) else type(given)
            raise ValueError(
                "`predict` must return a dict with the keys of `outputs`, "
                f"{sorted(map(str, self.outputs))}. Received: {names}"
            )
        rows = len(arrays[0])
        return [
            converted(_label(name), given[name], kind, rows)
            for name, kind in self.outputs.items()
        ]


def _label(name: str | None) -> str:
    return "What `predict` returns" + ("" if name is None else f" as '{name}'")


def _numpy(tensor: Any) -> np.ndarray:
    """Return a tensor as NumPy, with text as `str`, as other libraries expect it."""
    array = np.asarray(tensor)
    if array.dtype.kind not in "OS":
        return array
    texts = [text.decode("utf-8", "surrogateescape") for text in array.ravel()]
    return np.array(texts, object).reshape(array.shape)

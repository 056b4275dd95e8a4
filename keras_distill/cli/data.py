"""Inputs, labels and metrics of the subcommands, from `.npz` files and options."""

import argparse
from typing import TYPE_CHECKING, Any

from keras_distill.cli import checks

if TYPE_CHECKING:
    import keras

    from keras_distill.export import Evaluation

# The default of each argument. argparse doesn't get them, as `check_evaluation` must
# distinguish arguments that were given from those that weren't.
_DEFAULTS: dict[str, Any] = {
    "labels": "labels",
    "metric": "SparseCategoricalAccuracy",
    "metric_config": {},
    "max_drop": 0.01,
    "mode": "auto",
    "output": None,
}
# `keras.metrics.Accuracy` compares values, and logits never equal labels.
_SHORT = {"accuracy": "SparseCategoricalAccuracy", "auc": "AUC"}


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """Add the options that `evaluation` reads."""
    group = parser.add_argument_group("evaluation on held-out data")
    _add_held_out(group)
    _add_metric(group)
    group.add_argument(
        "--max-drop",
        type=checks.at_least_0,
        metavar="DROP",
        help="largest loss of the metric compared with the Keras model (default: 0.01)",
    )


def _add_held_out(group: Any) -> None:
    """Add the options that name the data."""
    group.add_argument(
        "--evaluate",
        type=checks.file,
        metavar="FILE.npz",
        help="held-out data: one array for each input, and the labels",
    )
    group.add_argument(
        "--labels",
        metavar="NAME",
        help="array in FILE.npz that contains the labels (default: labels)",
    )


def _add_metric(group: Any) -> None:
    """Add the options that say what is measured."""
    group.add_argument(
        "--metric",
        metavar="CLASS",
        help="class in keras.metrics. You can write `accuracy` for "
        "SparseCategoricalAccuracy, and `auc` for AUC (default: accuracy)",
    )
    group.add_argument(
        "--metric-config",
        type=checks.json_object,
        metavar="JSON",
        help="arguments of the metric, such as '{\"from_logits\": true}'",
    )
    group.add_argument(
        "--mode",
        choices=("auto", "max", "min"),
        help="max: a larger metric is better. min: a smaller one is better. auto: "
        "Keras decides (default: auto)",
    )
    group.add_argument(
        "--output",
        metavar="NAME",
        help="output that the metric is computed on. Needed only for a model with "
        "several outputs",
    )


def check_evaluation(arguments: argparse.Namespace) -> None:
    """Raise an error for options without `--evaluate`; set the defaults of others."""
    for name, default in _DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
        elif arguments.evaluate is None:
            option = "--" + name.replace("_", "-")
            arguments.parser.error(
                f"{option} needs --evaluate FILE.npz, the held-out data"
            )


def evaluation(arguments: argparse.Namespace) -> "Evaluation | None":
    """Return the evaluation that the options describe; None without `--evaluate`."""
    from keras_distill.export import Evaluation

    if arguments.evaluate is None:
        return None
    return Evaluation(
        labelled(arguments.evaluate, arguments.labels, arguments.parser),
        _metric(arguments.metric, arguments.metric_config, arguments.parser),
        max_drop=arguments.max_drop,
        mode=arguments.mode,
        output=arguments.output,
    )


def labelled(
    path: str, labels: str, parser: argparse.ArgumentParser
) -> tuple[Any, Any]:
    """Read inputs and labels from an `.npz` file.

    Args:
        path: The file.
        labels: The name of the array of labels.
        parser: Reports that the file has no such array.
    """
    from keras_distill.export.loading import load_arrays

    arrays = load_arrays(path, "evaluation")
    if labels not in arrays:
        parser.error(
            f"`--labels` must name an array of {path}, which has {sorted(arrays)}. "
            f"Received: {labels}."
        )
    found = arrays.pop(labels)
    return inputs_of(arrays), found


def inputs(path: str, argument: str, labels: str) -> Any:
    """Read inputs by name, without the labels.

    Args:
        path: An `.npz` file.
        argument: The name of the library's argument, for errors.
        labels: The name of the array to leave out, if there is one.
    """
    from keras_distill.export.loading import load_arrays

    arrays = load_arrays(path, argument)
    return inputs_of({name: arrays[name] for name in arrays if name != labels})


def inputs_of(arrays: dict[str, Any]) -> Any:
    """Return the only array, or a dict of several arrays by name."""
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def _metric(
    name: str, config: dict[str, Any], parser: argparse.ArgumentParser
) -> "keras.metrics.Metric":
    import keras

    name = _SHORT.get(name, name)
    metric = getattr(keras.metrics, name, None)
    if not isinstance(metric, type) or not issubclass(metric, keras.metrics.Metric):
        parser.error(
            "`--metric` must be the name of a class in keras.metrics, such as "
            f"SparseCategoricalAccuracy, BinaryAccuracy, AUC. Received: {name}."
        )
    try:
        return metric(**config)
    except TypeError as error:
        parser.error(
            f"`--metric-config` must hold the arguments of {name}. "
            f"Received: {config} ({error})."
        )

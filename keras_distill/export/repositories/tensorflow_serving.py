"""Repositories of TensorFlow Serving: `NAME/VERSION/` and `models.config`."""

import os
import re
from pathlib import Path

from keras_distill.export.repositories.source import open_export, saved_model_files
from keras_distill.export.repositories.versions import (
    new_version,
    replace_text,
    writing,
)

CONFIG = "models.config"
_EMPTY = "model_config_list {\n}\n"


def tensorflow_serving(
    export: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    *,
    name: str | None = None,
    version: int | None = None,
    base_path: str | os.PathLike[str] | None = None,
) -> Path:
    """Write an export into a repository of TensorFlow Serving, as a new version.

    `models.config` lists the models of the repository, for `--model_config_file`. A
    model that isn't in it is added. The rest of the file, including version policies,
    isn't changed.

    Args:
        export: An export's directory, with a SavedModel.
        repository: The directory of all models. It is made if absent.
        name: The model's name in the server. Defaults to the Keras model's name.
        version: A positive number. Defaults to the name of the export's directory if
            that is a number, else to the number after the highest version.
        base_path: The path of `repository` for the server, e.g. `/models` in a
            container. Defaults to its path on this machine.

    Returns:
        The directory of the new version.

    Raises:
        ValueError: An argument isn't usable, or the export has no SavedModel.
        FileExistsError: The version already exists, or a `models.config` without a
            list does.
        FileNotFoundError: `export` contains no export.
        RuntimeError: The export's files aren't those that were published.
        OSError: The repository can't be written.
    """
    source = open_export(export)
    files = saved_model_files(source.files("saved_model", ("saved_model",)))
    with new_version(source, repository, name, version) as directory:
        config = directory.parent.with_name(CONFIG)
        root = config.parent if base_path is None else Path(base_path)
        text = listing(_read(config), root / directory.parent.name)
        with writing(directory, files):
            pass
        replace_text(config, text)
    return directory


def listing(text: str, path: Path) -> str:
    """Return the text of `models.config` with a model added, if it isn't listed.

    Args:
        text: The present text. Its models aren't changed.
        path: The directory of the model's versions, as the server sees it. Its last
            part is the model's name.
    """
    if not path.is_absolute():
        raise ValueError(
            "`base_path` must be absolute, as TensorFlow Serving takes no other. "
            f"Received: base_path={str(path.parent)!r}."
        )
    listed = re.search(rf"""name:\s*["']{re.escape(path.name)}["']""", text)
    quoted = str(path).replace("\\", "\\\\").replace('"', '\\"')
    if listed and quoted not in text:
        raise ValueError(
            f"`base_path` must be the one that {CONFIG} has for this model. "
            f"Received: base_path={str(path.parent)!r}. Edit that file to change it."
        )
    if listed:
        return text
    before, brace, after = text.rpartition("}")
    return (
        f"{before}  config {{\n"
        f'    name: "{path.name}"\n'
        f'    base_path: "{quoted}"\n'
        f'    model_platform: "tensorflow"\n'
        f"  }}\n{brace}{after}"
    )


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return _EMPTY
    if "model_config_list" not in text or "}" not in text:
        raise FileExistsError(
            f"{CONFIG} must hold a `model_config_list {{ ... }}` to add to. "
            f"Received: {str(path)!r}, which has none. Move it."
        )
    return text

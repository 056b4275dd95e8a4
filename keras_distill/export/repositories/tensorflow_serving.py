"""TensorFlow Serving: `NAME/VERSION/saved_model.pb` and `models.config`."""

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
    """Lay an export out as a version of a model of TensorFlow Serving.

    `models.config` lists the models of the repository, for `--model_config_file`. A
    model that isn't in it is added; the rest stays as it is, version policies too.

    Args:
        export: An export's directory, with a SavedModel.
        repository: The directory of all models; made where absent.
        name: The model's name in the server; that of the Keras model by default.
        version: A positive number; by default the one that the export's directory is
            called, or else the next that is free.
        base_path: Where the server sees `repository`, such as `/models` in a
            container; by default where it lies here.

    Returns:
        The directory of the new version.

    Raises:
        ValueError: An argument isn't usable, or the export has no SavedModel.
        FileExistsError: The version is there, or a `models.config` without a list.
        FileNotFoundError: `export` holds no export.
        RuntimeError: Its files aren't those that were published.
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
    """Add the model at `path`, called by its last part, to the text of `models.config`.

    Args:
        text: What is there; models in it stay as they are.
        path: The directory of the model's versions, as the server sees it.
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

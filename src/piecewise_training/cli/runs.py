"""Whether a run lies in a folder, how it was configured, and where what it names lies."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
_PARTS = ("data", "model", "training")
PATHS = {
    "data": ("root", "images", "labels", "image_list", "val_images", "val_labels", "val_list"),
    "model": ("pretrained", "start_from"),
}


def folder_of(model: str) -> Path:
    """The folder of the run that a model is named by, which may be a file in it."""
    return Path(model) if Path(model).is_dir() else Path(model).parent


def run_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run in a folder; empty if there is none, or one of another program."""
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    whole = isinstance(config, dict) and "seed" in config and all(isinstance(config.get(part), dict) for part in _PARTS)
    return config if whole else {}


def with_whole_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose files and folders are found from any folder, not only from the one it was written in."""
    whole = dict(config)
    for part, names in PATHS.items():
        options = dict(config.get(part) or {})
        options |= {name: str(Path(options[name]).resolve()) for name in names if isinstance(options.get(name), str)}
        whole[part] = options
    return whole


def warn_of_trained_images(folder: Path, names: Sequence[str]) -> None:
    """Warns where images to be judged on have the names of images that a run was trained on, as far as it left them.

    Args:
        folder: of the run.
        names: of the images.

    Raises:
        DataError: the file that names the run's images is damaged.
    """
    from piecewise_training.dataset import Split

    split = Split.load(folder)
    known = split.trained_on(names) if split else []
    if known:
        logger.warning(
            "%d of the %d images to be judged on, such as %r, have names of images that %s was trained on: if they are "
            "the same images, the network knows them, and figures of unknown ones will be lower",
            len(known),
            len(names),
            known[0],
            folder,
        )

"""Whether a run lies in a folder, how it was configured, and where what it names lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CONFIG = "config.yaml"
_PARTS = ("data", "model", "training")
PATHS = {
    "data": ("root", "images", "labels", "image_list", "val_images", "val_labels", "val_list"),
    "model": ("pretrained", "start_from"),
}


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

"""Whether a run lies in a folder, and how it was configured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

CONFIG = "config.yaml"
_PARTS = ("data", "model", "training")


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

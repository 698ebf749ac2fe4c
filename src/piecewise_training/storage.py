"""Weights in one safetensors file, with what they belong to as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from torch import Tensor, nn

from piecewise_training import __version__
from piecewise_training.writing import atomic_write

SUFFIX = ".safetensors"


def save_weights(module: nn.Module, path: str | Path, kind: str, **described: Any) -> None:
    """Writes a module's weights and what describes it.

    Args:
        module: whose `state_dict` it is.
        path: ends in .safetensors.
        kind: of file, by which it is known again.
        **described: what is needed to build the module, as JSON can hold it.

    Raises:
        ValueError: the file's name does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"`path` must end in {SUFFIX}; got {path}.")
    header = {"format": kind, "version": __version__}
    header |= {name: json.dumps(value) for name, value in described.items()}
    # Clones, because safetensors refuses tensors that share memory, as tied weights do.
    state = {name: value.cpu().contiguous().clone() for name, value in module.state_dict().items()}
    with atomic_write(path) as temporary:
        safetensors.torch.save_file(state, temporary, header)


def read_header(path: Path) -> dict[str, str]:
    """The header of a safetensors file: its "format" and "version", and JSON by name; {} for weights alone.

    Raises:
        ValueError: it is no such file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}).") from error


def plain(value: Any) -> Any:
    """A value as JSON can hold it: options may be numbers of NumPy or torch, or kernels.

    Example:
        >>> plain({"size": (np.int64(3), 4)})
        {'size': [3, 4]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [plain(own) for own in value]
    return value.item() if isinstance(value, np.generic | Tensor) else value

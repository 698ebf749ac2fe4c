"""Weights in a file with what describes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from piecewise_training import __version__
from piecewise_training.storage import plain, read_header, save_weights


def test_a_module_and_its_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    module = nn.Linear(2, 3)
    save_weights(module, path, "a line", size=[2, 3])
    header = read_header(path)
    assert header == {"format": "a line", "version": __version__, "size": "[2, 3]"}
    found = safetensors.torch.load_file(path)
    assert found.keys() == module.state_dict().keys()
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in found.items())
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_another_suffix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`path` must end in .safetensors; got .*a.pth"):
        save_weights(nn.Linear(1, 1), tmp_path / "a.pth", "a line")


def test_files_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    assert read_header(path) == {}
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"a.safetensors is no safetensors file"):
        read_header(path)


def test_numbers_of_numpy_and_torch_become_those_of_json() -> None:
    values = {1: np.float32(0.5), "b": (np.int64(3), torch.tensor(2.0), None, "x")}
    assert json.loads(json.dumps(plain(values))) == {"1": 0.5, "b": [3, 2.0, None, "x"]}

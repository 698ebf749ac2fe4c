"""Two processes train what one would, with the same images in a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from piecewise_training import processes
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer import PiecewiseTrainer

class Partly(nn.Conv2d):
    # A part of it gets no gradient, as the unused branches of some backbones.
    def __init__(self):
        super().__init__(3, 3, 3, padding=1)
        self.unused = nn.Linear(2, 2)


group = processes.current()
g = torch.Generator().manual_seed(0)
images, labels = torch.randn(8, 3, 12, 14, generator=g), torch.randint(0, 3, (8, 12, 14), generator=g)
torch.manual_seed(0)
model = PiecewiseTrainedModel(3, 3, unary=Partly())
trainer = PiecewiseTrainer(model, "cpu", 3, 0.1, progress=False)
batches = DataLoader(TensorDataset(images, labels), 8 // group.size)
held_out = DataLoader(TensorDataset(images[:5], labels[:5]), 1)  # an odd number: shares differ in size
history = trainer.train_piecewise(batches, 2, 2, 2, val_loader=held_out)
weights = torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
with open(f"{sys.argv[1]}/{group.size}_{group.rank}.json", "w") as file:
    json.dump({"history": history, "weights": weights}, file)
"""


@pytest.mark.slow
def test_as_one_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for start in ([], torchrun):
        subprocess.run([sys.executable, *start, script, tmp_path], check=True, env=environment, timeout=300)

    def outcome(name: str) -> dict[str, Any]:
        return json.loads((tmp_path / name).read_text())

    alone, first, second = (outcome(name) for name in ("1_0.json", "2_0.json", "2_1.json"))
    assert first["weights"] == second["weights"]
    assert first["weights"] == pytest.approx(alone["weights"], abs=1e-5)
    for stage, values in alone["history"].items():
        for name in ("train_loss", "val_loss", "val_miou", "val_accuracy"):
            assert first["history"][stage][name] == pytest.approx(values[name], abs=1e-4), (stage, name)

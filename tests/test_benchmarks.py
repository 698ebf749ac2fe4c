"""What the GPU's benchmark does with the kernels, tried out in Triton's interpreter or with `--device cuda`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import dense_crf
import dense_crf_gpu

pytest.importorskip("triton")


def test_each_step_of_an_update_is_timed(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_crf, "ITERATIONS", 2)
    # A phase by itself sums up memory that none before it has filled; the interpreter minds overflows.
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    scores, image = torch.randn(1, 2, 4, 5), torch.randint(0, 256, (1, 3, 4, 5), dtype=torch.uint8)
    steps = dense_crf_gpu.kernel_times(scores.to(device), image.to(device), speed=1e9, runs=1)
    names = {step["kernel"] for step in steps}
    blurs = {f"spatial: blur {axis}" for axis in (1, 2, 3)} | {f"bilateral: blur {axis}" for axis in range(1, 7)}
    parts = {f"{term}: {part}" for term in ("spatial", "bilateral") for part in ("splat", "gather", "all of these")}
    expected = blurs | parts | {"read and update", "all updates", "bilateral: lattice"}
    assert names - {"all updates, as a graph"} == expected
    assert all(step["ms"] and step["floor_ms"] > 0 and step["ratio"] > 0 for step in steps)

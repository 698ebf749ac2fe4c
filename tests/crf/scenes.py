"""Pictures with scores that half know them."""

from __future__ import annotations

import numpy as np
import torch


def scene(height: int, width: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (1, K, H, W) that half know a picture (1, 3, H, W) of smooth regions with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    region = ((np.sin(x / 7 + seed) + np.cos(y / 5)) * classes).astype(int) % classes
    colours = rng.integers(30, 220, (classes, 3))
    image = np.clip(colours[region] + rng.normal(0, 5, (height, width, 3)), 0, 255).astype(np.uint8)
    scores = 2.5 * np.eye(classes)[region] + rng.normal(0, 1.0, (height, width, classes))
    return torch.tensor(scores, dtype=torch.float32).permute(2, 0, 1)[None], torch.tensor(image).permute(2, 0, 1)[None]

"""The dense CRF written down literally, in NumPy and float64, sharing nothing with the library."""

from __future__ import annotations

import numpy as np
import torch


def gaussian(features: np.ndarray) -> np.ndarray:
    """The kernel matrix of features (d, N), entry by entry."""
    n = features.shape[1]
    kernel = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            kernel[i, j] = np.exp(-0.5 * ((features[:, i] - features[:, j]) ** 2).sum())
    return kernel


def normalised(kernel: np.ndarray) -> np.ndarray:
    """Symmetric normalisation."""
    scale = 1 / np.sqrt(kernel.sum(1))
    return scale[:, None] * kernel * scale


def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the first axis."""
    e = np.exp(scores - scores.max(0))
    return e / e.sum(0)


def image_features(
    image: np.ndarray, pos_xy_std: float, bilateral_xy_std: float, bilateral_rgb_std: float
) -> tuple[np.ndarray, np.ndarray]:
    """Spatial (2, N) and bilateral (2 + C, N) features of an image (C, H, W)."""
    channels, height, width = image.shape
    spatial, bilateral = [], []
    for y in range(height):
        for x in range(width):
            spatial.append([x / pos_xy_std, y / pos_xy_std])
            colour = [image[c, y, x] / bilateral_rgb_std for c in range(channels)]
            bilateral.append([x / bilateral_xy_std, y / bilateral_xy_std, *colour])
    return np.array(spatial).T, np.array(bilateral).T


def mean_field(
    scores: np.ndarray, kernels: list[np.ndarray], compatibilities: list[np.ndarray], iterations: int
) -> np.ndarray:
    """Q (K, N) by the update of Krähenbühl & Koltun; weights are in the compatibilities."""
    q = softmax(scores)
    for _ in range(iterations):
        energy = -scores.copy()
        for kernel, compatibility in zip(kernels, compatibilities, strict=True):
            message = q @ kernel.T
            for a in range(len(scores)):
                for b in range(len(scores)):
                    energy[a] += compatibility[a, b] * message[b]
        q = softmax(-energy)
    return q


def unit(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (B, d, N) with bandwidths of 1."""
    return features, features.new_ones(features.shape[1])

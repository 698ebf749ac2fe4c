"""The kernels over an image's pixels: by position, by position and colour, and by any map of features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from piecewise_training import checks
from piecewise_training.compiling import uncompiled
from piecewise_training.crf import _memory
from piecewise_training.crf.filtering import GaussianKernel, Normalization
from piecewise_training.crf.lattice import Backend
from piecewise_training.crf.separable import SeparableOperator

Spatial = Literal["lattice", "exact"]

_MOST_KEPT = 1 << 22  # pixels of an image whose spatial kernel is kept for the next one, of some 20 bytes each


@uncompiled
def spatial_kernel(
    height: int,
    width: int,
    std: Tensor | float,
    *,
    like: Tensor,
    spatial: Spatial = "lattice",
    normalization: Normalization = "symmetric",
    backend: Backend = "auto",
) -> GaussianKernel:
    r"""The kernel :math:`\exp(-|p_i - p_j|^2 / 2\sigma^2)` over the pixels of an image, the same for a whole batch.

    Args:
        height: rows of pixels.
        width: columns of pixels.
        std: bandwidth in pixels, above 0.
        like: a tensor of the dtype and on the device wanted.
        spatial: "lattice" is as fast as the rest and equals pydensecrf, with an error of 1 to 2 % of the filtered
            values; "exact" has none but rounding, and takes some ten times longer.
        normalization: see `GaussianKernel`.
        backend: see `GaussianKernel`; "exact" is the sum over all pairs.

    Example:
        >>> kernel = spatial_kernel(1, 3, 1.0, like=torch.zeros(()), spatial="exact", normalization="after")
        >>> kernel(torch.tensor([[[0.0, 1.0, 0.0]]]))[0, 0]
        tensor([0.3482, 0.4519, 0.3482])
    """
    if isinstance(std, Tensor) and std.requires_grad and torch.is_grad_enabled():
        return _spatial_kernel(height, width, std.to(like), spatial, normalization, backend)
    if height * width > _MOST_KEPT:
        value = torch.tensor(float(std), dtype=like.dtype, device=like.device)
        return _spatial_kernel(height, width, value, spatial, normalization, backend)
    return _fixed_spatial_kernel(height, width, float(std), like.dtype, like.device, spatial, normalization, backend)


@uncompiled
def bilateral_kernel(
    image: Float[Tensor, "b c h w"],
    xy_std: Tensor | float | None,
    rgb_std: Tensor | np.ndarray | float | Sequence[Tensor | float],
    *,
    like: Tensor,
    normalization: Normalization = "symmetric",
    backend: Backend = "auto",
) -> GaussianKernel:
    r"""The kernel :math:`\exp(-|p_i - p_j|^2 / 2\sigma_{xy}^2 - |c_i - c_j|^2 / 2\sigma_{rgb}^2)` over pixels.

    The image may be any map of features: depth, time, a learned embedding.

    Args:
        image: (B, C, H, W), any number of channels, uint8 or float.
        xy_std: bandwidth of the position in pixels, above 0; None leaves the position out.
        rgb_std: bandwidth of the channels in their unit, or one for each of them, above 0.
        like: a tensor of the dtype wanted.
        normalization: see `GaussianKernel`.
        backend: see `GaussianKernel`.

    Raises:
        ValueError: the image is not (B, C, H, W), or there are not as many bandwidths as channels; or see
            `GaussianKernel`.

    Example:
        >>> image = torch.tensor([0, 0, 255]).reshape(1, 1, 1, 3)
        >>> kernel = bilateral_kernel(image, 10.0, 10.0, like=torch.zeros(()), backend="exact", normalization="none")
        >>> kernel(torch.tensor([[[1.0, 0.0, 0.0]]]))[0, 0]
        tensor([1.0000, 0.9950, 0.0000])
    """
    if image.ndim != 4:
        raise ValueError(f"`image` must be (B, C, H, W); got {checks.describe(image)}.")
    channels = image.shape[1]
    colour = _for_each(rgb_std, channels)
    if xy_std is None:
        features, stds = image.to(like.dtype).flatten(2), colour
    else:
        features, stds = _pixel_features(image, like.dtype), [xy_std, xy_std, *colour]
    return GaussianKernel(features, _stack(stds, features), backend, normalization)


def require_memory(scores: Float[Tensor, "b k h w"], features: Sequence[int]) -> None:
    """Raises a MemoryError where score maps on the CPU are too large for kernels of so many features each."""
    if scores.device.type != "cpu":
        return
    images, classes, height, width = scores.shape
    number = 8 if scores.dtype == torch.float64 else 4
    needed = _memory.of_refinement(images, height * width, classes, features, number)
    _memory.require(needed, f"Refining {images} x {height} x {width} pixels of {classes} classes")


def _spatial_kernel(
    height: int, width: int, std: Tensor, spatial: Spatial, normalization: Normalization, backend: Backend
) -> GaussianKernel:
    if spatial not in ("lattice", "exact"):
        raise ValueError(f"`spatial` must be lattice or exact; got {spatial!r}.")
    bandwidths = torch.stack([std, std])
    operator = backend if spatial == "lattice" else SeparableOperator((height, width), bandwidths)
    positions = _pixel_features(std.new_empty(1, 0, height, width), std.dtype)
    # Of any type: the kernel refuses those that a std may have been cut to.
    positions = positions.to(std.dtype)
    return GaussianKernel(positions, bandwidths, operator, normalization)


@lru_cache(maxsize=4)
def _fixed_spatial_kernel(
    height: int,
    width: int,
    std: float,
    dtype: torch.dtype,
    device: torch.device,
    spatial: Spatial,
    normalization: Normalization,
    backend: Backend,
) -> GaussianKernel:
    """The spatial kernel of a size of image, which is the same for all of them."""
    with torch.inference_mode(False), torch.no_grad():  # it may be called under inference_mode, and serve in training
        value = torch.tensor(std, dtype=dtype, device=device)
        return _spatial_kernel(height, width, value, spatial, normalization, backend)


def _pixel_features(image: Tensor, dtype: torch.dtype) -> Float[Tensor, "b f n"]:
    """Position and colour of every pixel, in row-major order; positions alone for an image without channels."""
    batch, channels, height, width = image.shape
    if image.device.type == "cpu" and not image.requires_grad and image.dtype != torch.bfloat16:
        # NumPy, because torch's threads would go on spinning beside those of the kernels.
        array = np.empty((batch, 2 + channels, height, width), np.float64 if dtype == torch.float64 else np.float32)
        array[:, 0], array[:, 1] = np.arange(width), np.arange(height)[:, None]
        array[:, 2:] = image.detach().numpy()
        return torch.from_numpy(array).flatten(2)
    x, y = _places(width, dtype, image.device), _places(height, dtype, image.device)[:, None]
    positions = [axis.expand(batch, 1, height, width) for axis in (x, y)]
    return torch.cat([*positions, image.to(dtype)], 1).flatten(2)


def _for_each(rgb_std: Tensor | np.ndarray | float | Sequence[Tensor | float], channels: int) -> list[Tensor | float]:
    """The bandwidth of each channel."""
    if isinstance(rgb_std, Tensor | np.ndarray) and rgb_std.ndim == 0:
        return [rgb_std if isinstance(rgb_std, Tensor) else float(rgb_std)] * channels
    if isinstance(rgb_std, Tensor | np.ndarray | Sequence):
        if len(rgb_std) != channels:
            raise ValueError(f"`rgb_std` must be a number, or {channels} for as many channels; got {len(rgb_std)}.")
        return [*rgb_std]
    return [rgb_std] * channels


def _stack(values: Sequence[Tensor | float], like: Tensor) -> Tensor:
    numbers = [value for value in values if not isinstance(value, Tensor)]
    if len(numbers) == len(values):
        return _constants(tuple(float(number) for number in numbers), like.dtype, like.device)
    return torch.stack([torch.as_tensor(value, dtype=like.dtype, device=like.device) for value in values])


@lru_cache(maxsize=64)
def _places(count: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " n"]:
    """0, 1, 2 and so on, kept for the next image; to be read only."""
    with torch.inference_mode(False):
        return torch.arange(count, dtype=dtype, device=device)


@lru_cache(maxsize=64)
def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on a device, kept for the next call: a copy from the CPU waits until the GPU has done all before it.

    To be read only.
    """
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)

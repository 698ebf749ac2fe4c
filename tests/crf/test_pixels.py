"""Kernels over pixels: their features, and the exact spatial one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from piecewise_training.crf import bilateral_kernel, dense_crf, spatial_kernel
from tests.crf import oracle
from tests.crf.scenes import scene

LIKE = torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric"])
def test_every_normalization_is_the_literal_one(normalization: Any) -> None:
    image = 255 * torch.rand(1, 3, 4, 5, dtype=torch.float64)
    values = torch.randn(1, 2, 20, dtype=torch.float64)
    spatial, bilateral = (oracle.gaussian(f) for f in oracle.image_features(image[0].numpy(), 1.5, 6.0, 40.0))
    options = {"like": LIKE, "normalization": normalization, "backend": "exact"}
    kernels = (
        (spatial, spatial_kernel(4, 5, 1.5, **options)),
        (spatial, spatial_kernel(4, 5, 1.5, spatial="exact", like=LIKE, normalization=normalization)),
        (bilateral, bilateral_kernel(image, 6.0, 40.0, **options)),
    )
    for matrix, kernel in kernels:
        sums = matrix.sum(1)
        expected = {
            "none": matrix,
            "before": matrix / sums,
            "after": matrix / sums[:, None],
            "symmetric": oracle.normalised(matrix),
        }[normalization]
        np.testing.assert_allclose(kernel(values)[0].numpy(), values[0].numpy() @ expected.T, atol=1e-12)


def test_maps_with_a_bandwidth_for_each_channel_and_without_position() -> None:
    maps = torch.rand(1, 2, 3, 4, dtype=torch.float64)
    values = torch.randn(1, 2, 12, dtype=torch.float64)
    kernel = bilateral_kernel(maps, None, [0.5, 2.0], like=LIKE, backend="exact")
    features = maps.flatten(2)[0].numpy() / np.array([[0.5], [2.0]])
    expected = values[0].numpy() @ oracle.normalised(oracle.gaussian(features)).T
    np.testing.assert_allclose(kernel(values)[0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
def test_images_of_any_dtype(dtype: torch.dtype) -> None:
    image = torch.randint(0, 256, (2, 3, 6, 7)).to(dtype)
    values = torch.randn(2, 2, 42)
    found = bilateral_kernel(image, 10.0, 20.0, like=torch.zeros(()))(values)
    torch.testing.assert_close(found, bilateral_kernel(image.float(), 10.0, 20.0, like=torch.zeros(()))(values))


@pytest.mark.parametrize("number", [np.array(9.0), np.float32(9), 9, torch.tensor(9.0)], ids=repr)
def test_bandwidths_of_any_kind(number: Any) -> None:
    image, values = torch.randint(0, 256, (1, 3, 2, 4)), torch.randn(1, 2, 8)
    found, expected = (bilateral_kernel(image, n, n, like=values)(values) for n in (number, 9.0))
    assert torch.equal(found, expected)


def test_exact_spatial_kernel_takes_the_lattices_error_away() -> None:
    """With the spatial kernel alone, mean field is that of the exact sum."""
    scores, image = scene(20, 26, 3)
    exact = dense_crf(scores, image, bilateral_w=0.0, backend="exact").exp()
    separable = dense_crf(scores, image, bilateral_w=0.0, spatial="exact").exp()
    lattice = dense_crf(scores, image, bilateral_w=0.0).exp()
    assert float((separable - exact).abs().max()) < 1e-5
    assert float((lattice - exact).abs().max()) > 1e-3


def test_kept_for_the_next_image_unless_it_is_huge(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (spatial_kernel(6, 7, 2.0, like=LIKE) for _ in range(2))
    assert first is second
    monkeypatch.setattr("piecewise_training.crf.pixels._MOST_KEPT", 41)
    third = spatial_kernel(6, 7, 2.0, like=LIKE)
    assert third is not first
    values = torch.randn(1, 2, 42, dtype=torch.float64)
    torch.testing.assert_close(third(values), first(values))


def test_bandwidths_that_are_not_above_0() -> None:
    for spatial in ("lattice", "exact"):
        with pytest.raises(ValueError, match=r"`bandwidths` must be above 0; got \[0.0, 0.0\]"):
            spatial_kernel(2, 3, 0.0, like=LIKE, spatial=spatial)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`bandwidths` must be above 0; got \[80.0, 80.0, -1"):
        bilateral_kernel(torch.zeros(1, 1, 2, 3), 80.0, -1e-30, like=LIKE)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor], ids=lambda kind: kind.__name__)
def test_a_bandwidth_for_each_channel_of_any_kind(kind: Any) -> None:
    image, values = torch.randint(0, 256, (1, 3, 2, 4)), torch.randn(1, 2, 8)
    found, expected = (bilateral_kernel(image, 3.0, n, like=values)(values) for n in (kind([9.0, 8.0, 7.0]), [9, 8, 7]))
    assert torch.equal(found, expected)


def test_images_and_bandwidths_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"`image` must be \(B, C, H, W\); got \(3, 2, 4\) float32"):
        bilateral_kernel(torch.zeros(3, 2, 4), 3.0, 9.0, like=LIKE)
    with pytest.raises(ValueError, match="`rgb_std` must be a number, or 3 for as many channels; got 1"):
        bilateral_kernel(torch.zeros(1, 3, 2, 4), None, [1.0], like=LIKE)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="`spatial` must be lattice or exact; got 'fast'"):
        spatial_kernel(2, 2, 1.0, like=LIKE, spatial="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`normalization` must be one of none, before, after, symmetric; got 'both'"):
        spatial_kernel(2, 2, 1.0, like=LIKE, normalization="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8, torch.int64])
def test_spatial_kernels_of_other_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="`features` must be"):
        spatial_kernel(3, 4, 2.7, like=torch.zeros((), dtype=dtype))

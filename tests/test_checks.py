"""The one layer of errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from piecewise_training import checks


def test_labels() -> None:
    checks.labels(torch.tensor([0, 2, 255]), 3)
    checks.labels(torch.tensor([0, 2, -1]), 3, ignore_index=-1)
    with pytest.raises(ValueError, match=r"`target` must hold classes 0 to 2 or 255 \(void\); it also holds \[-1, 3\]"):
        checks.labels(torch.tensor([3, -1, 3]), 3)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_positive(value: float) -> None:
    checks.scalar("w", 1e-9, positive=True)
    with pytest.raises(ValueError, match="`w` must be a finite number above 0; got"):
        checks.scalar("w", torch.tensor(value, requires_grad=True), positive=True)


def test_scalar() -> None:
    checks.scalar("w", -1.0)
    with pytest.raises(ValueError, match="`w` must be a finite number; got nan"):
        checks.scalar("w", torch.tensor(torch.nan))
    with pytest.raises(ValueError, match=r"`w` must be a number or a tensor without axes; got \(1,\) float32"):
        checks.scalar("w", torch.ones(1))


def test_describe_is_short() -> None:
    assert checks.describe({"out": torch.zeros(100)}) == "a dict of 'out'"
    assert checks.describe([torch.zeros(100)] * 2) == "a list of 2"
    assert checks.describe(np.zeros((2, 3))) == "(2, 3) float64 (ndarray)"


def test_finite() -> None:
    checks.finite("x", torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="`x` must be finite; 2 of 3 values are NaN or infinite"):
        checks.finite("x", torch.tensor([1.0, torch.nan, -torch.inf]))


def test_devices() -> None:
    with pytest.raises(ValueError, match="`scores` and `image` must be on one device; got cpu and meta"):
        checks.scores_and_image(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3, device="meta"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_images_from_0_to_1_are_told(dtype: torch.dtype) -> None:
    image = torch.linspace(0, 1, 12, dtype=dtype)
    std = torch.tensor(13.0, requires_grad=True)
    with pytest.warns(
        UserWarning, match=r"^`x` holds values from 0 to 1, which are all one colour to .* in grey levels\."
    ):
        checks.grey_levels("x", image, [std, 20.0], stacklevel=1)


@pytest.mark.parametrize(
    ("image", "std"),
    [
        (torch.linspace(0, 255, 12), 13.0),
        (torch.linspace(0, 1, 12), 0.9),
        (torch.linspace(-1, 1, 12), 13.0),
        (torch.tensor([0.0, 0.5, 2.0, 0.0]), 13.0),
        (torch.tensor([0.0, 7.6e-6, 1.0]), 13.0),  # a black one, of the levels 0 and 1
        (torch.tensor([0, 1, 1], dtype=torch.uint8), 13.0),
    ],
)
def test_other_images_are_not(image: torch.Tensor, std: float) -> None:
    checks.grey_levels("x", image, [13.0, std], stacklevel=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_images_whose_mean_is_low_are_looked_at(dtype: torch.dtype) -> None:
    """Also where a sum of half precision would overflow."""
    scores, image = torch.zeros(1, 2, 200, 200), torch.full((1, 3, 200, 200), 0.9, dtype=dtype)
    assert checks.scores_and_image(scores, image)
    assert not checks.scores_and_image(scores, 100 * image)
    assert not checks.scores_and_image(scores, 0 * image)
    assert not checks.scores_and_image(scores, image.round().byte())

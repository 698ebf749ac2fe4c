"""The augmentation and its bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision import tv_tensors

from piecewise_training.dataset.transforms import RandomQuarterTurn, RandomScale, augmentation, resize


def pair(height: int, width: int) -> tuple[Any, Any]:
    return (
        tv_tensors.Image(torch.randint(0, 256, (3, height, width), dtype=torch.uint8)),
        tv_tensors.Mask(torch.zeros(height, width, dtype=torch.uint8)),
    )


def test_scale_is_one_for_both_and_within_bounds() -> None:
    sizes = set()
    for _ in range(50):
        image, mask = RandomScale(0.5, 2.0)(*pair(40, 60))
        assert image.shape[1:] == mask.shape
        assert 20 <= image.shape[1] <= 80
        assert abs(image.shape[2] / image.shape[1] - 1.5) < 0.1
        sizes.add(image.shape[1])
    assert len(sizes) > 20


def test_crop_pads_with_void_and_mean_colour() -> None:
    image, mask = augmentation(crop=(50, 50), scale=(0.5, 0.5), flip=0, jitter=0)(*pair(40, 40))
    assert mask.shape == (50, 50)
    assert int((mask == 0).sum()) == 400
    padding = image[:, mask == 255]
    assert padding.unique(dim=1).flatten().tolist() == [124, 116, 104]


def test_turns_are_those_of_both_and_all_four() -> None:
    mask = tv_tensors.Mask(torch.arange(6, dtype=torch.uint8).reshape(2, 3))
    image = tv_tensors.Image(mask.as_subclass(torch.Tensor).expand(3, 2, 3))
    seen = set()
    for _ in range(60):
        turned, label = RandomQuarterTurn()(image, mask)
        assert isinstance(turned, tv_tensors.Image)
        assert isinstance(label, tv_tensors.Mask)
        assert torch.equal(turned[1].as_subclass(torch.Tensor), label.as_subclass(torch.Tensor))
        seen.add(str(label.tolist()))
    once = [[2, 5], [1, 4], [0, 3]]
    twice = [[5, 4, 3], [2, 1, 0]]
    thrice = [[3, 0], [4, 1], [5, 2]]
    assert seen == {str(turn) for turn in (mask.tolist(), once, twice, thrice)}


def test_turned_images_fill_the_crop_where_they_are_as_large() -> None:
    transform = augmentation(crop=(20, 40), scale=(1, 1), flip=0, jitter=0, turns=True)
    voids = {int((transform(*pair(20, 40))[1] == 255).sum()) for _ in range(30)}
    assert voids == {0, 400}  # on its side an image of 20 x 40 is 20 columns too narrow


def test_jitter_spares_the_mask() -> None:
    image, mask = pair(20, 20)
    changed, same = augmentation(crop=(20, 20), scale=(1, 1), flip=0, jitter=0.5)(image, mask)
    assert torch.equal(same, mask)
    assert not torch.equal(changed, image)


def test_resize_keeps_pixel_grids_aligned() -> None:
    """Doubling and halving a mask gives it back, as it does for the image's grid."""
    _, mask = pair(1, 1)
    mask = tv_tensors.Mask(torch.randint(0, 5, (7, 9), dtype=torch.uint8))
    assert torch.equal(resize(resize(mask, (14, 18)), (7, 9)), mask)
    halved = resize(tv_tensors.Mask(torch.arange(12, dtype=torch.uint8).reshape(1, 2, 6)), (2, 3))
    assert isinstance(halved, tv_tensors.Mask)
    assert halved.tolist() == [[[1, 3, 5], [7, 9, 11]]]  # places 0.5, 2.5, 4.5 and not 0, 2, 4: of two, the later


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": (0, 4)}, r"`crop` must be \(height, width\) of at least 1; got \(0, 4\)"),
        ({"scale": (2.0, 1.0)}, r"`scale` must be two factors, 0 < low <= high; got \(2.0, 1.0\)"),
        ({"scale": (0.0, 1.0)}, "`scale` must be two factors"),
        ({"flip": 1.5}, "`flip` must be a probability from 0 to 1; got 1.5"),
        ({"jitter": -0.1}, "`jitter` must be from 0 to 1; got -0.1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augmentation(**({"crop": (8, 8)} | arguments))

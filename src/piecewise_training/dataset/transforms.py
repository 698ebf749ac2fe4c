"""Resizing, normalising and augmenting an image together with its label, on torchvision's v2 transforms."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from piecewise_training.dataset.files import VOID

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Of red, green and blue in [0, 1]: what `normalise` takes off."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1]: what `normalise` divides by."""


def resize(value: Any, size: tuple[int, int]) -> Any:
    """Resizes an image bilinearly, with antialiasing, or a mask by the nearest pixel.

    torchvision's "nearest" takes the upper left neighbour, half a pixel beside the image's grid; "nearest exact" does
    not. For masks many of its versions take the first, whatever they are told: so a mask goes as an image.

    Example:
        >>> resize(tv_tensors.Mask(torch.tensor([[0, 1, 2, 3, 4, 5]], dtype=torch.uint8)), (1, 2))
        Mask([[1, 4]], dtype=torch.uint8)
    """
    if isinstance(value, tv_tensors.Mask):
        plain = value.as_subclass(Tensor).reshape(-1, 1, *value.shape[-2:])
        resized = functional.resize_image(plain, list(size), interpolation=InterpolationMode.NEAREST_EXACT)
        return tv_tensors.wrap(resized.reshape(*value.shape[:-2], *size), like=value)
    return functional.resize(value, list(size), antialias=True)


def normalise(image: Tensor) -> Float[Tensor, "3 h w"]:
    """Turns an 8-bit image, or a float one in [0, 1], into ImageNet's normalised floats."""
    scaled = functional.to_dtype(image, torch.float32, scale=True)
    return functional.normalize(scaled, list(IMAGENET_MEAN), list(IMAGENET_STD))


def to_rgb(image: Float[Tensor, "*b 3 h w"]) -> UInt8[Tensor, "*b 3 h w"]:
    """Undoes `normalise`: 8-bit RGB from normalised floats.

    Example:
        >>> to_rgb(normalise(torch.full((3, 1, 1), 200, dtype=torch.uint8))).flatten()
        tensor([200, 200, 200], dtype=torch.uint8)
    """
    mean, std = (torch.tensor(v, device=image.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


class RandomScale(v2.Transform):  # type: ignore[misc]
    """Resizes image and mask by one random factor, uniform between two bounds."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not 0 < low <= high:
            raise ValueError(f"`scale` must be two factors, 0 < low <= high; got ({low}, {high}).")
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the size; called by torchvision once for an image and its mask."""
        height, width = functional.get_size(flat_inputs[0])
        factor = self.low + (self.high - self.low) * float(torch.rand(()))
        return {"size": (max(1, round(height * factor)), max(1, round(width * factor)))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resizes one of the two; called by torchvision."""
        return resize(inpt, params["size"])


class RandomQuarterTurn(v2.Transform):  # type: ignore[misc]
    """Turns image and mask by 0, 1, 2 or 3 quarters, each as often as the others.

    With a horizontal flip these are all eight ways in which a picture without an up and down can lie.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the quarters; called by torchvision once for an image and its mask."""
        del flat_inputs
        return {"quarters": int(torch.randint(4, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Turns one of the two; called by torchvision."""
        return tv_tensors.wrap(torch.rot90(inpt.as_subclass(Tensor), params["quarters"], (-2, -1)), like=inpt)


def augmentation(
    crop: tuple[int, int],
    scale: tuple[float, float] = (0.5, 2.0),
    flip: float = 0.5,
    jitter: float = 0.3,
    turns: bool = False,
) -> v2.Compose:
    """The usual augmentation: random scale, random crop, horizontal flip, colour jitter, jointly on image and mask.

    Where the scaled image is smaller than the crop it is padded with ImageNet's mean colour, and its label with void.

    Args:
        crop: (height, width) of every item.
        scale: bounds of the random factor of size.
        flip: probability of a horizontal flip, 0 to 1.
        jitter: largest relative change of brightness, contrast and saturation; hue changes by up to a tenth of it.
        turns: whether to turn by quarters as well, before the crop.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> image = tv_tensors.Image(torch.zeros(3, 30, 40, dtype=torch.uint8))
        >>> mask = tv_tensors.Mask(torch.zeros(30, 40, dtype=torch.uint8))
        >>> [tuple(v.shape) for v in augmentation(crop=(20, 20))(image, mask)]
        [(3, 20, 20), (20, 20)]
    """
    if len(crop) != 2 or min(crop) < 1:
        raise ValueError(f"`crop` must be (height, width) of at least 1; got {crop!r}.")
    if not 0 <= flip <= 1:
        raise ValueError(f"`flip` must be a probability from 0 to 1; got {flip}.")
    if not 0 <= jitter <= 1:
        raise ValueError(f"`jitter` must be from 0 to 1; got {jitter}.")
    padding = {tv_tensors.Image: [round(255 * m) for m in IMAGENET_MEAN], tv_tensors.Mask: VOID}
    return v2.Compose(
        [
            RandomScale(*scale),
            *([RandomQuarterTurn()] if turns else []),
            v2.RandomCrop(crop, pad_if_needed=True, fill=padding),
            v2.RandomHorizontalFlip(flip),
            v2.ColorJitter(jitter, jitter, jitter, jitter / 10),
        ]
    )

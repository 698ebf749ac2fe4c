"""Pixels as a backbone's published weights want them."""

from __future__ import annotations

from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from piecewise_training.dataset import IMAGENET_MEAN, IMAGENET_STD


class OwnPixels(nn.Module):
    """From ImageNet's normalisation, in which a model takes its images, to that of a timm backbone's own weights.

    A third of timm's weights, such as those of EfficientNet-Lite, were trained on other pixels, mostly from -1 to 1.
    Batch normalisation makes up for the difference where it is trained, but not where it is frozen.

    Args:
        backbone: timm's name.

    Example:
        >>> own = OwnPixels("tf_efficientnet_lite0")
        >>> white = (1 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
        >>> own(white[None, :, None, None]).flatten().round(decimals=3)
        tensor([1., 1., 1.])
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, backbone: str) -> None:
        super().__init__()
        config = timm.get_pretrained_cfg(backbone)
        wanted = (IMAGENET_MEAN, IMAGENET_STD) if config is None else (config.mean, config.std)
        (mean, std), (own_mean, own_std) = (map(torch.tensor, pair) for pair in ((IMAGENET_MEAN, IMAGENET_STD), wanted))
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The image in the backbone's own normalisation."""
        return image * self.scale[:, None, None] + self.shift[:, None, None]


class TakesOwnPixels(nn.Module):
    """A network with a `backbone`, and with `pixels` for it that belong to its weights.

    Weights from before there were `pixels` come without, and were trained on images as they are. Without the backbone's
    weights those of another one's pixels are of no use.
    """

    pixels: nn.Module

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        names = [f"{prefix}pixels.{name}" for name in self.pixels.state_dict()]
        with_backbone = any(name.startswith(f"{prefix}backbone.") for name in state_dict)
        if not with_backbone:
            for name in names:
                state_dict.pop(name, None)
        elif names and not {*names} & state_dict.keys():
            state_dict.update(zip(names, (torch.ones(3), torch.zeros(3)), strict=True))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

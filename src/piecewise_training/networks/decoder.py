"""A light decoder in the style of DeepLabV3+: context at several dilations, then borders from an early feature map."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Decoder(nn.Module):
    """Turns an early and a deep feature map into scores at the early one's resolution (Chen et al., ECCV 2018).

    Args:
        early_channels: channels of the early map, usually at stride 4.
        deep_channels: channels of the deep map.
        num_classes: number of score maps.
        dilations: of the 3 x 3 convolutions on the deep map; a `TimmSegmenter` takes 96 and 192 pixels of the image.
        width: channels inside.

    Example:
        >>> decoder = Decoder(24, 320, 11, dilations=(6,)).eval()
        >>> decoder(torch.zeros(1, 24, 32, 40), torch.zeros(1, 320, 8, 10)).shape
        torch.Size([1, 11, 32, 40])
    """

    def __init__(
        self, early_channels: int, deep_channels: int, num_classes: int, dilations: tuple[int, ...], width: int = 128
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList([convolution(deep_channels, width, 1)])
        self.branches.extend(convolution(deep_channels, width, 3, dilation) for dilation in dilations)
        self.pooled = nn.Sequential(nn.Conv2d(deep_channels, width, 1), nn.ReLU(inplace=True))
        self.merge = convolution(width * (len(self.branches) + 1), width, 1)
        self.early = convolution(early_channels, 32, 1)
        self.refine = nn.Sequential(convolution(width + 32, width, 3), convolution(width, width, 3), nn.Dropout2d(0.1))
        self.score = nn.Conv2d(width, num_classes, 1)
        self.channels = width

    def forward(self, early: Float[Tensor, "b c1 h w"], deep: Float[Tensor, "b c2 h2 w2"]) -> Float[Tensor, "b k h w"]:
        """Score maps of the early feature map's size."""
        return self.score(self.feature_map(early, deep))

    def feature_map(
        self, early: Float[Tensor, "b c1 h w"], deep: Float[Tensor, "b c2 h2 w2"]
    ) -> Float[Tensor, "b width h w"]:
        """The feature map that is scored."""
        whole = self.pooled(deep.mean((2, 3), keepdim=True)).expand(-1, -1, *deep.shape[2:])
        context = self.merge(torch.cat([*(branch(deep) for branch in self.branches), whole], 1))
        context = functional.interpolate(context, early.shape[2:], mode="bilinear", align_corners=False)
        return self.refine(torch.cat([context, self.early(early)], 1))


def convolution(channels: int, width: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )

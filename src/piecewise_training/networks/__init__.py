"""The networks that score every pixel: image (B, 3, H, W) in, K score maps of any size out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from piecewise_training.networks.backbones import TimmSegmenter
from piecewise_training.networks.contextual import ContextualCRF, Relation
from piecewise_training.networks.decoder import Decoder
from piecewise_training.networks.depthwise import adapt_to_cpu
from piecewise_training.networks.featmap import FeatMapNet
from piecewise_training.networks.vgg import FCN8s, LargeFOV
from piecewise_training.networks.weights import Pretrained, read_state_dict

__all__ = [
    "ContextualCRF",
    "Decoder",
    "FCN8s",
    "FeatMapNet",
    "LargeFOV",
    "Pretrained",
    "Relation",
    "TimmSegmenter",
    "adapt_to_cpu",
    "build_unary",
    "read_state_dict",
]

VGG_NETWORKS = ("largefov_vgg16", "fcn8s_vgg16")


def build_unary(
    name: str,
    num_classes: int,
    *,
    output_stride: int = 16,
    pretrained: Pretrained = None,
    featmap: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Builds a unary network by name.

    Args:
        name: "largefov_vgg16", "fcn8s_vgg16" or any timm backbone.
        num_classes: number of score maps.
        output_stride: 8, 16 or 32, for a timm backbone; the two VGG networks have stride 8.
        pretrained: True, False, a local file, or None to try.
        featmap: makes "vgg16" or a timm backbone the trunk of a FeatMap-Net with these options, at stride 16.

    Raises:
        ValueError: the name or the stride is unknown, or an option is out of its range.

    Example:
        >>> type(build_unary("largefov_vgg16", 21, pretrained=False)).__name__
        'LargeFOV'
    """
    if featmap is not None:
        if name in VGG_NETWORKS:
            raise ValueError(f"`featmap` builds on a trunk: `unary` must be vgg16 or a timm backbone; got {name!r}.")
        network: nn.Module = FeatMapNet(name, num_classes, pretrained=pretrained, **featmap)
    elif name == "largefov_vgg16":
        network = LargeFOV(num_classes, pretrained)
    elif name == "fcn8s_vgg16":
        network = FCN8s(num_classes, pretrained)
    else:
        network = TimmSegmenter(name, num_classes, output_stride, pretrained)
    network.to(memory_format=torch.channels_last)  # a training step of Lite0 in bfloat16 takes 0.6 of the time
    return adapt_to_cpu(network)

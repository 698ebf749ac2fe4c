"""The networks that score every pixel: image (B, 3, H, W) in, K score maps of any size out."""

from torch import nn

from piecewise_training.networks.backbones import TimmSegmenter
from piecewise_training.networks.decoder import Decoder
from piecewise_training.networks.vgg import FCN8s, LargeFOV
from piecewise_training.networks.weights import Pretrained, read_state_dict

__all__ = ["Decoder", "FCN8s", "LargeFOV", "Pretrained", "TimmSegmenter", "build_unary", "read_state_dict"]


def build_unary(name: str, num_classes: int, *, output_stride: int = 16, pretrained: Pretrained = None) -> nn.Module:
    """Builds a unary network by name.

    Args:
        name: "largefov_vgg16", "fcn8s_vgg16" or any timm backbone.
        num_classes: number of score maps.
        output_stride: 8, 16 or 32, for a timm backbone; the two VGG networks have stride 8.
        pretrained: True, False, a local file, or None to try.

    Raises:
        ValueError: the name or the stride is unknown.

    Example:
        >>> type(build_unary("largefov_vgg16", 21, pretrained=False)).__name__
        'LargeFOV'
    """
    if name == "largefov_vgg16":
        return LargeFOV(num_classes, pretrained)
    if name == "fcn8s_vgg16":
        return FCN8s(num_classes, pretrained)
    return TimmSegmenter(name, num_classes, output_stride, pretrained)

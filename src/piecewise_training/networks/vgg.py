"""The VGG-16 networks of the field: DeepLab-LargeFOV and FCN-8s."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from piecewise_training.networks.weights import Pretrained, StateDict, initialise

STRIDE = 8  # of the scores

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and number of 3 x 3 convolutions


class LargeFOV(nn.Module):
    """DeepLab-LargeFOV on VGG-16 (Chen et al., ICLR 2015): output stride 8 and a 3 x 3 fc6 with dilation 12.

    The last two poolings keep the resolution, and conv5 is dilated by 2 to see as far as before. Parameters of the
    convolutions bear torchvision's names (`features.0.weight`, ...), so that its VGG-16 weights fit; fc6 and fc7 start
    from every fourth filter of VGG's, fc6 from every third row and column of it, as DeepLab's authors did.

    It is not their network in all: where their first three poolings take 3 x 3 places with a padding of 1, ours take
    VGG's 2 x 2, whose cells lie on the image without a shift; the mean over 3 x 3 places that they put between pool5
    and fc6 is left out; and dropout leaves out whole channels, not single elements.

    Args:
        num_classes: number of score maps.
        pretrained: True, False, a local file, or None to try; see `weights.initialise`.

    Attributes:
        multiple: of which an image's sides should be: a cell that poolings have rounded up lies beyond the image.
        channels: of the feature map.

    Example:
        >>> LargeFOV(21, pretrained=False).eval()(torch.zeros(1, 3, 64, 72)).shape
        torch.Size([1, 21, 8, 9])
    """

    def __init__(self, num_classes: int, pretrained: Pretrained = None) -> None:
        super().__init__()
        self.features = convolutions(pool_strides=(2, 2, 2, 1, 1), last_dilation=2)
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=12, dilation=12)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        self.score = nn.Conv2d(1024, num_classes, 1)
        self.dropout = nn.Dropout2d(0.5)
        self.channels = 1024
        self.multiple = STRIDE
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(_bias(self.score))
        initialise(self, pretrained, fetch_vgg16, _to_large_fov)

    @property
    def backbone(self) -> nn.Module:
        """The part that starts from ImageNet weights."""
        return self.features

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h8 w8"]:
        """Score maps at an eighth of the resolution."""
        return self.score(self.feature_map(image))

    def feature_map(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h8 w8"]:
        """The feature map that is scored."""
        x = self.features(image)
        x = self.dropout(torch.relu(self.fc6(x)))
        return self.dropout(torch.relu(self.fc7(x)))


class FCN8s(nn.Module):
    """FCN-8s on VGG-16 (Long, Shelhamer & Darrell, CVPR 2015): scores of fc7, pool4 and pool3, each upsampled by two.

    The two upsamplings start as bilinear and are learned; the scores of pool4 and pool3 start at zero. The original
    pads the image by 100 pixels to keep fc6 in it; here fc6 is padded by 3. Dropout leaves out whole channels, not
    single elements.

    Args:
        num_classes: number of score maps.
        pretrained: True, False, a local file, or None to try; see `weights.initialise`.

    Attributes:
        multiple: of which an image's sides should be: a cell that poolings have rounded up lies beyond the image.

    Example:
        >>> FCN8s(21, pretrained=False).eval()(torch.zeros(1, 3, 64, 72)).shape
        torch.Size([1, 21, 8, 9])
    """

    def __init__(self, num_classes: int, pretrained: Pretrained = None) -> None:
        super().__init__()
        self.features = convolutions(pool_strides=(2, 2, 2, 2, 2), last_dilation=1)
        pools = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]
        self._pool3, self._pool4 = pools[2] + 1, pools[3] + 1
        self.fc6 = nn.Conv2d(512, 4096, 7, padding=3)
        self.fc7 = nn.Conv2d(4096, 4096, 1)
        self.score = nn.Conv2d(4096, num_classes, 1)
        self.score_pool4 = nn.Conv2d(512, num_classes, 1)
        self.score_pool3 = nn.Conv2d(256, num_classes, 1)
        self.up_fc7 = _bilinear_upsampling(num_classes)
        self.up_pool4 = _bilinear_upsampling(num_classes)
        self.dropout = nn.Dropout2d(0.5)
        self.multiple = STRIDE  # coarser maps may end beyond the image: of them the upsampled part within it is taken
        for layer in (self.score, self.score_pool4, self.score_pool3):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(_bias(layer))
        nn.init.normal_(self.score.weight, std=0.01)
        initialise(self, pretrained, fetch_vgg16, _to_fcn)

    @property
    def backbone(self) -> nn.Module:
        """The part that starts from ImageNet weights."""
        return self.features

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h8 w8"]:
        """Score maps at an eighth of the resolution."""
        pool3 = self.features[: self._pool3](image)
        pool4 = self.features[self._pool3 : self._pool4](pool3)
        x = self.features[self._pool4 :](pool4)
        x = self.dropout(torch.relu(self.fc6(x)))
        x = self.dropout(torch.relu(self.fc7(x)))
        x = _add_aligned(self.up_fc7(self.score(x)), self.score_pool4(pool4))
        return _add_aligned(self.up_pool4(x), self.score_pool3(pool3))


def convolutions(pool_strides: tuple[int, ...], last_dilation: int) -> nn.Sequential:
    """VGG-16's convolutions and poolings, of which some may keep the resolution."""
    layers: list[nn.Module] = []
    channels = 3
    for block, ((width, depth), stride) in enumerate(zip(_BLOCKS, pool_strides, strict=True)):
        dilation = last_dilation if block == len(_BLOCKS) - 1 else 1
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
            channels = width
        pool: dict[str, Any] = (
            {"kernel_size": 2, "ceil_mode": True} if stride == 2 else {"kernel_size": 3, "padding": 1}
        )
        layers.append(nn.MaxPool2d(stride=stride, **pool))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(_bias(layer))
    return nn.Sequential(*layers)


def _bilinear_upsampling(channels: int) -> nn.ConvTranspose2d:
    """A learnable upsampling by two that starts as the bilinear one."""
    layer = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
    side = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[range(channels), range(channels)] = side[:, None] * side
    return layer


def _add_aligned(upsampled: Tensor, finer: Tensor) -> Tensor:
    """Adds a finer map to an upsampled one, which is larger by a row or column where poolings rounded up."""
    return upsampled[..., : finer.shape[2], : finer.shape[3]] + finer


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def fetch_vgg16() -> StateDict:
    """Torchvision's ImageNet weights."""
    from torchvision.models import VGG16_Weights

    return VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)


def _to_large_fov(state: StateDict) -> StateDict:
    adapted = dict(_without_classifier(state))
    if "classifier.0.weight" in state:
        fc6 = state["classifier.0.weight"].reshape(4096, 512, 7, 7)
        adapted["fc6.weight"] = fc6[::4, :, ::3, ::3]
        adapted["fc6.bias"] = state["classifier.0.bias"][::4]
        adapted["fc7.weight"] = state["classifier.3.weight"][::4, ::4, None, None]
        adapted["fc7.bias"] = state["classifier.3.bias"][::4]
    return adapted


def _to_fcn(state: StateDict) -> StateDict:
    adapted = dict(_without_classifier(state))
    if "classifier.0.weight" in state:
        adapted["fc6.weight"] = state["classifier.0.weight"].reshape(4096, 512, 7, 7)
        adapted["fc6.bias"] = state["classifier.0.bias"]
        adapted["fc7.weight"] = state["classifier.3.weight"][:, :, None, None]
        adapted["fc7.bias"] = state["classifier.3.bias"]
    return adapted


def _without_classifier(state: StateDict) -> StateDict:
    return {name: value for name, value in state.items() if not name.startswith("classifier.")}

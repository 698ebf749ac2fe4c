"""FeatMap-Net: the feature map of the contextual CRF, from several scales of the image and sliding pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from threading import RLock
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from piecewise_training.networks import backbones, vgg
from piecewise_training.networks.decoder import convolution
from piecewise_training.networks.pixels import OwnPixels, TakesOwnPixels
from piecewise_training.networks.weights import Pretrained, StateDict, initialise

STRIDE = 16

_ALONE = RLock()  # of threads one at a time has its statistics in a trunk; copies and pickles of networks hold no lock


class FeatMapNet(TakesOwnPixels):
    """A trunk on several scales of the image, one block of convolutions for each scale, and pooling at stride 1.

    The network of Lin et al. (CVPR 2016), section 4 and figure 4: all scales share the trunk; each scale's block
    follows; the map and its maxima over 5 x 5 and 9 x 9 places are put together ("sliding pyramid pooling"); the maps
    of the smaller scales are enlarged to the largest, and all are put together. A small head scores the classes. With
    one scale of 1 and no pooling it is the plain network that the paper compares with.

    On VGG-16 the first convolution of a block is fc6, which sees the pooled map through holes as it does in VGG. Batch
    normalisation in the blocks and the head, and all widths, are our choice. A trunk with batch normalisation, which
    the paper's has not, shares its weights between the scales and keeps running statistics for each. A scale's size is
    rounded to multiples of the stride, without which its map would be shifted against the others'.

    Args:
        trunk: "vgg16" or any convolutional timm backbone.
        num_classes: number of score maps.
        scales: of the image, each above 0.
        pooling: sides of the pooled squares, each odd; none for no pooling.
        widths: channels of each block's convolutions; None takes 4096, 512 and 512 for VGG-16 and 128 for others.
        hidden: width of the head.
        pretrained: ImageNet weights: True, False, a local file, or None to try; see `weights.initialise`.

    Attributes:
        channels: of the feature map.
        multiple: of which an image's sides should be.

    Raises:
        ValueError: timm has no such backbone, or a number is out of its range.

    Example:
        >>> net = FeatMapNet("tf_efficientnet_lite0", 11, pretrained=False).eval()
        >>> features = net.feature_map(torch.zeros(1, 3, 160, 240))
        >>> features.shape, net.score(features).shape
        (torch.Size([1, 1152, 12, 18]), torch.Size([1, 11, 12, 18]))
    """

    def __init__(
        self,
        trunk: str,
        num_classes: int,
        *,
        scales: Sequence[float] = (1.2, 0.8, 0.4),
        pooling: Sequence[int] = (5, 9),
        widths: Sequence[int] | None = None,
        hidden: int = 512,
        pretrained: Pretrained = None,
    ) -> None:
        super().__init__()
        _check(scales, pooling, widths)
        for name, count in (("num_classes", num_classes), ("hidden", hidden)):
            if count < 1:
                raise ValueError(f"`{name}` must be at least 1; got {count}.")
        self.scales = tuple(scales)
        self.pooling = tuple(pooling)
        self.multiple = STRIDE
        self.pixels = nn.Identity() if trunk == "vgg16" else OwnPixels(trunk)
        if trunk == "vgg16":
            widths = widths or (4096, 512, 512)
            self.backbone: nn.Module = vgg.convolutions(pool_strides=(2, 2, 2, 2, 1), last_dilation=1)
            self.blocks = nn.ModuleList(_vgg_block(widths) for _ in scales)
        else:
            widths = widths or (128,)
            extractor = backbones.feature_extractor(trunk, STRIDE)
            self.backbone = extractor
            self.blocks = nn.ModuleList(_block(extractor.feature_info.channels()[-1], widths) for _ in scales)
        self.channels = widths[-1] * (1 + len(pooling)) * len(scales)
        self.score = nn.Sequential(
            convolution(self.channels, hidden, 1), nn.Dropout2d(0.1), nn.Conv2d(hidden, num_classes, 1)
        )
        if trunk == "vgg16":
            initialise(self, pretrained, vgg.fetch_vgg16, lambda state: _of_vgg(state, len(scales), widths[0]))
        else:
            backbones.initialise_backbone(self.backbone, trunk, pretrained)
        self.statistics = nn.ModuleList(_Statistics(self.backbone) for _ in scales[1:])
        self.register_load_state_dict_pre_hook(_complete)  # type: ignore[no-untyped-call]
        for statistics in self.statistics:
            follow = cast(_Statistics, statistics).follow
            self.backbone.register_load_state_dict_pre_hook(follow)  # type: ignore[no-untyped-call]

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k y x"]:
        """Score maps at a 16th of the resolution, times the largest scale."""
        return self.score(self.feature_map(image))

    def feature_map(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c y x"]:
        """The feature map, on whose places the nodes of the contextual CRF lie."""
        maps = [self._of_scale(image, place) for place in range(len(self.scales))]
        largest = max((m.shape[2:] for m in maps), key=lambda size: size[0] * size[1])
        return torch.cat([_resized(m, largest) for m in maps], 1)

    def _of_scale(self, image: Tensor, place: int) -> Tensor:
        height, width = (STRIDE * max(1, round(side * self.scales[place] / STRIDE)) for side in image.shape[2:])
        maps = self._through_trunk(self.pixels(_resized(image, (height, width), antialias=True)), place)
        deepest = self.blocks[place](maps if isinstance(maps, Tensor) else maps[-1])
        pooled = (functional.max_pool2d(deepest, side, 1, side // 2) for side in self.pooling)
        return torch.cat([deepest, *pooled], 1)

    def _through_trunk(self, image: Tensor, place: int) -> Any:
        """The trunk's maps, by the statistics of a scale, which lie in the trunk for the time of the call."""
        statistics = cast(_Statistics, self.statistics[place - 1]).by_name() if place else {}
        shared = any(True for _ in self.statistics.buffers()) and not torch.compiler.is_compiling()
        with _ALONE if shared else nullcontext():
            return functional_call(self.backbone, statistics, image)


class _Statistics(nn.Module):
    """The trunk's running statistics for one more scale: those of a small image are not those of a large one."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self._names = [name for name, _ in trunk.named_buffers()]
        for name, buffer in trunk.named_buffers():
            self.register_buffer(name.replace(".", "-"), buffer.clone())

    def by_name(self) -> dict[str, Tensor]:
        """Under the trunk's names."""
        return {name: self.get_buffer(name.replace(".", "-")) for name in self._names}

    def follow(self, trunk: nn.Module, state: StateDict, prefix: str, *_: Any) -> None:
        """Takes the statistics that the trunk is loading; a network's own are loaded later, and replace them."""
        del trunk
        for name, own in self.by_name().items():
            loaded = state.get(prefix + name)
            if loaded is not None and loaded.shape == own.shape:
                own.copy_(loaded)


def _complete(network: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Gives weights of another network on the same trunk, which has one scale, the trunk's statistics for all."""
    for place, statistics in enumerate(cast(FeatMapNet, network).statistics):
        for name in cast(_Statistics, statistics).by_name():
            own, trunks = f"{prefix}statistics.{place}.{name.replace('.', '-')}", f"{prefix}backbone.{name}"
            if own not in state and trunks in state:
                state[own] = state[trunks].clone()


def _check(scales: Sequence[float], pooling: Sequence[int], widths: Sequence[int] | None) -> None:
    if not scales or not all(scale > 0 for scale in scales):
        raise ValueError(f"`scales` must be one or more numbers above 0; got {list(scales)}.")
    if not all(side > 0 and side % 2 for side in pooling):
        raise ValueError(f"`pooling` must be odd sides of squares; got {list(pooling)}.")
    if widths is not None and (not widths or min(widths) < 1):
        raise ValueError(f"`widths` must be one or more numbers of channels; got {list(widths)}.")


def _block(channels: int, widths: Sequence[int]) -> nn.Sequential:
    layers = []
    for width in widths:
        layers.append(convolution(channels, width, 3))
        channels = width
    return nn.Sequential(*layers)


def _vgg_block(widths: Sequence[int]) -> nn.Sequential:
    """VGG's fc6 with holes, which the last pooling's stride of 1 calls for, and convolutions with normalisation."""
    fc6 = nn.Conv2d(512, widths[0], 7, padding=6, dilation=2)
    nn.init.kaiming_normal_(fc6.weight, nonlinearity="relu")
    return nn.Sequential(fc6, nn.ReLU(inplace=True), nn.Dropout2d(0.5), *_block(widths[0], widths[1:]))


def _of_vgg(state: StateDict, blocks: int, width: int) -> StateDict:
    """Torchvision's VGG-16 under our names, with fc6 in every block where its width is 4096 or a part of it."""
    adapted = {
        name.replace("features.", "backbone."): value for name, value in state.items() if "classifier" not in name
    }
    if "classifier.0.weight" in state and 4096 % width == 0:
        every = 4096 // width
        for block in range(blocks):
            adapted[f"blocks.{block}.0.weight"] = state["classifier.0.weight"].reshape(4096, 512, 7, 7)[::every]
            adapted[f"blocks.{block}.0.bias"] = state["classifier.0.bias"][::every]
    return adapted


def _resized(values: Tensor, size: Sequence[int], *, antialias: bool = False) -> Tensor:
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return functional.interpolate(values, tuple(size), mode="bilinear", align_corners=False, antialias=antialias)

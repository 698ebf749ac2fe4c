"""Any convolutional timm backbone under the light decoder."""

from __future__ import annotations

import difflib
import socket
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import timm
from jaxtyping import Float
from torch import Tensor, nn

from piecewise_training.networks.decoder import Decoder
from piecewise_training.networks.pixels import OwnPixels, TakesOwnPixels
from piecewise_training.networks.weights import Pretrained, StateDict, initialise, read_state_dict


class TimmSegmenter(TakesOwnPixels):
    """A timm backbone at output stride 8, 16 or 32 with a DeepLabV3+ style decoder; scores come at stride 4.

    A backbone's maps lie on the image without a shift only where its sides are multiples of the output stride: paddings
    differ with the parity of a map's sides. A `PiecewiseTrainedModel` therefore continues an image to the next
    `multiple`.

    Args:
        backbone: timm's name, such as "tf_efficientnet_lite0" or "resnet50"; it must give feature maps.
        num_classes: number of score maps.
        output_stride: resolution of the deepest feature map. On a CPU, stride 8 of a backbone with depth-wise
            convolutions is slow: torch has no fast dilated depth-wise convolution there.
        pretrained: True, False, a local file, or None to try; see `weights.initialise`.

    Attributes:
        multiple: of which an image's sides should be.
        channels: of the feature map.

    Raises:
        ValueError: timm has no such backbone, or not with this output stride, or weights lack a tensor of it.

    Example:
        >>> import torch
        >>> net = TimmSegmenter("tf_efficientnet_lite0", 11, pretrained=False).eval()
        >>> net(torch.zeros(1, 3, 64, 96)).shape
        torch.Size([1, 11, 16, 24])
    """

    def __init__(self, backbone: str, num_classes: int, output_stride: int = 16, pretrained: Pretrained = None) -> None:
        super().__init__()
        self.backbone = feature_extractor(backbone, output_stride)
        self.pixels = OwnPixels(backbone)
        info = self.backbone.feature_info
        early = [i for i, stride in enumerate(info.reduction()) if stride <= 4][-1:]
        if not early or info.reduction()[early[0]] >= info.reduction()[-1]:
            raise ValueError(f"`unary` {backbone!r} has no feature map at stride 4 or less to find borders in.")
        self._early = early[0]
        self.multiple = output_stride
        channels = info.channels()
        dilations = {8: (12, 24), 16: (6, 12), 32: (3, 6)}[output_stride]
        self.decoder = Decoder(channels[self._early], channels[-1], num_classes, dilations)
        self.channels = self.decoder.channels
        initialise_backbone(self.backbone, backbone, pretrained)

    @property
    def score(self) -> nn.Module:
        """From the feature map to score maps."""
        return self.decoder.score

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h4 w4"]:
        """Score maps at a quarter of the resolution."""
        return self.score(self.feature_map(image))

    def feature_map(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h4 w4"]:
        """The feature map that is scored."""
        maps = self.backbone(self.pixels(image))
        return self.decoder.feature_map(maps[self._early], maps[-1])


def initialise_backbone(backbone: nn.Module, name: str, pretrained: Pretrained) -> None:
    """Fills what `feature_extractor` gave with timm's ImageNet weights, all of it; see `weights.initialise`."""
    initialise(backbone, pretrained, lambda: _fetch(name), lambda state: _rename(state, backbone), complete=True)


def feature_extractor(name: str, output_stride: int) -> Any:
    """A timm backbone that returns its feature maps, with random weights.

    Raises:
        ValueError: timm has no such backbone, or not with this output stride, or its maps have channels last.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"`output_stride` must be 8, 16 or 32; got {output_stride!r}.")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else " timm.list_models() gives every name."
        raise ValueError(f"`unary` must be largefov_vgg16, fcn8s_vgg16 or a timm backbone; got {name!r}.{hint}")
    stride: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}  # 32 is everybody's own
    try:
        backbone = timm.create_model(name, features_only=True, pretrained=False, **stride)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"`unary` {name!r} gives no feature maps at output stride {output_stride} ({error}). "
            "Take another output stride or a convolutional backbone."
        ) from error
    if str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC"):
        raise ValueError(f"`unary` {name!r} puts channels last in its feature maps. Take a convolutional backbone.")
    return backbone


def _fetch(name: str) -> StateDict:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise LookupError(f"timm publishes no weights for {name}")
    if config.hf_hub_id:
        cached = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
        if isinstance(cached, str):
            return read_state_dict(cached)
        _require_name_resolution(huggingface_hub.constants.ENDPOINT)
    return timm.create_model(name, pretrained=True).state_dict()


def _require_name_resolution(url: str) -> None:
    """Fails at once without a network; the hub's client would try again for three quarters of a minute."""
    if not urllib.request.getproxies():
        socket.getaddrinfo(urlsplit(url).hostname, 443)


def _rename(state: StateDict, network: nn.Module) -> StateDict:
    """Matches the names of a classifier to those of a feature extractor.

    There timm turns stages.0 into stages_0, stem.conv into stem_conv, or puts the whole below "model" or "body".
    """
    names = list(network.state_dict())
    wrapper = next((top for top in ("model.", "body.") if all(name.startswith(top) for name in names)), "")
    own = {_plain(name.removeprefix(wrapper)): name for name in names}
    return {own.get(_plain(name), name): value for name, value in state.items()}


def _plain(name: str) -> str:
    return name.replace("_", ".")

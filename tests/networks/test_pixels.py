"""Images in the normalisation of a backbone's own weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from piecewise_training.dataset import normalise
from piecewise_training.networks import FeatMapNet, TimmSegmenter
from piecewise_training.networks.pixels import OwnPixels

NETWORKS: Any = pytest.mark.parametrize(
    "build",
    [
        lambda name: TimmSegmenter(name, 3, pretrained=False),
        lambda name: FeatMapNet(name, 3, pretrained=False, hidden=8, widths=(8,), scales=(1.0,)),
    ],
    ids=["TimmSegmenter", "FeatMapNet"],
)


def pixels_for(name: str, image: torch.Tensor) -> torch.Tensor:
    """As timm's own transform for these weights makes them."""
    config = timm.get_pretrained_cfg(name)
    return (image / 255 - torch.tensor(config.mean)[:, None, None]) / torch.tensor(config.std)[:, None, None]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "hrnet_w18", "mobilenetv1_100"])
def test_are_those_of_timm(name: str) -> None:
    image = torch.randint(0, 256, (2, 3, 5, 7))
    torch.testing.assert_close(OwnPixels(name)(normalise(image.byte())), pixels_for(name, image), atol=1e-5, rtol=1e-5)


@NETWORKS
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_reach_the_backbone(build: Any, name: str) -> None:
    network = build(name).eval()
    found: list[torch.Tensor] = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    image = torch.randint(0, 256, (1, 3, 32, 48))
    network(normalise(image.byte()))
    torch.testing.assert_close(found[0], pixels_for(name, image), atol=1e-5, rtol=1e-5)


@NETWORKS
def test_weights_from_before_take_images_as_they_are(build: Any) -> None:
    network = build("tf_efficientnet_lite0")
    state = network.state_dict()
    own = network.pixels.scale.clone()
    assert not torch.equal(own, torch.ones(3))
    crf_alone = {name: value for name, value in state.items() if not name.startswith(("backbone.", "pixels."))}
    for others in ({}, {"pixels.scale": torch.full((3,), 9.0)}):
        network.load_state_dict(crf_alone | others, strict=False)
        assert torch.equal(network.pixels.scale, own)
    network.load_state_dict(state)
    assert torch.equal(network.pixels.scale, own)
    earlier = {name: value for name, value in state.items() if not name.startswith("pixels.")}
    whole = torch.nn.ModuleDict({"unary": network})
    whole.load_state_dict({f"unary.{name}": value for name, value in earlier.items()})
    image = torch.randn(1, 3, 4, 5)
    assert torch.equal(network.pixels(image), image)
    assert torch.equal(copy.deepcopy(network).pixels(image), image)
    assert "pixels.scale" not in earlier


def test_vgg_takes_images_as_they_are() -> None:
    network = FeatMapNet("vgg16", 3, pretrained=False, hidden=8, widths=(8,), scales=(1.0,))
    assert not any(name.startswith("pixels.") for name in network.state_dict())
    network.load_state_dict(network.state_dict())


def test_features_of_published_weights(lite0_weights: Path) -> None:
    """As timm's own model sees an image, in its own normalisation."""
    network = TimmSegmenter("tf_efficientnet_lite0", 3, 32, pretrained=lite0_weights).eval()
    theirs = timm.create_model("tf_efficientnet_lite0", checkpoint_path=str(lite0_weights)).eval()
    image = torch.randint(0, 256, (1, 3, 64, 96))
    with torch.no_grad():
        found = network.backbone(network.pixels(normalise(image.byte())))[-1]
        blocks = theirs.blocks(theirs.bn1(theirs.conv_stem(pixels_for("tf_efficientnet_lite0", image))))
    torch.testing.assert_close(found, blocks, atol=1e-4, rtol=1e-4)

"""FeatMap-Net: its parts, each of which can be left out, sizes of every kind, and weights."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import vgg16

from piecewise_training.networks import FeatMapNet, TimmSegmenter, build_unary
from piecewise_training.networks.featmap import _of_vgg
from piecewise_training.networks.weights import transfer

TRUNK = "mobilenetv3_small_050"


def small(**options: Any) -> FeatMapNet:
    return FeatMapNet(TRUNK, 3, pretrained=False, **({"widths": (6,), "hidden": 8} | options)).eval()


def test_feature_map_is_the_papers() -> None:
    """Trunk, block and both poolings of each scale, enlarged to the largest and put together."""
    net = small()
    image = torch.randn(2, 3, 70, 100)
    expected = []
    for scale, block in zip((1.2, 0.8, 0.4), net.blocks, strict=True):
        size = {1.2: (80, 128), 0.8: (64, 80), 0.4: (32, 32)}[scale]  # the nearest multiples of the stride
        resized = functional.interpolate(image, size, mode="bilinear", antialias=True)
        deepest = block(net.backbone(resized)[-1])  # whose statistics are those of a new network at every scale
        padded = [functional.pad(deepest, 4 * [r], value=-torch.inf) for r in (2, 4)]
        pooled = [
            values.unfold(2, side, 1).unfold(3, side, 1).amax((4, 5))
            for values, side in zip(padded, (5, 9), strict=True)
        ]
        whole = torch.cat([deepest, *pooled], 1)
        expected.append(functional.interpolate(whole, (5, 8), mode="bilinear"))
    features = net.feature_map(image)
    assert features.shape == (2, net.channels, 5, 8)
    assert net.channels == 6 * 3 * 3
    torch.testing.assert_close(features, torch.cat(expected, 1))
    torch.testing.assert_close(net(image), net.score(features))


@pytest.mark.parametrize(
    ("options", "channels", "size"),
    [
        ({"scales": (1.0,), "pooling": ()}, 6, (4, 6)),
        ({"scales": (1.0,)}, 18, (4, 6)),
        ({"pooling": ()}, 18, (5, 8)),
        ({"scales": (0.4, 1.2)}, 36, (5, 8)),
        ({"widths": (4, 5), "pooling": (3,), "scales": (1.0,)}, 10, (4, 6)),
    ],
)
def test_each_part_can_be_left_out(options: dict[str, Any], channels: int, size: tuple[int, int]) -> None:
    net = small(**options)
    image = torch.zeros(1, 3, 64, 100)
    assert net.channels == channels
    assert net.feature_map(image).shape == (1, channels, *size)
    assert net(image).shape == (1, 3, *size)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 33), (40, 200)])
def test_images_of_any_size(height: int, width: int) -> None:
    scores = small()(torch.randn(1, 3, height, width))
    assert scores.shape == (1, 3, max(1, round(1.2 * height / 16)), max(1, round(1.2 * width / 16)))


def test_scales_share_the_trunk_and_not_the_block() -> None:
    net = small().train()
    calls: list[torch.Size] = []
    net.backbone.register_forward_hook(lambda module, inputs, _: calls.append(inputs[0].shape))
    net(torch.randn(2, 3, 80, 80))
    assert [tuple(shape[2:]) for shape in calls] == [(96, 96), (64, 64), (32, 32)]
    assert len({id(block) for block in net.blocks}) == 3


def test_running_statistics_of_each_scale() -> None:
    """What each scale sees in evaluation are the statistics of its own images, as in training."""
    net = small(scales=(1.0, 0.5)).train()
    first = next(m for m in net.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    first.register_forward_hook(lambda module, inputs, _: seen.append(inputs[0].mean((0, 2, 3))))
    image = torch.randn(2, 3, 64, 64)
    net(image)
    means = [
        state
        for name, state in net.state_dict().items()
        if name.endswith("bn1.running_mean") or "bn1-running_mean" in name
    ]
    own = [m for m in means if len(m) == len(seen[0])]
    momentum = first.momentum
    assert momentum is not None
    assert any(torch.allclose(m, momentum * seen[0], atol=1e-6) for m in own)
    assert any(torch.allclose(m, momentum * seen[1], atol=1e-6) for m in own)
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    weights = [name for name, _ in net.named_parameters() if "statistics" in name]
    assert not weights


def statistics(net: FeatMapNet, place: int) -> dict[str, torch.Tensor]:
    """Those of a scale, under the trunk's names."""
    own = {name.replace("-", "."): value for name, value in net.statistics[place - 1].named_buffers()}
    return own if place else dict(net.backbone.named_buffers())


def trained(net: TimmSegmenter | FeatMapNet) -> TimmSegmenter | FeatMapNet:
    """One whose numbers are not those of a new network."""
    for value in net.state_dict().values():
        value.copy_(torch.rand(value.shape) + 1 if value.is_floating_point() else 7 + value)
    return net


def test_weights_of_the_trunk_alone_bring_their_statistics_to_all_scales() -> None:
    source = trained(TimmSegmenter(TRUNK, 3, pretrained=False)).backbone.state_dict()
    for net in (small(), copy.deepcopy(small()), pickle.loads(pickle.dumps(small()))):
        net.backbone.load_state_dict(source)
        for place in range(3):
            assert all(torch.equal(value, source[name]) for name, value in statistics(net, place).items())


def test_a_model_of_the_same_trunk_brings_its_statistics_to_all_scales(caplog: pytest.LogCaptureFixture) -> None:
    source = nn.ModuleDict({"unary": trained(TimmSegmenter(TRUNK, 3, pretrained=False))}).state_dict()
    net = small()
    with caplog.at_level("INFO", "piecewise_training"):
        transfer(nn.ModuleDict({"unary": net}), source, "x.pth")
    for place in range(3):
        for name, value in statistics(net, place).items():
            assert torch.equal(value, source[f"unary.backbone.{name}"])
    begun = [name for name in net.state_dict() if name.startswith(("backbone.", "pixels.", "statistics."))]
    assert f"began with {len(begun)} of {len(net.state_dict())} tensors from x.pth" in caplog.text


def test_each_scale_keeps_statistics_of_its_own() -> None:
    """Whether all are loaded, or only weights of the head."""
    source, net = trained(small()), small()
    net.load_state_dict(source.state_dict())
    net.load_state_dict(small().score.state_dict(prefix="score."), strict=False)
    for place in range(3):
        for name, value in statistics(net, place).items():
            assert torch.equal(value, statistics(source, place)[name])
    assert not torch.equal(statistics(net, 0)["bn1.running_mean"], statistics(net, 1)["bn1.running_mean"])


@pytest.mark.parametrize("copied", [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_threads_do_not_see_each_others_statistics(copied: Callable[[FeatMapNet], FeatMapNet]) -> None:
    """One stops within the trunk, at the smaller scale, and gives another all the time to come by."""
    net = copied(small(scales=(1.0, 0.5)))
    for buffer in net.statistics.buffers():
        buffer.data = buffer + 1
    image, within, first = torch.randn(1, 3, 64, 64), threading.Event(), threading.current_thread()

    def stops(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if threading.current_thread() is not first and inputs[0].shape[2] == 32:
            within.set()
            time.sleep(0.5)

    with torch.inference_mode():
        expected = net(image)
    net.backbone.register_forward_pre_hook(stops)
    with ThreadPoolExecutor(1) as other, torch.inference_mode():
        slow = other.submit(torch.inference_mode()(net), image)
        assert within.wait(60)
        found = net(image)
        assert torch.equal(found, expected)
        assert torch.equal(slow.result(), expected)


def test_vgg_block_computes_what_vgg_does_with_holes() -> None:
    """With torchvision's weights, fc6 of every block is VGG's fc6, whose places lie two apart at stride 16."""
    torch.manual_seed(1)
    published = vgg16(weights=None).state_dict()
    net = FeatMapNet("vgg16", 3, scales=(1.0, 0.5), pooling=(), widths=(1024, 8), pretrained=False).eval()
    missing, unexpected = net.load_state_dict(_of_vgg(published, 2, 1024), strict=False)
    assert not unexpected
    assert {name.rsplit(".", 2)[0] for name in missing} <= {"blocks.0.3", "blocks.1.3", "score.0", "score"}
    features = net.backbone(torch.randn(1, 3, 240, 240))
    assert features.shape == (1, 512, 15, 15)
    fc6 = published["classifier.0.weight"].reshape(4096, 512, 7, 7)
    spread = functional.conv2d(features[:, :, 1:14:2, 1:14:2], fc6[::4], published["classifier.0.bias"][::4])
    for block in net.blocks:
        torch.testing.assert_close(block[0](features)[:, :, 7, 7], spread[:, :, 0, 0], rtol=1e-3, atol=1e-4)


def test_vgg_has_stride_16() -> None:
    net = build_unary("vgg16", 3, pretrained=False, featmap={"widths": (8, 4), "scales": (1.0,), "pooling": (5,)})
    assert isinstance(net, FeatMapNet)
    assert [m.stride for m in net.backbone if isinstance(m, nn.MaxPool2d)] == [2, 2, 2, 2, 1]
    assert net.eval()(torch.zeros(1, 3, 64, 80)).shape == (1, 3, 4, 5)


def test_local_weights(lite0_weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "piecewise_training"):
        FeatMapNet("tf_efficientnet_lite0", 11, pretrained=lite0_weights)
    assert "missing: none" in caplog.text


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: small(scales=()), r"`scales` must be one or more numbers above 0; got \[\]"),
        (lambda: small(scales=(1.0, -1.0)), r"`scales` must be one or more numbers above 0; got \[1.0, -1.0\]"),
        (lambda: small(pooling=(4,)), r"`pooling` must be odd sides of squares; got \[4\]"),
        (lambda: small(widths=()), r"`widths` must be one or more numbers of channels; got \[\]"),
        (lambda: small(hidden=0), "`hidden` must be at least 1; got 0"),
        (lambda: FeatMapNet(TRUNK, 0, pretrained=False), "`num_classes` must be at least 1; got 0"),
        (lambda: FeatMapNet("resnet81", 3, pretrained=False), "got 'resnet81'. Did you mean .*resnet"),
        (
            lambda: build_unary("fcn8s_vgg16", 3, featmap={}),
            "`featmap` builds on a trunk: `unary` must be vgg16 or a timm backbone; got 'fcn8s_vgg16'",
        ),
    ],
)
def test_errors(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()

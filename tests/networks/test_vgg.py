"""The VGG-16 networks: their published shape, sizes of every kind, and torchvision's weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import vgg16

from piecewise_training.networks import FCN8s, LargeFOV
from piecewise_training.networks.vgg import _bilinear_upsampling, _to_fcn, _to_large_fov


def test_large_fov_has_the_published_strides_and_dilations() -> None:
    net = LargeFOV(21, pretrained=False)
    pools = [layer for layer in net.features if isinstance(layer, nn.MaxPool2d)]
    assert [pool.stride for pool in pools] == [2, 2, 2, 1, 1]
    convolutions = [layer for layer in net.features if isinstance(layer, nn.Conv2d)]
    assert [layer.dilation[0] for layer in convolutions] == [1] * 10 + [2] * 3
    assert (net.fc6.kernel_size, net.fc6.dilation, net.fc6.out_channels) == ((3, 3), (12, 12), 1024)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(20.5e6, rel=0.01)


@pytest.mark.parametrize("network", [LargeFOV, FCN8s])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (64, 40)])
def test_scores_at_an_eighth_of_any_size(network: type[nn.Module], height: int, width: int) -> None:
    net = network(3, pretrained=False).eval()
    with torch.inference_mode():
        scores = net(torch.randn(1, 3, height, width))
    assert scores.shape == (1, 3, -(-height // 8), -(-width // 8))


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """A state dict with the names and shapes of torchvision's ImageNet weights."""
    torch.manual_seed(1)
    return vgg16(weights=None).state_dict()


def test_large_fov_takes_torchvisions_weights(published: dict[str, torch.Tensor]) -> None:
    net = LargeFOV(4, pretrained=False)
    missing, unexpected = net.load_state_dict(_to_large_fov(published), strict=False)
    assert missing == ["score.weight", "score.bias"]
    assert not unexpected
    fc6 = published["classifier.0.weight"].reshape(4096, 512, 7, 7)
    assert torch.equal(net.fc6.weight[1, :, 2, 1], fc6[4, :, 6, 3])


def test_first_blocks_compute_what_vgg_does(published: dict[str, torch.Tensor]) -> None:
    """Up to pool3 strides and dilations are VGG's own."""
    reference = vgg16(weights=None)
    reference.load_state_dict(published)
    net = LargeFOV(4, pretrained=False)
    net.load_state_dict(_to_large_fov(published), strict=False)
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(net.features[:17](image), reference.features[:17](image))


def test_fcn_takes_torchvisions_weights(published: dict[str, torch.Tensor]) -> None:
    net = FCN8s(4, pretrained=False)
    missing, unexpected = net.load_state_dict(_to_fcn(published), strict=False)
    assert all(name.startswith(("score", "up_")) for name in missing)
    assert not unexpected
    assert torch.equal(net.fc7.weight[:, :, 0, 0], published["classifier.3.weight"])


def test_upsampling_starts_bilinear() -> None:
    up = _bilinear_upsampling(2)
    ramp = torch.arange(6.0).expand(1, 2, 6, 6).contiguous()
    expected = torch.nn.functional.interpolate(ramp, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(up(ramp)[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])


def test_fcns_skips_lie_on_each_other() -> None:
    """A ramp that passes through to fc7 and both pools: each sees the maximum of its cell, which is where its cell is.

    In 168 pixels the poolings leave 21 cells of 8, 11 of 16 and 6 of 32, so that both upsampled maps stand out beyond.
    """
    net = FCN8s(3, pretrained=False).eval()
    for layer in (*net.features, net.fc6, net.fc7, net.score_pool3, net.score_pool4, net.score):
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            middle = layer.kernel_size[0] // 2
            scored = {net.score_pool3: 0, net.score_pool4: 1, net.score: 2}.get(layer, 0)
            layer.weight.data[scored, 0, middle, middle] = 1
    ramp = 1 + torch.arange(168.0).expand(168, 168)
    with torch.inference_mode():
        scores = net(torch.stack([ramp, ramp.T])[:, None].repeat(1, 3, 1, 1))
    within = scores[:, :, 4:-4, 4:-4]  # where an upsampling sees whole cells alone
    across, down = within[0], within[1].mT
    torch.testing.assert_close(across, down)
    expected = 8 * torch.arange(1.0, 22)[4:-4].expand(13, 13)  # pixels up to a cell's end
    for found, beyond in zip(across, (0, 4, 12), strict=True):  # by how much half a larger cell is more
        torch.testing.assert_close(found, expected + beyond)


def test_gradients_reach_every_parameter() -> None:
    net = FCN8s(3, pretrained=False).eval()
    net.score_pool4.weight.data.normal_()
    net.score_pool3.weight.data.normal_()
    net(torch.randn(1, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in net.parameters())

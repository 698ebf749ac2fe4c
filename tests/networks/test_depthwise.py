"""Grouped convolutions in mixed precision on a CPU."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from piecewise_training.networks import adapt_to_cpu, build_unary
from piecewise_training.networks.depthwise import _Adapted


def gradient(convolution: nn.Conv2d, image: Tensor, mixed: bool) -> Tensor:
    """That of an output's product with fixed numbers, to the weights."""
    convolution.weight.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        out = convolution(image)
    assert out.dtype == (torch.bfloat16 if mixed else torch.float32)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype))
    assert convolution.weight.grad is not None
    return convolution.weight.grad


@pytest.mark.parametrize("kind", [{"dilation": 2}, {"dilation": 4}, {"stride": 2}, {"kernel_size": 5}, {}])
def test_weights_get_their_gradient(kind: dict[str, int]) -> None:
    """Without `adapt_to_cpu`, torch 2.15 gives dilated ones gradients that are wrong by more than their size."""
    options = {"kernel_size": 3, **kind}
    padding = options.get("dilation", 1) * (options["kernel_size"] // 2)
    convolution = nn.Conv2d(96, 96, **options, padding=padding, groups=96, bias=False)  # type: ignore[arg-type]
    adapt_to_cpu(convolution.to(memory_format=torch.channels_last))
    image = torch.randn(2, 96, 24, 32).to(memory_format=torch.channels_last)
    right = gradient(convolution, image, mixed=False)
    found = gradient(convolution, image, mixed=True)
    assert (found - right).norm() < 0.02 * right.norm()


def test_networks_are_adapted() -> None:
    network = build_unary("tf_efficientnet_lite0", 3, output_stride=8, pretrained=False)
    grouped = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    spared = [module for module in grouped if isinstance(module, _Adapted)]
    assert {module for module in grouped if max(module.dilation) > 1} < set(spared)
    assert 0 < len(spared) < len(grouped)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_keep_it_and_it_is_done_once(copied: Callable[[nn.Module], nn.Module]) -> None:
    network = copied(adapt_to_cpu(adapt_to_cpu(nn.Conv2d(8, 8, 3, dilation=2, groups=8))))
    assert type(network).__name__ == "Conv2d"
    assert len(type(network).mro()) == len(nn.Conv2d.mro()) + 2
    assert network.state_dict().keys() == {"weight", "bias"}


class Partial(nn.Conv2d):
    """One that takes a mask as well."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return super().forward(image * mask)


def test_others_stay() -> None:
    whole = {"kernel_size": 5, "stride": 2, "groups": 8}
    kinds = [
        *(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, dilation=2), nn.Conv2d(8, 8, 5, stride=2)),
        *(Partial(8, 8, **whole), weight_norm(nn.Conv2d(8, 8, **whole))),
    ]
    for convolution in kinds:
        kind = type(convolution)
        assert type(adapt_to_cpu(convolution)) is kind
    remove_parametrizations(kinds[-1], "weight")
    assert type(kinds[-1]) is nn.Conv2d

"""Grouped convolutions on a CPU: in mixed precision, and backwards."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

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


DILATED = [
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 5, "padding": 4, "dilation": 2, "bias": False},
    {"kernel_size": (3, 5), "padding": (0, 3), "dilation": (2, 1)},
    {"kernel_size": 2, "padding": (3, 1), "dilation": 3},
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", DILATED)
def test_dilated_ones_have_the_same_gradients(options: dict[str, Any], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, **options, groups=6).double().to(memory_format=layout)  # type: ignore[call-overload]
    quick = adapt_to_cpu(copy.deepcopy(plain))
    image = torch.randn(2, 6, 7, 10, dtype=torch.float64, requires_grad=True)
    outs = plain(image), quick(image)
    assert torch.equal(*outs)
    assert [type(out.grad_fn).__name__ for out in outs] == ["ConvolutionBackward0", "_DilatedBackward"]
    expected = torch.autograd.grad(outs[0].pow(3).sum(), [image, *plain.parameters()])
    found = torch.autograd.grad(outs[1].pow(3).sum(), [image, *quick.parameters()])
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(quick, image)
    assert torch.autograd.gradgradcheck(quick, image)


def test_dilated_ones_have_gradients_where_only_some_are_wanted() -> None:
    quick = adapt_to_cpu(nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4))
    quick.requires_grad_(False)
    image = torch.randn(1, 4, 6, 6, requires_grad=True)
    quick(image).sum().backward()
    assert image.grad is not None
    assert [parameter.grad for parameter in quick.parameters()] == [None, None]
    image = image.detach()
    quick.requires_grad_(True)
    assert type(quick(image).grad_fn).__name__ == "ConvolutionBackward0"  # no gradient to the image
    quick(image).sum().backward()
    assert all(parameter.grad is not None for parameter in quick.parameters())


def test_dilated_ones_know_functions_of_functions() -> None:
    quick = adapt_to_cpu(nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4).double())
    images = torch.randn(3, 1, 4, 6, 6, dtype=torch.float64)

    def loss(image: Tensor) -> Tensor:
        total: Tensor = quick(image).pow(2).sum()
        return total

    leaf = images.clone().requires_grad_()
    expected = torch.autograd.grad(torch.stack([loss(image) for image in leaf]).sum(), leaf)[0]
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(images), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"dilation": 2, "stride": 2},
        {"dilation": 2, "padding": 5},
        {"dilation": 2, "padding": "same"},
        {"dilation": 2, "padding": 2, "padding_mode": "reflect"},
        {"dilation": 2, "groups": 2},
        {"dilation": 2, "out_channels": 8},
        {"kernel_size": 5, "padding": 2},
    ],
)
def test_other_gradients_stay_torchs(options: dict[str, Any]) -> None:
    whole = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "groups": 4, **options}
    quick = adapt_to_cpu(nn.Conv2d(**whole))
    assert isinstance(quick, _Adapted)
    graph, names = [quick(torch.randn(1, 4, 9, 9, requires_grad=True)).grad_fn], set()
    while graph:
        node = graph.pop()
        names.add(type(node).__name__)
        graph += [before for before, _ in node.next_functions if before is not None]
    assert "ConvolutionBackward0" in names
    assert "_DilatedBackward" not in names


def test_networks_are_adapted() -> None:
    network = build_unary("tf_efficientnet_lite0", 3, output_stride=8, pretrained=False)
    grouped = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    adapted = [module for module in grouped if isinstance(module, _Adapted)]
    assert {module for module in grouped if max(module.dilation) > 1} < set(adapted)
    assert 0 < len(adapted) < len(grouped)


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

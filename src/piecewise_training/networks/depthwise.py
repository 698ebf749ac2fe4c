"""Depthwise and other grouped convolutions on a CPU: right in mixed precision, and with quick gradients."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight
from torch.nn.utils.parametrize import is_parametrized


def adapt_to_cpu(network: nn.Module) -> nn.Module:
    """Makes a network's grouped convolutions work as they should on a CPU; elsewhere they are what they were.

    They take single precision where autocast would take a lower one. In bfloat16 with channels last, the gradient to
    the weights of dilated ones is noise of any size (torch 2.15 with oneDNN, seen up to 1e34), and those with strides
    or of 5 x 5 take twice as long. And where they are dilated and depthwise, the gradient to their input is made of a
    convolution forwards, since oneDNN has no fast one backwards.

    Those of 3 x 3 without dilation or strides stay as they are, as do kinds that take more than an image and those with
    parametrizations.

    Returns:
        the network, changed in place.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and _is_plain(module) and not _gains(module):
            kind: Any = type(module)
            module.__class__ = _adapted(kind)
    return network


def _is_plain(convolution: nn.Conv2d) -> bool:
    """Whether it is called with an image alone, and its class is not one that torch has made for its weights."""
    arguments = inspect.signature(type(convolution).forward).parameters
    return len(arguments) == 2 and not is_parametrized(convolution)


def _gains(convolution: nn.Conv2d) -> bool:
    """Whether bfloat16 is right, and faster than single precision."""
    plain = max(convolution.dilation) == 1 and max(convolution.stride) == 1
    return plain and max(convolution.kernel_size) <= 3


class _Adapted:
    """The forward pass of a convolution that autocast leaves alone on a CPU, and that is fast backwards there."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)  # type: ignore[misc]
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))  # type: ignore[misc]

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        own: Any = self
        if _is_slow_backwards(own, x):
            return _Dilated.apply(x, weight, bias, own.padding, own.dilation)
        return super()._conv_forward(x, weight, bias)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For copies and pickles, which would look the class up by its name."""
        return _blank, (type(self).__bases__[1],), self.__dict__


def _is_slow_backwards(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether there will be a gradient to the image, and `_Dilated` finds it sooner."""
    if x.device.type != "cpu" or x.ndim != 4 or not (x.requires_grad and torch.is_grad_enabled()):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    depthwise = convolution.groups == convolution.in_channels == convolution.out_channels
    dilated = max(convolution.dilation) > 1 and max(convolution.stride) == 1
    # What is continued by zeros up to the kernel's reach; beyond it the gradient would have to be cut.
    reach = [d * (k - 1) for d, k in zip(convolution.dilation, convolution.kernel_size, strict=True)]
    within = not isinstance(convolution.padding, str) and all(map(int.__le__, convolution.padding, reach))
    return depthwise and dilated and within and convolution.padding_mode == "zeros"


class _Dilated(torch.autograd.Function):
    """A dilated depthwise convolution whose gradient to the input is a convolution with the kernels turned round."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], dilation: tuple[int, int]
    ) -> Tensor:
        return functional.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        x, weight, _, ctx.padding, ctx.dilation = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        options = {"dilation": ctx.dilation, "groups": len(weight)}
        around = [d * (k - 1) - p for d, k, p in zip(ctx.dilation, weight.shape[2:], ctx.padding, strict=True)]
        of_weight: Any = conv2d_weight
        return (
            functional.conv2d(gradient, weight.flip(2, 3), padding=around, **options) if to_x else None,
            of_weight(x, weight.shape, gradient, padding=ctx.padding, **options) if to_weight else None,
            gradient.sum((0, 2, 3)) if to_bias else None,
            *(None, None),
        )


def _blank(convolution: Any) -> Any:
    """A module of that kind, adapted, that gets its contents later."""
    kind = _adapted(convolution)
    return kind.__new__(kind)


@cache
def _adapted(convolution: Any) -> Any:
    """The class of a kind of convolution, such as one of timm's, adapted."""
    return convolution if issubclass(convolution, _Adapted) else type(convolution.__name__, (_Adapted, convolution), {})

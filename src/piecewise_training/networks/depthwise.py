"""Depthwise and other grouped convolutions in mixed precision on a CPU."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


def spare_bfloat16(network: nn.Module) -> nn.Module:
    """Makes a network's grouped convolutions work in single precision where autocast would take a lower one on a CPU.

    In bfloat16 with channels last, the gradient to the weights of dilated ones is noise of any size (torch 2.15 with
    oneDNN, seen up to 1e34), and those with strides or of 5 x 5 take twice as long. Only those of 3 x 3 without either
    gain from bfloat16, and stay as they are, as do kinds that take more than an image and those with parametrizations.

    Returns:
        the network, changed in place.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and _is_plain(module) and not _gains(module):
            kind: Any = type(module)
            module.__class__ = _spared(kind)
    return network


def _is_plain(convolution: nn.Conv2d) -> bool:
    """Whether it is called with an image alone, and its class is not one that torch has made for its weights."""
    arguments = inspect.signature(type(convolution).forward).parameters
    return len(arguments) == 2 and not is_parametrized(convolution)


def _gains(convolution: nn.Conv2d) -> bool:
    """Whether bfloat16 is right, and faster than single precision."""
    plain = max(convolution.dilation) == 1 and max(convolution.stride) == 1
    return plain and max(convolution.kernel_size) <= 3


class _Spared:
    """The forward pass of a convolution that autocast leaves alone on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)  # type: ignore[misc]
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For copies and pickles, which would look the class up by its name."""
        return _blank, (type(self).__bases__[1],), self.__dict__


def _blank(convolution: Any) -> Any:
    """A module of that kind, spared, that gets its contents later."""
    kind = _spared(convolution)
    return kind.__new__(kind)


@cache
def _spared(convolution: Any) -> Any:
    """The class of a kind of convolution, such as one of timm's, that autocast leaves alone on a CPU."""
    return convolution if issubclass(convolution, _Spared) else type(convolution.__name__, (_Spared, convolution), {})

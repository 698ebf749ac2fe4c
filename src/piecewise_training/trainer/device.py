"""The device that a stage runs on, and the precision in which."""

from __future__ import annotations

import logging
from typing import Any

import torch

from piecewise_training.config import Precision

logger = logging.getLogger(__name__)

# Torch's names of x86 processors without AVX-512, where bfloat16 was measured to be slow. Those with it need not have
# instructions for bfloat16, which are an extension (AVX512_BF16); what it costs without them is not known.
_WITHOUT_AVX512 = ("NO AVX", "AVX2")


def best_device(name: str | torch.device) -> torch.device:
    """The device of a name, where "auto" stands for the fastest there is.

    Raises:
        ValueError: torch has no such device here.

    Example:
        >>> best_device("cpu")
        device(type='cpu')
    """
    if name != "auto":
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"`device` is {device}, but torch finds {torch.cuda.device_count()} GPUs here.")
        if device.type == "mps" and not torch.backends.mps.is_available():
            raise ValueError("`device` is mps, but torch finds no Apple GPU here.")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def accelerator(device: torch.device) -> str:
    """Lightning's name of a kind of device."""
    return {"cuda": "gpu"}.get(device.type, device.type)


def lightning_precision(precision: Precision, device: torch.device) -> Any:
    """Lightning's name of a precision.

    Raises:
        ValueError: the device cannot work in it.
    """
    name = str(precision)
    if name == "16" and device.type == "cpu":
        raise ValueError("`precision` 16 needs a GPU; on the CPU take bf16 or 32.")
    if name == "bf16" and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in _WITHOUT_AVX512:
        logger.warning(
            "`precision` bf16 makes training slower on this processor, which has no AVX-512: a step of an "
            "EfficientNet-Lite0 took ten times as long as with 32"
        )
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[name]

"""The device that a stage runs on, and the precision in which."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from typing import Any

import torch

from piecewise_training.config import Precision

logger = logging.getLogger(__name__)

_WITHOUT_AVX512 = ("NO AVX", "AVX2")  # torch's names of x86 processors, and of some others
_X86 = ("x86_64", "amd64")


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


def own_precision(precision: Precision, device: torch.device) -> str:
    """The precision of a name, where "auto" stands for bf16 on a device that computes in it, else for 32.

    Raises:
        ValueError: the device cannot work in it.
    """
    name = str(precision)
    if name == "auto":
        return "bf16" if _computes_in_bfloat16(device) else "32"
    if name == "16" and device.type == "cpu":
        raise ValueError("`precision` 16 needs a GPU; on the CPU take bf16 or 32.")
    if name == "bf16" and device.type == "cpu" and (slow := _slow_bfloat16()):
        missing, times = slow
        logger.warning(
            "`precision` bf16 makes training slower on this processor, which has no %s: a step of an "
            "EfficientNet-Lite0 took %s as long as with 32",
            missing,
            times,
        )
    return name


def lightning_precision(name: str) -> Any:
    """Lightning's name of a precision."""
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[name]


def _computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products in bfloat16, as far as torch knows."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    known = _capabilities()
    return device.type == "cpu" and any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _slow_bfloat16() -> tuple[str, str] | None:
    """Which instructions this processor lacks, and what that was measured to cost; None where nothing is known."""
    if platform.machine().lower() not in _X86:
        return None
    if torch.backends.cpu.get_cpu_capability() in _WITHOUT_AVX512:
        return "AVX-512", "ten times"
    known = _capabilities()
    has = known.get("avx512_bf16", True) or known.get("amx_bf16", False)
    return None if has else ("AVX512_BF16", "twice")


def _capabilities() -> Mapping[str, Any]:
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # not in every torch

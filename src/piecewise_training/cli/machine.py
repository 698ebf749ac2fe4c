"""The machine that a run was made on, in words."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from piecewise_training import __version__

_CPUINFO = Path("/proc/cpuinfo")


def processor() -> str:
    """The name of the processor, or that of its kind where the system tells no more."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def memory() -> str:
    """The size of the machine's memory."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):  # Windows
        return "not known"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"


def surroundings(device: torch.device) -> dict[str, str]:
    """Versions and machine."""
    threads = torch.get_num_threads()
    on_cpu = f"{threads} CPU thread{'s' if threads > 1 else ''}"
    others = ("torchvision", "lightning", "timm", "numba", "numpy")
    return {
        "package": f"piecewise-training {__version__}",
        "torch": f"torch {torch.__version__}",
        "other packages": ", ".join(f"{name} {version(name)}" for name in others),
        "python": f"Python {platform.python_version()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else on_cpu,
        "processor": f"{os.cpu_count()} cores of {processor()}",
        "memory": memory(),
        "platform": platform.platform(),
    }

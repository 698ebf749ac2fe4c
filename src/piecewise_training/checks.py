"""The errors about shapes, dtypes and ranges, raised once, where a public function takes its arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def describe(value: object) -> str:
    """What a caller passed, in the words of an error message.

    Example:
        >>> import torch
        >>> describe(torch.zeros(3, 4, dtype=torch.uint8))
        '(3, 4) uint8'
        >>> describe("a")
        "'a' (str)"
    """
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(repr, value))}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{tuple(value.shape)} {value.dtype} ({type(value).__name__})"
    return f"{value!r} ({type(value).__name__})"


def as_tensor(name: str, value: object) -> Tensor:
    """A tensor as it is; of an array one that shares its memory where it can.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, np.ndarray):
        raise TypeError(f"`{name}` must be a torch.Tensor or a NumPy array; got {describe(value)}.")
    whole = np.ascontiguousarray(value)
    return torch.from_numpy(whole if whole.flags.writeable else whole.copy())


def scores_and_image(scores: Tensor, image: Tensor, called: str = "scores") -> None:
    """Checks what the dense CRF is given; `called` is the scores' name where they came in.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape, size or dtype is off, or a score is NaN or infinite.
    """
    for name, value in ((called, scores), ("image", image)):
        if not isinstance(value, Tensor):
            raise TypeError(f"`{name}` must be a torch.Tensor; got {describe(value)}.")
        if value.ndim != 4:
            raise ValueError(f"`{name}` must be (B, C, H, W); got {describe(value)}. Add a batch axis with [None].")
    if not scores.is_floating_point():
        raise ValueError(f"`{called}` must be floating point, unnormalised log-probabilities; got {describe(scores)}.")
    if scores.shape[0] != image.shape[0] or scores.shape[2:] != image.shape[2:]:
        raise ValueError(
            f"`{called}` and `image` must agree in batch, height and width; "
            f"got {describe(scores)} and {describe(image)}. Resize one to the other."
        )
    if 0 in scores.shape or 0 in image.shape:
        raise ValueError(f"`{called}` and `image` must not be empty; got {describe(scores)} and {describe(image)}.")
    if scores.device != image.device:
        raise ValueError(f"`{called}` and `image` must be on one device; got {scores.device} and {image.device}.")
    finite(called, scores)
    finite("image", image)


def finite(name: str, value: Tensor) -> None:
    """Raises a ValueError where a tensor holds NaN or infinity: one would spread to every pixel."""
    # A sum is finite only if everything in it is, and five times faster to take than the exact answer.
    if value.is_floating_point() and not math.isfinite(_sum(value.detach())) and not bool(value.isfinite().all()):
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"`{name}` must be finite; {bad} of {value.numel()} values are NaN or infinite.")


def _sum(value: Tensor) -> float:
    if value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64):
        with np.errstate(all="ignore"):  # NumPy's: torch's threads would go on spinning beside those of the CRF
            return float(value.numpy().sum())
    return float(value.sum())


def scalar(name: str, value: Tensor | float, *, positive: bool = False) -> None:
    """Raises a ValueError unless a number, or a tensor without axes, is finite and, if asked, above zero."""
    if isinstance(value, Tensor) and value.ndim:
        raise ValueError(f"`{name}` must be a number or a tensor without axes; got {describe(value)}.")
    number = float(value.detach()) if isinstance(value, Tensor) else float(value)
    if not math.isfinite(number) or (positive and number <= 0):
        raise ValueError(f"`{name}` must be a finite number{' above 0' if positive else ''}; got {number}.")


def labels(target: Tensor, num_classes: int, ignore_index: int = 255, called: str = "target") -> None:
    """Raises a ValueError where a label is neither a class nor void: a GPU would stop without saying why."""
    wrong = (target != ignore_index) & ((target < 0) | (target >= num_classes))
    if bool(wrong.any()):
        found = sorted(set(target[wrong].tolist()))
        raise ValueError(
            f"`{called}` must hold classes 0 to {num_classes - 1} or {ignore_index} (void); it also holds {found[:8]}. "
            "Set num_classes to the number of classes of the data."
        )

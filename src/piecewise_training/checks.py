"""The errors about shapes, dtypes and ranges, raised once, where a public function takes its arguments."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping

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


def scores_and_image(scores: Tensor, image: Tensor, called: str = "scores") -> bool:
    """Checks what the dense CRF is given; `called` is the scores' name where they came in.

    Returns:
        Whether `grey_levels` should look at the image: its mean is from 0 to 1. To ask would make a GPU wait again.

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
    return 0 < finite("image", image) <= image.numel()


def grey_levels(name: str, image: Tensor, stds: Iterable[Tensor | float], stacklevel: int) -> None:
    """Warns of an image from 0 to 1 under bandwidths in grey levels, to which all its colours are one.

    Values between 0 and 1 make such an image: a black one in grey levels holds 0, and 1 here and there.

    Args:
        name: the image's, where it came in.
        image: any shape.
        stds: the bandwidths; where one is below 1 they suit such an image.
        stacklevel: how many frames above is the user's call.
    """
    if not image.is_floating_point():
        return
    values = image.detach()
    least, most = (float(bound) for bound in values.aminmax())
    if least < 0 or most > 1 or not bool(((values > 0.02) & (values < 0.98)).any()):
        return
    if all(float(std.detach() if isinstance(std, Tensor) else std) >= 1 for std in stds):
        warnings.warn(
            f"`{name}` holds values from 0 to 1, which are all one colour to a bandwidth in grey levels. Give it from "
            "0 to 255 (`255 * image`), or the bandwidth in the image's unit.",
            stacklevel=stacklevel + 1,
        )


def finite(name: str, value: Tensor) -> float:
    """Raises a ValueError where a tensor holds NaN or infinity: one would spread to every pixel.

    Returns:
        The sum of a tensor's values, 0 for whole numbers.
    """
    if not value.is_floating_point():
        return 0.0
    # A sum is finite only if everything in it is, and five times faster to take than the exact answer.
    total = _sum(value.detach())
    if not math.isfinite(total) and not bool(value.isfinite().all()):
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"`{name}` must be finite; {bad} of {value.numel()} values are NaN or infinite.")
    return total


def _sum(value: Tensor) -> float:
    if value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64):
        with np.errstate(all="ignore"):  # NumPy's: torch's threads would go on spinning beside those of the CRF
            return float(value.numpy().sum())
    return float(value.sum(dtype=torch.float64 if value.dtype == torch.float64 else torch.float32))


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

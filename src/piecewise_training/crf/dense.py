"""The dense CRF over an image as a function: its usual two kernels, and any number of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from piecewise_training import checks
from piecewise_training.compiling import uncompiled
from piecewise_training.crf.filtering import Normalization
from piecewise_training.crf.lattice import Backend, shared_threads
from piecewise_training.crf.meanfield import Convergence, PairwiseTerm, approximate, check_arguments
from piecewise_training.crf.pixels import Spatial, bilateral_kernel, require_memory, spatial_kernel

Array = TypeVar("Array", Tensor, np.ndarray)
Compatibility = Tensor | np.ndarray | Sequence[Tensor | np.ndarray | None]

LEAST = 1e-5
"""A probability below counts as this, as in pydensecrf's unary_from_softmax."""


@uncompiled
def dense_crf(
    scores: Float[Array, "*b k h w"],
    image: Float[Tensor, "*b c h w"] | np.ndarray,
    *,
    pos_xy_std: Tensor | float = 3.0,
    pos_w: Tensor | float = 3.0,
    bilateral_xy_std: Tensor | float = 80.0,
    bilateral_rgb_std: Tensor | float = 13.0,
    bilateral_w: Tensor | float = 10.0,
    compatibility: Compatibility | None = None,
    terms: Sequence[PairwiseTerm] = (),
    iterations: int = 10,
    from_probs: bool = False,
    normalization: Normalization = "symmetric",
    spatial: Spatial = "lattice",
    tolerance: float = 0.0,
    damping: float = 0.0,
    convergence: Convergence | None = None,
    logarithm: bool = True,
    backend: Backend = "auto",
) -> Float[Array, "*b k h w"]:
    """Refines score maps with a fully connected CRF: a spatial and a bilateral Gaussian kernel, mean field.

    The model is that of Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge
    potentials" (NIPS 2011), with pydensecrf's defaults and signs: larger weights make neighbours agree more.

    Args:
        scores: (K, H, W) or (B, K, H, W) unnormalised log-probabilities, such as a CNN's logits.
        image: (C, H, W) or (B, C, H, W), any number of channels in grey levels from 0 to 255, uint8 or float.
        pos_xy_std: bandwidth of the spatial kernel in pixels.
        pos_w: weight of the spatial kernel; 0 leaves it out.
        bilateral_xy_std: bandwidth of the bilateral kernel in pixels.
        bilateral_rgb_std: bandwidth of the bilateral kernel in grey levels.
        bilateral_w: weight of the bilateral kernel; 0 leaves it out.
        compatibility: costs of labels beside each other, for both kernels one (K, K) or (K,), or one for each of them
            as (2, K, K) or a sequence, tensors or arrays; see `PairwiseTerm`. None is Potts.
        terms: further pairwise terms with kernels over the same pixels; see `bilateral_kernel`.
        iterations: mean-field updates; 0 gives log softmax of the scores.
        from_probs: the scores are probabilities; those below 1e-5 count as 1e-5.
        normalization: that of the two kernels; see `GaussianKernel`.
        spatial: "lattice" equals pydensecrf, "exact" has no error in the spatial kernel but rounding.
        tolerance: an image stops when none of its marginals changes by more; see `mean_field`.
        damping: share of the old marginals in the new ones, from 0 to below 1.
        convergence: filled in with the course of the divergence, if given.
        logarithm: False gives the marginals Q themselves, instead of their logarithms.
        backend: "auto" takes the lattice's fastest kernels for the device, "exact" the sum over all pairs.

    Returns:
        log Q in the shape, dtype and kind of the scores; for scores in a tensor differentiable in all that is passed.

    Raises:
        TypeError: scores, image or compatibility are neither tensors nor arrays.
        ValueError: shapes or devices do not fit, a value is not finite, a bandwidth is not above 0 or so small that
            features cannot be told apart, or another argument is out of its range.
        MemoryError: there is not enough memory, and says how much is needed.

    Example:
        >>> scores = torch.zeros(2, 4, 8)
        >>> scores[0, :, :3] = scores[1, :, 3:] = 1.0  # the network's border lies a pixel beside the image's
        >>> image = torch.zeros(3, 4, 8, dtype=torch.uint8)
        >>> image[..., 4:] = 255
        >>> dense_crf(scores, image).argmax(0)[0]
        tensor([0, 0, 0, 0, 1, 1, 1, 1])
    """
    logits, pixels = checks.as_tensor("scores", scores), checks.as_tensor("image", image)
    for name, given, axes in (("scores", logits, "K, H, W"), ("image", pixels, "C, H, W")):
        if given.ndim not in (3, 4):
            raise ValueError(f"`{name}` must be ({axes}), or (B, {axes}) for a batch; got {checks.describe(given)}.")
    batched = logits.ndim == 4 or pixels.ndim == 4
    if not batched:
        logits, pixels = logits[None], pixels[None]
    unusual = checks.scores_and_image(logits, pixels)
    bandwidths = {
        "pos_xy_std": pos_xy_std,
        "bilateral_xy_std": bilateral_xy_std,
        "bilateral_rgb_std": bilateral_rgb_std,
    }
    for name, value in bandwidths.items():
        checks.scalar(name, value, positive=True)
    for name, value in {"pos_w": pos_w, "bilateral_w": bilateral_w}.items():
        checks.scalar(name, value)
    classes, height, width = logits.shape[1:]
    costs = _for_each_kernel(compatibility, classes)
    require_memory(logits, [2, 2 + pixels.shape[1]])
    work = logits if logits.dtype == torch.float64 else logits.float()
    if from_probs:
        work = _log_of_probabilities(work)
    own: list[PairwiseTerm] = []
    learning = torch.is_grad_enabled() and isinstance(scores, Tensor)  # an array has no gradient to hand on
    with shared_threads(backend, work.device), torch.set_grad_enabled(learning):
        if isinstance(pos_w, Tensor) or pos_w:
            kernel = spatial_kernel(
                height, width, pos_xy_std, like=work, spatial=spatial, normalization=normalization, backend=backend
            )
            own.append(PairwiseTerm(kernel, pos_w, costs[0]))
        if isinstance(bilateral_w, Tensor) or bilateral_w:
            if unusual:
                checks.grey_levels("image", pixels, [bilateral_rgb_std], stacklevel=3)
            stds = bilateral_xy_std, bilateral_rgb_std
            kernel = bilateral_kernel(pixels, *stds, like=work, normalization=normalization, backend=backend)
            own.append(PairwiseTerm(kernel, bilateral_w, costs[1]))
        check_arguments(work, [*own, *terms], iterations, tolerance, damping)
        log_q = approximate(work, [*own, *terms], iterations, tolerance, damping, convergence, logarithm)
    found = (log_q if batched else log_q[0]).to(logits.dtype)
    return found if isinstance(scores, Tensor) else found.numpy()


def _for_each_kernel(compatibility: Compatibility | None, classes: int) -> tuple[Tensor | None, Tensor | None]:
    """The costs of the spatial and of the bilateral kernel."""
    shapes = ((classes,), (classes, classes))
    if compatibility is None:
        return None, None
    costs: Tensor | list[Tensor | None]
    if isinstance(compatibility, Tensor | np.ndarray):
        costs = checks.as_tensor("compatibility", compatibility)
    else:
        costs = [None if own is None else checks.as_tensor("compatibility", own) for own in compatibility]
    if isinstance(costs, Tensor) and costs.shape in shapes:
        return costs, costs
    stacked = isinstance(costs, Tensor) and costs.ndim == 3
    if (stacked or not isinstance(costs, Tensor)) and len(costs) == 2:
        first, second = costs
        if all(own is None or own.shape in shapes for own in (first, second)):
            return first, second
    raise ValueError(
        f"`compatibility` must be ({classes},), ({classes}, {classes}) or one of these for each of the two kernels; "
        f"got {checks.describe(compatibility)}."
    )


def _log_of_probabilities(probabilities: Tensor) -> Tensor:
    low, high = float(probabilities.detach().min()), float(probabilities.detach().max())
    if low < 0 or high > 1 + 1e-3:
        raise ValueError(
            f"`scores` must lie within [0, 1], since `from_probs` is set; they reach from {low:.4g} to {high:.4g}."
        )
    return probabilities.clamp(min=LEAST).log()

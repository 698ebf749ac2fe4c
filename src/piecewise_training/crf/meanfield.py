"""Mean-field inference in a fully connected CRF as a pure function of scores, kernels and compatibilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from piecewise_training import checks
from piecewise_training.crf.filtering import NormalisedKernel
from piecewise_training.crf.lattice import Backend, LatticeOperator


@dataclass(frozen=True)
class PairwiseTerm:
    r"""One pairwise energy :math:`w\,\mu(a, b)\,\hat k(f_i, f_j)` between every two pixels i and j.

    Attributes:
        kernel: the normalised Gaussian kernel.
        weight: w, above 0.
        compatibility: the cost :math:`\mu(a, b)` of label a at i beside label b at j; None is Potts, 1 unless a = b.
    """

    kernel: NormalisedKernel
    weight: Tensor | float
    compatibility: Float[Tensor, "k k"] | None = None

    def mixture(self, like: Tensor) -> Tensor:
        r"""What the filtered marginals add to the logits: :math:`-w\mu` (K, K).

        Of Potts it is w, (), times the identity: equal up to a constant over the labels, which the softmax removes.
        """
        weight = torch.as_tensor(self.weight, dtype=like.dtype, device=like.device)
        return weight if self.compatibility is None else -weight * self.compatibility

    @property
    def needs_gradient(self) -> bool:
        """Whether anything in the term is being learned."""
        kernel = self.kernel
        parts = (kernel.features, kernel.bandwidths, kernel.scale, self.weight, self.compatibility)
        return torch.is_grad_enabled() and any(isinstance(part, Tensor) and part.requires_grad for part in parts)


def mean_field(
    logits: Float[Tensor, "b k n"],
    terms: Sequence[PairwiseTerm],
    iterations: int,
    grid: tuple[int, int] | None = None,
) -> Float[Tensor, "b k n"]:
    r"""Approximates the CRF's marginals by the update of Krähenbühl & Koltun (2011), algorithm 1.

    All pixels at once, from Q = softmax(z):
    :math:`Q_i(a) \propto \exp(z_i(a) - \sum_m w_m \sum_b \mu_m(a,b) (\hat K_m Q)_i(b))`.

    Args:
        logits: (B, K, N).
        terms: at least one.
        iterations: updates; 0 gives log softmax of the logits.
        grid: rows and columns of an image whose pixels the points are, which makes it faster.

    Returns:
        log Q, whose exponentials sum to 1 over the classes.
    """
    mixtures = [term.mixture(logits) for term in terms]
    operators = [term.kernel.operator for term in terms]
    fused = [operator for operator in operators if isinstance(operator, LatticeOperator) and operator.infers]
    learning = (torch.is_grad_enabled() and logits.requires_grad) or any(term.needs_gradient for term in terms)
    if len(fused) == len(terms) and not learning:
        return LatticeOperator.infer(fused, mixtures, logits, iterations, grid or (1, logits.shape[2]))
    log_q = logits.log_softmax(1)
    for _ in range(iterations):
        q, total = log_q.exp(), logits
        for term, mixture in zip(terms, mixtures, strict=True):
            filtered = term.kernel(q)
            total = total + (mixture * filtered if mixture.ndim == 0 else mixture @ filtered)
        log_q = total.log_softmax(1)
    return log_q


def dense_crf(
    scores: Float[Tensor, "b k h w"],
    image: Float[Tensor, "b c h w"],
    *,
    pos_xy_std: Tensor | float = 3.0,
    pos_w: Tensor | float = 3.0,
    bilateral_xy_std: Tensor | float = 80.0,
    bilateral_rgb_std: Tensor | float = 13.0,
    bilateral_w: Tensor | float = 10.0,
    compatibility: Float[Tensor, "2 k k"] | None = None,
    iterations: int = 10,
    backend: Backend = "auto",
) -> Float[Tensor, "b k h w"]:
    """Refines score maps with a fully connected CRF: a spatial and a bilateral Gaussian kernel, mean field.

    The model is that of Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge
    potentials" (NIPS 2011), with pydensecrf's defaults and signs: larger weights make neighbours agree more.

    Args:
        scores: unnormalised log-probabilities (B, K, H, W), such as a CNN's logits.
        image: (B, C, H, W), any number of channels in grey levels from 0 to 255, uint8 or float.
        pos_xy_std: bandwidth of the spatial kernel in pixels.
        pos_w: weight of the spatial kernel.
        bilateral_xy_std: bandwidth of the bilateral kernel in pixels.
        bilateral_rgb_std: bandwidth of the bilateral kernel in grey levels.
        bilateral_w: weight of the bilateral kernel.
        compatibility: one K x K matrix of costs for each of the two kernels; None is Potts.
        iterations: mean-field updates; 0 gives log softmax of the scores.
        backend: "auto" takes the lattice's fastest kernels for the device, "exact" the sum over all pairs.

    Returns:
        log Q (B, K, H, W) in the dtype of the scores, differentiable in every tensor passed.

    Raises:
        TypeError: scores or image are no tensors.
        ValueError: shapes or devices do not fit, a value is not finite, a bandwidth is not above 0 or so small that
            features cannot be told apart, or `iterations` is below 0.

    Example:
        >>> scores = torch.zeros(1, 2, 4, 8)
        >>> scores[:, 0, :, :3] = scores[:, 1, :, 3:] = 1.0  # the network's border lies a pixel beside the image's
        >>> image = torch.zeros(1, 3, 4, 8, dtype=torch.uint8)
        >>> image[..., 4:] = 255
        >>> dense_crf(scores, image).argmax(1)[0, 0]
        tensor([0, 0, 0, 0, 1, 1, 1, 1])
    """
    checks.scores_and_image(scores, image)
    bandwidths = {
        "pos_xy_std": pos_xy_std,
        "bilateral_xy_std": bilateral_xy_std,
        "bilateral_rgb_std": bilateral_rgb_std,
    }
    for name, value in bandwidths.items():
        checks.scalar(name, value, positive=True)
    for name, value in {"pos_w": pos_w, "bilateral_w": bilateral_w}.items():
        checks.scalar(name, value)
    if iterations < 0:
        raise ValueError(f"`iterations` must be at least 0; got {iterations}.")
    batch, classes, height, width = scores.shape
    if compatibility is not None and compatibility.shape != (2, classes, classes):
        raise ValueError(
            f"`compatibility` must be (2, {classes}, {classes}), a matrix for each kernel; "
            f"got {checks.describe(compatibility)}."
        )
    work = scores if scores.dtype == torch.float64 else scores.float()
    position, colour = pixel_positions(height, width, work), image.to(work.dtype).flatten(2)
    if isinstance(pos_xy_std, Tensor) and pos_xy_std.requires_grad and torch.is_grad_enabled():
        spatial = NormalisedKernel(position, _stack([pos_xy_std] * 2, work), backend)
    else:
        spatial = _fixed_spatial_kernel(height, width, float(pos_xy_std), work.dtype, work.device, backend)
    bilateral = NormalisedKernel(
        torch.cat([position.expand(batch, -1, -1), colour], 1),
        _stack([bilateral_xy_std] * 2 + [bilateral_rgb_std] * colour.shape[1], work),
        backend,
    )
    matrices = (None, None) if compatibility is None else compatibility.to(work).unbind()
    terms = [PairwiseTerm(spatial, pos_w, matrices[0]), PairwiseTerm(bilateral, bilateral_w, matrices[1])]
    with torch.autocast(scores.device.type, enabled=False):  # messages need single precision
        log_q = mean_field(work.flatten(2), terms, iterations, (height, width))
    return log_q.reshape(scores.shape).to(scores.dtype)


@lru_cache(maxsize=2)
def _fixed_spatial_kernel(
    height: int, width: int, std: float, dtype: torch.dtype, device: torch.device, backend: Backend
) -> NormalisedKernel:
    """The spatial kernel of a size of image, which is the same for all of them."""
    with torch.inference_mode(False), torch.no_grad():  # it may be called under inference_mode, and serve in training
        like = torch.empty(0, dtype=dtype, device=device)
        return NormalisedKernel(pixel_positions(height, width, like), like.new_full((2,), std), backend)


def pixel_positions(height: int, width: int, like: Tensor) -> Float[Tensor, "1 2 n"]:
    """The (x, y) of every pixel in row-major order, in the dtype and on the device of `like`."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=like.dtype, device=like.device),
        torch.arange(width, dtype=like.dtype, device=like.device),
        indexing="ij",
    )
    return torch.stack([x, y]).reshape(1, 2, height * width)


def _stack(values: Sequence[Tensor | float], like: Tensor) -> Tensor:
    return torch.stack([torch.as_tensor(value, dtype=like.dtype, device=like.device) for value in values])

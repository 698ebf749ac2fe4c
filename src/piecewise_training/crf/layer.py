"""The dense CRF as a module whose every parameter is learned."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from piecewise_training import checks
from piecewise_training.crf.dense import dense_crf
from piecewise_training.crf.lattice import Backend


class DenseCRF(nn.Module):
    r"""A fully connected CRF over an image's pixels, solved by mean field, with everything in it learnable.

    Two pairwise energies :math:`w\,\mu(a, b)\,\hat k` couple every two pixels, with a spatial kernel
    :math:`\exp(-|p_i - p_j|^2 / 2\sigma_p^2)` and a bilateral one
    :math:`\exp(-|p_i - p_j|^2 / 2\sigma_{xy}^2 - |c_i - c_j|^2 / 2\sigma_{rgb}^2)`; see `dense_crf`. Weights and
    bandwidths are stored as logarithms, so that they stay above 0 and a learning rate means a relative change. Each
    kernel has its own K x K compatibility, which starts as Potts.

    Args:
        num_classes: K, at least 2.
        num_iterations: mean-field updates in evaluation mode.
        pos_xy_std: bandwidth of the spatial kernel in pixels.
        pos_w: weight of the spatial kernel.
        bilateral_xy_std: bandwidth of the bilateral kernel in pixels.
        bilateral_rgb_std: bandwidth of the bilateral kernel in grey levels.
        bilateral_w: weight of the bilateral kernel.
        train_iterations: mean-field updates in training mode; at most `num_iterations` are made.
        backend: "auto" takes the lattice's fastest kernels for the device, "exact" the sum over all pairs.

    Raises:
        ValueError: a number of classes below 2 or of iterations below 0, a bandwidth or weight not above 0.

    Example:
        >>> crf = DenseCRF(num_classes=2)
        >>> image = torch.randint(0, 256, (1, 3, 8, 10), dtype=torch.uint8)
        >>> crf(torch.randn(1, 2, 8, 10), image).shape
        torch.Size([1, 2, 8, 10])
        >>> round(crf.bilateral_xy_std.item(), 3)
        80.0
    """

    def __init__(
        self,
        num_classes: int,
        num_iterations: int = 10,
        pos_xy_std: float = 3.0,
        pos_w: float = 3.0,
        bilateral_xy_std: float = 80.0,
        bilateral_rgb_std: float = 13.0,
        bilateral_w: float = 10.0,
        *,
        train_iterations: int = 5,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2; got {num_classes}.")
        for name, count in (("num_iterations", num_iterations), ("train_iterations", train_iterations)):
            if count < 0:
                raise ValueError(f"`{name}` must be at least 0; got {count}.")
        self.num_classes = num_classes
        self.num_iterations = num_iterations
        self.train_iterations = train_iterations
        self.backend = backend
        self.log_pos_xy_std = _log_parameter("pos_xy_std", pos_xy_std)
        self.log_pos_w = _log_parameter("pos_w", pos_w)
        self.log_bilateral_xy_std = _log_parameter("bilateral_xy_std", bilateral_xy_std)
        self.log_bilateral_rgb_std = _log_parameter("bilateral_rgb_std", bilateral_rgb_std)
        self.log_bilateral_w = _log_parameter("bilateral_w", bilateral_w)
        self.compatibility = nn.Parameter((1 - torch.eye(num_classes)).repeat(2, 1, 1))

    @property
    def pos_xy_std(self) -> Tensor:
        """Bandwidth of the spatial kernel in pixels."""
        return self.log_pos_xy_std.exp()

    @property
    def pos_w(self) -> Tensor:
        """Weight of the spatial kernel."""
        return self.log_pos_w.exp()

    @property
    def bilateral_xy_std(self) -> Tensor:
        """Bandwidth of the bilateral kernel in pixels."""
        return self.log_bilateral_xy_std.exp()

    @property
    def bilateral_rgb_std(self) -> Tensor:
        """Bandwidth of the bilateral kernel in grey levels."""
        return self.log_bilateral_rgb_std.exp()

    @property
    def bilateral_w(self) -> Tensor:
        """Weight of the bilateral kernel."""
        return self.log_bilateral_w.exp()

    def forward(
        self, unary_logits: Float[Tensor, "b k h w"], image: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b k h w"]:
        """Refines a CNN's logits.

        Args:
            unary_logits: (B, K, H, W) unnormalised log-probabilities.
            image: (B, C, H, W) in grey levels from 0 to 255, uint8 or float; usually RGB.

        Returns:
            log Q, the logarithm of the approximate marginals: argmax, exp and NLL all work on it.

        Raises:
            ValueError: K is not `num_classes`, or the arguments do not fit; see `dense_crf`.
        """
        checks.scores_and_image(unary_logits, image, "unary_logits")
        if unary_logits.shape[1] != self.num_classes:
            raise ValueError(
                f"`unary_logits` must have {self.num_classes} classes; got {checks.describe(unary_logits)}."
            )
        iterations = min(self.train_iterations, self.num_iterations) if self.training else self.num_iterations
        return dense_crf(
            unary_logits,
            image,
            **self.kernel_parameters(),
            compatibility=self.compatibility,
            iterations=iterations,
            backend=self.backend,
        )

    def kernel_parameters(self) -> dict[str, Any]:
        """The five parameters of the kernels by name, in pixels and grey levels, as tensors with their gradient."""
        return {
            "pos_xy_std": self.pos_xy_std,
            "pos_w": self.pos_w,
            "bilateral_xy_std": self.bilateral_xy_std,
            "bilateral_rgb_std": self.bilateral_rgb_std,
            "bilateral_w": self.bilateral_w,
        }


def _log_parameter(name: str, value: float) -> nn.Parameter:
    checks.scalar(name, value, positive=True)
    return nn.Parameter(torch.tensor(float(value)).log())

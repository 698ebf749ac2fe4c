"""The one differentiable operator: a Gaussian filter in any feature space, with gradients to values and features."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from piecewise_training import checks
from piecewise_training.compiling import uncompiled
from piecewise_training.crf import lattice
from piecewise_training.crf._reference import centred
from piecewise_training.crf.lattice import Backend, Operator

Normalization = Literal["none", "before", "after", "symmetric"]


class GaussianKernel:
    r"""The operator :math:`(Kv)_i = \sum_j \exp(-\tfrac12 \sum_a (f_{ia} - f_{ja})^2 / \theta_a^2)\, v_j`.

    Built once and applied often; differentiable in the values, the features and the bandwidths. With the diagonal
    matrix D of the sums K 1 it is one of

    - "none": K itself;
    - "before": :math:`K D^{-1}`, by which every point gives away as much as it has;
    - "after": :math:`D^{-1} K`, an average, which leaves a constant as it is;
    - "symmetric": :math:`D^{-1/2} K D^{-1/2}`, pydensecrf's default.

    The point itself is in every sum, as in pydensecrf, whose 1e-20 beside D is kept too.

    Args:
        features: (B, d, N); B = 1 serves a batch of any size with one lattice.
        bandwidths: :math:`\theta` of each of the d features; None is 1.
        backend: which kernels filter, or what is to filter; "exact" is the sum over all pairs.
        normalization: one of the four.

    Raises:
        ValueError: features are not (B, d, N) of 32 or 64 bits, not finite or too many bandwidths away to be told
            apart, bandwidths are not (d,) and above 0, or a name is unknown.

    Example:
        >>> kernel = GaussianKernel(torch.tensor([[[0.0, 2.0]]]), torch.tensor([2.0]), backend="exact")
        >>> kernel(torch.tensor([[[1.0, 0.0]]]))[0, 0]
        tensor([1.0000, 0.6065])
    """

    @uncompiled
    def __init__(
        self,
        features: Float[Tensor, "b d n"],
        bandwidths: Float[Tensor, " d"] | None = None,
        backend: Backend | Operator = "auto",
        normalization: Normalization = "none",
    ) -> None:
        if normalization not in get_args(Normalization):
            expected = ", ".join(get_args(Normalization))
            raise ValueError(f"`normalization` must be one of {expected}; got {checks.describe(normalization)}.")
        if bandwidths is None:
            bandwidths = features.new_ones(features.shape[1:2])
        elif bandwidths.is_floating_point():
            bandwidths = bandwidths.to(features.dtype)
        with _exactly(features):
            self.operator = lattice.build(features, bandwidths, backend)
        self.learned = torch.is_grad_enabled() and (features.requires_grad or bandwidths.requires_grad)
        self.images, _, self.points = features.shape
        self.dtype, self.device = features.dtype, features.device
        # What is not learned is not kept: features take as much memory as the lattice.
        self.features = features if self.learned else None
        self.bandwidths = bandwidths if self.learned else None
        self.before: Tensor | None = None
        self.after: Tensor | None = None
        if normalization != "none":
            with _exactly(features):
                scale = self._scale(symmetric=normalization == "symmetric")
            self.before = None if normalization == "after" else scale
            self.after = None if normalization == "before" else scale

    @uncompiled
    def __call__(self, values: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n"]:
        """Filters values.

        Raises:
            ValueError: values are not (B, C, N) of the features' points, images and dtype.
        """
        fits = values.ndim == 3 and values.shape[2] == self.points and self.images in (1, len(values))
        if not fits or 0 in values.shape or values.dtype != self.dtype:
            images = "B" if self.images == 1 else self.images
            raise ValueError(
                f"`values` must be ({images}, C, {self.points}) of {self.dtype}, as the features are; "
                f"got {checks.describe(values)}."
            )
        if values.device != self.device:
            raise ValueError(f"`values` must be on {self.device}, as the features are; they are on {values.device}.")
        with _exactly(values):
            filtered = self._filter(values if self.before is None else self.before * values)
        return filtered if self.after is None else self.after * filtered

    def _filter(self, values: Tensor) -> Tensor:
        beside = (
            values.reshape(1, -1, values.shape[2]) if self.images == 1 else values
        )  # of all images, for one lattice
        filtered: Tensor = _Filter.apply(self.features, self.bandwidths, beside, self.operator)
        return filtered.reshape(values.shape)

    def _scale(self, symmetric: bool) -> Tensor:
        if self.features is None:
            return self.operator.normalizer(symmetric)
        scale: Tensor = _Scale.apply(self.features, self.bandwidths, self.operator, symmetric)
        return scale


@uncompiled
def gaussian_filter(
    features: Float[Tensor, "*b d n"], values: Float[Tensor, "*b c n"], *, backend: Backend = "auto"
) -> Float[Tensor, "*b c n"]:
    r"""Filters values by a Gaussian in feature space: :math:`\sum_j \exp(-\tfrac12 |f_i - f_j|^2)\, v_j`.

    Args:
        features: (d, N) or (B, d, N) floats, each divided by its bandwidth.
        values: (C, N) or (B, C, N) floats of the same dtype.
        backend: "auto" takes the lattice's fastest kernels for the device, "exact" the sum over all pairs.

    Returns:
        The filtered values. Gradients flow to both arguments; that to the features is the derivative of the Gaussian.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or a value is not finite.

    Example:
        >>> blurred = gaussian_filter(torch.arange(5.0)[None] / 2, torch.eye(5), backend="exact")
        >>> round(blurred[0, 1].item(), 4)
        0.8825
    """
    if (
        features.ndim not in (2, 3)
        or values.ndim != features.ndim
        or (*features.shape[:-2], features.shape[-1])
        != (
            *values.shape[:-2],
            values.shape[-1],
        )
    ):
        raise ValueError(
            "`features` and `values` must be (d, N) and (C, N), or (B, d, N) and (B, C, N); "
            f"got {checks.describe(features)} and {checks.describe(values)}."
        )
    if features.dtype != values.dtype or features.device != values.device:
        raise ValueError(
            "`features` and `values` must share dtype and device; "
            f"got {features.dtype} on {features.device} and {values.dtype} on {values.device}."
        )
    checks.finite("values", values)
    if features.ndim == 2:
        return GaussianKernel(features[None], backend=backend)(values[None])[0]
    return GaussianKernel(features, backend=backend)(values)


def _exactly(like: Tensor) -> torch.autocast:
    """Keeps autocast's half precision out of a kernel, some of which are products of matrices."""
    return torch.autocast(like.device.type, enabled=False)


class _Filter(torch.autograd.Function):
    """K v with its gradients: to v the transposed filter, to features and bandwidths filtered moments."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor | None, bandwidths: Tensor | None, values: Tensor, operator: Operator
    ) -> Tensor:
        out = operator.filter(values)
        ctx.operator = operator
        ctx.save_for_backward(features, bandwidths, values, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with _exactly(gradient):
            return _Filter._slopes(ctx, gradient)

    @staticmethod
    def _slopes(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, bandwidths, values, out = ctx.saved_tensors
        back = ctx.operator.filter(gradient, transpose=True)
        to_features = to_bandwidths = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            # The derivative of the Gaussian needs sums of k_ij f_j g_i v_j, which are filterings of f v. The derivative
            # of the lattice itself, through its weights, would cost less, but it is noise where features lie on a grid
            # as grey levels do: on CamVid crops it had the bandwidth of colours wrong several times over.
            received = (out * gradient).sum(1, keepdim=True)
            sent = (back * values).sum(1, keepdim=True)
            f = centred(features, bandwidths)
            moments = ctx.operator.moments(f, values, gradient)
            if ctx.needs_input_grad[1]:
                spread = f * torch.addcmul(-2 * moments, f, received + sent)  # of k_ij (f_i - f_j)² g_i v_j
                to_bandwidths = spread.sum((0, 2)) / bandwidths
            if ctx.needs_input_grad[0]:
                moments = moments + ctx.operator.moments(f, gradient, values, transpose=True)
                to_features = (moments - f * (received + sent)) / bandwidths[:, None]
        return to_features, to_bandwidths, back, None


class _Scale(torch.autograd.Function):
    """One over what the filter makes of ones, or over its root, with its gradients to features and bandwidths."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, bandwidths: Tensor, operator: Operator, symmetric: bool) -> Tensor:
        scale = operator.normalizer(symmetric).expand(len(features), -1, -1)  # a grid has one for all images
        ctx.operator, ctx.symmetric = operator, symmetric
        ctx.save_for_backward(features, bandwidths, scale)
        return scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        how = ctx.symmetric, ctx.needs_input_grad[0]
        with _exactly(gradient):
            return *ctx.operator.normalizer_gradients(*ctx.saved_tensors, gradient, *how), None, None

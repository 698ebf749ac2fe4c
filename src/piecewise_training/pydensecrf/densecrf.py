"""`DenseCRF` and `DenseCRF2D` as `pydensecrf.densecrf` has them, with its conventions and its signs.

A unary energy is a cost: -log of a probability. A number for `compat` is Potts, w for labels that agree, so that
compat=3, compat=-3 * np.ones(K) and compat=-3 * np.eye(K) mean the same: the vector and the matrix are costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from piecewise_training import checks
from piecewise_training.crf import GaussianKernel, PairwiseTerm, PermutohedralLattice, mean_field, spatial_kernel
from piecewise_training.crf.filtering import Normalization
from piecewise_training.crf.lattice import LatticeOperator
from piecewise_training.crf.pixels import require_memory
from piecewise_training.pydensecrf.costs import Costs

_FAR = 1e20  # above what any kernel can make of an energy


class KernelType(IntEnum):
    """Which parameters a kernel has beside its features: none, a factor for each of them, or a matrix."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


class NormalizationType(IntEnum):
    """How a kernel is normalised; see `piecewise_training.crf.GaussianKernel`."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = KernelType
"""For the argument `kernel`, by pydensecrf's name."""
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = NormalizationType
"""For the argument `normalization`, by pydensecrf's name."""
_NORMALIZATIONS: tuple[Normalization, ...] = ("none", "before", "after", "symmetric")


class Unary:
    """An energy for each label at each point, (K, N)."""

    def __init__(self, energy: np.ndarray) -> None:
        self.energy = energy


class ConstUnary(Unary):
    """Energies as they are, (K, N)."""

    def __init__(self, u: np.ndarray) -> None:
        super().__init__(_matrix("u", _far_instead_of_infinite(u)))


class LogisticUnary(Unary):
    """Energies that are linear in features: L (K, F) times f (F, N)."""

    def __init__(self, L: np.ndarray, f: np.ndarray) -> None:
        weights, features = _matrix("L", L), _matrix("f", f)
        if weights.shape[1] != len(features):
            raise ValueError(f"`L` (K, F) and `f` (F, N) must fit; got {weights.shape} and {features.shape}.")
        super().__init__(weights @ features)


class Gradients(NamedTuple):
    """What `DenseCRF.gradient` gives.

    Attributes:
        value: the objective.
        unary: the gradient to the unary energies (K, N).
        compatibility: that to what `labelCompatibilityParameters` gives.
        kernel: that to what `kernelParameters` gives.
    """

    value: float
    unary: np.ndarray
    compatibility: np.ndarray
    kernel: np.ndarray


@dataclass
class _Pairwise:
    """One pairwise energy: features, the parameters that multiply them, and the costs of labels."""

    features: Tensor
    scale: Tensor
    costs: Costs
    normalization: Normalization
    fixed: GaussianKernel | None = None

    def term(self, scale: Tensor | None = None, parameters: Tensor | None = None) -> PairwiseTerm:
        """The term, with other parameters if any are given."""
        if scale is not None:
            kernel = self._kernel(scale)
        else:
            self.fixed = kernel = self.fixed or self._kernel(self.scale)
        return PairwiseTerm(kernel, *self.costs.of(self.costs.parameters if parameters is None else parameters))

    def _kernel(self, scale: Tensor) -> GaussianKernel:
        features, bandwidths = self.features, self.features.new_ones(self.features.shape[1])
        if scale.ndim == 2:
            features = (scale @ features[0])[None]
        elif bool((scale <= 0).any()):
            features = scale[:, None] * features
        elif scale.numel():
            bandwidths = 1 / scale
        return GaussianKernel(features, bandwidths, _lattice(features, bandwidths), self.normalization)


def _lattice(features: Tensor, bandwidths: Tensor) -> LatticeOperator:
    """The lattice as pydensecrf has it.

    It places points four at a time and fills up the last four with points at the origin, whose vertices then pass on
    what is blurred over them. Where there are few vertices, wide bandwidths that is, this is seen in the marginals.
    """
    points = features.shape[2]
    with torch.no_grad():
        filled = torch.cat([features, torch.zeros_like(features[..., : -points % 4])], 2)
        placed = PermutohedralLattice.build(filled, bandwidths)
    tables = [(one.simplices[:points], one.vertices, one.weights[:points], one.neighbours) for one in placed]
    return LatticeOperator(tables, placed[0].backend, features.dtype)


class DenseCRF:
    """A fully connected CRF over points, each with any features.

    Args:
        nvar: N, the number of points.
        nlabels: K, the number of labels.

    Raises:
        ValueError: a number is below 1.

    Example:
        >>> crf = DenseCRF(4, 2)
        >>> crf.setUnaryEnergy(np.array([[0, 1, 0, 1], [1, 0.8, 1, 0]]))
        >>> crf.addPairwiseEnergy(np.array([[0, 0.1, 0.2, 9]]), compat=3)
        >>> np.argmax(crf.inference(5), axis=0)
        array([0, 0, 0, 1])
    """

    def __init__(self, nvar: int, nlabels: int) -> None:
        if nvar < 1 or nlabels < 1:
            raise ValueError(f"`nvar` and `nlabels` must be at least 1; got {nvar} and {nlabels}.")
        self._points, self._labels = int(nvar), int(nlabels)
        self._shape: tuple[int, int] = (1, self._points)
        self._unary = np.zeros((self._labels, self._points), np.float32)
        self._pairwise: list[_Pairwise] = []

    def setUnaryEnergy(self, u: np.ndarray, f: np.ndarray | None = None) -> None:  # noqa: N802
        """Sets the energies u (K, N), or u (K, F) times features f (F, N).

        Raises:
            ValueError: the shape does not fit, an energy is NaN or minus infinity, or a point has no possible label.
        """
        self.setUnary(ConstUnary(u) if f is None else LogisticUnary(u, f))

    def setUnary(self, unary: Unary) -> None:  # noqa: N802
        """Sets the energies.

        Raises:
            ValueError: the shape does not fit.
        """
        if unary.energy.shape != self._unary.shape:
            raise ValueError(f"A unary energy must be {self._unary.shape}, (K, N); got {unary.energy.shape}.")
        self._unary = unary.energy

    def addPairwiseEnergy(  # noqa: N802
        self,
        features: np.ndarray,
        compat: float | np.ndarray,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Adds a pairwise energy with a Gaussian kernel over features of bandwidth 1.

        Args:
            features: (F, N).
            compat: Potts (a number), or the costs of labels: each beside itself (K,), or each beside each (K, K), of
                which the mean with its transpose is taken, as by pydensecrf.
            kernel: which parameters the kernel has for `kernelParameters`; they change nothing by themselves.
            normalization: how the kernel is normalised.

        Raises:
            ValueError: a shape does not fit, a value is not finite, or a constant is unknown.
            MemoryError: there is not enough memory, and says how much is needed.
        """
        shape = np.shape(features)
        if len(shape) != 2 or shape[1] != self._points:
            raise ValueError(f"`features` must be (F, {self._points}); got {shape}.")
        self._require_memory(shape[0])
        found = _matrix("features", features)
        values = torch.from_numpy(found)[None]
        dims = len(found)
        scale = torch.from_numpy({0: np.ones(0), 1: np.ones(dims), 2: np.eye(dims)}[KernelType(kernel)]).float()
        name = _NORMALIZATIONS[NormalizationType(normalization)]
        self._pairwise.append(_Pairwise(values, scale, Costs.read(compat, self._labels), name))

    def inference(self, niter: int) -> np.ndarray:
        """The marginals (K, N) after so many updates, float32.

        Raises:
            MemoryError: there is not enough memory, and says how much is needed.
        """
        self._require_memory()
        return self._run([pairwise.term() for pairwise in self._pairwise], niter)

    def startInference(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # noqa: N802
        """The marginals before the first update, and two arrays that `stepInference` takes and leaves alone."""
        return self._run([], 0), np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)

    def stepInference(self, Q: np.ndarray, tmp1: Any = None, tmp2: Any = None) -> None:  # noqa: N802
        """Makes one update of the marginals Q (K, N), in place."""
        del tmp1, tmp2
        scores = self._messages(Q) - self._unary
        Q[:] = torch.from_numpy(scores).softmax(0).numpy()

    def klDivergence(self, Q: np.ndarray) -> float:  # noqa: N802
        """The divergence of Q (K, N) from the CRF up to a constant, every pair counted twice as in pydensecrf."""
        q = np.asarray(Q, np.float64)
        entropy = (q * np.log(np.maximum(q, 1e-20))).sum()
        return float(entropy + (q * (self._unary - self._messages(np.asarray(Q, np.float32)))).sum())

    def labelCompatibilityParameters(self) -> np.ndarray:  # noqa: N802
        """The parameters of all costs in order: w of Potts, K of a vector, K (K + 1) / 2 of a matrix by its rows."""
        return _joined([pairwise.costs.parameters for pairwise in self._pairwise])

    def setLabelCompatibilityParameters(self, v: np.ndarray) -> None:  # noqa: N802
        """Sets what `labelCompatibilityParameters` gives."""
        parts = _parted("v", v, [pairwise.costs.parameters for pairwise in self._pairwise])
        for pairwise, part in zip(self._pairwise, parts, strict=True):
            pairwise.costs.parameters = part

    def kernelParameters(self) -> np.ndarray:  # noqa: N802
        """What features are multiplied by: none of a constant kernel, F of a diagonal one, F² of a full one by columns.

        A full one's are the matrix that the features (F, N) are multiplied by from the left.
        """
        return _joined([pairwise.scale.t() for pairwise in self._pairwise])

    def setKernelParameters(self, v: np.ndarray) -> None:  # noqa: N802
        """Sets what `kernelParameters` gives."""
        parts = _parted("v", v, [pairwise.scale for pairwise in self._pairwise])
        for pairwise, part in zip(self._pairwise, parts, strict=True):
            pairwise.scale, pairwise.fixed = part.t(), None

    def gradient(self, niter: int, objective: Callable[[Tensor], Tensor]) -> Gradients:
        """An objective of the marginals and its gradients to everything.

        Args:
            niter: updates.
            objective: gives a number for log-marginals (K, N).

        Example:
            >>> crf = DenseCRF(2, 2)
            >>> crf.addPairwiseEnergy(np.array([[0.0, 1.0]]), compat=1)
            >>> crf.gradient(1, lambda log_q: log_q[0].sum()).unary.shape
            (2, 2)
        """
        with torch.enable_grad():
            return self._gradients(niter, objective)

    def _gradients(self, niter: int, objective: Callable[[Tensor], Tensor]) -> Gradients:
        unary = torch.from_numpy(self._unary.copy()).requires_grad_()
        scales = [pairwise.scale.clone().requires_grad_() for pairwise in self._pairwise]
        costs = [pairwise.costs.parameters.clone().requires_grad_() for pairwise in self._pairwise]
        parts = zip(self._pairwise, scales, costs, strict=True)
        terms = [pairwise.term(scale, parameters) for pairwise, scale, parameters in parts]
        logits = -unary.reshape(1, self._labels, *self._shape)
        value = objective(mean_field(logits, terms, niter)[0].flatten(1))
        value.backward()  # type: ignore[no-untyped-call]
        found = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in (unary, *costs, *scales)]
        middle = 1 + len(costs)
        to_scales = [own.t() for own in found[middle:]]
        return Gradients(float(value.detach()), found[0].numpy(), _joined(found[1:middle]), _joined(to_scales))

    def _require_memory(self, *new: int) -> None:
        """Raises a MemoryError where there is too little for the energies so far, and one over so many features."""
        energies = torch.from_numpy(self._unary).reshape(1, self._labels, *self._shape)
        require_memory(energies, [*(pairwise.features.shape[1] for pairwise in self._pairwise), *new])

    def _run(self, terms: Sequence[PairwiseTerm], niter: int) -> np.ndarray:
        with torch.no_grad():
            logits = torch.from_numpy(-self._unary).reshape(1, self._labels, *self._shape)
            return mean_field(logits, terms, max(0, niter), logarithm=False).reshape(self._unary.shape).numpy()

    def _messages(self, Q: np.ndarray) -> np.ndarray:
        """What the pairwise energies add to the scores."""
        q = torch.from_numpy(np.ascontiguousarray(Q, np.float32))[None]
        if q.shape[1:] != self._unary.shape:
            raise ValueError(f"`Q` must be {self._unary.shape}, (K, N); got {tuple(q.shape[1:])}.")
        checks.finite("Q", q)
        with torch.no_grad():
            total = torch.zeros_like(q)
            for pairwise in self._pairwise:
                total = total + pairwise.term().message(q)
            return total[0].numpy()


class DenseCRF2D(DenseCRF):
    """A fully connected CRF over the pixels of an image.

    Args:
        w: columns of pixels.
        h: rows of pixels.
        nlabels: K, the number of labels.
    """

    def __init__(self, w: int, h: int, nlabels: int) -> None:
        super().__init__(w * h, nlabels)
        self._shape = (h, w)

    def addPairwiseGaussian(  # noqa: N802
        self,
        sxy: float | Sequence[float],
        compat: float | np.ndarray,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Adds a pairwise energy with a kernel of position.

        Args:
            sxy: bandwidth in pixels, or those of columns and rows.
            compat: see `addPairwiseEnergy`.
            kernel: see `addPairwiseEnergy`.
            normalization: see `addPairwiseEnergy`.

        Raises:
            ValueError: a bandwidth is not above 0; or see `addPairwiseEnergy`.
            MemoryError: there is not enough memory, and says how much is needed.
        """
        self._require_memory(2)
        self.addPairwiseEnergy(self._place(sxy), compat, kernel, normalization)
        widths = np.unique(np.asarray(sxy, np.float32))
        if len(widths) == 1:  # the lattice of a size of image is kept from one image to the next
            own = self._pairwise[-1]
            own.fixed = spatial_kernel(
                *self._shape, float(widths[0]), like=own.features, normalization=own.normalization
            )

    def addPairwiseBilateral(  # noqa: N802
        self,
        sxy: float | Sequence[float],
        srgb: float | Sequence[float],
        rgbim: np.ndarray,
        compat: float | np.ndarray,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Adds a pairwise energy with a kernel of position and colour.

        Args:
            sxy: bandwidth in pixels, or those of columns and rows.
            srgb: bandwidth in grey levels, or one for each channel.
            rgbim: (H, W, C), in contrast to pydensecrf of any number of channels and any dtype.
            compat: see `addPairwiseEnergy`.
            kernel: see `addPairwiseEnergy`.
            normalization: see `addPairwiseEnergy`.

        Raises:
            ValueError: the image does not fit or is not finite, or a bandwidth is not above 0; or see
                `addPairwiseEnergy`.
            MemoryError: there is not enough memory, and says how much is needed.
        """
        image = np.asarray(rgbim)
        if image.ndim != 3 or image.shape[:2] != self._shape:
            height, width = self._shape
            raise ValueError(f"`rgbim` must be ({height}, {width}, C), (H, W, C); got {image.shape}.")
        self._require_memory(2 + image.shape[2])
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise ValueError(
                f"`rgbim` must be finite; {int((~np.isfinite(image)).sum())} of {image.size} values are not."
            )
        stds = _bandwidths("srgb", srgb, image.shape[2])
        if image.dtype.kind == "f":
            checks.grey_levels("rgbim", checks.as_tensor("rgbim", image), stds.flat, stacklevel=2)
        colour = image.reshape(-1, image.shape[2]).T.astype(np.float32) / stds
        self.addPairwiseEnergy(np.concatenate([self._place(sxy), colour]), compat, kernel, normalization)

    def _place(self, sxy: float | Sequence[float]) -> np.ndarray:
        rows, columns = np.indices(self._shape, np.float32)
        return np.stack([columns, rows]).reshape(2, -1) / _bandwidths("sxy", sxy, 2)


def _bandwidths(name: str, value: float | Sequence[float], count: int) -> np.ndarray:
    """Bandwidths as a column."""
    found = np.asarray(value, np.float32).reshape(-1, 1)
    if len(found) not in (1, count) or not bool((found > 0).all()) or not bool(np.isfinite(found).all()):
        raise ValueError(f"`{name}` must be a number above 0 or {count} of them; got {value}.")
    return found


def _far_instead_of_infinite(energy: np.ndarray) -> np.ndarray:
    """Energies whose infinite ones, those of impossible labels, lie far above the least of their points instead."""
    found = np.asarray(energy, np.float32)
    impossible = np.isposinf(found)
    if found.ndim != 2 or not impossible.any():
        return found
    hopeless = int(impossible.all(0).sum())
    if hopeless:
        raise ValueError(f"`u` must leave each point a possible label; {hopeless} of {found.shape[1]} have none.")
    return np.where(impossible, found.min(0) + _FAR, found)


def _matrix(name: str, value: Any) -> np.ndarray:
    """A matrix in single precision and in memory of its own, since the caller's may be written to."""
    found = np.array(value, np.float32, order="C")
    if found.ndim != 2:
        raise ValueError(f"`{name}` must be a matrix; got {found.shape}.")
    if not np.isfinite(found.sum()) and not np.isfinite(found).all():
        raise ValueError(f"`{name}` must be finite; {int((~np.isfinite(found)).sum())} of {found.size} values are not.")
    return found


def _joined(parts: Sequence[Tensor]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(part.detach().flatten().numpy() for part in parts)])


def _parted(name: str, values: np.ndarray, like: Sequence[Tensor]) -> list[Tensor]:
    """A vector cut into parts like others."""
    sizes = [part.numel() for part in like]
    whole = torch.from_numpy(np.array(values, np.float32).reshape(-1))
    if len(whole) != sum(sizes):
        raise ValueError(f"`{name}` must have {sum(sizes)} parameters; got {len(whole)}.")
    checks.finite(name, whole)
    return [part.reshape(old.shape) for part, old in zip(torch.split(whole, sizes), like, strict=True)]

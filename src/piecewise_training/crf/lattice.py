"""The permutohedral lattice as a value: tensors, and the choice of the backend that filters with them."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from piecewise_training import checks
from piecewise_training.compiling import uncompiled
from piecewise_training.crf._reference import FARTHEST, Normalized, Tables, through_normalizer
from piecewise_training.crf.separable import SeparableOperator

Backend = Literal["auto", "numba", "triton", "reference", "exact"]


@dataclass(frozen=True)
class PermutohedralLattice:
    r"""A sparse Gaussian over n points: :math:`(Kv)_i \approx \sum_j \exp(-\tfrac12 |f_i - f_j|^2)\, v_j`.

    A point's value is shared out among the d + 1 vertices of its simplex (splat), blurred along the lattice's d + 1
    axes, and read back (slice). The error is a few per cent of the filtered value, the same as pydensecrf's.

    Attributes:
        simplices: the simplex that each point lies in.
        vertices: the vertices of each simplex, v = d + 1.
        weights: each point's barycentric weight at the vertices of its simplex; at least 0, sum 1.
        neighbours: for each blur axis the vertices before and after each of the m vertices; m where there is none.
        backend: "numba", "triton" or "reference", whose kernels filter.

    Example:
        >>> lattice = PermutohedralLattice.build(torch.rand(1, 5, 100))[0]
        >>> lattice.vertices[lattice.simplices].shape
        torch.Size([100, 6])
    """

    simplices: Int[Tensor, n]
    vertices: Int[Tensor, "s v"]
    weights: Float[Tensor, "n v"]
    neighbours: Int[Tensor, "v 2 m"]
    backend: Literal["numba", "triton", "reference"]

    @classmethod
    @uncompiled
    def build(
        cls,
        features: Float[Tensor, "b d n"],
        bandwidths: Float[Tensor, " d"] | None = None,
        backend: Backend = "auto",
    ) -> list[PermutohedralLattice]:
        """Places n points with d features: a lattice for each image of a batch.

        Args:
            features: of the points.
            bandwidths: what each feature is divided by, above 0; None is 1.
            backend: "auto" takes the fastest kernels for the device.

        Raises:
            ValueError: features are not (B, d, N) of 32 or 64 bits, not finite or beyond a million bandwidths,
                bandwidths are not (d,) and above 0, or no lattice has that backend's name.
        """
        _check_features(features, bandwidths)
        tables, name = _place(features, bandwidths, backend)
        return [cls(*own, name) for own in tables]


class LatticeOperator:
    """The Gaussians of a batch as lattices, one for each image.

    Args:
        tables: of each image, as a backend has built them.
        backend: "numba", "triton" or "reference".
        dtype: of the features.
    """

    def __init__(self, tables: Sequence[Tables], backend: str, dtype: torch.dtype) -> None:
        self.backend, self._tables, self._dtype = backend, tables, dtype

    @property
    def _kernels(self) -> Any:
        """The backend's module, which is not kept, since no module can be copied with the rest."""
        return _kernels(self.backend)

    @property
    def infers(self) -> bool:
        """Whether `infer` is there for lattices of this kind."""
        return self.backend in ("numba", "triton") and self._dtype == torch.float32

    @property
    def watches(self) -> bool:
        """Whether `watch` is there, too."""
        return self.infers and self.backend == "numba"

    def goes_with(self, other: LatticeOperator) -> bool:
        """Whether both can be worked on together."""
        return self.backend == other.backend

    def normalized(self, before: Tensor | None, after: Tensor | None) -> Normalized:
        """The filter between two factors, as `infer` takes it."""
        return Normalized(self._tables, before, after)

    def infer(
        self,
        terms: Sequence[Normalized],
        mixtures: Sequence[Tensor],
        logits: Float[Tensor, "b k n"],
        iterations: int,
        grid: tuple[int, int],
        logarithm: bool,
        keep: bool,
    ) -> tuple[Float[Tensor, "b k n"], Any]:
        """Mean field with all terms in one pass over the pixels, and what its gradients need, if it is to be kept."""
        return self._kernels.mean_field(terms, mixtures, logits, iterations, grid, logarithm, keep)

    def watch(
        self,
        terms: Sequence[Normalized],
        mixtures: Sequence[Tensor],
        logits: Float[Tensor, "b k n"],
        iterations: int,
        grid: tuple[int, int],
        logarithm: bool,
        how: tuple[float, float, bool],
    ) -> tuple[Float[Tensor, "b k n"], list[tuple[list[float], list[float]]]]:
        """Mean field that is damped or stops early, and the divergences and changes of each image."""
        return self._kernels.watched_mean_field(terms, mixtures, logits, iterations, grid, logarithm, how)

    def infer_gradients(
        self, kept: Any, log_q: Tensor, gradient: Tensor, features: Sequence[tuple[Tensor, Tensor] | None]
    ) -> tuple[Tensor, list[list[Tensor | None]]]:
        """The gradients to the logits, and for each term to its mixture and factors, and the spread of each feature.

        Where one factor serves before and after filtering, its gradient may come as that to the first alone.
        """
        return self._kernels.mean_field_gradients(kept, log_q, gradient, features)

    def normalizer(self, symmetric: bool) -> Float[Tensor, "b 1 n"]:
        """One over what the filter makes of ones, or over its root."""
        return self._kernels.normalizer(self._tables, symmetric)

    def normalizer_gradients(
        self,
        features: Float[Tensor, "b d n"],
        bandwidths: Float[Tensor, " d"],
        scale: Float[Tensor, "b 1 n"],
        gradient: Float[Tensor, "b 1 n"],
        symmetric: bool,
        to_features: bool,
    ) -> tuple[Float[Tensor, "b d n"] | None, Float[Tensor, " d"]]:
        """From the gradient to a `scale` of `normalizer` those to features, if asked for, and to bandwidths."""
        found: tuple[Tensor | None, Tensor] = self._kernels.normalizer_gradients(
            self._tables, features, bandwidths, scale, gradient, symmetric, to_features
        )
        return found

    def filter(self, values: Float[Tensor, "b c n"], transpose: bool = False) -> Float[Tensor, "b c n"]:
        """Filters c channels of each image. The transposed operator differs by the order of the blur's axes."""
        return self._kernels.splat_blur_slice(self._tables, values, transpose)

    def moments(
        self,
        features: Float[Tensor, "b d n"],
        values: Float[Tensor, "b c n"],
        against: Float[Tensor, "b c n"],
        transpose: bool = False,
    ) -> Float[Tensor, "b d n"]:
        """Filters f v for each feature f and sums the product with `against` over the channels."""
        return self._kernels.moments(self._tables, features, values, against, transpose)


class ExactOperator:
    """The same as plain sums over all pairs of points: n² exponentials, for tests and small images."""

    def __init__(self, features: Float[Tensor, "b d n"]) -> None:
        self._features = features

    def filter(self, values: Float[Tensor, "b c n"], transpose: bool = False) -> Float[Tensor, "b c n"]:
        """Filters c channels of each image; the operator is its own transpose."""
        del transpose
        pairs = zip(self._features, values, strict=True)
        return torch.stack([_kernels("reference").exact_sum(f, v) for f, v in pairs])

    def normalizer(self, symmetric: bool) -> Float[Tensor, "b 1 n"]:
        """One over the sum of the kernel around each point, or over its root."""
        sums = self.filter(torch.ones_like(self._features[:, :1])) + 1e-20
        return sums.rsqrt() if symmetric else sums.reciprocal()

    def normalizer_gradients(
        self,
        features: Float[Tensor, "b d n"],
        bandwidths: Float[Tensor, " d"],
        scale: Float[Tensor, "b 1 n"],
        gradient: Float[Tensor, "b 1 n"],
        symmetric: bool,
        to_features: bool,
    ) -> tuple[Float[Tensor, "b d n"] | None, Float[Tensor, " d"]]:
        """From the gradient to a `scale` of `normalizer` those to features, if asked for, and to bandwidths."""
        return through_normalizer(self.filter, features, bandwidths, scale, gradient, symmetric, to_features)

    def moments(
        self,
        features: Float[Tensor, "b d n"],
        values: Float[Tensor, "b c n"],
        against: Float[Tensor, "b c n"],
        transpose: bool = False,
    ) -> Float[Tensor, "b d n"]:
        """Filters f v for each feature f and sums the product with `against` over the channels."""
        filtered = [self.filter(feature[:, None] * values, transpose) for feature in features.unbind(1)]
        return torch.stack([(against * moment).sum(1) for moment in filtered], 1)


Operator = LatticeOperator | ExactOperator | SeparableOperator


def build(features: Float[Tensor, "b d n"], bandwidths: Float[Tensor, " d"], backend: Backend | Operator) -> Operator:
    """What filters a batch: lattices or, where `backend` is "exact", the plain sum."""
    _check_features(features, bandwidths)
    if not isinstance(backend, str):
        return backend
    if backend == "exact":
        checks.finite("features", features)
        return ExactOperator((features / bandwidths[:, None]).detach())
    return LatticeOperator(*_place(features, bandwidths, backend), features.dtype)


def _check_features(features: Tensor, bandwidths: Tensor | None) -> None:
    """Raises a ValueError where features have another shape or dtype, or a bandwidth is not above 0."""
    if features.ndim != 3 or 0 in features.shape or features.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`features` must be (B, d, N) float32 or float64; got {checks.describe(features)}.")
    if bandwidths is None:
        return
    if bandwidths.shape != features.shape[1:2]:
        raise ValueError(
            f"`bandwidths` must be ({features.shape[1]},), one for each feature; got {checks.describe(bandwidths)}."
        )
    if bandwidths.device.type == "cpu" and not bool((bandwidths > 0).all()):  # to look at a GPU's would wait for it
        raise ValueError(f"`bandwidths` must be above 0; got {bandwidths.tolist()}.")


def _place(
    features: Float[Tensor, "b d n"], bandwidths: Float[Tensor, " d"] | None, backend: Backend
) -> tuple[Sequence[Tables], Literal["numba", "triton", "reference"]]:
    """The tables of each image's lattice, and whose kernels filter with them."""
    name = resolve(backend, features.device)
    if name == "exact":
        raise ValueError("`backend` must name a lattice's kernels; 'exact' is the plain sum and has no lattice.")
    scale = features.new_ones(features.shape[1]) if bandwidths is None else bandwidths.detach()
    features = features.detach()
    near = name == "triton" or _farthest(features, scale) <= FARTHEST  # Triton's looks for itself
    tables = _kernels(name).build(features, scale) if near else None
    if tables is None:
        checks.finite("features", features)
        raise ValueError(
            f"`features` reach {_farthest(features, scale):.3g} bandwidths; beyond {FARTHEST:.0g} "
            "neighbours cannot be told apart. Take larger bandwidths."
        )
    return tables, name


def shared_threads(backend: Backend, device: torch.device) -> AbstractContextManager[Any]:
    """A context whose calls share the backend's threads, which each of them would start for itself."""
    return _kernels("numba").team() if resolve(backend, device) == "numba" else nullcontext()


def resolve(backend: Backend, device: torch.device) -> Literal["numba", "triton", "reference", "exact"]:
    """The backend that "auto" stands for on a device: Numba on the CPU, Triton on a GPU, and else plain torch.

    Raises:
        ValueError: the name is unknown, or the backend does not run on the device.

    Example:
        >>> resolve("auto", torch.device("cpu"))
        'numba'
    """
    if backend not in ("auto", "numba", "triton", "reference", "exact"):
        raise ValueError(f"`backend` must be auto, numba, triton, reference or exact; got {checks.describe(backend)}.")
    if backend == "auto":
        return "numba" if device.type == "cpu" else "triton" if device.type == "cuda" and has_triton() else "reference"
    if backend == "numba" and device.type != "cpu":
        raise ValueError(f"`backend` 'numba' runs on the CPU; the tensors are on {device}. Use 'auto'.")
    if backend == "triton" and not has_triton():
        raise ValueError("`backend` 'triton' needs the package triton, which is not installed. Use 'auto'.")
    if backend == "triton" and device.type != "cuda" and not _interprets():
        raise ValueError(f"`backend` 'triton' runs on a GPU; the tensors are on {device}. Use 'auto'.")
    return backend


@cache
def has_triton() -> bool:
    """Whether Triton can be imported; torch brings it along where there are GPUs for it."""
    return importlib.util.find_spec("triton") is not None


def _interprets() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU, as tests do."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _farthest(features: Tensor, bandwidths: Tensor) -> float:
    """The largest absolute value of a feature in bandwidths; NaN where there is one."""
    if features.device.type == "cpu":  # torch's own threads would go on spinning beside those of the kernels
        array = features.numpy()
        extent = torch.from_numpy(np.maximum(array.max((0, 2)), -array.min((0, 2))))
    else:
        extent = features.abs().amax((0, 2))
    return float((extent / bandwidths).max())


def _kernels(name: str) -> ModuleType:
    """The kernels' module, imported on first use: Numba takes half a second that not everybody needs."""
    return importlib.import_module(f"piecewise_training.crf._{name}")

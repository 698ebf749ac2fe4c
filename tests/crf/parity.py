"""The grid of cases on which mean field is compared with pydensecrf; `python -m tests.crf.parity` prints them all."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch

from piecewise_training.crf import GaussianKernel, PairwiseTerm, dense_crf, mean_field

NORMALIZATIONS = ("none", "before", "after", "symmetric")


@dataclass(frozen=True)
class Case:
    """Scores and an image of some shape, and the CRF's parameters."""

    shape: tuple[int, ...] = (23, 31)
    classes: int = 3
    channels: int = 3
    dtype: str = "uint8"
    pos_std: float = 3.0
    pos_w: float = 3.0
    xy_std: float = 80.0
    rgb_std: float = 13.0
    bilateral_w: float = 10.0
    normalization: str = "symmetric"
    compatibility: str = "potts"


SHAPES = [(1, 1), (1, 2), (1, 97), (64, 1), (7, 5), (65, 129), (3, 4, 5), (9, 17, 20)]
BANDWIDTHS = [(0.5, 0.5, 0.5), (0.5, 200, 200), (200, 200, 200), (1, 30, 4), (3, 60, 200), (10, 0.5, 13)]
USUAL = Case()
CASES = [
    *(replace(USUAL, shape=shape) for shape in SHAPES),
    *(replace(USUAL, shape=shape, classes=k) for shape, k in itertools.product([(1, 9), (33, 21)], [1, 2, 21, 150])),
    # pydensecrf adds points at the origin where their number is no multiple of 4, which is seen with wide bandwidths.
    *(replace(USUAL, shape=(23, 32), pos_std=p, xy_std=xy, rgb_std=rgb) for p, xy, rgb in BANDWIDTHS),
    *(replace(USUAL, dtype=dtype) for dtype in ("float32", "float64", "float16")),
    *(replace(USUAL, channels=channels) for channels in (1, 4, 8)),
    # Without symmetric normalisation large weights let marginals swing between two states, which magnifies rounding.
    *(
        replace(
            USUAL, normalization=n, compatibility=c, pos_std=0.8, pos_w=1.0, xy_std=2.0, rgb_std=5.0, bilateral_w=1.0
        )
        for n, c in itertools.product(NORMALIZATIONS, ["potts", "class", "matrix"])
    ),
    *(replace(USUAL, classes=21, compatibility=c) for c in ("class", "matrix")),
    replace(USUAL, shape=(1201, 903), classes=2),
]


def make(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Scores (1, K, ...), an image (1, C, ...) and costs, where there are any."""
    rng = np.random.default_rng(0)
    place = np.indices(case.shape)
    region = np.sin(sum(p / (5 + axis) for axis, p in enumerate(place))) * case.classes
    labels = region.astype(int) % case.classes
    colours = rng.integers(30, 220, (case.channels, case.classes))
    image = np.clip(colours[:, labels] + rng.normal(0, 5, (case.channels, *case.shape)), 0, 255)
    scores = 2.5 * np.moveaxis(np.eye(case.classes)[labels], -1, 0) + rng.normal(0, 1, (case.classes, *case.shape))
    matrix = rng.uniform(-0.2, 1, (case.classes, case.classes))
    costs = {"potts": None, "class": np.diagonal(matrix), "matrix": (matrix + matrix.T) / 2}[case.compatibility]
    kept = torch.from_numpy(image.astype("uint8" if case.dtype == "uint8" else "float32"))
    return (
        torch.from_numpy(scores.astype(np.float32))[None],
        kept.to(getattr(torch, case.dtype))[None],
        None if costs is None else torch.tensor(costs, dtype=torch.float32),
    )


def ours(case: Case) -> np.ndarray:
    """Marginals (K, N) after ten iterations: of images by `dense_crf`, of volumes by `mean_field`."""
    scores, image, costs = make(case)
    if len(case.shape) == 2:
        found = dense_crf(
            scores, image, pos_xy_std=case.pos_std, pos_w=case.pos_w, bilateral_xy_std=case.xy_std,
            bilateral_rgb_std=case.rgb_std, bilateral_w=case.bilateral_w, compatibility=costs,
            normalization=case.normalization,  # type: ignore[arg-type]
        )  # fmt: skip
    else:
        features = [torch.from_numpy(f)[None] for f in _features(case, image)]
        kernels = [GaussianKernel(f, normalization=case.normalization) for f in features]  # type: ignore[arg-type]
        terms = [PairwiseTerm(k, w, costs) for k, w in zip(kernels, (case.pos_w, case.bilateral_w), strict=True)]
        found = mean_field(scores, terms, 10)
    return found.exp()[0].reshape(case.classes, -1).numpy()


def theirs(case: Case) -> np.ndarray:
    """The same by pydensecrf."""
    import pydensecrf.densecrf as dcrf

    scores, image, costs = make(case)
    crf = dcrf.DenseCRF(int(np.prod(case.shape)), case.classes)
    crf.setUnaryEnergy(np.ascontiguousarray(-scores[0].numpy().reshape(case.classes, -1)))
    for features, weight in zip(_features(case, image), (case.pos_w, case.bilateral_w), strict=True):
        sign = -1 if case.compatibility == "class" else 1  # there a vector is a cost, here what a class gains
        compat = weight if costs is None else np.ascontiguousarray(sign * weight * costs.numpy())
        crf.addPairwiseEnergy(
            features, compat, normalization=dcrf.NormalizationType(NORMALIZATIONS.index(case.normalization))
        )
    return np.array(crf.inference(10))


def difference(case: Case) -> float:
    """The largest difference of a marginal."""
    return float(np.abs(ours(case) - theirs(case)).max())


def _features(case: Case, image: torch.Tensor) -> list[np.ndarray]:
    place = np.indices(case.shape)[::-1].reshape(len(case.shape), -1).astype(np.float32)
    colour = image[0].float().reshape(case.channels, -1).numpy()
    bilateral = np.concatenate([place / np.float32(case.xy_std), colour / np.float32(case.rgb_std)])
    return [place / np.float32(case.pos_std), bilateral]


if __name__ == "__main__":
    found = [(difference(case), case) for case in CASES]
    for worst, case in sorted(found, key=lambda pair: pair[0]):
        print(f"{worst:.2e} {case}")  # noqa: T201

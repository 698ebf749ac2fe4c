"""The fully connected CRF: a filter in any feature space, mean field over it, and a module that learns it all."""

from piecewise_training.crf.filtering import GaussianKernel, NormalisedKernel, gaussian_filter
from piecewise_training.crf.lattice import PermutohedralLattice
from piecewise_training.crf.layer import DenseCRF
from piecewise_training.crf.meanfield import PairwiseTerm, dense_crf, mean_field

__all__ = [
    "DenseCRF",
    "GaussianKernel",
    "NormalisedKernel",
    "PairwiseTerm",
    "PermutohedralLattice",
    "dense_crf",
    "gaussian_filter",
    "mean_field",
]

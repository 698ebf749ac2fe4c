"""The fully connected CRF: a filter in any feature space, mean field over it, and a module that learns it all."""

from piecewise_training.crf.dense import dense_crf
from piecewise_training.crf.filtering import GaussianKernel, gaussian_filter
from piecewise_training.crf.lattice import PermutohedralLattice
from piecewise_training.crf.layer import DenseCRF, Kernel
from piecewise_training.crf.meanfield import Convergence, PairwiseTerm, mean_field
from piecewise_training.crf.pixels import bilateral_kernel, spatial_kernel

__all__ = [
    "Convergence",
    "DenseCRF",
    "GaussianKernel",
    "Kernel",
    "PairwiseTerm",
    "PermutohedralLattice",
    "bilateral_kernel",
    "dense_crf",
    "gaussian_filter",
    "mean_field",
    "spatial_kernel",
]

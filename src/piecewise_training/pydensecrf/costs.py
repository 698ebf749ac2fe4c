"""What pydensecrf's `compat` means: the kinds of label costs, their parameters and their signs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Costs:
    """Costs of labels beside each other.

    Attributes:
        parameters: w (1,) of Potts, the cost (K,) of each label beside itself, or the upper triangle of a symmetric
            matrix (K (K + 1) / 2,) by its rows.
        kind: the number of axes of what was read: 0, 1 or 2.
        labels: K.
    """

    parameters: Tensor
    kind: int
    labels: int

    @classmethod
    def read(cls, compat: Any, labels: int) -> Costs:
        """Costs from what `addPairwiseEnergy` is given."""
        found = np.array(compat, np.float32)
        if found.shape not in ((), (labels,), (labels, labels)):
            raise ValueError(f"`compat` must be a number, ({labels},) or ({labels}, {labels}); got {found.shape}.")
        if not np.isfinite(found).all():
            raise ValueError("`compat` must be finite.")
        if found.ndim < 2:
            return cls(torch.from_numpy(found.reshape(-1)), found.ndim, labels)
        if not np.allclose(found, found.T):
            warnings.warn(
                "`compat` is not symmetric, and its mean with its transpose is taken, as by pydensecrf. "
                "piecewise_training.crf.dense_crf takes such costs as they are.",
                UserWarning,
                stacklevel=3,
            )
        symmetric = torch.from_numpy((found + found.T) / 2)
        rows, columns = torch.triu_indices(labels, labels, device="cpu")
        return cls(symmetric[rows, columns], 2, labels)

    def of(self, parameters: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and compatibility, as `PairwiseTerm` takes them, of such parameters."""
        if self.kind == 0:
            return parameters[0], None
        one = torch.ones_like(parameters[0])
        if self.kind == 1:
            return one, -parameters
        rows, columns = torch.triu_indices(self.labels, self.labels, device="cpu")
        upper = parameters.new_zeros(self.labels, self.labels).index_put((rows, columns), parameters)
        return one, upper + upper.triu(1).T

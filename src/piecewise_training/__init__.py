"""Deep structured models for semantic segmentation: a CNN and a dense CRF, trained piecewise.

The names below are resolved on first use, so that importing the package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "ContextualCRF": "networks",
    "DenseCRF": "crf",
    "PiecewiseTrainedModel": "model",
    "PiecewiseTrainer": "trainer",
    "SegmentationDataset": "dataset",
    "SegmentationMetrics": "metrics",
    "dense_crf": "crf",
    "gaussian_filter": "crf",
}

__all__ = [
    "ContextualCRF",
    "DenseCRF",
    "PiecewiseTrainedModel",
    "PiecewiseTrainer",
    "SegmentationDataset",
    "SegmentationMetrics",
    "__version__",
    "dense_crf",
    "gaussian_filter",
]

if TYPE_CHECKING:
    from piecewise_training.crf import DenseCRF, dense_crf, gaussian_filter
    from piecewise_training.dataset import SegmentationDataset
    from piecewise_training.metrics import SegmentationMetrics
    from piecewise_training.model import PiecewiseTrainedModel
    from piecewise_training.networks import ContextualCRF
    from piecewise_training.trainer import PiecewiseTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

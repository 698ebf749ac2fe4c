"""What importing costs, what is public, and the first code's import path."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import piecewise_training

ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_imports_nothing_heavy() -> None:
    code = "import sys, piecewise_training; print(*sorted(m.split('.')[0] for m in sys.modules))"
    assert not {"torch", "numpy", "numba", "lightning", "jsonargparse"} & set(run(code).split())


def test_the_command_line_parses_without_torch() -> None:
    code = "import sys; from piecewise_training.cli import build_parser; build_parser(); print(*sys.modules)"
    assert not {"torch", "numba", "lightning", "torchvision", "matplotlib"} & set(run(code).split())


def test_public_names() -> None:
    """A public name that disappears breaks somebody's code."""
    expected = {
        "piecewise_training": {
            "ContextualCRF", "DenseCRF", "PiecewiseTrainedModel", "PiecewiseTrainer", "SegmentationDataset",
            "SegmentationMetrics", "__version__", "dense_crf", "gaussian_filter",
        },
        "piecewise_training.crf": {
            "Convergence", "DenseCRF", "GaussianKernel", "Kernel", "PairwiseTerm", "PermutohedralLattice",
            "bilateral_kernel", "dense_crf", "gaussian_filter", "mean_field", "spatial_kernel",
        },
        "piecewise_training.dataset": {
            "IMAGENET_MEAN", "IMAGENET_STD", "SPLIT_FILE", "VOID", "AnyDataset", "Classes", "DataError", "Pair",
            "SegmentationDataset", "Split", "SyntheticDataset", "augmentation", "build_datasets", "camvid_dataset",
            "cityscapes_dataset", "crf_loader", "draws_split", "joint_loader", "labels_from_colours", "normalise",
            "to_rgb", "train_loader", "val_loader", "validation_set", "voc2012_dataset", "void_is_border",
            "whole_folder",
        },
        "piecewise_training.inference": {
            "Evaluation", "InferenceConfig", "Prediction", "Result", "evaluate", "evaluate_crf", "predict", "refine",
            "scores_from_labels",
        },
        "piecewise_training.model": {"DenseCRF", "PiecewiseTrainedModel", "load_crf"},
        "piecewise_training.networks": {
            "ContextualCRF", "Decoder", "FCN8s", "FeatMapNet", "LargeFOV", "Pretrained", "Relation", "TimmSegmenter",
            "adapt_to_cpu", "build_unary", "read_state_dict",
        },
        "piecewise_training.report": {
            "RECORD_FILE", "Parameter", "RunRecord", "Shown", "remove_pictures", "write_gallery", "write_page",
        },
        "piecewise_training.trainer": {
            "OptimConfig", "PiecewiseTrainer", "Stage", "TrainConfig", "best_device", "context_stage", "crf_stage",
            "joint_stage", "learn_crf", "plan", "together", "unary_stage",
        },
    }  # fmt: skip
    for module, names in expected.items():
        found = __import__(module, fromlist=["*"])
        assert set(found.__all__) == names
        assert all(getattr(found, name) is not None for name in names)


def test_public_names_of_modules_that_name_none() -> None:
    """What they define without an underscore."""
    expected = {
        "piecewise_training.losses": {
            "StructuredLoss", "class_weights", "cross_entropy", "dice", "edge_nll", "focal", "lovasz", "marginal_nll",
            "node_labels", "pairwise_agreement", "unary_loss",
        },
        "piecewise_training.metrics": {
            "BorderMetrics", "Scores", "SegmentationMetrics", "border_band", "scores_from_confusion",
        },
    }  # fmt: skip
    for module, names in expected.items():
        found = vars(importlib.import_module(module)).items()
        own = {name for name, value in found if getattr(value, "__module__", "") == module}
        assert {name for name in own if not name.startswith("_")} == names


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'piecewise_training' has no attribute 'Nothing'"):
        _ = piecewise_training.Nothing
    assert "DenseCRF" in dir(piecewise_training)


def test_first_codes_import_path_gives_the_same_classes() -> None:
    code = (
        "from src.piecewise_training.model import PiecewiseTrainedModel as a\n"
        "from src.piecewise_training.trainer import PiecewiseTrainer as t\n"
        "from src.piecewise_training.dataset import SegmentationDataset as d\n"
        "import piecewise_training, piecewise_training.model as m\n"
        "print(a is m.PiecewiseTrainedModel, a is piecewise_training.PiecewiseTrainedModel, m.__spec__.name)"
    )
    assert run(code).split() == ["True", "True", "piecewise_training.model"]

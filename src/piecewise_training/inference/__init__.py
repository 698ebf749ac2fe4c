"""The code that loops over images: evaluating a model on a set, predicting, refining other people's scores."""

from piecewise_training.config import InferenceConfig
from piecewise_training.inference.evaluation import Evaluation, Result, evaluate, evaluate_crf
from piecewise_training.inference.prediction import Prediction, predict, refine, scores_from_labels

__all__ = [
    "Evaluation",
    "InferenceConfig",
    "Prediction",
    "Result",
    "evaluate",
    "evaluate_crf",
    "predict",
    "refine",
    "scores_from_labels",
]

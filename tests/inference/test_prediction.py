"""Evaluation, prediction and refinement."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from piecewise_training.config import InferenceConfig
from piecewise_training.crf import DenseCRF
from piecewise_training.dataset import SyntheticDataset, normalise
from piecewise_training.inference import evaluate, predict, prediction, refine, scores_from_labels
from piecewise_training.metrics import SegmentationMetrics
from piecewise_training.model import PiecewiseTrainedModel
from tests.test_model import contextual_model, small_model


def test_evaluate_is_the_metric_of_the_predictions() -> None:
    model = small_model(7)
    dataset = SyntheticDataset(3, image_size=(32, 40))
    outcome = evaluate(model, DataLoader(dataset, 1))
    assert outcome.crf is not None
    for index, result in enumerate((outcome.unary, outcome.crf)):
        metrics = SegmentationMetrics(7)
        for image, label in dataset:
            metrics.update(model(image[None])[index].argmax(1), label[None])
        assert result.scores.miou == metrics.compute().miou
        assert torch.equal(result.confusion, metrics.confusion)
    assert outcome.crf.seconds > outcome.unary.seconds > 0
    bands = [f"{name}_{width}" for width in (1, 2, 4, 8, 16) for name in ("trimap", "trimap_error")]
    assert [*outcome.unary.borders] == ["boundary_iou", *bands]


def test_evaluate_without_crf_and_without_images() -> None:
    model = small_model(7, use_crf=False)
    assert evaluate(model, DataLoader(SyntheticDataset(1, image_size=(32, 32)))).crf is None
    with pytest.raises(ValueError, match="`batches` holds no image to evaluate on"):
        evaluate(model, [])


@pytest.mark.parametrize("how", [InferenceConfig(), InferenceConfig(scales=(0.8, 1.3), flip=True, window=(24, 24))])
def test_images_of_unequal_size(how: InferenceConfig) -> None:
    """Some smaller than the window, some larger, by one side or by both: each as if it were alone."""
    sizes = (20, 30), (25, 21), (7, 61), (40, 33)
    batches = [(torch.randn(1, 3, h, w), torch.randint(0, 3, (1, h, w))) for h, w in sizes]
    model = small_model()
    whole, parts = evaluate(model, batches, how=how), [evaluate(model, [batch], how=how) for batch in batches]
    assert whole.unary.scores.support.sum() == sum(h * w for h, w in sizes)
    assert torch.equal(whole.unary.confusion, sum(part.unary.confusion for part in parts))
    assert whole.crf is not None
    assert torch.equal(whole.crf.confusion, sum(part.crf.confusion for part in parts if part.crf is not None))


def test_a_prediction_by_one_look_has_the_models_very_numbers() -> None:
    model, image = contextual_model(), np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    found = predict(model, image)
    pixels = normalise(torch.from_numpy(image).permute(2, 0, 1))[None]
    with torch.inference_mode():
        logits, log_q = model(pixels)
    assert torch.equal(torch.from_numpy(found.probabilities), log_q.exp()[0])
    assert torch.equal(torch.from_numpy(found.unary_labels), logits.argmax(1)[0])


@pytest.mark.parametrize("apply_crf", [True, False])
def test_predict_takes_pil_and_arrays(apply_crf: bool) -> None:
    model = small_model()
    array = np.random.default_rng(0).integers(0, 256, (23, 31, 3), np.uint8)
    prediction = predict(model, array, apply_crf)
    logits, log_q = model(normalise(torch.from_numpy(array).permute(2, 0, 1))[None], apply_crf)
    final = log_q if apply_crf else logits.log_softmax(1)
    np.testing.assert_array_equal(prediction.labels, final.argmax(1)[0].numpy())
    np.testing.assert_array_equal(prediction.unary_labels, logits.argmax(1)[0].numpy())
    np.testing.assert_allclose(prediction.probabilities, final.exp()[0].detach().numpy(), rtol=1e-4, atol=1e-6)
    again = predict(model, Image.fromarray(array), apply_crf)
    np.testing.assert_array_equal(again.labels, prediction.labels)


def test_a_model_that_was_evaluated_can_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving a model under inference_mode would leave it with tensors that no training may touch."""
    model = small_model()
    move = model.to

    def to_new_tensors(device: torch.device) -> PiecewiseTrainedModel:  # as a move to a GPU makes
        move(torch.float64)
        return move(torch.float32)

    monkeypatch.setattr(model, "to", to_new_tensors)
    evaluate(model, [(torch.randn(1, 3, 8, 9), torch.zeros(1, 8, 9, dtype=torch.long))])
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
    model(torch.randn(1, 3, 8, 9))[0].mean().backward()


def test_bad_images() -> None:
    with pytest.raises(ValueError, match=r"`image` must be \(H, W, 3\) uint8; got \(8, 8\) uint8"):
        predict(small_model(), np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"`image` must be \(H, W, 3\) uint8; got \(0, 8, 3\) uint8"):
        predict(small_model(), np.zeros((0, 8, 3), np.uint8))
    deep = np.full((8, 8), 4000)
    for array, mode in ((deep.astype(np.uint16), "I;16"), (deep.astype(np.int32), "I"), (deep.astype(np.float32), "F")):
        with pytest.raises(ValueError, match=f"`image` must have 8 bits a channel; got mode {mode}. Convert it"):
            predict(small_model(), Image.fromarray(array))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_models_of_any_precision(dtype: torch.dtype) -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    model = small_model()
    single = predict(model, image)
    other = predict(copy.deepcopy(model).to(dtype), image)
    assert (other.labels == single.labels).mean() > 0.9
    assert other.probabilities.dtype == np.float32
    batch = torch.randn(2, 3, 12, 17), torch.zeros(2, 12, 17, dtype=torch.long)
    results = [evaluate(one, [batch]) for one in (model, copy.deepcopy(model).to(dtype))]
    for one, another in zip(*([result.unary, result.crf] for result in results), strict=True):
        assert one is not None
        assert another is not None
        assert one.scores.pixel_accuracy == pytest.approx(another.scores.pixel_accuracy, abs=0.1)
    for how in (InferenceConfig(window=(6, 7), overlap=0.1), InferenceConfig(scales=(0.75, 1.3))):
        single, other = (predict(one, image, how=how) for one in (model, copy.deepcopy(model).to(dtype)))
        assert (other.labels == single.labels).mean() > 0.9
        assert np.allclose(other.probabilities.sum(0), 1, atol=1e-3)


def test_a_model_in_training_mode_predicts_as_ever() -> None:
    """As one does whose weights were loaded by hand; nothing of it moves."""
    image = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 3, 1))
    model = PiecewiseTrainedModel(3, 7, unary=network, crf={"train_iterations": 2})
    expected = predict(model.eval(), image).probabilities
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    np.testing.assert_array_equal(predict(model.train(), image).probabilities, expected)
    assert not model.training
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())


def test_too_many_classes_are_refused_before_the_crf_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "dense_crf", lambda *_, **__: pytest.fail("the CRF was run"))
    with pytest.raises(ValueError, match="labels of 256 classes do not fit into a byte: at most 255"):
        refine(np.zeros((256, 8, 8), np.float32), np.zeros((8, 8, 3), np.uint8))


def test_refine_works_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's usual double would take ten times as long."""
    seen: list[torch.dtype] = []

    def watched(scores: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        seen.append(scores.dtype)
        return scores.log_softmax(1)

    monkeypatch.setattr(prediction, "dense_crf", watched)
    for dtype in (np.float64, np.float32, np.float16):
        refine(np.zeros((3, 4, 5), dtype), np.zeros((4, 5, 3), np.uint8))
    assert seen == [torch.float32, torch.float32, torch.float16]


def test_refine_wants_scores_of_one_image() -> None:
    for shape in ((4, 5), (1, 3, 4, 5)):
        with pytest.raises(ValueError, match=r"`scores` must be \(K, H, W\); got \("):
            refine(np.zeros(shape, np.float32), np.zeros((4, 5, 3), np.uint8))


@pytest.mark.parametrize("how", [{"damping": 0.5}, {"crf": DenseCRF(3, temperature=True).eval()}])
def test_refine_gives_probabilities_of_any_array_in_any_case(how: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    scores, image = rng.normal(size=(3, 9, 11)), rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    labels, probabilities = refine(scores, image, **how)
    assert np.allclose(probabilities.sum(0), 1)
    frozen = scores.copy()
    frozen.flags.writeable = False
    for array in (frozen, np.asfortranarray(scores), scores[::-1].copy()[::-1]):
        again = refine(array, image, **how, **({} if "crf" in how else {"logarithm": False}))
        assert (again[0] == labels).all()
        assert np.array_equal(again[1], probabilities)


def test_refine_with_a_learned_crf() -> None:
    crf = DenseCRF(3, 4, pos_w=0.5, class_bias=True, train_iterations=1).eval()
    with torch.no_grad():
        crf.pos_compatibility += 0.1 * torch.randn(3, 3)
    rng = np.random.default_rng(0)
    scores, image = rng.normal(size=(3, 9, 11)).astype(np.float32), rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    labels, probabilities = refine(scores, image, crf.train())
    assert not crf.training
    with torch.no_grad():
        expected = crf(torch.from_numpy(scores)[None], torch.from_numpy(image).movedim(-1, 0)[None])[0]
    assert np.array_equal(labels, expected.argmax(0).numpy())
    assert np.array_equal(probabilities, expected.exp().numpy())
    seen: list[str] = []
    crf.register_forward_pre_hook(lambda _, inputs: seen.extend(part.device.type for part in inputs))
    for how in ({"crf": crf}, {}):  # to the device of tensors without values, from which none come back
        with pytest.raises((NotImplementedError, RuntimeError, ValueError)):
            refine(scores, image, device="meta", **how)
    assert seen == ["meta", "meta"]
    assert not any(parameter.is_inference() for parameter in crf.parameters())  # which could not be trained
    crf = DenseCRF(3)
    with pytest.raises(ValueError, match="`crf` has kernels of its own: leave out pos_w, iterations"):
        refine(scores, image, crf, pos_w=1.0, iterations=3)
    with pytest.raises(ValueError, match=r"`unary_logits` must have 3 classes; got \(1, 2, 9, 11\)"):
        refine(scores[:2], image, crf)


def test_refine_sharpens_a_blurred_border() -> None:
    """A border that the scores have 3 pixels off comes back to the image's."""
    image = np.full((24, 32, 3), 40, np.uint8)
    image[:, 16:] = 200
    scores = np.zeros((2, 24, 32), np.float32)
    scores[1] = np.clip(0.3 * (np.arange(32) - 12.5), -2, 2)
    assert (scores[1] > 0)[:, 13:16].all()
    labels, probabilities = refine(scores, image, bilateral_xy_std=20.0)
    np.testing.assert_array_equal(labels, np.tile(np.arange(32) >= 16, (24, 1)))
    np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-5)


def test_scores_from_labels() -> None:
    scores = np.exp(scores_from_labels(np.array([[0, 2, 255]], np.uint8), 3, 0.8))
    np.testing.assert_allclose(scores[:, 0].T, [[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"`confidence` must be between 1 / 3 and 1; got 0.2"):
        scores_from_labels(np.zeros((1, 1), np.uint8), 3, 0.2)
    for wrong in (7, -1, 0.5):
        with pytest.raises(ValueError, match=rf"`labels` must hold 0 to 2 or 255; it also holds \[{wrong}\]"):
            scores_from_labels(np.full((1, 1), wrong), 3)
    with pytest.raises(ValueError, match="`num_classes` must be at least 2; got 1"):
        scores_from_labels(np.zeros((1, 1), np.uint8), 1)
    with pytest.raises(ValueError, match="labels of 256 classes do not fit into a byte"):
        scores_from_labels(np.zeros((1, 1), np.uint8), 256)

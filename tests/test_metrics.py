"""Metrics against scikit-learn, and border measures against brute force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from piecewise_training.metrics import BorderMetrics, SegmentationMetrics, border_band, scores_from_confusion

VOID = 255


def maps(seed: int, classes: int, shape: tuple[int, ...] = (2, 9, 11)) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, classes, shape, generator=g)
    prediction = torch.where(torch.rand(shape, generator=g) < 0.6, truth, torch.randint(0, classes, shape, generator=g))
    truth[torch.rand(shape, generator=g) < 0.1] = VOID
    return prediction, truth


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), labels=st.sets(st.integers(0, 5), min_size=2), rows=st.integers(2, 9))
def test_agrees_with_scikit_learn(seed: int, labels: set[int], rows: int) -> None:
    """Also where classes occur nowhere, or on a small map in the truth alone or in the prediction alone."""
    named_by = torch.full((256,), VOID)
    named_by[: len(labels)] = torch.tensor(sorted(labels))
    prediction, truth = (named_by[m] for m in maps(seed, len(labels), (2, rows, 3)))
    classes = 6
    metrics = SegmentationMetrics(classes)
    for p, t in zip(prediction, truth, strict=True):
        metrics.update(p[None], t[None])
    scores = metrics.compute()
    p, t = (m[truth != VOID].numpy() for m in (prediction, truth))
    present = sorted(set(p) | set(t))
    named = {"labels": range(classes), "average": None, "zero_division": np.nan}
    np.testing.assert_array_equal(metrics.confusion.numpy(), sklearn.confusion_matrix(t, p, labels=range(classes)))
    assert scores.iou.isnan().tolist() == [k not in present for k in range(classes)]
    np.testing.assert_allclose(scores.iou[present], sklearn.jaccard_score(t, p, labels=present, average=None))
    np.testing.assert_allclose(scores.precision, sklearn.precision_score(t, p, **named))
    np.testing.assert_allclose(scores.recall, sklearn.recall_score(t, p, **named))
    np.testing.assert_allclose(scores.f1[present], sklearn.f1_score(t, p, labels=present, average=None))
    assert scores.miou == pytest.approx(sklearn.jaccard_score(t, p, labels=present, average="macro"))
    assert scores.pixel_accuracy == pytest.approx(sklearn.accuracy_score(t, p))
    assert scores.mean_accuracy == pytest.approx(sklearn.recall_score(t, p, labels=sorted(set(t)), average="macro"))
    weighted = sklearn.jaccard_score(t, p, labels=present, average="weighted", zero_division=0)
    assert scores.frequency_weighted_iou == pytest.approx(weighted)


def test_one_matrix_over_the_whole_set() -> None:
    """Not the mean of the images' scores."""
    metrics = SegmentationMetrics(2)
    metrics.update(torch.tensor([[[0, 0, 0, 0]]]), torch.tensor([[[0, 0, 0, 0]]]))
    metrics.update(torch.tensor([[[0, 1]]]), torch.tensor([[[1, 1]]]))
    assert metrics.compute().miou == pytest.approx((4 / 5 + 1 / 2) / 2)


def test_absent_classes_stay_out() -> None:
    scores = scores_from_confusion(torch.tensor([[4, 0, 1], [0, 0, 0], [0, 0, 5]]))
    assert math.isnan(scores.iou[1])
    assert scores.miou == pytest.approx((4 / 5 + 5 / 6) / 2)
    false_alarm = scores_from_confusion(torch.tensor([[4, 1], [0, 0]]))
    assert false_alarm.iou.tolist() == [0.8, 0.0]
    assert false_alarm.mean_accuracy == 0.8


def test_nothing_seen_is_nan_and_not_an_error() -> None:
    scores = SegmentationMetrics(2)
    scores.update(torch.zeros(1, 1, 1, dtype=torch.long), torch.full((1, 1, 1), VOID))
    assert math.isnan(scores.compute().miou)


def test_reset() -> None:
    metrics = SegmentationMetrics(2)
    metrics.update(torch.tensor([[[0]]]), torch.tensor([[[1]]]))
    metrics.compute()
    metrics.reset()
    metrics.update(torch.tensor([[[1]]]), torch.tensor([[[1]]]))
    assert metrics.compute().pixel_accuracy == 1


def test_bad_labels() -> None:
    metrics = SegmentationMetrics(2)
    with pytest.raises(ValueError, match=r"`target` must hold classes 0 to 1 or 255 \(void\); it also holds \[2, 7\]"):
        metrics.update(torch.zeros(1, 1, 2, dtype=torch.long), torch.tensor([[[2, 7]]]))
    with pytest.raises(ValueError, match=r"must have one shape; got \(1, 1, 2\) int64 and \(1, 1, 1\) int64"):
        metrics.update(torch.zeros(1, 1, 2, dtype=torch.long), torch.zeros(1, 1, 1, dtype=torch.long))


@pytest.mark.parametrize("kind", [SegmentationMetrics, BorderMetrics])
def test_bad_predictions(kind: Any) -> None:
    """A prediction that is no class is refused where the truth is known, and does not matter where it is not."""
    truth = torch.tensor([[[0, 1, 255]]])
    with pytest.raises(ValueError, match="`prediction` must hold classes 0 to 1 wherever .*; it goes from 0 to 2"):
        kind(2).update(torch.tensor([[[0, 2, 1]]]), truth)
    kind(2).update(torch.tensor([[[0, 1, 9]]]), truth)


def test_border_scores_of_bytes() -> None:
    prediction, truth = (m.repeat_interleave(6, 1).repeat_interleave(6, 2) for m in maps(0, 21, (1, 5, 6)))
    wide, narrow = BorderMetrics(21), BorderMetrics(21)
    wide.update(prediction, truth)
    narrow.update(prediction.to(torch.uint8), truth.to(torch.uint8))
    assert narrow.compute() == wide.compute()


def brute_band(labels: np.ndarray, width: int, void_is_border: bool = False) -> np.ndarray:
    height, breadth = labels.shape
    band = np.zeros(labels.shape, bool)
    for y in range(height):
        for x in range(breadth):
            if labels[y, x] == VOID:
                continue
            window = labels[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
            band[y, x] = bool(((window != labels[y, x]) & (void_is_border | (window != VOID))).any())
    return band


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 4), classes=st.integers(2, 4), void_is_border=st.booleans())
def test_band_is_the_brute_force_one(seed: int, width: int, classes: int, void_is_border: bool) -> None:
    _, truth = maps(seed, classes, (1, 8, 10))
    truth = truth.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :17, :]
    found = border_band(truth, width, void_is_border=void_is_border)
    np.testing.assert_array_equal(found[0].numpy(), brute_band(truth[0].numpy(), width, void_is_border))


@pytest.mark.parametrize("void_is_border", [False, True])
@pytest.mark.parametrize(("boundary", "side", "width"), [(None, 18, 3), (0.05, 6, 2), (2, 6, 2), (5, 6, 5)])
def test_border_scores_are_the_brute_force_ones(
    boundary: float | int | None, side: int, width: int, void_is_border: bool
) -> None:
    """One image, and a batch of two: 90 x 108 pixels for the default of 2 % of the diagonal, and 30 x 36."""
    classes, images = 3, []
    for seed, count in ((0, 1), (1, 2)):
        blocks = maps(seed, classes, (count, 5, 6))
        prediction, truth = (m.repeat_interleave(side, 1).repeat_interleave(side, 2) for m in blocks)
        images.append((prediction.roll(2, 2), truth))
    share = 0.02 if boundary is None else boundary
    assert width == (share if isinstance(share, int) else max(1, round(share * math.hypot(5 * side, 6 * side))))
    given: dict[str, Any] = {} if boundary is None else {"boundary": boundary}
    metrics = BorderMetrics(classes, bands=(1, 3), void_is_border=void_is_border, **given)
    for prediction, truth in images:
        metrics.update(prediction, truth)
    ours = metrics.compute()

    intersection, union = np.zeros(classes), np.zeros(classes)
    trimap = {band: np.zeros((classes, classes)) for band in (1, 3)}
    for prediction, truth in ((p, t) for batch in images for p, t in zip(*batch, strict=True)):
        t = truth.numpy()
        p = np.where(t == VOID, VOID, prediction.numpy())
        true_edge, found_edge = brute_band(t, width, void_is_border), brute_band(p, width, void_is_border)
        for k in range(classes):
            a, b = true_edge & (t == k), found_edge & (p == k)
            intersection[k] += (a & b).sum()
            union[k] += (a | b).sum()
        for band, matrix in trimap.items():
            near = brute_band(t, band, void_is_border)
            for i, j in zip(t[near], p[near], strict=True):
                matrix[i, j] += 1
    assert ours["boundary_iou"] == pytest.approx((intersection / union).mean())
    for band, matrix in trimap.items():
        iou = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
        assert ours[f"trimap_{band}"] == pytest.approx(iou.mean())
        wrong = matrix.sum() - matrix.diagonal().sum()
        assert ours[f"trimap_error_{band}"] == pytest.approx(wrong / matrix.sum())


def test_borders_under_strips_of_void() -> None:
    """As in PASCAL VOC, whose trimaps are bands along the strips; without them there is nothing near a border."""
    truth = torch.tensor([4 * [0] + 5 * [VOID] + 4 * [1]])[None]
    found = torch.tensor([3 * [0] + 6 * [1] + 4 * [1]])[None]
    metrics, strict = (BorderMetrics(2, 1, bands=(1, 2, 8), void_is_border=how) for how in (True, False))
    for own in (metrics, strict):
        own.update(found, truth)
    scores = metrics.compute()
    assert scores["boundary_iou"] == pytest.approx((0 + 1 / 2) / 2)
    assert scores["trimap_1"] == pytest.approx((0 + 1 / 2) / 2)
    assert scores["trimap_2"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores["trimap_8"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert [scores[f"trimap_error_{band}"] for band in (1, 2, 8)] == pytest.approx([1 / 2, 1 / 4, 1 / 8])
    near = {"boundary_iou": 0, "trimap_1": math.nan, "trimap_2": math.nan, "trimap_8": (2 / 3 + 3 / 4) / 2}
    near |= {"trimap_error_1": math.nan, "trimap_error_2": math.nan, "trimap_error_8": 1 / 6}
    assert strict.compute() == pytest.approx(near, nan_ok=True)


def test_boundary_in_pixels() -> None:
    g = torch.Generator().manual_seed(3)
    truth, found = (torch.randint(0, 3, (1, 30, 40), generator=g) for _ in range(2))
    scores = []
    for boundary in (2, 0.04):  # the diagonal is 50 pixels
        metrics = BorderMetrics(3, boundary=boundary, bands=())
        metrics.update(found, truth)
        scores.append(metrics.compute()["boundary_iou"])
    assert scores[0] == scores[1] > 0


def test_perfect_borders() -> None:
    _, truth = maps(0, 3)
    metrics = BorderMetrics(3)
    metrics.update(truth.where(truth != VOID, 0), truth)
    assert {name: value == 1 for name, value in metrics.compute().items() if value} == {
        "boundary_iou": True,
        **{f"trimap_{band}": True for band in metrics.bands},
    }


def test_bad_border_arguments() -> None:
    for wrong in (0, -1, 0.0, 1.0, 2.5):
        with pytest.raises(
            ValueError, match="`boundary` must be a share of the diagonal between 0 and 1, or an int of"
        ):
            BorderMetrics(2, boundary=wrong)
    for bands in ((0,), (1.5,), (2, 2)):
        with pytest.raises(
            ValueError, match=r"`bands` must be distances in whole pixels, at least 1, each another; got"
        ):
            BorderMetrics(2, bands=bands)  # type: ignore[arg-type]


def test_numpys_integers_are_pixels() -> None:
    truth, found = torch.tensor([[[0, 0, 0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 1, 1, 1]]])
    scores = []
    for boundary, band in ((2, 1), (np.int64(2), np.int64(1))):
        metrics = BorderMetrics(2, boundary=boundary, bands=(band,))
        metrics.update(found, truth)
        scores.append(metrics.compute())
    assert scores[0] == scores[1]


def test_many_classes_take_no_more_memory_where_everything_is_deterministic() -> None:
    """torchmetrics would need 47 GB here."""
    labels = torch.randint(0, 150, (1, 512, 512), generator=torch.Generator().manual_seed(0))
    metrics = SegmentationMetrics(150)
    torch.use_deterministic_algorithms(True)
    try:
        metrics.update(labels, labels)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(metrics.confusion.diag(), labels.flatten().bincount(minlength=150))
    assert int(metrics.confusion.sum()) == 512 * 512


@pytest.mark.parametrize("kind", [SegmentationMetrics, BorderMetrics])
def test_void_is_no_class(kind: Any) -> None:
    with pytest.raises(ValueError, match="`ignore_index` 0 is one of the 3 classes, which would not be counted"):
        kind(3, ignore_index=0)
    with pytest.raises(ValueError, match="`ignore_index` 255 is one of the 300 classes, which would not be counted"):
        kind(300)
    metrics = kind(300, ignore_index=-1)
    labels = torch.tensor([[[255, -1], [299, 299]]])
    metrics.update(labels, labels)
    metrics.compute()


@pytest.mark.parametrize("kind", [SegmentationMetrics, BorderMetrics])
def test_labels_are_whole_numbers(kind: Any) -> None:
    whole = torch.zeros(1, 2, 2, dtype=torch.long)
    for name, maps in (("prediction", (whole + 0.5, whole)), ("target", (whole, whole.float()))):
        with pytest.raises(ValueError, match=rf"`{name}` must hold whole numbers; got \(1, 2, 2\) float32"):
            kind(2).update(*maps)

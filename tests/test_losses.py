"""Losses against literal loops, gradients, void, class weights."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional

from piecewise_training.losses import (
    StructuredLoss,
    UnaryLoss,
    class_weights,
    cross_entropy,
    dice,
    edge_nll,
    focal,
    lovasz,
    marginal_nll,
    pairwise_agreement,
    unary_loss,
)

K, VOID = 3, 255
WEIGHT = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
LOSSES = ["cross_entropy", "structured", "dice", "focal", "lovasz"]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(2, K, 4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, K, (2, 4, 5))
    target[0, 0] = VOID
    target[1, 2, 3] = VOID
    return logits, target


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_torchs(weighted: bool) -> None:
    logits, target = batch()
    weight = WEIGHT if weighted else None
    expected = functional.cross_entropy(logits, target, weight, ignore_index=VOID)
    torch.testing.assert_close(cross_entropy(logits, target, weight), expected)
    torch.testing.assert_close(marginal_nll(logits.log_softmax(1), target, weight), expected)


def test_pairwise_agreement_is_the_double_loop() -> None:
    logits, target = batch()
    probability = logits.softmax(1)
    same, different = [], []
    for b in range(2):
        for y in range(4):
            for x in range(5):
                for v, u in ((y + 1, x), (y, x + 1)):
                    if v > 3 or u > 4 or VOID in (int(target[b, y, x]), int(target[b, v, u])):
                        continue
                    agree = (probability[b, :, y, x] * probability[b, :, v, u]).sum().item()
                    if target[b, y, x] == target[b, v, u]:
                        same.append(-math.log(agree))
                    else:
                        different.append(-math.log(1 - agree))
    expected = (sum(same) / len(same) + sum(different) / len(different)) / 2
    assert pairwise_agreement(logits, target).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("gap", [15.0, 30.0, 60.0, 200.0])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(("target", "second"), [((0, 0), 1), ((0, 1), 0)])
def test_pairwise_agreement_has_a_slope_where_the_network_is_sure_and_wrong(
    target: tuple[int, int], second: int, classes: int, gap: float
) -> None:
    """Of two equal labels it is sure that they differ, or of two different ones that both are the first class."""
    logits = torch.zeros(1, classes, 1, 2)
    logits[0, 0, 0, 0] = logits[0, second, 0, 1] = gap
    logits.requires_grad_()
    loss = pairwise_agreement(logits, torch.tensor([[target]]))
    loss.backward()
    others = 2 if target == (0, 0) else 2 * (classes - 1)  # ways to be right, each less likely by the gap
    assert loss.item() == pytest.approx(gap - math.log(others), abs=1e-3)
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert float(logits.grad[0, 0, 0, 0]) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("gap", [1.0, 15.0])
def test_gradients_of_pairwise_agreement(gap: float) -> None:
    logits = gap * torch.randn(1, K, 3, 4, dtype=torch.float64)
    logits[0, :, 0, :2] = 0.5  # equally likely
    target = torch.randint(0, K, (1, 3, 4))
    assert torch.autograd.gradcheck(lambda z: pairwise_agreement(z, target), (logits.requires_grad_(),))


def test_pairwise_agreement_of_one_class() -> None:
    logits = torch.randn(1, 1, 2, 2, requires_grad=True)
    loss = pairwise_agreement(logits, torch.zeros(1, 2, 2, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not bool(logits.grad.any())


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_dice_is_the_formula(weight: torch.Tensor | None) -> None:
    logits, target = batch()
    probability, known = logits.softmax(1), target != VOID
    coefficients = []
    for k in range(K):
        p, t = probability[:, k][known], (target[known] == k).double()
        coefficients.append(1 - 2 * (p * t).sum() / (p.sum() + t.sum()))
    shares = [1.0, 1.0, 1.0] if weight is None else weight.tolist()
    expected = sum(s * c.item() for s, c in zip(shares, coefficients, strict=True)) / sum(shares)
    assert dice(logits, target, weight).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_lovasz_is_the_extension_of_the_jaccard_distance(weighted: bool) -> None:
    """Errors in falling order, each times the growth of the distance when its pixel joins the wrong ones."""
    logits, target = batch()
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64) if weighted else None
    probability, known = logits.softmax(1), target != VOID
    terms = []
    for k in range(K):
        p, truth = probability[:, k][known].tolist(), (target[known] == k).tolist()
        errors = sorted(((1 - q if t else q, t) for q, t in zip(p, truth, strict=True)), reverse=True)
        term, wrong, union, before = 0.0, 0, sum(truth), 0.0
        for error, is_k in errors:
            wrong, union = wrong + 1, union + (not is_k)
            distance = wrong / union
            term, before = term + error * (distance - before), distance
        terms.append(term)
    shares = [1.0] * K if weight is None else weight.tolist()
    expected = sum(t * s for t, s in zip(terms, shares, strict=True)) / sum(shares)
    own = lovasz(logits, target, weight, every=1) - cross_entropy(logits, target, weight)
    assert own.item() == pytest.approx(expected, rel=1e-9)


def test_lovasz_takes_every_second_pixel() -> None:
    logits, target = batch()
    own = lovasz(logits, target) - cross_entropy(logits, target)
    logits, target = logits[:, :, ::2, ::2], target[:, ::2, ::2]
    assert own.item() == pytest.approx((lovasz(logits, target, every=1) - cross_entropy(logits, target)).item())


def test_lovasz_leaves_out_absent_classes() -> None:
    logits = torch.zeros(1, 3, 1, 2)
    logits[:, 0] = 40
    assert lovasz(logits, torch.zeros(1, 1, 2, dtype=torch.long)).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_dice_leaves_out_absent_classes(weight: torch.Tensor | None) -> None:
    logits, target = torch.zeros(1, 3, 1, 3), torch.tensor([[[0, 0, 1]]])
    logits[:, 0] = 40  # of the first class 2 in 3 are right, of the second none
    found = dice(logits, target, weight).item()
    assert found == pytest.approx((0.2 + 1) / 2 if weight is None else (0.5 * 0.2 + 1) / 1.5, abs=1e-5)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_focal_is_the_formula_and_cross_entropy_at_zero(weight: torch.Tensor | None) -> None:
    logits, target = batch()
    probability, shares = logits.softmax(1), [1.0, 1.0, 1.0] if weight is None else weight.tolist()
    total, whole = 0.0, 0.0
    for b, y, x in (target != VOID).nonzero().tolist():
        k = int(target[b, y, x])
        p = probability[b, k, y, x].item()
        total -= shares[k] * (1 - p) ** 1.5 * math.log(p)
        whole += shares[k]
    assert focal(logits, target, weight, gamma=1.5).item() == pytest.approx(total / whole, rel=1e-9)
    torch.testing.assert_close(focal(logits, target, weight, gamma=0.0), cross_entropy(logits, target, weight))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    logits, target = batch()
    weight = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    loss = unary_loss(name, weight)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda z: loss(z, target), (logits,))


@pytest.mark.parametrize("name", LOSSES)
def test_all_void_is_zero_and_not_nan(name: str) -> None:
    logits, target = batch()
    loss = unary_loss(name)(logits, torch.full_like(target, VOID))  # type: ignore[arg-type]
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("name", LOSSES)
def test_void_has_no_influence(name: str) -> None:
    logits, target = batch()
    loss = unary_loss(name)  # type: ignore[arg-type]
    changed = logits.detach().clone()
    changed[0, :, 0, :2] += torch.randn(K, 2, dtype=torch.float64)  # the first of which Lovász's loss reads
    changed[1, :, 2, 3] += torch.randn(K, dtype=torch.float64)
    torch.testing.assert_close(loss(changed, target), loss(logits, target).detach())


@pytest.mark.parametrize("name", LOSSES)
def test_descent_learns(name: str) -> None:
    _, target = batch()
    logits = torch.zeros(2, K, 4, 5, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=20.0)
    for _ in range(100):
        optimizer.zero_grad()
        unary_loss(name)(logits, target).backward()  # type: ignore[arg-type]
        optimizer.step()
    known = target != VOID
    assert bool((logits.argmax(1) == target)[known].all())


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_structured_loss_adds_its_terms(weight: torch.Tensor | None) -> None:
    """The weights of the classes are those of the pixels alone."""
    logits, target = batch()
    unary = functional.cross_entropy(logits, target, weight, ignore_index=VOID)
    expected = unary + 0.3 * pairwise_agreement(logits, target)
    torch.testing.assert_close(StructuredLoss(weight, pairwise_weight=0.3)(logits, target), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_by_its_name_has_the_weights(name: Any) -> None:
    logits, target = batch()
    functions = {"cross_entropy": cross_entropy, "dice": dice, "focal": focal, "lovasz": lovasz}
    weighted = {own: partial(function, weight=WEIGHT) for own, function in functions.items()}
    expected = (weighted | {"structured": StructuredLoss(WEIGHT)})[name](logits, target)
    torch.testing.assert_close(unary_loss(name, WEIGHT)(logits, target), expected)


def test_class_weights() -> None:
    pixels, around = torch.tensor([60, 30, 10, 0]), torch.tensor([100, 100, 100, 0])
    assert class_weights(pixels, around, "none") is None
    inverse, median = class_weights(pixels, around, "inverse"), class_weights(pixels, around, "median")
    assert inverse is not None
    assert median is not None
    torch.testing.assert_close(inverse[:3] * pixels[:3], torch.full((3,), float(inverse[0] * 60)))
    assert inverse[:3].mean().item() == pytest.approx(1)
    torch.testing.assert_close(median, torch.tensor([0.5, 1.0, 3.0, 0.0]))


def test_median_frequency_is_that_of_the_images_with_the_class() -> None:
    """Eigen & Fergus: a class that fills the few images it is in is not rare; of an even number, the middle's mean."""
    weights = class_weights(torch.tensor([60, 30]), torch.tensor([100, 50]), "median")
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0]))
    weights = class_weights(torch.tensor([10, 20, 40, 80]), torch.full((4,), 150), "median")
    torch.testing.assert_close(weights, torch.tensor([3.0, 1.5, 0.75, 0.375]))


def test_errors() -> None:
    with pytest.raises(
        ValueError, match="`loss` must be cross_entropy, structured, dice, focal or lovasz; got 'hinge'"
    ):
        unary_loss("hinge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`class_weights` must be none, inverse or median; got 'log'"):
        class_weights(torch.ones(2), torch.ones(2), "log")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`pixels` must count at least one pixel"):
        class_weights(torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long), "median")


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_has_a_gradient_where_pixels_are_sure(gamma: float) -> None:
    logits = torch.tensor([[[[40.0, 1.0]], [[-80.0, 0.0]]]], requires_grad=True)
    focal(logits, torch.tensor([[[0, 1]]]), gamma=gamma).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[..., 1].abs().min() > 0


@pytest.mark.parametrize("name", ["cross_entropy", "structured", "dice", "focal", "lovasz"])
def test_losses_of_half_precision_do_not_overflow(name: Any) -> None:
    logits = 0.1 * torch.randn(1, 2, 384, 384, generator=torch.Generator().manual_seed(0))
    target = torch.randint(2, (1, 384, 384), generator=torch.Generator().manual_seed(1))
    for dtype in (torch.float16, torch.bfloat16):
        rounded = logits.to(dtype)
        torch.testing.assert_close(unary_loss(name)(rounded, target), unary_loss(name)(rounded.float(), target))
        weight = torch.tensor([0.5, 2.0])
        weighted = unary_loss(name, weight.to(dtype))(rounded, target)
        torch.testing.assert_close(weighted, unary_loss(name, weight)(rounded.float(), target))
        assert float(unary_loss(name)(rounded * 1e4, torch.full_like(target, VOID))) == 0


def test_edges_of_half_precision_do_not_overflow() -> None:
    edges = torch.stack([torch.arange(70_000), torch.arange(70_000)])
    labels = torch.zeros(1, 70_000, dtype=torch.long)
    loss = edge_nll(torch.zeros(1, 70_000, 2, 2, dtype=torch.float16), edges, labels)
    assert float(loss) == pytest.approx(math.log(4), rel=1e-4)


@pytest.mark.parametrize("wrong", [-1, 2])
def test_pairs_of_labels_that_are_no_classes(wrong: int) -> None:
    with pytest.raises(
        ValueError, match=rf"`labels` must hold classes 0 to 1 or 255 \(void\); it also holds \[{wrong}\]"
    ):
        edge_nll(torch.zeros(1, 1, 2, 2), torch.tensor([[0], [1]]), torch.tensor([[0, wrong]]))


def test_edges_take_labels_of_every_type_of_whole_numbers() -> None:
    """A pair of 20 classes has a number up to 399, and would not fit a byte."""
    scores, edges = torch.randn(1, 1, 20, 20), torch.tensor([[0], [1]])
    found = edge_nll(scores, edges, torch.tensor([[19, 18]], dtype=torch.uint8))
    torch.testing.assert_close(found, edge_nll(scores, edges, torch.tensor([[19, 18]])))


@pytest.mark.parametrize("loss", [*map(unary_loss, LOSSES), marginal_nll, pairwise_agreement])
def test_labels_are_classes_or_void_in_any_type_of_whole_numbers(loss: UnaryLoss) -> None:
    """An error that says so, and not one of the device or of a function within."""
    logits, target = batch()
    expected = loss(logits, target)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        torch.testing.assert_close(loss(logits, target.to(dtype)), expected)
    for wrong in (-1, K):
        with pytest.raises(
            ValueError, match=rf"`target` must hold classes 0 to 2 or 255 .*; it also holds \[{wrong}\]"
        ):
            loss(logits, torch.full_like(target, wrong))
    with pytest.raises(
        ValueError, match=r"`target` must hold whole numbers, of classes; got \(2, 4, 5\) float32. Conv"
    ):
        loss(logits, target.float())
    message = r"`target` must be \(2, 4, 5\) for scores of \(2, 3, 4, 5\); got \(2, 1, 4, 5\) int64\."
    with pytest.raises(ValueError, match=message):
        loss(logits, target[:, None])

"""Mean field over any points: the literal loop, its options, its gradients on the fast kernels, its errors."""

from __future__ import annotations

import gc
import math
import weakref
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from piecewise_training.crf import Convergence, GaussianKernel, PairwiseTerm, dense_crf, mean_field
from piecewise_training.crf.lattice import LatticeOperator
from tests.crf import oracle
from tests.crf.scenes import scene


def cloud(points: int = 40, classes: int = 3, weight: float = 2.0, backend: Any = "exact") -> Any:
    """Scores of points in space, and a term over them."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 3, points, generator=generator)
    scores = torch.randn(1, classes, points, generator=generator)
    return scores, PairwiseTerm(GaussianKernel(features, backend=backend, normalization="symmetric"), weight)


@pytest.mark.parametrize("compatibility", ["potts", "class", "matrix"])
def test_is_the_literal_loop(compatibility: str) -> None:
    features, scores = np.random.default_rng(0).normal(size=(2, 25)), np.random.default_rng(1).normal(size=(3, 25))
    gains, matrix = np.array([1.0, 0.2, -0.5]), np.random.default_rng(2).normal(size=(3, 3))
    costs = {"potts": 1 - np.eye(3), "class": -np.diag(gains), "matrix": matrix}[compatibility]
    given = {"potts": None, "class": torch.tensor(gains), "matrix": torch.tensor(matrix)}[compatibility]
    kernel = GaussianKernel(torch.tensor(features)[None], backend="exact", normalization="symmetric")
    ours = mean_field(torch.tensor(scores)[None], [PairwiseTerm(kernel, 1.7, given)], 4)
    expected = oracle.mean_field(scores, [oracle.normalised(oracle.gaussian(features))], [1.7 * costs], 4)
    np.testing.assert_allclose(ours.exp()[0].numpy(), expected, atol=1e-12)


def test_no_terms_and_no_iterations_are_softmax() -> None:
    scores, term = cloud()
    torch.testing.assert_close(mean_field(scores, []), scores.log_softmax(1))
    torch.testing.assert_close(mean_field(scores, [term], 0), scores.log_softmax(1))
    torch.testing.assert_close(mean_field(scores, [cloud(backend="auto")[1]], 0), scores.log_softmax(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision(dtype: torch.dtype) -> None:
    for backend in ("exact", "auto"):
        scores, term = cloud(backend=backend)
        found = mean_field(scores.to(dtype), [term], 3)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), mean_field(scores.to(dtype).float(), [term], 3), rtol=0.02, atol=0.02)


def test_volumes() -> None:
    scores = torch.randn(2, 3, 4, 5, 6)
    features = torch.randn(2, 4, 120)
    term = PairwiseTerm(GaussianKernel(features, normalization="symmetric"), 2.0)
    found = mean_field(scores, [term], 3)
    assert found.shape == scores.shape
    torch.testing.assert_close(found.flatten(2), mean_field(scores.flatten(2), [term], 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["exact", "reference", "auto"])
def test_marginals_instead_of_logarithms(backend: str) -> None:
    scores, term = cloud(backend=backend)
    torch.testing.assert_close(mean_field(scores, [term], 3, logarithm=False), mean_field(scores, [term], 3).exp())
    work = scores.clone().requires_grad_()
    assert mean_field(work, [term], 3, logarithm=False).requires_grad


def test_divergence_falls_and_ends_at_the_marginals() -> None:
    scores, term = cloud(weight=0.5)
    course = Convergence()
    log_q = mean_field(scores, [term], 8, convergence=course)
    divergence = torch.stack(course.divergence)[:, 0]
    assert divergence.shape == (9,)
    assert bool((divergence.diff() < 1e-5).all())
    q = log_q.exp()[0].double()
    message = term.message(q[None].float())[0].double()
    expected = (q * (q.log() - scores[0].double() - 0.5 * message)).sum()
    torch.testing.assert_close(divergence[-1], expected, rtol=1e-5, atol=1e-5)
    assert len(course.change) == 8
    assert float(course.change[-1]) < float(course.change[0])


def test_stops_at_the_tolerance() -> None:
    scores, term = cloud(weight=0.5)
    course = Convergence()
    stopped = mean_field(scores, [term], 100, tolerance=1e-3, convergence=course)
    assert 1 < len(course.change) < 20
    assert float(course.change[-1]) <= 1e-3 < float(course.change[-2])
    torch.testing.assert_close(stopped, mean_field(scores, [term], len(course.change)))


def test_damping_calms_what_swings() -> None:
    """Two points that each want to be what the other is not: all at once they change places for ever."""
    kernel = GaussianKernel(torch.zeros(1, 1, 2), backend="exact")
    scores = torch.tensor([[[0.1, 0.1], [0.0, 0.0]]])
    swinging, calm = Convergence(), Convergence()
    term = PairwiseTerm(kernel, -4.0)
    mean_field(scores, [term], 30, convergence=swinging)
    damped = mean_field(scores, [term], 30, damping=0.8, convergence=calm)
    assert float(swinging.change[-1]) > 0.5
    assert float(calm.change[-1]) < 1e-3
    torch.testing.assert_close(damped.exp().sum(1), torch.ones(1, 2))


@pytest.mark.parametrize("options", [{}, {"damping": 0.4}, {"tolerance": 0.02}, {"damping": 0.3, "tolerance": 0.05}])
@pytest.mark.parametrize("logarithm", [True, False])
def test_watched_kernels_do_what_the_reference_does(options: dict[str, float], logarithm: bool) -> None:
    """Marginals, changes and divergences of a batch, whose images stop when each of them has come to rest."""
    scenes = [scene(70, 90, 11, seed) for seed in (1, 2)]
    scores, image = torch.cat([scenes[0][0], 0.1 * scenes[1][0]]), torch.cat([i for _, i in scenes])
    kernels = {"pos_w": 1.0, "bilateral_w": 1.5, "bilateral_xy_std": 20.0, "logarithm": logarithm}
    found = []
    for backend in ("auto", "reference"):
        course = Convergence()
        q = dense_crf(scores, image, backend=backend, convergence=course, **kernels, **options)  # type: ignore[arg-type]
        found.append((q, torch.stack(course.change), torch.stack(course.divergence)))
        silent = dense_crf(scores, image, backend=backend, **kernels, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(silent, q, rtol=1e-5, atol=1e-5)
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)
    assert ("tolerance" in options) == (len(found[0][1]) < 10)


@pytest.mark.parametrize("options", [{"tolerance": 0.01}, {"damping": 0.3}])
def test_nothing_to_watch(options: dict[str, float]) -> None:
    """No update leaves the softmax, whatever lies in memory."""
    scores, image = scene(12, 14, 3)
    course = Convergence()
    dense_crf(scores, image, convergence=Convergence())
    used = [np.full(scores.numel(), 1e3, np.float32) for _ in range(20)]
    del used
    found = dense_crf(100 * scores, image, iterations=0, convergence=course, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found, (100 * scores).log_softmax(1), rtol=1e-4, atol=1e-4)
    assert course.change == []
    assert len(course.divergence) == 1


def test_logarithms_of_what_is_unlikely_are_exact_when_damped() -> None:
    scores, image = scene(12, 14, 3)
    found, expected = (dense_crf(100 * scores, image, damping=0.5, backend=b) for b in ("auto", "reference"))
    assert float(expected.min()) < -200
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("logarithm", [True, False])
def test_watched_bits_do_not_depend_on_the_number_of_threads(logarithm: bool) -> None:
    scores, image = scene(300, 200, 3)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            course = Convergence()
            q = dense_crf(scores, image, damping=0.2, convergence=course, logarithm=logarithm)
            found.append([q, *course.change, *course.divergence])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("compatibility", ["potts", "class", "matrix"])
@pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric"])
def test_fast_gradients_are_those_of_double_precision(compatibility: str, normalization: Any) -> None:
    compare_gradients((24, 29), compatibility, normalization)


def test_fast_gradients_of_an_image_in_several_parts() -> None:
    compare_gradients((230, 200), "matrix", "symmetric")


def compare_gradients(size: tuple[int, int], compatibility: str, normalization: Any) -> None:
    """Of scores, weights, compatibilities and bandwidths through five updates, to 1e-4 of the largest of their kind."""
    scores, image = scene(*size, 4)
    target = scores.argmax(1).roll(2, 1)
    start = {"pos_xy_std": 2.0, "pos_w": 0.5, "bilateral_xy_std": 12.0, "bilateral_rgb_std": 20.0, "bilateral_w": 0.7}
    if normalization == "none":
        start |= {"pos_w": 0.02, "bilateral_w": 0.03}
    torch.manual_seed(0)
    costs = {"potts": None, "class": torch.rand(4), "matrix": torch.rand(2, 4, 4)}[compatibility]
    found = []
    for dtype in (torch.float32, torch.float64):
        values = {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in start.items()}
        matrices = None if costs is None else costs.detach().to(dtype).clone().requires_grad_()
        work = scores.detach().to(dtype).clone().requires_grad_()
        log_q = dense_crf(work, image, compatibility=matrices, iterations=5, normalization=normalization, **values)
        torch.nn.functional.nll_loss(log_q, target).backward()
        relative = torch.stack([value.grad * value.detach() for value in values.values()])
        found.append([work.grad, relative, *([] if matrices is None else [matrices.grad])])
    for fast, expected in zip(*found, strict=True):
        assert float((fast.double() - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_gradients_twice() -> None:
    """What is kept for the gradients is still there for a second pass."""
    scores, image = scene(12, 13, 3)
    work = scores.clone().requires_grad_()
    log_q = dense_crf(work, image, iterations=3)
    first, second = (torch.autograd.grad(log_q[:, 0].sum(), work, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def learned(scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    return dense_crf(scores, image, iterations=3)


def test_what_is_kept_for_gradients_goes_with_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the result, or a loss of it, is kept: the next step would have to do with what memory is left."""
    kept: list[weakref.ref[Any]] = []
    infer = LatticeOperator.infer

    def watched(self: LatticeOperator, *arguments: Any) -> Any:
        found = infer(self, *arguments)
        kept.extend(map(weakref.ref, found[1]))
        return found

    monkeypatch.setattr(LatticeOperator, "infer", watched)
    scores, image = scene(12, 13, 3)
    log_q = learned(scores.requires_grad_(), image)
    assert [own() is None for own in kept] == [False]
    log_q[:, 0].sum().backward(retain_graph=True)
    assert [own() is None for own in kept] == [False]
    log_q[:, 0].sum().backward()
    gc.collect()
    assert [own() is None for own in kept] == [True]


@pytest.mark.parametrize("way", ["checkpoint", "saved elsewhere"])
def test_gradients_where_saved_tensors_are_not_kept_as_they_are(way: str) -> None:
    scores, image = scene(12, 13, 3)
    works = [scores.clone().requires_grad_() for _ in range(2)]
    learned(works[0], image)[:, 0].sum().backward()
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone) if way != "checkpoint" else nullcontext():
        log_q = (
            checkpoint(learned, works[1], image, use_reentrant=False)
            if way == "checkpoint"
            else learned(works[1], image)
        )
    log_q[:, 0].sum().backward()
    assert works[0].grad is not None
    assert torch.equal(works[0].grad, works[1].grad)


def test_features_that_are_learned() -> None:
    """An embedding gets its gradient, on the slower path, the same as by the exact sum up to the lattice's error."""
    torch.manual_seed(0)
    embedding, scores = torch.randn(1, 2, 60), torch.randn(1, 3, 60)
    found = []
    for backend in ("exact", "auto"):
        features = embedding.clone().requires_grad_()
        term = PairwiseTerm(GaussianKernel(features, backend=backend, normalization="symmetric"), 2.0)
        mean_field(scores, [term], 2)[:, 0].sum().backward()
        found.append(features.grad)
    assert float(torch.nn.functional.cosine_similarity(found[0].flatten(), found[1].flatten(), 0)) > 0.9


GOOD = torch.zeros(1, 2, 4)
KERNEL = GaussianKernel(torch.zeros(1, 1, 4), backend="exact")


@pytest.mark.parametrize(
    ("logits", "terms", "options", "message"),
    [
        (GOOD[0], [], {}, r"`logits` must be \(B, K, ...\) floating point; got \(2, 4\) float32"),
        (GOOD.long(), [], {}, r"`logits` must be \(B, K, ...\) floating point"),
        (GOOD / 0, [], {}, "`logits` must be finite; 8 of 8"),
        (GOOD, [], {"iterations": -1}, "`iterations` must be at least 0; got -1"),
        (GOOD, [], {"tolerance": -1.0}, "`tolerance` must be at least 0; got -1.0"),
        (GOOD, [], {"damping": 1.0}, "`damping` must be from 0 to below 1; got 1.0"),
        (GOOD[..., :3], [PairwiseTerm(KERNEL)], {}, r"The kernel of `terms\[0\]` is over 1 x 4 points; .* have 1 x 3"),
        (
            GOOD.double(),
            [PairwiseTerm(KERNEL)],
            {},
            r"The kernel of `terms\[0\]` is torch.float32 and `logits` are torch.float64; give its features the dtype",
        ),
        (
            GOOD,
            [PairwiseTerm(KERNEL), PairwiseTerm(KERNEL, 1.0, torch.zeros(3))],
            {},
            r"The compatibility of `terms\[1\]` must be \(2,\) or \(2, 2\); got \(3,\) float32",
        ),
        (GOOD, [PairwiseTerm(KERNEL, math.nan)], {}, r"`terms\[0\].weight` must be a finite number; got nan"),
        (GOOD, [PairwiseTerm(KERNEL, torch.ones(2))], {}, r"`terms\[0\].weight` must be a number or a tensor without"),
        (
            GOOD,
            [PairwiseTerm(KERNEL), PairwiseTerm(KERNEL, 1.0, torch.tensor([1.0, torch.inf]))],
            {},
            r"`terms\[1\].compatibility` must be finite; 1 of 2 values",
        ),
    ],
)
def test_bad_input(logits: torch.Tensor, terms: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_field(logits, terms, **options)


def test_a_kernel_elsewhere() -> None:
    _, term = cloud()
    with pytest.raises(ValueError, match=r"The kernel of `terms\[0\]` is on cpu, `logits` are on meta. Make it of"):
        mean_field(torch.zeros(1, 3, 40, device="meta"), [term])

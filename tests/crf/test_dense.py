"""The dense CRF against the literal loops, pydensecrf, and autograd through the O(N²) sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from piecewise_training.crf import Convergence, PairwiseTerm, bilateral_kernel, dense_crf, spatial_kernel
from piecewise_training.crf.pixels import _fixed_spatial_kernel
from tests.crf import oracle
from tests.crf.scenes import scene

KERNELS = {
    "pos_xy_std": 3.0, "pos_w": 3.0, "bilateral_xy_std": 80.0, "bilateral_rgb_std": 13.0, "bilateral_w": 10.0,
}  # fmt: skip


@pytest.mark.parametrize("matrix", [False, True])
def test_exact_mean_field_is_the_literal_one(matrix: bool) -> None:
    scores, image = scene(6, 7, 3)
    compatibility = torch.rand(2, 3, 3, dtype=torch.float64) if matrix else None  # not symmetric
    ours = dense_crf(scores.double(), image, compatibility=compatibility, iterations=4, backend="exact", **KERNELS)
    features = oracle.image_features(image[0].double().numpy(), 3.0, 80.0, 13.0)
    potts = 1 - np.eye(3)
    expected = oracle.mean_field(
        scores[0].double().numpy().reshape(3, -1),
        [oracle.normalised(oracle.gaussian(f)) for f in features],
        [w * (potts if compatibility is None else compatibility[m].numpy()) for m, w in enumerate((3.0, 10.0))],
        iterations=4,
    )
    np.testing.assert_allclose(ours.exp()[0].reshape(3, -1).numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize(
    ("height", "width", "classes", "kernels"),
    [
        (1, 1, 2, {}),
        (1, 17, 3, {}),
        (13, 1, 2, {}),
        (31, 45, 21, {}),
        (60, 80, 5, {"pos_xy_std": 1.0, "bilateral_xy_std": 30.0, "bilateral_rgb_std": 4.0, "bilateral_w": 1.5}),
        (40, 50, 3, {"pos_xy_std": 200.0, "bilateral_xy_std": 200.0, "bilateral_rgb_std": 200.0}),
    ],
)
def test_equals_pydensecrf(height: int, width: int, classes: int, kernels: dict[str, float], backend: Any) -> None:
    peer = pytest.importorskip("pydensecrf.densecrf")
    scores, image = scene(height, width, classes)
    k = KERNELS | kernels
    crf = peer.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(-scores[0].numpy().reshape(classes, -1)))
    crf.addPairwiseGaussian(sxy=k["pos_xy_std"], compat=k["pos_w"])
    rgb = np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())
    crf.addPairwiseBilateral(sxy=k["bilateral_xy_std"], srgb=k["bilateral_rgb_std"], rgbim=rgb, compat=k["bilateral_w"])
    expected = np.array(crf.inference(10)).reshape(classes, height, width)
    ours = dense_crf(scores, image, iterations=10, backend=backend, **k).exp()[0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_filter_errs_as_pydensecrfs_does() -> None:
    """One mean-field step is a filtering and a softmax: its distance from the exact one is pydensecrf's."""
    peer = pytest.importorskip("pydensecrf.densecrf")
    scores, image = scene(24, 30, 4)
    exact = dense_crf(scores.double(), image, iterations=1, backend="exact", **KERNELS).exp()[0].numpy()
    ours = dense_crf(scores, image, iterations=1, **KERNELS).exp()[0].numpy()
    crf = peer.DenseCRF2D(30, 24, 4)
    crf.setUnaryEnergy(np.ascontiguousarray(-scores[0].numpy().reshape(4, -1)))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.ascontiguousarray(image[0].permute(1, 2, 0).numpy()), compat=10)
    theirs = np.array(crf.inference(1)).reshape(4, 24, 30)
    assert np.linalg.norm(ours - exact) == pytest.approx(np.linalg.norm(theirs - exact), rel=1e-3)


def test_gradients_of_everything() -> None:
    """Scores, image, weights, bandwidths and compatibilities through unrolled iterations, in double precision."""
    scores = torch.randn(1, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    image = (40 * torch.rand(1, 3, 3, 4, dtype=torch.float64)).requires_grad_()
    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.5, 0.7, 4.0, 20.0, 1.2)]
    compatibility = torch.rand(2, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(s: torch.Tensor, i: torch.Tensor, c: torch.Tensor, *v: torch.Tensor) -> torch.Tensor:
        kernels = dict(zip(KERNELS, (v[0], v[1], v[2], v[3], v[4]), strict=True))
        return dense_crf(s, i, compatibility=c, iterations=3, backend="exact", **kernels)

    assert torch.autograd.gradcheck(run, (scores, image, compatibility, *values))


def test_parameter_gradients_agree_with_the_exact_sum() -> None:
    """On the lattice every parameter's gradient has the sign and the size of autograd's through the O(N²) sum."""
    scores, image = scene(40, 48, 4)
    target = scores.argmax(1).roll(3, 1)
    gradients = {}
    for backend in ("exact", "numba"):
        kernels = KERNELS | {"pos_w": 1.0, "bilateral_xy_std": 15.0, "bilateral_w": 2.0}  # every gradient matters
        values = {name: torch.tensor(v, requires_grad=True) for name, v in kernels.items()}
        compatibility = (1 - torch.eye(4)).repeat(2, 1, 1).requires_grad_()
        log_q = dense_crf(scores, image, compatibility=compatibility, iterations=2, backend=backend, **values)
        torch.nn.functional.nll_loss(log_q, target).backward()
        gradients[backend] = [float(value.grad * value.detach()) for value in values.values()], compatibility.grad
    np.testing.assert_allclose(gradients["numba"][0], gradients["exact"][0], rtol=0.2, atol=0)
    exact, lattice = gradients["exact"][1], gradients["numba"][1]
    assert float((exact - lattice).norm() / exact.norm()) < 0.1


def test_gradients_of_everything_are_the_references() -> None:
    """Of a batch through five updates; in double precision, since single places points near a facet on either side."""
    scores, image = (torch.cat(parts).double() for parts in zip(scene(11, 13, 3, 1), scene(11, 13, 3, 2), strict=True))
    found = []
    for backend in ("numba", "reference"):
        leaves = {
            "scores": scores.clone(),
            "image": image + 0.25,
            "compatibility": 1 - torch.eye(3).double(),
            **{name: torch.tensor(value).double() for name, value in KERNELS.items()},
        }
        for leaf in leaves.values():
            leaf.requires_grad_()
        log_q = dense_crf(**leaves, iterations=5, backend=backend)  # type: ignore[arg-type]
        (log_q[:, 0].square().sum() + log_q[0, 1].sum()).backward()
        found.append({name: leaf.grad for name, leaf in leaves.items()})
    for name, slope in found[1].items():
        assert slope is not None
        torch.testing.assert_close(found[0][name], slope, rtol=1e-8, atol=1e-10 * float(slope.abs().max()), msg=name)


def test_larger_weights_make_neighbours_agree() -> None:
    """The sign: noise on one pixel disappears as the weight grows."""
    scores = torch.zeros(1, 2, 9, 9)
    scores[:, 0] = 1
    scores[:, 0, 4, 4], scores[:, 1, 4, 4] = 0.0, 1.0
    image = torch.zeros(1, 3, 9, 9)
    weak, strong = (dense_crf(scores, image, pos_w=w, bilateral_w=w, pos_xy_std=1.0) for w in (0.01, 5.0))
    assert weak.argmax(1)[0, 4, 4] == 1
    assert strong.argmax(1)[0, 4, 4] == 0


def test_batches_are_images_side_by_side() -> None:
    scenes = [scene(12, 15, 3, seed) for seed in (1, 2, 3)]
    together = dense_crf(torch.cat([s for s, _ in scenes]), torch.cat([i for _, i in scenes]))
    apart = torch.cat([dense_crf(s, i) for s, i in scenes])
    torch.testing.assert_close(together, apart)


def test_marginals_sum_to_one_and_no_iteration_is_softmax() -> None:
    scores, image = scene(10, 11, 4)
    torch.testing.assert_close(dense_crf(scores, image).exp().sum(1), torch.ones(1, 10, 11))
    torch.testing.assert_close(dense_crf(scores, image, iterations=0), scores.log_softmax(1))


@pytest.mark.parametrize("channels", [1, 3, 4, 8])
def test_any_number_of_image_channels(channels: int) -> None:
    scores, _ = scene(8, 9, 3)
    image = torch.randint(0, 256, (1, channels, 8, 9), dtype=torch.uint8)
    ours = dense_crf(scores.double(), image)
    torch.testing.assert_close(ours, dense_crf(scores.double(), image, backend="reference"))


def test_inference_before_training() -> None:
    """The spatial kernel is kept from call to call: one made under inference_mode must not spoil a training."""
    scores, image = scene(11, 9, 3)
    with torch.inference_mode():
        dense_crf(scores, image)
    work = scores.clone().requires_grad_()
    dense_crf(work, image)[:, 0].mean().backward()
    expected = scores.clone().requires_grad_()
    dense_crf(expected, image, pos_xy_std=torch.tensor(3.0, requires_grad=True))[:, 0].mean().backward()
    torch.testing.assert_close(work.grad, expected.grad)


@pytest.mark.parametrize("classes", [2, 150])
def test_scores_of_any_size(classes: int) -> None:
    """Scores that single precision just holds, and many classes: never NaN, and what double precision says."""
    scores, image = scene(9, 70, classes)
    torch.testing.assert_close(
        dense_crf(scores, image).exp(), dense_crf(scores.double(), image).exp().float(), atol=1e-4, rtol=0
    )
    low = torch.full_like(scores, -3e38)
    torch.testing.assert_close(dense_crf(low, image).exp(), torch.full_like(scores, 1 / classes))
    low[:, 0] = 3e38
    assert bool((dense_crf(low, image)[:, 0] == 0).all())


def test_compatibility_of_another_precision() -> None:
    scores, image = scene(8, 9, 3)
    matrix = torch.rand(2, 3, 3)
    double = dense_crf(scores.double(), image, compatibility=matrix)
    torch.testing.assert_close(double.float(), dense_crf(scores, image, compatibility=matrix), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spatial", ["lattice", "exact"])
@pytest.mark.parametrize("backend", ["auto", "reference", "exact"])
def test_autocast_changes_nothing(spatial: Any, backend: Any) -> None:
    scores, image = scene(8, 9, 3)
    bandwidth, costs = torch.tensor(7.0, requires_grad=True), torch.rand(2, 3, 3, requires_grad=True)
    options: dict[str, Any] = {"compatibility": costs, "spatial": spatial, "backend": backend}
    options |= {"bilateral_xy_std": bandwidth, "pos_xy_std": 2.25}
    found = []
    for enabled in (True, False):
        _fixed_spatial_kernel.cache_clear()  # which keeps the kernel of either call for the next one
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            log_q = dense_crf(scores, image, **options)
            slopes = torch.autograd.grad(log_q[:, 0].mean(), (bandwidth, costs))
            # The slower ways' costs are multiplied by torch, whose product is as autocast wants it on the way back.
            found.append([log_q, *(slopes if (spatial, backend) == ("lattice", "auto") else ())])
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_bandwidths_too_small_for_single_precision(backend: Any) -> None:
    """Where neighbours cannot be told apart any more it says so; below that it used to write where it must not."""
    scores, image = scene(8, 9, 3)
    with pytest.raises(ValueError, match=r"`features` reach .* bandwidths; beyond 1e\+06 neighbours cannot be told"):
        dense_crf(scores, image, bilateral_rgb_std=1e-6, backend=backend)
    assert bool(dense_crf(scores, image, bilateral_rgb_std=1e-3, pos_xy_std=1e-4, backend=backend).isfinite().all())


def test_half_precision_scores() -> None:
    scores, image = scene(8, 9, 3)
    log_q = dense_crf(scores.bfloat16(), image)
    assert log_q.dtype == torch.bfloat16
    torch.testing.assert_close(log_q.float(), dense_crf(scores.bfloat16().float(), image), rtol=1e-2, atol=1e-2)


def test_arrays_and_single_images() -> None:
    """Arrays in, arrays out, whatever their memory is like; an image without a batch axis."""
    scores, image = scene(12, 15, 3)
    expected = dense_crf(scores, image)
    torch.testing.assert_close(dense_crf(scores[0], image[0]), expected[0])
    pixels = np.asfortranarray(image[0].numpy())
    pixels.flags.writeable = False
    for array in (scores[0].numpy(), np.asfortranarray(scores[0].numpy()), scores[0].numpy()[:, ::-1][:, ::-1]):
        found = dense_crf(array, pixels)
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, expected[0].numpy())
    assert dense_crf(scores.numpy().astype(np.float64), image.numpy()).dtype == np.float64
    weight = torch.tensor(3.0, requires_grad=True)
    np.testing.assert_array_equal(dense_crf(scores.numpy(), image, pos_w=weight), expected.numpy())


@pytest.mark.parametrize("classes", [2, 3])
def test_numbers_and_costs_as_arrays(classes: int) -> None:
    scores, image = scene(6, 7, classes)
    costs = torch.rand(classes, classes)
    expected = dense_crf(scores, image, pos_w=2.0, compatibility=(costs, costs.diagonal()))
    found = dense_crf(scores, image, pos_w=np.array(2.0), compatibility=(costs.numpy(), costs.diagonal().numpy()))  # type: ignore[arg-type]
    assert torch.equal(found, expected)
    found = dense_crf(scores, image, compatibility=costs.numpy())
    assert torch.equal(found, dense_crf(scores, image, compatibility=costs))


def test_costs_that_are_no_array() -> None:
    scores, image = scene(2, 3, 2)
    with pytest.raises(TypeError, match="`compatibility` must be a torch.Tensor or a NumPy array; got a list of 2"):
        dense_crf(scores, image, compatibility=[[0.0, 1.0], [1.0, 0.0]])  # type: ignore[list-item]


def test_probabilities() -> None:
    scores, image = scene(12, 15, 3)
    probabilities = scores.softmax(1)
    torch.testing.assert_close(
        dense_crf(probabilities, image, from_probs=True), dense_crf(probabilities.clamp(min=1e-5).log(), image)
    )
    certain = (scores == scores.amax(1, keepdim=True)).float()
    torch.testing.assert_close(
        dense_crf(certain, image, from_probs=True), dense_crf(certain.clamp(min=1e-5).log(), image)
    )
    with pytest.raises(ValueError, match=r"`scores` must lie within \[0, 1\], since `from_probs` is set; they reach"):
        dense_crf(scores, image, from_probs=True)


def test_further_terms_and_kernels_left_out() -> None:
    """The usual kernels as further terms, with the usual ones left out, are the usual CRF."""
    scores, image = scene(14, 17, 3)
    terms = [
        PairwiseTerm(spatial_kernel(14, 17, 3.0, like=scores), 3.0),
        PairwiseTerm(bilateral_kernel(image, 80.0, 13.0, like=scores), 10.0),
    ]
    expected = dense_crf(scores, image)
    torch.testing.assert_close(dense_crf(scores, image, pos_w=0.0, bilateral_w=0.0, terms=terms), expected)
    torch.testing.assert_close(dense_crf(scores, image, bilateral_w=0.0, terms=terms[1:]), expected)
    torch.testing.assert_close(dense_crf(scores, image, pos_w=0.0, bilateral_w=0.0), scores.log_softmax(1))


def test_compatibility_for_both_kernels_or_each() -> None:
    scores, image = scene(14, 17, 3)
    matrix = torch.rand(3, 3)
    both = dense_crf(scores, image, compatibility=matrix)
    torch.testing.assert_close(dense_crf(scores, image, compatibility=torch.stack([matrix, matrix])), both)
    torch.testing.assert_close(dense_crf(scores, image, compatibility=[matrix, matrix]), both)
    potts = dense_crf(scores, image)
    torch.testing.assert_close(dense_crf(scores, image, compatibility=[None, torch.ones(3)]), potts)
    torch.testing.assert_close(dense_crf(scores, image, compatibility=1 - torch.eye(3)), potts, rtol=1e-4, atol=1e-4)


def test_watching_changes_nothing() -> None:
    scores, image = scene(14, 17, 3)
    course = Convergence()
    watched = dense_crf(scores, image, convergence=course)
    torch.testing.assert_close(watched, dense_crf(scores, image), rtol=1e-4, atol=1e-4)
    assert len(course.change) == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_of_a_batch_side_by_side_or_one_after_the_other(dtype: torch.dtype) -> None:
    """Large images are worked on by all threads, small ones by one each: the same bits either way."""
    for height, width in ((20, 30), (300, 280)):
        scenes = [scene(height, width, 2, seed) for seed in range(2)]
        together = dense_crf(torch.cat([s for s, _ in scenes]).to(dtype), torch.cat([i for _, i in scenes]))
        for image, (scores, pixels) in enumerate(scenes):
            assert torch.equal(together[image], dense_crf(scores.to(dtype), pixels)[0])


GOOD = torch.zeros(1, 2, 4, 5), torch.zeros(1, 3, 4, 5)


@pytest.mark.parametrize(
    ("scores", "image", "kernels", "error", "message"),
    [
        ([[0.0]], GOOD[1], {}, TypeError, r"`scores` must be a torch.Tensor or a NumPy array; got a list of 1\."),
        (GOOD[0][0], GOOD[1], {}, ValueError, r"`scores` must be \(B, C, H, W\); got \(2, 4, 5\) float32. Add a batch"),
        (GOOD[0][0, 0], GOOD[1][0], {}, ValueError, r"`scores` must be \(K, H, W\), or \(B, K, H, W\) .* got \(4, 5\)"),
        (GOOD[0][0], GOOD[1][0, 0], {}, ValueError, r"`image` must be \(C, H, W\), or \(B, C, H, W\) .* got \(4, 5\)"),
        (GOOD[0].long(), GOOD[1], {}, ValueError, "`scores` must be floating point"),
        (GOOD[0], GOOD[1][..., 1:], {}, ValueError, "must agree in batch, height and width; got .* Resize"),
        (GOOD[0][:0], GOOD[1][:0], {}, ValueError, "must not be empty"),
        (GOOD[0] / 0, GOOD[1], {}, ValueError, "`scores` must be finite; 40 of 40 values are NaN or infinite"),
        (GOOD[0], GOOD[1] + torch.inf, {}, ValueError, "`image` must be finite"),
        (*GOOD, {"pos_xy_std": 0.0}, ValueError, "`pos_xy_std` must be a finite number above 0; got 0.0"),
        (*GOOD, {"bilateral_rgb_std": -1.0}, ValueError, "`bilateral_rgb_std` must be a finite number above 0"),
        (*GOOD, {"pos_xy_std": torch.ones(1)}, ValueError, r"`pos_xy_std` must be a number or a tensor without axes"),
        (*GOOD, {"pos_w": float("nan")}, ValueError, "`pos_w` must be a finite number; got nan"),
        (*GOOD, {"iterations": -3}, ValueError, "`iterations` must be at least 0; got -3"),
        (
            *GOOD,
            {"compatibility": torch.zeros(2, 3)},
            ValueError,
            r"`compatibility` must be \(2,\), \(2, 2\) or one of these",
        ),
    ],
)
def test_bad_input(scores: Any, image: Any, kernels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dense_crf(scores, image, **kernels)

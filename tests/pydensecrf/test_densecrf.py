"""Scripts written for pydensecrf, with the one import changed: the same marginals, and clear errors."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import piecewise_training.pydensecrf.densecrf as ours
from piecewise_training.pydensecrf import utils as our_utils
from tests.crf.scenes import scene

theirs = pytest.importorskip("pydensecrf.densecrf")
their_utils = pytest.importorskip("pydensecrf.utils")
BOTH: list[tuple[Any, Any]] = [(ours, our_utils), (theirs, their_utils)]


def picture(height: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) and probabilities (K, H, W)."""
    scores, image = scene(height, width, classes)
    return np.ascontiguousarray(image[0].permute(1, 2, 0).numpy()), scores[0].softmax(0).numpy()


def both(script: Any, *arguments: Any) -> None:
    """A script's result with either package."""
    mine, expected = (np.array(script(dcrf, utils, *arguments)) for dcrf, utils in BOTH)
    assert mine.shape == expected.shape
    assert mine.dtype == expected.dtype
    np.testing.assert_allclose(mine, expected, atol=1e-4)


def refine_a_softmax(dcrf: ModuleType, utils: ModuleType) -> np.ndarray:
    image, probabilities = picture(40, 50, 4)
    d = dcrf.DenseCRF2D(50, 40, 4)
    d.setUnaryEnergy(utils.unary_from_softmax(probabilities))
    d.addPairwiseGaussian(sxy=3, compat=3)
    d.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
    return d.inference(10)


def cut_out_an_object(dcrf: ModuleType, utils: ModuleType) -> np.ndarray:
    """From one map of probabilities, some of them 0 and 1; the pixels are no multiple of 4."""
    del utils
    image, probabilities = picture(31, 43, 2)
    foreground = np.clip(1.4 * probabilities[1] - 0.2, 0, 1)
    assert {0, 1} <= {*foreground.flat}
    with np.errstate(divide="ignore"):
        energies = -np.log(np.stack([1 - foreground, foreground]).reshape(2, -1))
    d = dcrf.DenseCRF2D(43, 31, 2)
    d.setUnaryEnergy(np.ascontiguousarray(energies, np.float32))
    d.addPairwiseGaussian(sxy=(3, 3), compat=3, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC)
    d.addPairwiseBilateral(sxy=(20, 20), srgb=(13, 13, 13), rgbim=image, compat=10)
    return d.inference(5)


def label_a_scribble(dcrf: ModuleType, utils: ModuleType) -> np.ndarray:
    image, probabilities = picture(30, 44, 3)
    labels = np.where(probabilities.max(0) > 0.9, probabilities.argmax(0) + 1, 0)
    d = dcrf.DenseCRF2D(44, 30, 3)
    d.setUnaryEnergy(utils.unary_from_labels(labels, 3, gt_prob=0.7, zero_unsure=True))
    options = {"kernel": dcrf.DIAG_KERNEL, "normalization": dcrf.NORMALIZE_SYMMETRIC}
    d.addPairwiseGaussian(sxy=(3, 5), compat=3, **options)
    d.addPairwiseBilateral((60, 40), (13, 20, 8), image, 10, **options)
    return np.argmax(d.inference(5), axis=0).astype(np.float32)


def points_of_any_dimension(dcrf: ModuleType, utils: ModuleType) -> np.ndarray:
    """Features from the helpers, rows first, as for volumes."""
    image, probabilities = picture(24, 31, 5)
    d = dcrf.DenseCRF(24 * 31, 5)
    d.setUnaryEnergy(utils.unary_from_softmax(probabilities, scale=0.8))
    d.addPairwiseEnergy(utils.create_pairwise_gaussian((3, 2), (24, 31)), compat=3)
    features = utils.create_pairwise_bilateral((50, 60), (20, 20, 20), image, chdim=2)
    d.addPairwiseEnergy(features, compat=5, kernel=dcrf.FULL_KERNEL, normalization=dcrf.NORMALIZE_AFTER)
    return d.inference(6)


def a_volume(dcrf: ModuleType, utils: ModuleType) -> np.ndarray:
    rng = np.random.default_rng(0)
    volume = rng.random((6, 9, 10)).astype(np.float32)
    probabilities = np.stack([volume, 1 - volume])
    d = dcrf.DenseCRF(volume.size, 2)
    d.setUnaryEnergy(utils.unary_from_softmax(probabilities))
    d.addPairwiseEnergy(utils.create_pairwise_gaussian((1, 2, 2), volume.shape), compat=2)
    d.addPairwiseEnergy(utils.create_pairwise_bilateral((3, 5, 5), (0.2,), volume[..., None], chdim=3), compat=4)
    return d.inference(5)


def step_by_step(dcrf: ModuleType, utils: ModuleType) -> np.ndarray:
    """The marginals after each of a few updates, and their divergences."""
    image, probabilities = picture(20, 22, 3)
    d = dcrf.DenseCRF2D(22, 20, 3)
    d.setUnaryEnergy(utils.unary_from_softmax(probabilities))
    d.addPairwiseBilateral(30, 10, image, 4)
    q, first, second = d.startInference()
    course = [np.array(q)]
    divergences = []
    for _ in range(3):
        d.stepInference(q, first, second)
        course.append(np.array(q))
        divergences.append(d.klDivergence(q) / 1e3)
    return np.append(np.array(course), np.float32(divergences))


@pytest.mark.parametrize(
    "script",
    [refine_a_softmax, cut_out_an_object, label_a_scribble, points_of_any_dimension, a_volume, step_by_step],
)
def test_scripts(script: Any) -> None:
    both(script)


@pytest.mark.parametrize("height", [22, 23, 25])
@pytest.mark.parametrize("stds", [(200, 200), (60, 200), (0.5, 200)])
def test_points_that_pydensecrf_adds(height: int, stds: tuple[float, float]) -> None:
    """With wide bandwidths and a number of pixels that is no multiple of 4, its extra points change the marginals."""
    image, probabilities = picture(height, 31, 3)

    def script(dcrf: ModuleType, utils: ModuleType) -> np.ndarray:
        d = dcrf.DenseCRF2D(31, height, 3)
        d.setUnaryEnergy(utils.unary_from_softmax(probabilities))
        d.addPairwiseGaussian(3, 3)
        d.addPairwiseBilateral(*stds, image, 10)
        return d.inference(5)

    both(script)


@pytest.mark.parametrize("normalization", range(4))
@pytest.mark.parametrize("kind", ["number", "vector", "matrix", "negative"])
def test_every_normalization_and_compat(normalization: int, kind: str) -> None:
    image, probabilities = picture(21, 18, 3)
    matrix = np.random.default_rng(1).normal(size=(3, 3))
    compat = {
        "number": 2.5,
        "negative": -1.5,
        "vector": np.array([-1.0, 0.5, -3.0], np.float32),
        "matrix": ((matrix + matrix.T) / 2).astype(np.float32),
    }[kind]

    def script(dcrf: ModuleType, utils: ModuleType) -> np.ndarray:
        d = dcrf.DenseCRF2D(18, 21, 3)
        d.setUnaryEnergy(utils.unary_from_softmax(probabilities))
        named = dcrf.NormalizationType(normalization)
        # Without normalisation marginals would be 0 and 1 at once, and swing: the smaller the kernel, the tamer.
        d.addPairwiseGaussian(0.8, compat, normalization=named)
        d.addPairwiseBilateral(2, 3, image, compat, normalization=named)
        return d.inference(3)

    both(script)


def test_number_vector_and_matrix_that_mean_the_same() -> None:
    image, probabilities = picture(16, 17, 3)
    found = []
    for compat in (3.0, np.full(3, -3.0), -3.0 * np.eye(3)):
        d = ours.DenseCRF2D(17, 16, 3)
        d.setUnaryEnergy(our_utils.unary_from_softmax(probabilities))
        d.addPairwiseBilateral(10, 10, image, compat)
        found.append(d.inference(5))
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)


def test_a_matrix_that_is_not_symmetric() -> None:
    image, probabilities = picture(16, 17, 3)
    matrix = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)

    def script(dcrf: ModuleType, utils: ModuleType) -> np.ndarray:
        d = dcrf.DenseCRF2D(17, 16, 3)
        d.setUnaryEnergy(utils.unary_from_softmax(probabilities))
        d.addPairwiseBilateral(10, 10, image, matrix)
        return d.inference(5)

    with pytest.warns(UserWarning, match="not symmetric, and its mean with its transpose is taken"):
        both(script)


def test_linear_unary_energies() -> None:
    weights = np.float32([[1, 1, 1], [2, 2, 2]])
    features = np.random.default_rng(0).random((3, 6)).astype(np.float32)
    expected = theirs.DenseCRF(6, 2)
    expected.setUnaryEnergy(np.ascontiguousarray(weights @ features))
    for set_unary in (
        lambda d: d.setUnaryEnergy(weights, features),
        lambda d: d.setUnary(ours.LogisticUnary(weights, features)),
        lambda d: d.setUnary(ours.ConstUnary(weights @ features)),
    ):
        mine = ours.DenseCRF(6, 2)
        set_unary(mine)
        np.testing.assert_allclose(mine.inference(0), np.array(expected.inference(0)), atol=1e-6)


@pytest.mark.parametrize("normalization", [ours.NORMALIZE_SYMMETRIC, ours.NO_NORMALIZATION])
def test_infinite_energies_are_those_of_impossible_labels(normalization: int) -> None:
    """As of `-np.log` of a softmax that has zeros; without normalisation a kernel's sum is as large as the image."""
    image, probabilities = picture(12, 14, 3)
    probabilities[0, :4] = 0
    probabilities[1, :, 9:] = 0
    with np.errstate(divide="ignore"):
        energies = np.ascontiguousarray(-np.log(probabilities / probabilities.sum(0)).reshape(3, -1), np.float32)
    found = []
    for package in (ours, theirs):
        d = package.DenseCRF2D(14, 12, 3)
        d.setUnaryEnergy(energies)
        d.addPairwiseGaussian(2, 3, normalization=normalization)
        d.addPairwiseBilateral(10, 10, image, 500, normalization=normalization)
        found.append(np.array(d.inference(4)))
    assert (found[1][0, : 4 * 14] == 0).all()
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    assert np.isinf(energies).any()  # the caller's are as they were


def test_what_pydensecrf_refuses() -> None:
    """Double precision, other memory layouts, read-only arrays, grey and many-channelled images."""
    image, probabilities = picture(12, 14, 3)
    energies = our_utils.unary_from_softmax(probabilities)
    found = []
    for unary, rgb in (
        (energies, image),
        (np.asfortranarray(energies.astype(np.float64)), np.asfortranarray(image).astype(np.float64)),
    ):
        unary.flags.writeable = False
        d = ours.DenseCRF2D(14, 12, 3)
        d.setUnaryEnergy(unary)
        d.addPairwiseBilateral(10, 10, rgb, 3)
        found.append(d.inference(4))
    np.testing.assert_array_equal(found[0], found[1])
    d.addPairwiseBilateral(10, 10, image[..., :1], 3)
    d.addPairwiseBilateral(10, (10,) * 6, np.concatenate([image, image], 2), 3)
    assert np.isfinite(d.inference(2)).all()


def test_parameters_go_round() -> None:
    d = ours.DenseCRF(5, 3)
    features = np.random.default_rng(0).random((2, 5))
    for compat, kernel in ((2.0, ours.CONST_KERNEL), (np.ones(3), ours.DIAG_KERNEL), (np.eye(3), ours.FULL_KERNEL)):
        d.addPairwiseEnergy(features, compat, kernel)
    assert len(d.labelCompatibilityParameters()) == 1 + 3 + 6
    assert len(d.kernelParameters()) == 0 + 2 + 4
    before = d.inference(2)
    d.setKernelParameters(2 * d.kernelParameters())
    d.setLabelCompatibilityParameters(0.5 * d.labelCompatibilityParameters())
    other = ours.DenseCRF(5, 3)
    other.addPairwiseEnergy(features, 1.0)
    other.addPairwiseEnergy(2 * features, 0.5 * np.ones(3))
    other.addPairwiseEnergy(2 * features, 0.5 * np.eye(3))
    np.testing.assert_allclose(d.inference(2), other.inference(2), atol=1e-6)
    assert d.inference(2).shape == before.shape


def test_a_matrix_of_parameters_goes_by_columns() -> None:
    """As that of the C++'s Eigen does."""
    rng = np.random.default_rng(0)
    features, matrix = rng.random((2, 9)), np.array([[1.0, 2.0], [0.0, 1.0]])
    unary = rng.random((2, 9))
    found = []
    for own, parameters in ((features, matrix.T.reshape(-1)), (matrix @ features, np.eye(2).reshape(-1))):
        d = ours.DenseCRF(9, 2)
        d.setUnaryEnergy(unary)
        d.addPairwiseEnergy(own, 3.0, ours.FULL_KERNEL)
        d.setKernelParameters(parameters)
        np.testing.assert_array_equal(d.kernelParameters(), np.float32(parameters))
        found.append(d.inference(2))
    np.testing.assert_allclose(*found, atol=1e-5)


def test_a_parameter_of_0_has_a_gradient_of_0() -> None:
    rng = np.random.default_rng(0)
    d = ours.DenseCRF(9, 2)
    d.setUnaryEnergy(rng.random((2, 9)))
    d.addPairwiseEnergy(rng.random((2, 9)), 3.0)
    d.setKernelParameters([0.0, 1.0])
    with torch.no_grad():
        found = d.gradient(2, lambda log_q: log_q[0, :4].sum())
    assert found.kernel[0] == 0
    assert np.isfinite(found.kernel[1])
    assert found.kernel[1] != 0


@pytest.mark.parametrize("kind", [ours.CONST_KERNEL, ours.DIAG_KERNEL, ours.FULL_KERNEL])
def test_whatever_tensors_are_by_default(kind: int) -> None:
    def found() -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        d = ours.DenseCRF2D(6, 5, 3)
        d.setUnaryEnergy(rng.random((3, 30)))
        d.addPairwiseGaussian(2, 3 * np.eye(3), kind)
        d.addPairwiseBilateral((4, 3), 9, rng.integers(0, 256, (5, 6, 3)), -np.ones(3), kind)
        d.setKernelParameters(d.kernelParameters())
        d.setLabelCompatibilityParameters(d.labelCompatibilityParameters())
        q = d.startInference()[0]
        d.stepInference(q)
        gradients = d.gradient(2, lambda log_q: log_q[0, 3])
        return [d.inference(3), q, gradients.unary, gradients.compatibility, gradients.kernel]

    expected = found()
    try:
        for device, dtype in (("meta", torch.float32), (None, torch.float64)):  # meta stands for a GPU
            torch.set_default_device(device)
            torch.set_default_dtype(dtype)
            for own, other in zip(found(), expected, strict=True):
                assert own.dtype == np.float32
                np.testing.assert_array_equal(own, other)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def test_gradients_are_differences() -> None:
    """To all energies and parameters, against central differences of the objective."""
    rng = np.random.default_rng(0)
    d = ours.DenseCRF(12, 2)
    unary, features = rng.random((2, 12)), rng.random((2, 12))
    d.setUnaryEnergy(unary)
    d.addPairwiseEnergy(features, 1.5, ours.FULL_KERNEL)
    d.addPairwiseEnergy(features, np.array([[0.0, 1.0], [1.0, -0.5]]), ours.CONST_KERNEL)
    target = torch.tensor(rng.integers(0, 2, 12))

    def objective(log_q: torch.Tensor) -> torch.Tensor:
        return -log_q[target, torch.arange(12)].sum()

    found = d.gradient(2, objective)

    def value() -> float:
        return float(objective(torch.from_numpy(d.inference(2)).log()))

    assert found.value == pytest.approx(value(), abs=1e-4)
    step = 1e-2
    for index in (0, 5, 17):
        moved = []
        for sign in (1, -1):
            d.setUnaryEnergy((unary.reshape(-1) + sign * step * (np.arange(24) == index)).reshape(2, 12))
            moved.append(value())
        assert found.unary.reshape(-1)[index] == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=2e-3)
    d.setUnaryEnergy(unary)
    start = d.labelCompatibilityParameters()
    for index in range(len(start)):
        moved = []
        for sign in (1, -1):
            d.setLabelCompatibilityParameters(start + sign * step * (np.arange(len(start)) == index))
            moved.append(value())
        assert found.compatibility[index] == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=2e-3)
    assert found.kernel.shape == (4,)
    assert np.abs(found.kernel).max() > 0


def exact_gradient(
    unary: np.ndarray, features: np.ndarray, scale: torch.Tensor, objective: Callable[[torch.Tensor], torch.Tensor]
) -> np.ndarray:
    """That to what features are multiplied by, of two updates with the whole sum and Potts of 2."""
    scale = scale.double().requires_grad_()
    places = torch.from_numpy(features).double()
    places = scale @ places if scale.ndim == 2 else scale[:, None] * places
    kernel = (-0.5 * (places[:, :, None] - places[:, None]).square().sum(0)).exp()
    norm = kernel.sum(1).rsqrt()
    logits = -torch.from_numpy(unary).double()
    log_q = logits.log_softmax(0)
    for _ in range(2):
        log_q = (logits + 2 * log_q.exp() @ (norm[:, None] * kernel * norm)).log_softmax(0)
    objective(log_q).backward()  # type: ignore[no-untyped-call]
    assert scale.grad is not None
    return scale.grad.t().flatten().numpy()


@pytest.mark.parametrize(
    ("kind", "scale"), [(ours.DIAG_KERNEL, [0.8, 1.3]), (ours.FULL_KERNEL, [[0.9, 0.4], [-0.3, 1.2]])]
)
def test_the_gradient_to_a_kernels_parameters_is_that_of_the_exact_sum(kind: int, scale: Any) -> None:
    """Within a tenth, by which the lattice is off; a transposed matrix would be off by 45 %."""
    rng = np.random.default_rng(0)
    region = rng.integers(0, 3, 40)
    features = (1.5 * rng.normal(size=(2, 3))[:, region] + 0.7 * rng.normal(size=(2, 40))).astype(np.float32)
    unary = rng.normal(size=(3, 40)).astype(np.float32)

    def objective(log_q: torch.Tensor) -> torch.Tensor:
        return -log_q[torch.from_numpy(region), torch.arange(40)].mean()

    d = ours.DenseCRF(40, 3)
    d.setUnaryEnergy(unary)
    d.addPairwiseEnergy(features, 2.0, kind)
    d.setKernelParameters(np.float32(scale).T.reshape(-1))  # a matrix by its columns
    expected = exact_gradient(unary, features, torch.tensor(scale), objective)
    found = d.gradient(2, objective).kernel
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


def reuse_buffers(dcrf: ModuleType, utils: ModuleType) -> np.ndarray:
    image, probabilities = picture(12, 15, 3)
    unary = utils.unary_from_softmax(probabilities)
    features = utils.create_pairwise_bilateral((20, 20), (13, 13, 13), image, chdim=2)
    d = dcrf.DenseCRF(180, 3)
    d.setUnaryEnergy(unary)
    d.addPairwiseEnergy(features, 3)
    unary[:] = 0
    features[:] = 0
    return np.array(d.inference(3))


def test_buffers_may_be_used_again() -> None:
    both(reuse_buffers)


@pytest.mark.parametrize("factors", [(-1.0, 2.0), (0.0, 1.0), (-0.5, 0.0)])
def test_kernel_parameters_of_any_sign(factors: tuple[float, float]) -> None:
    """What features are multiplied by may be 0, and its sign does not matter to a Gaussian."""
    rng = np.random.default_rng(0)
    features, unary = rng.normal(size=(2, 40)).astype(np.float32), rng.normal(size=(2, 40)).astype(np.float32)
    found = []
    for own in (features, features * np.float32(factors)[:, None]):
        d = ours.DenseCRF(40, 2)
        d.setUnaryEnergy(unary)
        d.addPairwiseEnergy(own, 3)
        if own is features:
            d.setKernelParameters(np.float32(factors))
        found.append(d.inference(5))
    np.testing.assert_allclose(*found, atol=1e-5)


def test_one_bandwidth_for_both_axes_keeps_its_lattice() -> None:
    kernels = []
    for sxy in (3, (3, 3), np.float32([3, 3]), (3, 4)):
        d = ours.DenseCRF2D(9, 7, 2)
        d.addPairwiseGaussian(sxy, 3)
        kernels.append(d._pairwise[0].fixed)
    assert kernels[0] is not None
    assert kernels[0] is kernels[1] is kernels[2]
    assert kernels[3] is None


def test_images_from_0_to_1_are_told() -> None:
    image = np.linspace(0, 1, 60, dtype=np.float32).reshape(4, 5, 3)
    image.setflags(write=False)
    for layout in (image, image[..., ::-1], image.astype(np.float64)):
        with pytest.warns(UserWarning, match=r"`rgbim` holds values from 0 to 1, which are all one colour") as caught:
            crf().addPairwiseBilateral(3, (20, 13, 20), layout, 1)
        assert caught[0].filename == __file__
    crf().addPairwiseBilateral(3, 13, (255 * image)[..., ::-1], 1)
    crf().addPairwiseBilateral(3, 13, np.arange(60).reshape(4, 5, 3) % 2, 1)
    crf().addPairwiseBilateral(3, 0.1, image, 1)


def crf() -> Any:
    return ours.DenseCRF2D(5, 4, 3)


def with_energy() -> Any:
    found = crf()
    found.addPairwiseGaussian(3, 3)
    return found


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ours.DenseCRF(0, 2), "`nvar` and `nlabels` must be at least 1; got 0 and 2"),
        (lambda: crf().setUnaryEnergy(np.zeros((3, 5))), r"must be \(3, 20\), \(K, N\); got \(3, 5\)"),
        (lambda: crf().setUnaryEnergy(np.zeros(60)), r"`u` must be a matrix; got \(60,\)"),
        (lambda: crf().setUnaryEnergy(np.full((3, 20), np.nan)), "`u` must be finite; 60 of 60 values are not"),
        (lambda: crf().setUnaryEnergy(np.full((3, 20), np.inf)), "each point a possible label; 20 of 20 have none"),
        (lambda: crf().setUnaryEnergy(np.full((3, 20), -np.inf)), "`u` must be finite; 60 of 60 values are not"),
        (lambda: ours.LogisticUnary(np.zeros((3, 2)), np.zeros((3, 9))), r"`L` \(K, F\) and `f` \(F, N\) must fit"),
        (lambda: crf().addPairwiseEnergy(np.zeros((2, 4)), 3), r"`features` must be \(F, 20\); got \(2, 4\)"),
        (lambda: crf().addPairwiseEnergy(np.zeros((2, 20)), 3, kernel=7), "7 is not a valid KernelType"),
        (lambda: crf().addPairwiseEnergy(np.zeros((2, 20)), 3, 1, 9), "9 is not a valid NormalizationType"),
        (
            lambda: crf().addPairwiseGaussian(3, np.ones(4)),
            r"`compat` must be a number, \(3,\) or \(3, 3\); got \(4,\)",
        ),
        (lambda: crf().addPairwiseGaussian(3, np.nan), "`compat` must be finite"),
        (
            lambda: crf().addPairwiseBilateral(3, 3, np.full((4, 5, 3), np.nan), 1),
            "`rgbim` must be finite; 60 of 60 values are not",
        ),
        (
            lambda: ours.DenseCRF2D(320, 240, 5).addPairwiseEnergy(np.zeros((76800, 5)), 1),  # (N, F)
            r"`features` must be \(F, 76800\); got \(76800, 5\)",
        ),
        (lambda: crf().addPairwiseGaussian(0, 3), "`sxy` must be a number above 0 or 2 of them; got 0"),
        (lambda: crf().addPairwiseGaussian((1, 2, 3), 3), "`sxy` must be a number above 0 or 2 of them"),
        (
            lambda: crf().addPairwiseBilateral(3, 3, np.zeros((5, 4, 3)), 3),
            r"`rgbim` must be \(4, 5, C\), \(H, W, C\); got \(5, 4, 3\)",
        ),
        (lambda: crf().stepInference(np.zeros((2, 20))), r"`Q` must be \(3, 20\), \(K, N\); got \(2, 20\)"),
        (lambda: crf().stepInference(np.full((3, 20), np.nan)), "`Q` must be finite; 60 of 60"),
        (lambda: with_energy().setLabelCompatibilityParameters([np.nan]), "`v` must be finite; 1 of 1"),
        (lambda: crf().setKernelParameters(np.zeros(3)), "`v` must have 0 parameters; got 3"),
        (lambda: crf().setLabelCompatibilityParameters([1]), "`v` must have 0 parameters; got 1"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

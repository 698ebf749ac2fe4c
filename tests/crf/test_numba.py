"""The Numba kernels against their plain-torch twin."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.dispatcher import Dispatcher
from numba.core.errors import TypingError

from piecewise_training.crf import (
    Convergence,
    GaussianKernel,
    PairwiseTerm,
    _compile,
    _numba,
    _numba_backward,
    _numba_binary,
    _numba_build,
    _numba_filter,
    _numba_layout,
    _numba_moments,
    _numba_sweep,
    _reference,
    _simd,
    dense_crf,
    mean_field,
)
from tests.crf.oracle import unit

KERNELS = (_numba_backward, _numba_binary, _numba_build, _numba_filter, _numba_layout, _numba_moments, _numba_sweep)
# Batch, features, points, channels.
SHAPES = [(1, 1, 1, 1), (2, 9, 50, 1), (1, 2, 7, 3), (2, 5, 60, 16), (3, 3, 33, 17), (1, 8, 40, 40)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transpose", [False, True])
def test_filters_as_the_reference(shape: tuple[int, ...], dtype: torch.dtype, transpose: bool) -> None:
    batch, dims, points, channels = shape
    features = torch.randn(batch, dims, points, dtype=dtype) * 2
    values = torch.randn(batch, channels, points, dtype=dtype)
    expected = _reference.splat_blur_slice(_reference.build(*unit(features)), values, transpose)
    ours = _numba.splat_blur_slice(_numba.build(*unit(features)), values, transpose)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_as_the_reference(shape: tuple[int, ...]) -> None:
    batch, dims, points, channels = shape
    features = torch.randn(batch, dims, points, dtype=torch.float64)
    values, against = torch.randn(2, batch, channels, points, dtype=torch.float64)
    expected = _reference.moments(_reference.build(*unit(features)), features, values, against, True)
    torch.testing.assert_close(_numba.moments(_numba.build(*unit(features)), features, values, against, True), expected)


@pytest.mark.parametrize("symmetric", [True, False])
def test_normalizes_as_the_reference(symmetric: bool) -> None:
    features = torch.randn(2, 3, 50)
    ours, expected = (k.normalizer(k.build(*unit(features)), symmetric) for k in (_numba, _reference))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 2, 900, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_of_the_normalizer_are_those_of_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, symmetric: bool
) -> None:
    batch, dims, points, _ = shape
    features = 16 * (torch.randn(batch, dims, points, dtype=dtype) / 4).round(decimals=1)  # as exact as they can be
    bandwidths = 2.0 ** torch.arange(dims).remainder(3).to(dtype)
    gradient = torch.randn(batch, 1, points, dtype=dtype)
    found = []
    for kernels in (_numba, _reference):
        lattices = kernels.build(features, bandwidths)
        scale = kernels.normalizer(lattices, symmetric)
        given = lattices, features, bandwidths, scale, gradient, symmetric
        found.append(kernels.normalizer_gradients(*given, True))
        assert kernels.normalizer_gradients(*given, False)[0] is None
    rounding = 1e-5 * points if dtype == torch.float32 else 1e-10  # so many numbers are added up, and much cancels
    for ours, expected in zip(*found, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=rounding)


def make_terms(
    dims: tuple[int, ...], batch: int, pixels: int, classes: int
) -> tuple[dict[str, list[_reference.Normalized]], list[torch.Tensor]]:
    """Terms of these numbers of features for both backends: every kind of factors, of mixtures, and of sharing."""
    terms: dict[str, list[_reference.Normalized]] = {"numba": [], "reference": []}
    mixtures = []
    for place, d in enumerate(dims):
        features = 2 * torch.rand(batch if d > 2 else 1, d, pixels)
        same = torch.rand(len(features), 1, pixels) / 3
        apart = torch.rand(1, 1, pixels) / 10
        before, after = [(same, same), (None, apart), (apart, None), (same, apart)][(place + classes) % 4]
        mixtures.append([torch.tensor(0.3), torch.randn(classes), torch.randn(classes, classes)][(place + pixels) % 3])
        for name, kernels in (("numba", _numba), ("reference", _reference)):
            terms[name].append(_reference.Normalized(kernels.build(*unit(features)), before, after))
    return terms, mixtures


GRIDS = [
    ((1, 1), 2, (2, 5)), ((1, 70), 1, (1,)), ((9, 13), 3, (2, 5)), ((70, 65), 8, (5, 2)), ((130, 66), 21, (3, 2, 4)),
]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("grid", "classes", "dims"), GRIDS)
def test_infers_as_the_reference(grid: tuple[int, int], classes: int, dims: tuple[int, ...], batch: int) -> None:
    """Any number of terms of any dimension, one lattice for all images or one for each, several tiles."""
    pixels = grid[0] * grid[1]
    terms, mixtures = make_terms(dims, batch, pixels, classes)
    logits = 3 * torch.randn(batch, classes, pixels)
    ours, kept = _numba.mean_field(terms["numba"], mixtures, logits, 3, grid)
    expected = _reference.mean_field(terms["reference"], mixtures, logits, 3, grid)
    assert kept == [None] * batch
    torch.testing.assert_close(ours.exp(), expected.exp(), rtol=1e-4, atol=1e-5)
    likely = expected > -20
    torch.testing.assert_close(ours[likely], expected[likely], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("grid", "classes", "dims"), GRIDS)
def test_gradients_are_those_of_the_reference(
    grid: tuple[int, int], classes: int, dims: tuple[int, ...], batch: int
) -> None:
    """To logits, mixtures and factors, by autograd through the reference in double precision."""
    pixels = grid[0] * grid[1]
    terms, mixtures = make_terms(dims, batch, pixels, classes)
    logits = 3 * torch.randn(batch, classes, pixels)
    gradient = torch.randn(batch, classes, pixels)
    log_q, kept = _numba.mean_field(terms["numba"], mixtures, logits, 3, grid, keep=True)
    features = [unit(torch.zeros(1, d, pixels)) for d in dims]
    to_logits, slopes = _numba.mean_field_gradients(kept, log_q, gradient, features)

    def leaf(value: torch.Tensor | None) -> torch.Tensor | None:
        return None if value is None else value.double().requires_grad_()

    work, mixed = logits.double().requires_grad_(), [m.double().requires_grad_() for m in mixtures]
    doubled = []
    for tables, before, after in terms["reference"]:
        first = leaf(before)
        last = first if before is after else leaf(after)
        doubled.append(_reference.Normalized([(s, v, w.double(), n) for s, v, w, n in tables], first, last))
    _reference.mean_field(doubled, mixed, work, 3, grid).backward(gradient.double())
    torch.testing.assert_close(to_logits, work.grad.float(), rtol=1e-4, atol=1e-4)
    for term, mixture, (products, before, after, _) in zip(doubled, mixed, slopes, strict=True):
        mine = [products, products.diagonal(), products.diagonal().sum()][2 - mixture.ndim]
        torch.testing.assert_close(mine, mixture.grad, rtol=1e-4, atol=1e-4 * float(products.abs().max()))
        assert (after is None) == (term.before is term.after)
        for found, factor in ((before, term.before), (after, term.after)):
            if factor is not None and found is not None:
                found = found if len(factor) == len(found) else found.sum(0, keepdim=True)
                scale = float(factor.grad.abs().max())
                torch.testing.assert_close(found.double(), factor.grad, rtol=1e-4, atol=1e-4 * scale)


def test_probabilities_near_zero_keep_their_logarithm() -> None:
    logits = torch.tensor([[[0.0], [-300.0]]])
    term = _reference.Normalized(_numba.build(*unit(torch.zeros(1, 2, 1))), torch.zeros(1, 1, 1), None)
    torch.testing.assert_close(_numba.mean_field([term], [torch.tensor(1.0)], logits, 2, (1, 1))[0], logits)


def test_the_same_bits_for_any_number_of_threads() -> None:
    """Several parts, whose sums are taken in their order, forwards and backwards."""
    features, logits = 9 * torch.rand(1, 3, 300 * 250), torch.randn(1, 3, 300 * 250)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            lattices = _numba.build(*unit(features))
            factor = _numba.normalizer(lattices, True)
            term = _reference.Normalized(lattices, factor, factor)
            log_q, kept = _numba.mean_field([term], [torch.eye(3)], logits, 3, (300, 250), keep=True)
            to_logits, (slopes,) = _numba.mean_field_gradients(kept, log_q, logits, [unit(features)])
            through = _numba.normalizer_gradients(lattices, *unit(features), factor, slopes[1], True, True)
            results.append([log_q, to_logits, *(slope for slope in slopes if slope is not None), *through])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_team_within_a_team_is_the_same_one() -> None:
    """Each caller's thread has its own, and none outlives its context."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with _numba.team() as run, _numba.team() as inner, ThreadPoolExecutor(1) as elsewhere:
            assert inner is run
            assert run(lambda x: x * x, range(5)) == [0, 1, 4, 9, 16]
            assert elsewhere.submit(lambda: getattr(_numba._working, "run", None)).result() is None
        with _numba.team() as later:
            assert later is not run
    finally:
        torch.set_num_threads(threads)
    assert _numba._working.run is None


def test_a_call_starts_its_threads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lattice, its normalisation and mean field share them."""
    started = []

    class Counted(ThreadPoolExecutor):
        def __init__(self, workers: int) -> None:
            super().__init__(workers)
            started.append(workers)

    threads = torch.get_num_threads()
    monkeypatch.setattr(_numba, "ThreadPoolExecutor", Counted)
    torch.set_num_threads(3)
    try:
        dense_crf(torch.randn(3, 20, 30), torch.zeros(3, 20, 30, dtype=torch.uint8))
    finally:
        torch.set_num_threads(threads)
    assert started == [2]


@settings(max_examples=40)
@given(
    dims=st.integers(1, 6),
    points=st.integers(1, 60),
    scale=st.sampled_from([1e-3, 0.1, 1.0, 30.0, 1000.0]),
    seed=st.integers(0, 2**31),
)
def test_builds_the_reference_lattice(dims: int, points: int, scale: float, seed: int) -> None:
    features = scale * torch.randn(1, dims, points, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    simplices, vertices, weights, neighbours = _numba.build(*unit(features))[0]
    expected_simplices, expected_vertices, expected_weights, expected_neighbours = _reference.build(*unit(features))[0]
    assert len(vertices) == len(expected_vertices)
    vertices, expected_vertices = vertices[simplices], expected_vertices[expected_simplices]
    torch.testing.assert_close(weights, expected_weights, rtol=1e-7, atol=1e-7)
    assert neighbours.shape == expected_neighbours.shape
    # Vertices may be numbered differently: the same ones must be shared by the same points.
    renumber = dict(zip(vertices.flatten().tolist(), expected_vertices.flatten().tolist(), strict=True))
    assert [renumber[v] for v in vertices.flatten().tolist()] == expected_vertices.flatten().tolist()
    assert len(set(renumber.values())) == len(renumber)


def test_neighbouring_pixels_of_one_simplex_share_vertices() -> None:
    features = torch.zeros(1, 2, 5)
    simplices, vertices, _, _ = _numba.build(*unit(features))[0]
    assert simplices.tolist() == [0] * 5
    assert vertices.shape == (1, 3)


@pytest.mark.parametrize("channels", [1, 5, 8, 9])
def test_points_in_parts(channels: int) -> None:
    """More points than a part has, a single channel part by part, are filtered as by the reference."""
    features, values = 20 * torch.rand(1, 2, 1 << 17), torch.randn(1, channels, 1 << 17)
    lattices = _numba.build(*unit(features))
    for transpose in (False, True):
        found = _numba.splat_blur_slice(lattices, values, transpose)
        expected = _reference.splat_blur_slice(
            [(s, v, w.double(), n) for s, v, w, n in lattices], values.double(), transpose
        )
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_same_bits_for_any_number_of_threads() -> None:
    features, values = torch.randn(2, 3, 500), torch.randn(2, 70, 500)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(_numba.splat_blur_slice(_numba.build(*unit(features)), values))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_called_from_many_threads_at_once() -> None:
    features, values = torch.randn(1, 3, 300), torch.randn(1, 20, 300)
    expected = _numba.splat_blur_slice(_numba.build(*unit(features)), values)
    results: list[torch.Tensor] = []
    workers = [
        threading.Thread(target=lambda: results.append(_numba.splat_blur_slice(_numba.build(*unit(features)), values)))
        for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 8
    assert all(torch.equal(result, expected) for result in results)


def test_non_contiguous_arguments() -> None:
    features, values = torch.randn(1, 200, 3).transpose(1, 2), torch.randn(1, 200, 5).transpose(1, 2)
    ours = _numba.splat_blur_slice(_numba.build(*unit(features)), values)
    expected = _numba.splat_blur_slice(_numba.build(*unit(features.contiguous())), values.contiguous())
    assert torch.equal(ours, expected)


def test_kernels_release_the_lock_of_the_interpreter() -> None:
    """So that threads of a caller's own work beside each other."""
    made = [_numba_build.place_kernel(5), _numba_sweep.sweep_kernel(6, 3, 0), _numba_sweep.receive_kernel(6, 1)]
    made += [value for module in KERNELS for value in vars(module).values() if isinstance(value, Dispatcher)]
    assert len(made) > 20
    assert all(kernel.targetoptions["nogil"] for kernel in made)


def gradients() -> list[torch.Tensor]:
    """Of a dense CRF to its scores, a weight and a bandwidth, with what it is given in single precision on the CPU."""
    generator = torch.Generator().manual_seed(0)
    kind = {"generator": generator, "device": "cpu", "dtype": torch.float32}
    scores = torch.randn(1, 3, 16, 20, **kind).requires_grad_()  # type: ignore[call-overload]
    image = torch.rand(1, 3, 16, 20, **kind) * 255  # type: ignore[call-overload]
    weight, width = (torch.tensor(v, device="cpu", dtype=torch.float32, requires_grad=True) for v in (4.0, 20.0))
    course = Convergence()
    log_q = dense_crf(scores, image, bilateral_w=weight, bilateral_xy_std=width)
    with torch.no_grad():
        dense_crf(scores, image, convergence=course)
    assert {own.device.type for own in (*course.change, *course.divergence)} == {"cpu"}
    (log_q * torch.rand(log_q.shape, **kind)).sum().backward()  # type: ignore[call-overload]
    found = [own.grad for own in (scores, weight, width)]
    assert all(own is not None and own.dtype == torch.float32 for own in found)
    return found  # type: ignore[return-value]


@pytest.fixture
def usual() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.usefixtures("usual")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_whatever_type_tensors_have_by_default(dtype: torch.dtype) -> None:
    expected = gradients()
    torch.set_default_dtype(dtype)
    for own, other in zip(gradients(), expected, strict=True):
        assert torch.equal(own, other)


@pytest.mark.usefixtures("usual")
def test_wherever_tensors_are_by_default() -> None:
    expected = gradients()
    torch.set_default_device("meta")  # which stands for a GPU
    for own, other in zip(gradients(), expected, strict=True):
        assert torch.equal(own, other)
    features, values = torch.rand(1, 2, 9, device="cpu"), torch.rand(1, 1, 9, device="cpu")
    assert GaussianKernel(features)(values).device.type == "cpu"


@pytest.mark.parametrize("width", [8, 9])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_gradient_stays_broken(width: int, bad: float) -> None:
    """In its own image, and in what the images share."""
    logits = torch.randn(2, 3, 8, width, requires_grad=True)
    weight, costs = torch.tensor(2.0, requires_grad=True), (1 - torch.eye(3)).requires_grad_()
    bandwidths = torch.tensor([2.0, 2.0], requires_grad=True)
    features = torch.rand(2, 2, 8 * width) * 9
    term = PairwiseTerm(GaussianKernel(features, bandwidths, normalization="symmetric"), weight, costs)
    log_q = mean_field(logits, [term], 3)
    gradient = torch.zeros_like(log_q)
    gradient[1, 1, 4, 3] = bad
    log_q.backward(gradient)
    assert logits.grad is not None
    assert bool(logits.grad[0].isfinite().all())
    assert not bool(logits.grad[1].isfinite().any())
    for shared in (weight, costs, bandwidths):
        assert shared.grad is not None
        assert not bool(shared.grad.isfinite().any())


@pytest.mark.parametrize("dims", [1, 5, 12, 24, 60])
def test_simplices_of_any_number_of_features_are_told_apart(dims: int) -> None:
    """By a sum in single precision, from which a hash is made: some thousand different ones have few equal sums."""
    generator = np.random.default_rng(0)
    records = np.unique(generator.integers(-40, 40, (5000, dims)), axis=0).astype(np.float32)
    sums = records @ _numba_build.mixing(dims).astype(np.float32) * np.float32(977)
    assert np.abs(sums).max() < 2**62
    assert len(np.unique(sums.astype(np.int64))) > 0.97 * len(records)


def test_variants_are_kept_under_names_of_their_own() -> None:
    """Numba keeps them by name, and where two processes write at once would mistake one for the other."""
    made = [_numba_sweep.sweep_kernel(*how) for how in ((0, 3, 0), (3, 0, 0), (3, 3, 0), (3, 3, 1))]
    made += [_numba_build.place_kernel(dims) for dims in (2, 3)]
    names = {kernel.py_func.__qualname__ for kernel in made}
    assert len(names) == len(made)


def test_says_nothing_of_functions_without_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Numba makes them itself; an error here would be one in whatever is compiled."""
    monkeypatch.setattr(_compile._Announcement, "made", False)
    namespace: dict[str, object] = {}
    exec("def one(): return 1", {}, namespace)
    one = namespace["one"]
    assert one.__module__ is None  # type: ignore[attr-defined]
    _compile._Announcement().on_start(SimpleNamespace(data={"dispatcher": SimpleNamespace(py_func=one)}))
    assert not _compile._Announcement.made


def test_numbers_of_two_types_are_not_stored_as_one() -> None:
    @numba.njit
    def mixed(source, target):  # type: ignore[no-untyped-def]
        _simd.store(target, 0, _simd.load8(source, 0))

    with pytest.raises(TypingError):
        mixed(np.zeros(8, np.float32), np.zeros(8))


@pytest.mark.parametrize("backend", ["numba", "reference", "exact"])
def test_a_kernel_can_be_copied(backend: str) -> None:
    values = torch.rand(1, 2, 9)
    kernel = GaussianKernel(torch.rand(1, 2, 9), backend=backend, normalization="symmetric")  # type: ignore[arg-type]
    assert torch.equal(copy.deepcopy(kernel)(values), kernel(values))

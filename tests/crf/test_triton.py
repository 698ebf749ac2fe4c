"""The kernels for GPUs against their twins in plain torch: in Triton's interpreter, or with `--device cuda` on one."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from piecewise_training.crf import DenseCRF, GaussianKernel, Kernel, PairwiseTerm, _reference, dense_crf, mean_field
from piecewise_training.crf import lattice as lattices
from piecewise_training.crf.lattice import resolve

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    from piecewise_training.crf import _triton

    return _triton


def points(batch: int, d: int, n: int, spread: float, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(d * n)
    return (spread * torch.randn(batch, d, n, generator=generator)).to(device)


@pytest.mark.parametrize(
    ("batch", "d", "n"), [(1, 1, 9), (1, 2, 57), (2, 3, 20), (3, 5, 6), (1, 7, 3), (2, 3, 1), (1, 12, 4)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_places_points_as_the_reference(
    kernels: ModuleType, device: torch.device, batch: int, d: int, n: int, dtype: torch.dtype
) -> None:
    """The same simplices and vertices, numbered in another order, and the same weights."""
    features = points(batch, d, n, 2.0, device).to(dtype)
    bandwidths = torch.linspace(0.5, 2.0, d, dtype=dtype, device=device)
    found, expected = kernels.build(features, bandwidths), _reference.build(features, bandwidths)
    assert len(found) == batch
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[2], theirs[2], atol=1e-5, rtol=0)
        assert [table.shape for table in ours] == [table.shape for table in theirs]
        for i in range(n):  # points share a simplex here where they do there
            assert torch.equal(ours[0] == ours[0][i], theirs[0] == theirs[0][i])
        pairs = {
            (int(a), int(b)) for a, b in zip(ours[1][ours[0]].flatten(), theirs[1][theirs[0]].flatten(), strict=True)
        }
        numbers = dict(pairs)
        assert len(pairs) == len(numbers) == theirs[3].shape[2]
        numbers[theirs[3].shape[2]] = theirs[3].shape[2]
        renumbered = torch.tensor([numbers[m] for m in range(len(numbers))], device=device)
        torch.testing.assert_close(renumbered[ours[3]], theirs[3][:, :, renumbered[:-1]], check_dtype=False)


@pytest.mark.parametrize(
    ("batch", "d", "n", "channels", "spread"),
    [
        (1, 2, 30, 3, 1.0),
        (2, 2, 7, 1, 2.0),
        (1, 1, 70, 5, 0.05),
        (1, 3, 4, 21, 1.0),
        (1, 2, 3, 150, 1.0),
        (1, 5, 2, 2, 9.0),
        (1, 2, 40, 21, 6.0),
    ],
)
@pytest.mark.parametrize("transpose", [False, True])
def test_filters_as_the_reference(
    kernels: ModuleType, device: torch.device, batch: int, d: int, n: int, channels: int, spread: float, transpose: bool
) -> None:
    """Also where many points share a simplex and many groups a vertex."""
    features, bandwidths = points(batch, d, n, spread, device), torch.ones(d, device=device)
    values = torch.randn(batch, channels, n, device=device)
    found = kernels.splat_blur_slice(kernels.build(features, bandwidths), values, transpose)
    expected = _reference.splat_blur_slice(_reference.build(features, bandwidths), values, transpose)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_groups_and_entries_beyond_a_tile(kernels: ModuleType, device: torch.device) -> None:
    """600 points in one place are 38 groups, more than a vertex gathers at a time."""
    features = torch.zeros(1, 2, 600, device=device)
    values = torch.randn(1, 2, 600, device=device)
    ours, theirs = (module.build(features, torch.ones(2, device=device)) for module in (kernels, _reference))
    found, expected = kernels.splat_blur_slice(ours, values), _reference.splat_blur_slice(theirs, values)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_simplices_whose_keys_are_the_same(
    kernels: ModuleType, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points sorted by two bits of their simplices' names: simplices get several numbers, and the same sums."""
    features, values = points(2, 2, 50, 0.7, device), torch.randn(2, 3, 50, device=device)
    whole = kernels.build(features, torch.ones(2, device=device))
    monkeypatch.setattr("piecewise_training.crf._triton_build._LEFT", 60)
    mixed = kernels.build(features, torch.ones(2, device=device))
    assert len(mixed.vertices) > len(whole.vertices)
    assert mixed.neighbours.shape == whole.neighbours.shape
    assert torch.equal(mixed.vertices[mixed.simplices], whole.vertices[whole.simplices])
    found, expected = kernels.splat_blur_slice(mixed, values), kernels.splat_blur_slice(whole, values)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "must be finite; 1 of 60"), (float("-inf"), "must be finite"), (-4e6, "reach 2e[+]06 bandwidths")],
)
def test_points_that_cannot_be_placed(device: torch.device, value: float, message: str) -> None:
    features = points(2, 2, 15, 1.0, device)
    features[1, 1, 7] = value
    with pytest.raises(ValueError, match=f"`features` {message}"):
        GaussianKernel(features, torch.tensor([1.0, 2.0], device=device), "triton")
    features[1, 1, 7] = 2e6
    GaussianKernel(features, torch.tensor([1.0, 2.0], device=device), "triton")


@pytest.mark.parametrize("symmetric", [False, True])
def test_normalizer_and_moments(kernels: ModuleType, device: torch.device, symmetric: bool) -> None:
    features, ones = points(2, 2, 8, 1.0, device), torch.ones(2, device=device)
    ours, theirs = (module.build(features, ones) for module in (kernels, _reference))
    scale = _reference.normalizer(theirs, symmetric)
    torch.testing.assert_close(kernels.normalizer(ours, symmetric), scale)
    given = features, ones, scale, torch.randn(2, 1, 8, device=device), symmetric, True
    through = kernels.normalizer_gradients(ours, *given)
    for found, expected in zip(through, _reference.normalizer_gradients(theirs, *given), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    values, against = torch.randn(2, 2, 3, 8, device=device)
    found = kernels.moments(ours, features, values, against, symmetric)
    torch.testing.assert_close(
        found, _reference.moments(theirs, features, values, against, symmetric), atol=1e-5, rtol=1e-4
    )


def learned(
    backend: Any, dtype: torch.dtype, device: torch.device, costs: str, normalization: Any, iterations: int
) -> Any:
    """Log-marginals of two terms, one of which has one lattice for both images, and all gradients."""
    generator = torch.Generator().manual_seed(3)

    def leaf(*shape: int) -> torch.Tensor:
        values = torch.rand(shape, generator=generator).to(device=device, dtype=dtype)
        return values.requires_grad_()

    batch, classes, n = 2, 3, 6
    places = [
        2 * torch.rand(b, d, n, generator=generator).to(device=device, dtype=dtype) for b, d in ((1, 2), (batch, 1))
    ]
    spreads, weights, scores = [leaf(2), leaf(1)], [leaf(), leaf()], leaf(batch, classes, n)
    shape = {"potts": (), "class": (classes,), "matrix": (classes, classes)}[costs]
    compatibilities = [leaf(*shape), leaf(*shape)] if shape else [None, None]
    terms = [
        PairwiseTerm(GaussianKernel(place, 0.5 + spread, backend, normalization), weight, compatibility)
        for place, spread, weight, compatibility in zip(places, spreads, weights, compatibilities, strict=True)
    ]
    log_q = mean_field(scores, terms, iterations)
    leaves = [scores, *spreads, *weights, *(c for c in compatibilities if c is not None)]
    against = torch.randn(log_q.shape, generator=generator).to(log_q)
    return log_q.detach(), torch.autograd.grad((log_q * against).sum(), leaves)


def compare(device: torch.device, costs: str, normalization: str, iterations: int) -> None:
    """Marginals to 1e-5 and gradients to 1e-4 of the largest of their kind, against double precision."""
    found, gradients = learned("triton", torch.float32, device, costs, normalization, iterations)
    expected, slopes = learned("reference", torch.float64, device, costs, normalization, iterations)
    torch.testing.assert_close(found.exp(), expected.exp().float(), atol=1e-5, rtol=0)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert float((gradient - slope).abs().max()) <= 1e-4 * float(slope.abs().max())


@pytest.mark.parametrize(("costs", "normalization"), [("potts", "symmetric"), ("matrix", "before")])
def test_gradients(device: torch.device, costs: str, normalization: str) -> None:
    compare(device, costs, normalization, 2)


@pytest.mark.slow
@pytest.mark.parametrize("costs", ["potts", "class", "matrix"])
@pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric"])
def test_gradients_of_every_kind(device: torch.device, costs: str, normalization: str) -> None:
    """Through five updates, and with the slow interpreter through three."""
    compare(device, costs, normalization, 5 if device.type == "cuda" else 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("costs", [None, "matrix"])
def test_dense_crf(device: torch.device, dtype: torch.dtype, costs: str | None) -> None:
    """Over a batch of images, in every precision: half is worked on in single, double update by update."""
    image = torch.randint(0, 256, (2, 3, 3, 5), device=device)
    scores = torch.randn(2, 4, 3, 5, device=device).to(dtype)
    compatibility = None if costs is None else torch.rand(4, 4, device=device, dtype=scores.float().dtype).to(scores)
    options = {"iterations": 2, "bilateral_rgb_std": 60.0, "compatibility": compatibility}
    found, expected = (dense_crf(scores, image, backend=b, **options).exp() for b in ("triton", "reference"))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=1e-3 if dtype == torch.float16 else 2e-5, rtol=0)


@pytest.mark.parametrize("classes", [2, 21])
def test_any_number_of_iterations(device: torch.device, classes: int) -> None:
    image, scores = torch.zeros(1, 3, 2, 3, device=device), torch.randn(1, classes, 2, 3, device=device)
    scores.requires_grad_()
    for iterations in (0, 1):
        found, expected = (dense_crf(scores, image, iterations=iterations, backend=b) for b in ("triton", "reference"))
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
        slope, other = (torch.autograd.grad(log_q[:, 0].sum(), scores)[0] for log_q in (found, expected))
        torch.testing.assert_close(slope, other, atol=2e-5, rtol=0)
    torch.testing.assert_close(
        dense_crf(scores, image, iterations=0, backend="triton", logarithm=False), scores.softmax(1)
    )


@pytest.mark.parametrize("count", [1, 4, 5])
def test_any_number_of_terms(device: torch.device, count: int) -> None:
    """Which an update reads by twos, and its gradient too."""
    scores, against = torch.randn(2, 3, 5, device=device).requires_grad_(), torch.randn(3, 2, 5, device=device)
    found = {}
    for backend in ("triton", "reference"):
        terms = [
            PairwiseTerm(
                GaussianKernel(points(2, 1 + place % 2, 5, 1.0, device), None, backend, "symmetric"), 1.0 + place
            )
            for place in range(count)
        ]
        log_q = mean_field(scores, terms, 2)
        found[backend] = log_q, *torch.autograd.grad(log_q, scores, against.transpose(0, 1))  # which is not contiguous
    torch.testing.assert_close(found["triton"], found["reference"], atol=2e-5, rtol=0)


class Launches:
    """Stands for some kernels and writes down which are launched, and with what arguments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        from piecewise_training.crf import _triton_kernels

        self.made: list[tuple[str, tuple[Any, ...]]] = []
        for name in names:
            monkeypatch.setattr(_triton_kernels, name, self._spy(name, getattr(_triton_kernels, name)))

    def _spy(self, name: str, kernel: Any) -> Any:
        made = self.made

        class Spy:
            def __getitem__(self, grid: tuple[int]) -> Any:
                def launch(*args: Any, **kwargs: Any) -> None:
                    made.append((name, args))
                    kernel[grid](*args, **kwargs)

                return launch

        return Spy()

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.made}


def terms_of(shapes: list[tuple[int, int, Any, int]], n: int, device: torch.device) -> list[PairwiseTerm]:
    """Terms with so many images and features, a normalisation, and as many costs as classes, or none."""
    return [
        PairwiseTerm(
            GaussianKernel(points(images, d, n, 1.0, device), None, "triton", kind),
            2.0 + d,
            torch.linspace(0.5, 1.5, classes, device=device) if classes else None,
        )
        for images, d, kind, classes in shapes
    ]


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 1, "symmetric", 0)],
        [(2, 4, "before", 5)],
        [(1, 2, "symmetric", 0), (2, 4, "none", 0)],
        [(2, 3, "after", 5), (2, 3, "symmetric", 0)],
        [(2, 2, "symmetric", 0), (2, 1, "before", 5)],
        [(1, 1, "none", 0), (1, 3, "symmetric", 0)],
    ],
    ids=str,
)
def test_all_updates_in_one_launch(
    kernels: ModuleType, device: torch.device, monkeypatch: pytest.MonkeyPatch, shapes: list[Any]
) -> None:
    """As with launches for each update; terms have one lattice for all images or one for each."""
    scores, terms = torch.randn(2, 5, 9, device=device), terms_of(shapes, 9, device)
    launches = Launches(monkeypatch, "all_updates", "spread")
    found = mean_field(scores, terms, 3)
    assert launches.names == {"all_updates"}
    monkeypatch.setattr(kernels, "_ONE_LAUNCH", 17)
    torch.testing.assert_close(mean_field(scores, terms, 3), found, atol=2e-5, rtol=0)
    assert len(launches.made) == 1 + 3 * len(terms)


@pytest.mark.parametrize("programs", [1, 3])
def test_updates_on_any_number_of_programs(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, programs: int
) -> None:
    """The same bits in every run: of programs that did not wait for each other they would differ."""
    from piecewise_training.crf import _triton_pass

    if device.type == "cpu":
        pytest.skip("Triton's interpreter has one program; needs --device cuda")
    scores = torch.randn(1, 21, 4800, device=device)
    terms = terms_of([(1, 2, "symmetric", 0), (1, 5, "none", 0)], 4800, device)
    found = mean_field(scores, terms, 10)
    for _ in range(20):
        assert torch.equal(mean_field(scores, terms, 10), found)
    how = _triton_pass.how_to_launch(device, _triton_pass._FOR_UPDATES)
    monkeypatch.setattr(_triton_pass, "how_to_launch", lambda *_: how._replace(programs=programs))
    assert torch.equal(mean_field(scores, terms, 10), found)


def test_programs_that_cannot_meet(kernels: ModuleType, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all programs are not sure to run at the same time, phases are launched one by one: the same bits."""
    from piecewise_training.crf import _triton_pass

    features, values = points(2, 3, 40, 1.0, device), torch.randn(2, 3, 40, device=device)
    plan = kernels.build(features, torch.ones(3, device=device))
    scores, terms = torch.randn(2, 3, 9, device=device), terms_of([(2, 3, "symmetric", 0)], 9, device)
    together, updated = kernels.splat_blur_slice(plan, values), mean_field(scores, terms, 2)
    for module in (kernels, _triton_pass):
        monkeypatch.setattr(module, "how_to_launch", lambda *_: _triton_pass.How(3, False, {}))
    launches = Launches(monkeypatch, "all_updates", "spread")
    assert torch.equal(kernels.splat_blur_slice(plan, values), together)
    assert [args[-2:] for _, args in launches.made] == [(phase, phase + 1) for phase in range(6)]
    torch.testing.assert_close(mean_field(scores, terms, 2), updated, atol=2e-5, rtol=0)
    assert launches.names == {"spread"}


def test_a_batchs_tables_one_by_one(kernels: ModuleType, device: torch.device) -> None:
    """A batch's plan has each image's tables, as if it had been built alone."""
    features, ones = points(3, 2, 20, 2.0, device), torch.ones(2, device=device)
    plan = kernels.build(features, ones)
    assert len(plan) == 3
    assert [len(part) for part in (plan[:2], plan[1:], list(plan))] == [2, 2, 3]
    assert all(torch.equal(*tables) for tables in zip(plan[-1], plan[2], strict=True))
    values = torch.randn(3, 2, 20, device=device)
    together = kernels.splat_blur_slice(plan, values)
    for image, tables in enumerate(plan):
        alone = kernels.build(features[image : image + 1], ones)
        assert [table.shape for table in tables] == [table.shape for table in alone[0]]
        torch.testing.assert_close(
            kernels.splat_blur_slice(alone, values[image : image + 1])[0], together[image], atol=1e-6, rtol=1e-5
        )


def test_watched(device: torch.device) -> None:
    image, scores = torch.zeros(1, 3, 2, 3, device=device), torch.randn(1, 2, 2, 3, device=device)
    found, expected = (dense_crf(scores, image, iterations=3, damping=0.3, backend=b) for b in ("triton", "reference"))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_the_same_bits_in_every_run(device: torch.device) -> None:
    image, scores = torch.randint(0, 9, (1, 3, 4, 6), device=device), torch.randn(1, 3, 4, 6, device=device)
    first, second = (dense_crf(scores, image, iterations=2, backend="triton") for _ in range(2))
    assert torch.equal(first, second)


def test_layer_learns(device: torch.device) -> None:
    crf = DenseCRF(3, 2, train_iterations=2, kernels=[Kernel(rgb_std=20.0), Kernel(xy_std=2.0)], backend="triton").to(
        device
    )
    image, scores = 90 * torch.rand(1, 3, 2, 4, device=device), torch.randn(1, 3, 2, 4, device=device)
    crf(scores, image)[:, 0].sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in crf.parameters())


def test_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("auto", torch.device("cuda")) == "triton"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="`backend` 'triton' runs on a GPU; the tensors are on cpu. Use 'auto'"):
        resolve("triton", torch.device("cpu"))
    monkeypatch.setattr(lattices, "has_triton", lambda: False)
    assert resolve("auto", torch.device("cuda")) == "reference"
    with pytest.raises(ValueError, match="`backend` 'triton' needs the package triton, which is not installed"):
        resolve("triton", torch.device("cuda"))


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=kept | environment, check=False)


def test_nothing_is_lost_without_triton() -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)\n"
        "sys.modules['triton'] = None\n"
        "import torch; from piecewise_training.crf import dense_crf\n"
        "print(dense_crf(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3)).shape)"
    )
    result = run(code)
    assert result.stdout == "torch.Size([1, 2, 3, 3])\n", result.stderr
    assert not result.stderr


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from piecewise_training.crf import _triton_build_kernels, _triton_kernels

kinds = {"F": "*fp32", "I": "*i32", "L": "*i64", "n": "i32", "x": "fp32"}
tile = {"S": 24, "C": 32, "BLOCK": 32}
both = {"V1": 3, "V2": 6, "SCALED1": True, "SCALED2": True, "SHARED1": True, "SHARED2": False}
rows = {"BASE": "planes", "RESULT": "softmax", "PLANES": False}
planes = {"BASE": "rows", "RESULT": "log_softmax", "PLANES": True}
for name, types, constants in [
    ("place", "FFFLFLLILn", {"D": 5, "P": 8, "BITS": 63, "LEFT": 32, "FARTHEST": 1e6, "BLOCK": 128}),
    ("mark", "LLLn", {"POINTS": 16, "BLOCK": 256}),
    ("group_points", "LLLIIIILnn", {"V": 6, "BLOCK": 256}),
    ("number_vertices", "LLIIIIILnn", {"V": 6, "BLOCK": 256}),
    ("find_neighbours", "LLInn", {"BITS": 63, "BLOCK": 256}),
    ("spread", "IIFFFFIIIFFInnnnnnn", {"SCALED": True, "BACKWARDS": False, "V": 6, "LANES": 8, **tile}),
    *(("all_updates", 2 * "IIIIIFFnnnnIIFFFFx" + "FFFInnnn",
       {"TERMS": terms, **{f"{name}{place}": scaled for name in ("BEFORE", "AFTER") for place in (1, 2)},
        "SHARED1": False, "SHARED2": True, "V1": 6, "V2": 3, "LANES1": 8, "LANES2": 2, **tile})
      for terms, scaled in ((1, False), (2, True))),
    *(("read", 2 * "IIFFFFnx" + "FFnn", {"TERMS": terms, **both, **how, **tile})
      for terms, how in ((0, rows), (1, planes), (2, rows))),
    *(("pull", 2 * "IIFFFFnx" + "FFFFnn", {"TERMS": terms, "BASE": base, "LOGARITHM": terms == 0, **both, **tile})
      for terms, base in ((0, "planes"), (1, "rows"), (2, "none"))),
    ("contract", "IIFFFnxFFn", {"SHARED": False, "V": 6, **tile}),
]:
    function = getattr(_triton_kernels, name, None) or getattr(_triton_build_kernels, name)
    types = dict(zip(function.arg_names, [*(kinds[kind] for kind in types), *["constexpr"] * 16]))
    built = compile(ASTSource(fn=function, signature=types, constexprs=constants), target=GPUTarget("cuda", 90, 32))
    print(name, len(built.asm["cubin"]) > 0)
"""


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    """For an H200's architecture, with the assembler that Triton brings along."""
    result = run(COMPILE, TRITON_DEFAULT_FP_FUSION="1")
    assert result.returncode == 0, result.stderr
    names = ["place", "mark", "group_points", "number_vertices", "find_neighbours", "spread", *2 * ["all_updates"]]
    names += [*3 * ["read"], *3 * ["pull"], "contract"]
    assert result.stdout.split() == [word for name in names for word in (name, "True")]


def test_kernels_run_on_their_tensors_gpu(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current GPU, which need not be that of the tensors."""
    guarded: list[torch.device] = []
    guard = torch.cuda.device_of

    def spy(tensor: torch.Tensor) -> Any:
        guarded.append(tensor.device)
        return guard(tensor)

    monkeypatch.setattr(torch.cuda, "device_of", spy)
    scores = torch.zeros(1, 2, 3, 3, device=device, requires_grad=True)
    image = torch.zeros(1, 3, 3, 3, dtype=torch.uint8, device=device)
    dense_crf(scores, image, backend="triton", iterations=1).sum().backward()
    assert len(guarded) >= 6  # two lattices, their normalisers, inference and its gradient
    assert {place.type for place in guarded} == {device.type}

"""The edges of both relations against an enumeration of their definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from piecewise_training.networks.edges import relation_edges

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (5, 9), (12, 13), (23, 30)]


def enumerated(relation: str, height: int, width: int, box: float, samples: int | None) -> set[tuple[int, int]]:
    """Every two nodes, tested for the box."""
    half = max(1, int(box * min(height, width) / 2))
    down = (-half, half) if relation == "surrounding" else (-2 * half - 1, -1)

    def taken(offset: int, first: int, last: int) -> bool:
        if not first <= offset <= last:
            return False
        if samples is None or samples > last - first:
            return True
        return offset in [first + round(i * (last - first) / (samples - 1)) for i in range(samples)]

    found = set()
    for p in range(height * width):
        for q in range(height * width):
            dy, dx = q // width - p // width, q % width - p % width
            if p != q and taken(dy, *down) and taken(dx, -half, half):
                found.add((p, q))
    return found


@pytest.mark.parametrize("relation", ["surrounding", "above_below"])
@pytest.mark.parametrize("samples", [None, 5, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_are_those_of_the_definition(relation: Any, samples: int | None, height: int, width: int) -> None:
    for box in (0.4, 1.0):
        edges = relation_edges(relation, height, width, box=box, samples=samples)
        found = [(int(p), int(q)) for p, q in edges.T]
        assert len(set(found)) == len(found)
        assert set(found) == enumerated(relation, height, width, box, samples)


def test_surrounding_goes_both_ways_and_above_below_only_up() -> None:
    around = {tuple(edge) for edge in relation_edges("surrounding", 9, 11).T.tolist()}
    assert {(q, p) for p, q in around} == around
    start, end = relation_edges("above_below", 9, 11)
    assert bool((end // 11 < start // 11).all())


def test_five_by_five_samples_have_24_neighbours_inside() -> None:
    start, _ = relation_edges("surrounding", 41, 41)
    assert int((start == 20 * 41 + 20).sum()) == 24


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_prediction_made_serves_training(device: str) -> None:
    with torch.inference_mode():
        edges = relation_edges("surrounding", 3, 17, device=device)
    assert not edges.is_inference()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_is_kept(device: str) -> None:
    """On every device: edges are not moved there for each image."""
    edges = relation_edges("surrounding", 6, 7, device=device)
    assert edges.device.type == device
    assert edges is relation_edges("surrounding", 6, 7, device=torch.device(device))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_kept_belongs_to_no_mode(device: str) -> None:
    """A function that is traced or differentiated has tensors of its own, which are of no use after it."""

    def differentiated(x: torch.Tensor) -> torch.Tensor:
        kept.append(relation_edges("surrounding", 5, 19, device=device))
        return x.sum()

    kept: list[torch.Tensor] = []
    torch.func.grad(differentiated)(torch.zeros(2))
    with FakeTensorMode():
        kept.append(relation_edges("surrounding", 5, 23, device=device))
    for edges in kept:
        assert type(edges) is torch.Tensor
        assert "GradTrackingTensor" not in repr(edges)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("beside", 2, 2), {}, r"`relation` must be surrounding or above_below; got 'beside' \(str\)"),
        (("surrounding", 0, 2), {}, "`height` and `width` must be at least 1; got 0 and 2"),
        (("surrounding", 2, 2), {"box": 0.0}, "`box` must be above 0; got 0.0"),
        (("surrounding", 2, 2), {"samples": 1}, "`samples` must be at least 2 or None; got 1"),
    ],
)
def test_errors(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relation_edges(*arguments, **options)


def test_edges_stay_on_the_map() -> None:
    for height, width in SIZES:
        for relation in ("surrounding", "above_below"):
            edges = relation_edges(relation, height, width)  # type: ignore[arg-type]
            assert edges.dtype == torch.int64
            assert bool(((edges >= 0) & (edges < height * width)).all())

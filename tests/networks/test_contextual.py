"""The contextual CRF: mean field against loops and enumeration, and that it learns what only context tells."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from piecewise_training.losses import cross_entropy, edge_nll, node_labels
from piecewise_training.networks import contextual
from piecewise_training.networks.contextual import ContextualCRF, Relation, pair_potential
from piecewise_training.networks.edges import relation_edges


def with_potentials(channels: int, classes: int, *arguments: Any, **options: Any) -> ContextualCRF:
    """One whose networks are not those that change nothing, from which training starts."""
    crf = ContextualCRF(channels, classes, *arguments, **options)
    for net in crf.nets:
        nn.init.normal_(net.scores.weight, std=0.3)
    return crf


def literal_mean_field(unary: np.ndarray, potentials: dict[tuple[int, int], np.ndarray], iterations: int) -> np.ndarray:
    """Q (N, K) by loops over nodes, edges and labels."""
    k = unary.shape[1]
    q = np.exp(unary) / np.exp(unary).sum(1, keepdims=True)
    for _ in range(iterations):
        scores = unary.copy()
        for (p, r), potential in potentials.items():
            for a in range(k):
                for b in range(k):
                    scores[p, a] += potential[a, b] * q[r, b]
                    scores[r, b] += potential[a, b] * q[p, a]
        q = np.exp(scores - scores.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
    return q


def exact_marginals(unary: np.ndarray, potentials: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """The marginals by summing over all labellings."""
    n, k = unary.shape
    total = np.zeros((n, k))
    for labels in itertools.product(range(k), repeat=n):
        score = sum(unary[p, a] for p, a in enumerate(labels))
        score += sum(potential[labels[p], labels[r]] for (p, r), potential in potentials.items())
        for p, a in enumerate(labels):
            total[p, a] += np.exp(score)
    return total / total.sum(1, keepdims=True)


def potentials_of(crf: ContextualCRF, features: torch.Tensor) -> dict[tuple[int, int], np.ndarray]:
    """The potential on every edge, of both relations together."""
    found: dict[tuple[int, int], np.ndarray] = {}
    edges = crf.edges(features)
    for own, net, weight in zip(edges, crf.nets, crf.weights(features), strict=True):
        scores = net(features, own)[0]
        values = (weight * (scores if crf.residual else pair_potential(scores))).detach().numpy()
        for edge, value in zip(own.T.tolist(), values, strict=True):
            key = (edge[0], edge[1])
            found[key] = found.get(key, 0) + value
    return found


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (3, 3), (4, 2)])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("residual", [True, False])
def test_mean_field_is_the_literal_loop(height: int, width: int, classes: int, residual: bool) -> None:
    torch.manual_seed(0)
    crf = with_potentials(4, classes, iterations=3, residual=residual).double()
    nn.init.normal_(crf.log_factors, 2.0)
    features = 3 * torch.randn(1, 4, height, width, dtype=torch.float64)
    unary = torch.randn(1, classes, height, width, dtype=torch.float64)
    expected = literal_mean_field(unary[0].flatten(1).T.numpy(), potentials_of(crf, features), 3)
    np.testing.assert_allclose(crf(unary, features)[0].flatten(1).T.exp().detach().numpy(), expected, atol=1e-10)


@pytest.mark.parametrize(("height", "width", "classes"), [(3, 3, 2), (2, 2, 3), (1, 4, 3)])
def test_weak_potentials_give_the_exact_marginals(height: int, width: int, classes: int) -> None:
    torch.manual_seed(1)
    crf = with_potentials(4, classes, iterations=10).double()
    nn.init.constant_(crf.log_factors, np.log(0.015))
    features = 3 * torch.randn(1, 4, height, width, dtype=torch.float64)
    unary = torch.randn(1, classes, height, width, dtype=torch.float64)
    scores = unary[0].flatten(1).T.numpy()
    expected = exact_marginals(scores, potentials_of(crf, features))
    found = crf(unary, features)[0].flatten(1).T.exp().detach().numpy()
    independent = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert np.abs(found - expected).max() < 2e-3
    assert np.abs(found - expected).max() < 0.1 * np.abs(independent - expected).max()


def test_edges_in_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    crf = with_potentials(4, 3)
    features, unary = torch.randn(2, 4, 5, 6), torch.randn(2, 3, 5, 6)
    expected = crf(unary, features)
    monkeypatch.setattr(contextual, "_KEPT", 0)
    torch.testing.assert_close(crf(unary, features), expected)
    monkeypatch.setattr(contextual, "_MOST", 10_000)
    torch.testing.assert_close(crf(unary, features), expected)


def test_edges_are_looked_for_once_and_stay_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    crf, found = ContextualCRF(4, 3, iterations=0).to("meta"), []

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        found.append(relation_edges(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(contextual, "relation_edges", counted)
    for _ in range(2):
        crf(torch.zeros(1, 3, 5, 6, device="meta"), torch.zeros(1, 4, 5, 6, device="meta"))
    assert len(found) == 4  # two relations of two images
    assert found[0] is found[2]
    assert found[1] is found[3]
    assert found[0].is_meta


@pytest.mark.parametrize("kept", [0, 1 << 24])
def test_wide_networks_are_evaluated_in_parts(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two classes an edge has 4 scores, but in the layer before them 100 numbers, three times at a time."""
    crf = with_potentials(4, 2, [Relation("surrounding", hidden=100)])
    features, unary = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 5, 6)
    expected = torch.autograd.grad(crf(unary, features)[:, 0].sum(), [*crf.parameters()])
    edges = crf.edges(features)[0].shape[1]
    monkeypatch.setattr(contextual, "_KEPT", kept)
    monkeypatch.setattr(contextual, "_MOST", 3 * 2 * 100 * 50)
    sizes: list[int] = []
    crf.nets[0].activation.register_forward_hook(lambda module, inputs, _: sizes.append(inputs[0].numel()))
    held: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x.numel()) or x, lambda x: x):
        found = crf(unary, features)
    assert max(sizes) <= 2 * 100 * 50 < 2 * 100 * edges
    assert max(held) <= 2 * 100 * 30  # what the nodes give: the way back holds on to no edge's
    found = torch.autograd.grad(found[:, 0].sum(), [*crf.parameters()])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kept", [0, 1 << 24])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_messages_in_single_precision_under_autocast(
    dtype: torch.dtype, residual: bool, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever precision the network's scores come in: a GPU's autocast takes others than a CPU's."""
    monkeypatch.setattr(contextual, "_KEPT", kept)
    crf = with_potentials(4, 3, residual=residual)
    features, unary = torch.randn(2, 4, 5, 6), torch.randn(2, 3, 5, 6).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = crf(unary, features.to(dtype))
        found[:, 0].sum().backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2, 5, 6), atol=1e-6, rtol=0)
    torch.testing.assert_close(found, crf(unary.float(), features), atol=0.05, rtol=0)


@pytest.mark.parametrize("relations", [1, 2, 3])
def test_a_nodes_messages_are_a_mean_over_edges_and_relations(relations: int) -> None:
    """On the 2 x 3 map every two nodes are joined twice by "surrounding", once from each end."""
    crf = with_potentials(4, 2, [Relation("surrounding", box=9.0, samples=None)] * relations, iterations=1)
    nn.init.constant_(crf.log_factors, np.log(3))
    for weight in crf.weights(torch.zeros(1, 4, 2, 3)):
        assert weight.item() == pytest.approx(3 / (2 * 5 * relations))


def test_a_relation_without_edges_tells_nothing() -> None:
    crf, unary = with_potentials(4, 3), torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(crf(unary, torch.randn(1, 4, 1, 1)), unary.log_softmax(1))


def test_starts_without_potentials() -> None:
    unary = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(ContextualCRF(4, 3)(unary, torch.randn(2, 4, 4, 5)), unary.log_softmax(1))


def test_relations_may_be_mappings() -> None:
    """As a configuration has them."""
    crf = ContextualCRF(4, 3, [{"name": "above_below", "hidden": 7}, Relation("surrounding")])
    assert crf.relations == (Relation("above_below", hidden=7), Relation("surrounding"))
    assert ContextualCRF(num_classes=3, **crf.configuration()).relations == crf.relations


@pytest.mark.parametrize("kept", [0, 1 << 24])
def test_gradients(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contextual, "_KEPT", kept)
    crf = with_potentials(2, 2, [Relation("surrounding", hidden=3), Relation("above_below", hidden=3)], 2).double()
    nn.init.normal_(crf.log_factors, 2.0)
    features = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    unary = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(crf, (unary, features))
    crf(unary, features)[:, 0].sum().backward()
    assert all(parameter.grad is not None for parameter in crf.parameters())


@pytest.mark.parametrize("residual", [True, False])
def test_edge_nll_is_the_literal_loop(residual: bool) -> None:
    """With the nodes' own scores beside the pair's, or with the pair's alone."""
    crf = with_potentials(3, 3, [Relation("surrounding", hidden=4)], residual=residual).double()
    features, unary = torch.randn(2, 2, 3, 3, 4, dtype=torch.float64)
    unary.requires_grad_()
    labels = torch.randint(0, 3, (2, 12))
    labels[0, 3] = labels[1, 7] = 255
    weight = torch.tensor([0.5, 1.0, 5.0], dtype=torch.float64)
    (edges,), (scores,) = crf.edges(features), crf.edge_scores(unary, features)
    pairs, nodes = crf.nets[0](features, edges).detach().numpy(), unary.detach().flatten(2).numpy()
    total = norm = 0.0
    for image in range(2):
        for e, (p, q) in enumerate(edges.T.tolist()):
            a, b = int(labels[image, p]), int(labels[image, q])
            if 255 in (a, b):
                continue
            share = min(10.0, float(weight[a] * weight[b]))
            own = pairs[image, e]
            if residual:
                own = own + nodes[image, :, p, None] + nodes[image, None, :, q]
            probabilities = np.exp(own)
            total -= share * np.log(probabilities[a, b] / probabilities.sum())
            norm += share
    assert float(edge_nll(scores.detach(), edges, labels, weight)) == pytest.approx(total / norm)
    scores.sum().backward()
    assert unary.grad is None
    leaf = scores.detach()[:, :6].requires_grad_()
    assert torch.autograd.gradcheck(lambda s: edge_nll(s, edges[:, :6], labels, weight), (leaf,))


def test_edges_that_are_all_void() -> None:
    edges = torch.tensor([[0], [1]])
    assert float(edge_nll(torch.zeros(1, 1, 2, 2), edges, torch.full((1, 2), 255))) == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ContextualCRF(4, 1), "`num_classes` must be at least 2; got 1"),
        (lambda: ContextualCRF(4, 2, []), "`relations` must hold at least one"),
        (lambda: Relation("above-below"), r"`name` must be surrounding or above_below; got 'above-below' \(str\)"),  # type: ignore[arg-type]
        (lambda: Relation("surrounding", box=0), "`box` must be above 0; got 0"),
        (lambda: Relation("surrounding", samples=1), "`samples` must be at least 2 or None; got 1"),
        (lambda: Relation("surrounding", hidden=0), "`hidden` must be at least 1; got 0"),
        (lambda: ContextualCRF(4, 2, iterations=-1), "`iterations` must be at least 0; got -1"),
        (lambda: ContextualCRF(4, 2, stride=0), "`stride` must be at least 1; got 0"),
        (
            lambda: ContextualCRF(4, 2)(torch.zeros(1, 2, 3, 4), torch.zeros(1, 4, 3, 5)),
            r"`unary` and `features` must agree in batch, height and width; got \(1, 2, 3, 4\) float32 and",
        ),
    ],
)
def test_errors(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("call", [ContextualCRF.forward, ContextualCRF.edge_scores])
@pytest.mark.parametrize(
    ("unary", "features", "message"),
    [
        ((1, 2, 6, 8), (1, 4, 3, 4), r"must agree in batch, height and width; got \(1, 2, 6, 8\) .*Resize one"),
        ((2, 2, 3, 4), (1, 4, 3, 4), r"must agree in batch, height and width; got \(2, 2, 3, 4\) float32 and"),
        ((1, 3, 3, 4), (1, 4, 3, 4), r"`unary` must be \(B, 2, H, W\); got \(1, 3, 3, 4\) float32"),
        ((1, 2, 3, 4), (1, 5, 3, 4), r"`features` must be \(B, 4, H, W\); got \(1, 5, 3, 4\) float32"),
        ((1, 2, 12), (1, 4, 12), r"`unary` must be \(B, 2, H, W\); got \(1, 2, 12\) float32"),
    ],
)
def test_maps_that_do_not_fit(call: Any, unary: Any, features: Any, message: str) -> None:
    """Edges are numbers of nodes, and of a larger map would be some of its first rows."""
    with pytest.raises(ValueError, match=message):
        call(ContextualCRF(4, 2), torch.zeros(unary), torch.zeros(features))


SKY, BOAT, WATER, SHORE = range(4)


def layouts(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scenes in which one blue is sky above a boat and water below it, and nothing near a pixel tells which.

    The horizon moves up and down by as much as the scene is high, so that the place in the image does not tell either.
    """
    rng = np.random.default_rng(seed)
    pictures, labels = np.zeros((images, 3, 64, 64), np.float32), np.zeros((images, 64, 64), np.int64)
    for picture, label in zip(pictures, labels, strict=True):
        top = int(rng.integers(8, 48))
        label[:top], label[top : top + 8], label[top + 8 :] = SKY, BOAT, WATER
        picture[2] = 1
        picture[:, top : top + 8] = np.array([0.8, 0.3, 0.2])[:, None, None]
        picture += rng.normal(0, 0.3, picture.shape)
    return torch.from_numpy(pictures), torch.from_numpy(labels)


@pytest.mark.slow
def test_learns_what_only_the_layout_tells() -> None:
    """The same trunk and budget with and without context: sky and water look alike, and lie above and below a boat."""
    accuracies = {}
    for with_context in (False, True):
        torch.manual_seed(0)
        trunk = nn.Sequential(  # sees 28 pixels of 64, a node every 8
            nn.Conv2d(3, 16, 4, 4),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, 1, 1),
            nn.ReLU(),
        )
        head = nn.Conv2d(32, 3, 1)
        relations = [Relation(name, box=1.5, hidden=32) for name in ("surrounding", "above_below")]
        crf = ContextualCRF(32, 3, relations)
        optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters(), *crf.parameters()], lr=3e-3)
        images, targets = layouts(256, seed=1)
        for step in range(300):
            batch = torch.arange(16 * step, 16 * step + 16) % 256
            features = trunk(images[batch])
            labels = node_labels(targets[batch], (8, 8))
            loss = cross_entropy(head(features), labels)
            if with_context:
                for edges, scores in zip(crf.edges(features), crf.edge_scores(head(features), features), strict=True):
                    loss = loss + edge_nll(scores, edges, labels.flatten(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        images, targets = layouts(64, seed=2)
        labels = node_labels(targets, (8, 8))
        with torch.no_grad():
            features = trunk(images)
            unary = head(features)
            found = crf(unary, features) if with_context else unary
        accuracies[with_context] = float((found.argmax(1) == labels).float().mean())
    assert accuracies[False] < 0.95
    assert accuracies[True] > 0.99

"""torch.compile goes around what it cannot look into, and changes no result."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from piecewise_training.compiling import uncompiled
from piecewise_training.crf import (
    DenseCRF,
    GaussianKernel,
    PairwiseTerm,
    PermutohedralLattice,
    bilateral_kernel,
    dense_crf,
    gaussian_filter,
    mean_field,
    spatial_kernel,
)
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.networks.edges import relation_edges

# Dynamo asks every tensor for its gradient.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


class _Network(nn.Module):
    """A small network with a feature map."""

    channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.score = nn.Conv2d(4, 3, 1)

    def feature_map(self, image: Tensor) -> Tensor:
        return self.trunk(image).relu()

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.score(self.feature_map(image))
        return scores


def _filtered(features: Tensor, values: Tensor) -> Tensor:
    return 1 + GaussianKernel(features)(2 * values)


def _inferred(features: Tensor, values: Tensor) -> Tensor:
    return mean_field(values, [PairwiseTerm(GaussianKernel(features))], 3).exp()


def _sliced(features: Tensor, values: Tensor) -> Tensor:
    del values
    return 2 * PermutohedralLattice.build(features)[0].weights


def _joined(features: Tensor, values: Tensor) -> Tensor:
    start, end = relation_edges("surrounding", 5, 10)
    return features[:, :1, start] * values[:, :, end]


@pytest.fixture(autouse=True)
def _forgets() -> None:
    torch.compiler.reset()


class Counted:
    """A backend that runs graphs as they are, without a C++ compiler, and keeps them."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        del inputs
        self.graphs.append(graph)
        return graph.forward


@pytest.mark.parametrize(
    ("function", "graphs"),
    [
        (gaussian_filter, 0),
        (_filtered, 2),  # twice the values before it, and 1 more after it
        (_inferred, 1),
        (_sliced, 0),
        (_joined, 1),
    ],
)
def test_functions_of_points_are_the_same_within_a_compiled_one(function: Callable[..., Tensor], graphs: int) -> None:
    features, values = torch.rand(2, 3, 50, requires_grad=True), torch.randn(2, 4, 50, requires_grad=True)
    counted = Counted()
    expected, found = function(features, values), torch.compile(function, backend=counted)(features, values)
    assert torch.equal(found, expected)
    assert len(counted.graphs) == graphs


@pytest.mark.parametrize(
    "function",
    [
        dense_crf,
        DenseCRF(3, 2),
        lambda scores, image: bilateral_kernel(image, 3.0, 9.0, like=scores)(scores.flatten(2)),
        lambda scores, image: spatial_kernel(*image.shape[2:], 3.0, like=scores)(scores.flatten(2)),
    ],
)
def test_nothing_of_the_crf_is_compiled(function: Callable[..., Tensor]) -> None:
    counted = Counted()
    compiled = torch.compile(function, backend=counted)
    for height in (7, 8, 13):
        scores, image = torch.randn(2, 3, height, 9), 255 * torch.rand(2, 3, height, 9)
        assert torch.equal(compiled(scores, image), function(scores, image))
    assert all(_operations(graph) <= {"flatten", "getitem"} for graph in counted.graphs)


class _Kept(logging.Handler):
    """Keeps the messages of a log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _operations(graph: torch.fx.GraphModule) -> set[str]:
    called = (node.target for node in graph.graph.nodes if node.op.startswith("call"))
    return {name if isinstance(name, str) else name.__name__ for name in called}


def test_of_a_model_the_network_alone_is_compiled() -> None:
    torch.manual_seed(0)
    model = PiecewiseTrainedModel(3, unary=_Network(), context={}, crf_iterations=2)
    assert model.context is not None
    for net in model.context.nets:
        nn.init.normal_(net.scores.weight)
    counted, gradients, warned = Counted(), [], _Kept()
    logging.getLogger("torch._dynamo.convert_frame").addHandler(warned)
    compiled = torch.compile(model, backend=counted)
    for height in (24, 27, 41):  # of which Dynamo makes formulas from the second on
        image = torch.randn(1, 3, height, 20)
        for scored in (model, compiled):
            model.zero_grad()
            logits, log_q = scored(image)
            (logits.square().mean() + log_q[:, 0].mean()).backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        plain, found = gradients[-2:]
        assert plain.keys() == found.keys() == dict(model.named_parameters()).keys()
        assert all(bool(gradient.any()) for gradient in plain.values())
        for name, gradient in plain.items():
            torch.testing.assert_close(found[name], gradient)
    assert not warned.messages  # as of too many versions of a function
    assert {"conv2d", "relu"} <= set.union(*map(_operations, counted.graphs))
    assert not {"interpolate", "pad", "matmul"} & set.union(*map(_operations, counted.graphs))


@pytest.mark.parametrize("use_crf", [True, False])
def test_a_model_is_not_one_graph(use_crf: bool) -> None:
    """As the guide says."""
    model = PiecewiseTrainedModel(3, unary=_Network(), crf_iterations=1, use_crf=use_crf)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(model, backend=Counted(), fullgraph=True)(torch.randn(1, 3, 24, 20))


def test_a_function_keeps_its_name_and_its_errors() -> None:
    def half(number: int) -> float:
        """Divides by two."""
        return number / 2

    wrapped = uncompiled(half)
    assert (wrapped.__name__, wrapped.__doc__, wrapped(number=3)) == ("half", "Divides by two.", 1.5)
    with pytest.raises(ValueError, match="`features` and `values` must be"):
        torch.compile(gaussian_filter, backend="eager")(torch.rand(3), torch.rand(3))


def test_the_compiler_is_not_loaded_where_nothing_is_compiled() -> None:
    script = (
        "import sys, torch; from piecewise_training.crf import dense_crf; "
        "dense_crf(torch.randn(1, 2, 4, 5), torch.rand(1, 3, 4, 5)); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

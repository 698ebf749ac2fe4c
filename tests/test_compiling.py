"""torch.compile goes around what it cannot look into, and changes no result."""

from __future__ import annotations

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
    dense_crf,
    gaussian_filter,
    mean_field,
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


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Through Dynamo alone, which is what fails: the rest would want a C++ compiler, and finds only tensors."""
    return torch.compile(function, backend="eager")


@pytest.mark.parametrize("function", [gaussian_filter, _filtered, _inferred, _sliced, _joined])
def test_functions_of_points_are_the_same_within_a_compiled_one(function: Callable[..., Tensor]) -> None:
    features, values = torch.rand(2, 3, 50, requires_grad=True), torch.randn(2, 4, 50, requires_grad=True)
    expected, found = function(features, values), _compiled(function)(features, values)
    assert torch.equal(found, expected)


def test_the_crf_of_an_image_is_the_same_compiled() -> None:
    scores, image = torch.randn(2, 3, 9, 11), 255 * torch.rand(2, 3, 9, 11)
    assert torch.equal(_compiled(dense_crf)(scores, image), dense_crf(scores, image))


def test_a_compiled_model_trains_as_it_does_without() -> None:
    torch.manual_seed(0)
    model = PiecewiseTrainedModel(3, unary=_Network(), context={}, crf_iterations=2)
    image = torch.randn(1, 3, 24, 20)
    gradients = []
    for scored in (model, _compiled(model)):
        model.zero_grad()
        logits, log_q = scored(image)
        (logits.square().mean() + log_q[:, 0].mean()).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert {name.split(".")[0] for name in gradients[0]} == {"unary", "crf", "context"}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_layer_that_is_compiled_takes_images_of_other_sizes() -> None:
    crf = DenseCRF(3, 2)
    layer = _compiled(crf)
    for height in (7, 8, 13):
        scores, image = torch.randn(1, 3, height, 9), 255 * torch.rand(1, 3, height, 9)
        assert torch.equal(layer(scores, image), crf(scores, image))


def test_a_function_keeps_its_name_and_its_errors() -> None:
    def half(number: int) -> float:
        """Divides by two."""
        return number / 2

    wrapped = uncompiled(half)
    assert (wrapped.__name__, wrapped.__doc__, wrapped(number=3)) == ("half", "Divides by two.", 1.5)
    with pytest.raises(ValueError, match="`features` and `values` must be"):
        _compiled(gaussian_filter)(torch.rand(3), torch.rand(3))


def test_the_compiler_is_not_loaded_where_nothing_is_compiled() -> None:
    script = (
        "import sys, torch; from piecewise_training.crf import dense_crf; "
        "dense_crf(torch.randn(1, 2, 4, 5), torch.rand(1, 3, 4, 5)); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

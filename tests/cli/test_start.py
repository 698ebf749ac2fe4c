"""Beginning with a trained model: what is taken of it, and what begins anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from piecewise_training.cli.results import build_model, save_model
from piecewise_training.config import ContextConfig, KernelConfig, ModelConfig, RelationConfig
from piecewise_training.dataset import Classes
from piecewise_training.model import PiecewiseTrainedModel

SMALL: dict[str, Any] = {"unary": "mobilenetv3_small_050", "pretrained": False}
KERNELS = [KernelConfig(xy_std=3.0, weight=3.0), KernelConfig(80.0, 13.0, 10.0)]  # those of the defaults
ANOTHER = "this one begins as it is configured"


def build(classes: int = 3, seed: int = 0, **options: Any) -> PiecewiseTrainedModel:
    return build_model(ModelConfig(**(SMALL | options)), Classes.numbered(classes), seed)


def trained(folder: Path, **options: Any) -> PiecewiseTrainedModel:
    """A model whose every weight has moved, saved as a run does it."""
    model = build(seed=1, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter) + 0.1
    save_model(model, folder)
    return model


def part(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    found = {name: value for name, value in model.state_dict().items() if name.startswith(prefix)}
    assert found
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("file", ["", "piecewise_model_final.safetensors", "piecewise_model_final.pth"])
@pytest.mark.parametrize("options", [{}, {"crf_learn_bandwidths": False, "crf_class_bias": True}])
def test_the_same_again(tmp_path: Path, file: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """From the folder of a run or a file; without ImageNet weights, which cannot be had."""
    expected = trained(tmp_path, **options)
    model = build(**options, pretrained=True, start_from=str(tmp_path / file))
    assert same(model.state_dict(), expected.state_dict())
    assert ANOTHER not in caplog.text


def test_other_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The costs of labels are for other labels, the kernels are the same."""
    expected = trained(tmp_path)
    model = build(4, start_from=str(tmp_path))
    assert "anew: unary.decoder.score.weight, unary.decoder.score.bias, crf.pos_compatibility" in caplog.text
    assert same(part(model, "crf.log"), part(expected, "crf.log"))


@pytest.mark.parametrize("file", ["piecewise_model_final.safetensors", "piecewise_model_final.pth"])
@pytest.mark.parametrize(
    "options",
    [
        {"crf_kernels": [*KERNELS, KernelConfig(60.0, 12.0)]},
        {"crf_temperature": True},
        {"bilateral_rgb_std": 5.0, "crf_learn_bandwidths": False},
    ],
)
def test_another_crf(tmp_path: Path, file: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """It is the one that is asked for, not a mixture with the earlier one."""
    expected = trained(tmp_path)
    model = build(**options, start_from=str(tmp_path / file))
    assert same(part(model, "unary."), part(expected, "unary."))
    assert same(part(model, "crf."), part(build(**options), "crf."))
    assert f"the CRF of {tmp_path / file} is another: {ANOTHER}" in caplog.text


@pytest.mark.parametrize("options", [{"pos_w": 1.0}, {"crf_learn_bandwidths": False}, {"crf_spatial": "exact"}])
def test_another_beginning_is_known_from_the_configuration(tmp_path: Path, options: dict[str, Any]) -> None:
    trained(tmp_path)
    assert same(part(build(**options, start_from=str(tmp_path)), "crf."), part(build(**options), "crf."))


def test_kernels_by_either_way_are_the_same(tmp_path: Path) -> None:
    expected = trained(tmp_path)
    model = build(crf_kernels=KERNELS, start_from=str(tmp_path))
    assert same(part(model, "crf."), part(expected, "crf."))


def relations(*names: Any, **options: Any) -> ContextConfig:
    return ContextConfig([RelationConfig(name, hidden=8) for name in names], **options)


BOTH = relations("surrounding", "above_below")


def test_relations_are_known_by_their_names(tmp_path: Path) -> None:
    before = part(trained(tmp_path, context=BOTH), "context.")
    turned = part(build(context=relations("above_below", "surrounding"), start_from=str(tmp_path)), "context.")
    for here, there in ((0, 1), (1, 0)):
        for name in ("first.weight", "first.bias", "second.weight", "scores.weight", "scores.bias"):
            assert torch.equal(turned[f"context.nets.{here}.{name}"], before[f"context.nets.{there}.{name}"])
    assert torch.equal(turned["context.log_factors"], before["context.log_factors"].flip(0))

    one = part(build(context=relations("above_below"), start_from=str(tmp_path)), "context.")
    assert torch.equal(one["context.nets.0.first.weight"], before["context.nets.1.first.weight"])
    assert one["context.log_factors"].tolist() == [0.0]  # alone it has another weight

    twice = part(build(context=relations("above_below", "above_below"), start_from=str(tmp_path)), "context.")
    assert torch.equal(twice["context.nets.0.scores.bias"], before["context.nets.1.scores.bias"])
    assert not twice["context.nets.1.scores.bias"].any()
    assert twice["context.log_factors"].tolist() == [0.0, 0.0]


def test_what_other_networks_have_learned_is_not_taken(tmp_path: Path) -> None:
    trained(tmp_path, context=BOTH)
    symmetric = ContextConfig([RelationConfig("surrounding", hidden=8, symmetric=True)])
    for context in (relations("surrounding", "above_below", residual=False), symmetric):
        model = build(context=context, start_from=str(tmp_path))
        assert model.context is not None
        assert model.context.silent
        assert not model.context.log_factors.any()


def test_with_and_without_a_context(tmp_path: Path) -> None:
    expected = trained(tmp_path, context=BOTH)
    assert same(part(build(start_from=str(tmp_path)), "unary."), part(expected, "unary."))
    other = tmp_path / "other"
    other.mkdir()
    trained(other)
    model = build(context=BOTH, start_from=str(other))
    assert model.context is not None
    assert model.context.silent


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"nowhere: `start_from` must be the folder of a finished run or a file"
    ):
        build(start_from=str(tmp_path / "nowhere"))

"""Exported files give the model's scores, whatever the images' size and number, and say what is wrong."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from piecewise_training import export as module
from piecewise_training.cli import main
from piecewise_training.dataset import Classes, normalise
from piecewise_training.export import export
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.networks import Relation


class Strided(nn.Module):
    """A network with a stride, whose images are continued to a multiple of it."""

    multiple = 8

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


def model(**kwargs: Any) -> PiecewiseTrainedModel:
    return PiecewiseTrainedModel(3, classes=Classes.named(("a", "b", "c")), **{"unary": Strided(), **kwargs})


def scores(network: PiecewiseTrainedModel, image: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network.eval()(normalise(image.byte()), apply_crf=False)[0]


def image(*size: int) -> torch.Tensor:
    return torch.randint(0, 256, (size[0], 3, *size[1:])).float()


@pytest.mark.parametrize("size", [(1, 24, 32), (2, 25, 31), (1, 9, 90)])
def test_pt2(tmp_path: Path, size: tuple[int, int, int]) -> None:
    network = model()
    assert export(network, tmp_path / "net.pt2") < 1e-5
    extra = {"classes.json": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=extra)
    assert json.loads(extra["classes.json"]) == ["a", "b", "c"]
    picture = image(*size)
    torch.testing.assert_close(program.module()(picture), scores(network, picture), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_of_another_precision_is_written_in_single(tmp_path: Path, dtype: torch.dtype) -> None:
    network = model().to(dtype)
    export(network, tmp_path / "net.pt2")
    picture = image(1, 24, 32)
    found = torch.export.load(tmp_path / "net.pt2").module()(picture)
    torch.testing.assert_close(found, scores(network.float(), picture), atol=1e-5, rtol=1e-4)


def test_pt2_moves_to_another_device(tmp_path: Path) -> None:
    """As the guide says for a GPU; here to the device of tensors without values, which refuses those of others."""
    export(model(), tmp_path / "net.pt2")
    program = move_to_device_pass(torch.export.load(tmp_path / "net.pt2"), "meta")
    assert program.module()(image(1, 25, 31).to("meta")).shape == (1, 3, 25, 31)


def test_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    network = model().train()
    export(network, tmp_path / "net.pt2")
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "tf_efficientnet_lite0", "largefov_vgg16", "fcn8s_vgg16"])
def test_onnx(tmp_path: Path, name: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    network = model(unary=name, pretrained=False)
    assert export(network, tmp_path / "net.onnx") < 1e-3
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    assert session.get_modelmeta().custom_metadata_map["classes"] == '["a", "b", "c"]'
    for picture in (image(2, 70, 65), image(1, 96, 128)):
        found = torch.from_numpy(session.run(["scores"], {"image": picture.numpy()})[0])
        torch.testing.assert_close(found, scores(network, picture), atol=1e-4, rtol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_with_context(tmp_path: Path, suffix: str) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    featmap = {"scales": [1.0, 0.5], "widths": [8], "hidden": 8}
    context = {"relations": [Relation("above_below", hidden=8)]}
    network = model(unary="mobilenetv3_small_050", pretrained=False, featmap=featmap, context=context)
    assert network.context is not None
    nn.init.normal_(network.context.nets[0].scores.weight)  # which start at 0 and would change nothing
    with pytest.raises(ValueError, match="a model with a contextual CRF is exported for images of one size"):
        export(network, tmp_path / f"net{suffix}")
    assert export(network, tmp_path / f"net{suffix}", (64, 96)) < 1e-3


def test_a_context_of_one_node_has_no_edges(tmp_path: Path) -> None:
    class WithFeatures(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.feature_map, self.score = nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(4, 3, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.score(self.feature_map(image))

    network = model(unary=WithFeatures(), context={"channels": 4})
    assert export(network, tmp_path / "net.pt2", (16, 16)) < 1e-5


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"`path` must end in .onnx or .pt2; got net.pth"):
        export(model(), "net.pth")
    with pytest.raises(ValueError, match=r"`size` must be a height and a width of at least 1 pixel; got \(0, 8\)"):
        export(model(), tmp_path / "net.pt2", (0, 8))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'.onnx needs onnx, onnxscript, onnxruntime.*"\.\[export\]" in the checkout'):
        export(model(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_written_down(tmp_path: Path) -> None:
    class Undecided(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image if float(image.mean()) > 0 else -image

    with pytest.raises(RuntimeError, match="torch.export cannot write this network down: "):
        export(model(unary=Undecided()), tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_a_network_that_does_not_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: Any, **__: Any) -> None:
        raise ArithmeticError

    monkeypatch.setattr(torch.export, "export", silent)
    with pytest.raises(RuntimeError, match="torch.export cannot write this network down: ArithmeticError"):
        export(model(), tmp_path / "net.pt2")


def test_a_file_that_does_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(program: Any, path: Path, classes: str) -> Any:
        path.write_text("wrong")
        return lambda picture: program.module()(picture) + 1

    monkeypatch.setitem(module._WRITERS, ".pt2", wrong)
    with pytest.raises(
        RuntimeError, match=r"differ by 1 from the model's, on random images of \(101, 139\); nothing was"
    ):
        export(model(), tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = model(unary="mobilenetv3_small_050", pretrained=False)
    network.save(tmp_path / "net.safetensors")
    target = tmp_path / "net.pt2"
    command = ["export", "--model", str(tmp_path / "net.safetensors"), "--output"]
    assert main([*command, str(target), "--size", "[64,96]"]) == 0
    assert "scores differ from the model's by at most" in capsys.readouterr().out
    assert torch.export.load(target).module()(image(1, 64, 96)).shape == (1, 3, 64, 96)
    assert main([*command, "net.txt"]) == 1
    assert "`path` must end in .onnx or .pt2" in capsys.readouterr().err

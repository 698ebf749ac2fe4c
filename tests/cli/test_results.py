"""The model that a configuration describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from piecewise_training.cli import build_parser
from piecewise_training.cli.results import (
    build_model,
    crf_values,
    evaluate_stage,
    learned_costs,
    notes,
    write_results,
)
from piecewise_training.config import ContextConfig, FeatMapConfig, KernelConfig, ModelConfig, RelationConfig
from piecewise_training.dataset import Classes, SyntheticDataset
from piecewise_training.inference import Result, predict
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.networks import FeatMapNet, Relation, build_unary
from piecewise_training.report import RunRecord
from piecewise_training.trainer import plan
from tests.report.conftest import result

SMALL = {"unary": "mobilenetv3_small_050", "pretrained": False}


def test_crf_of_any_kernels(tmp_path: Path) -> None:
    """Named by their kinds, and the same after saving and loading."""
    kernels = [KernelConfig(xy_std=2.0), KernelConfig(30.0, 4.0, 1.5), KernelConfig(60.0, 12.0, compatibility="potts")]
    config = ModelConfig(
        **SMALL, crf_kernels=kernels, crf_learn_bandwidths=False, crf_temperature=True, crf_class_bias=True
    )
    model = build_model(config, Classes.numbered(3), seed=0).eval()
    assert crf_values(model) == {
        name: torch.tensor(value).log().exp().item()
        for name, value in {
            "pos_xy_std": 2.0, "pos_w": 1.0, "bilateral_xy_std": 30.0, "bilateral_rgb_std": 4.0, "bilateral_w": 1.5,
            "bilateral2_xy_std": 60.0, "bilateral2_rgb_std": 12.0, "bilateral2_w": 1.0, "temperature": 1.0,
        }.items()
    } | dict.fromkeys(("bias of class 0", "bias of class 1", "bias of class 2"), 0.0)  # fmt: skip
    assert model.crf is not None
    costs = learned_costs(model)
    assert [*costs] == ["pos", "bilateral"]  # Potts is not learned
    assert costs["pos"][0] == [0.0, 1.0, 1.0]
    nn.init.normal_(model.crf.bilateral_compatibility)
    model.save(tmp_path / "model.safetensors")
    loaded = PiecewiseTrainedModel.load(tmp_path / "model.safetensors")
    image = torch.randn(1, 3, 32, 48)
    assert torch.equal(loaded(image)[1], model(image)[1])


def test_the_crfs_updates() -> None:
    config = ModelConfig(unary="mobilenetv3_small_050", pretrained=False, crf_iterations=7, crf_train_iterations=3)
    crf = build_model(config, Classes.numbered(3), seed=0).crf
    assert crf is not None
    assert (crf.num_iterations, crf.train_iterations) == (7, 3)


@pytest.mark.parametrize(
    ("options", "owner"),
    [({"unary": "fcn8s_vgg16"}, "fcn8s_vgg16"), ({"unary": "resnet18", "featmap": FeatMapConfig()}, "a FeatMap-Net")],
)
def test_a_stride_that_would_not_be_used(options: dict[str, Any], owner: str) -> None:
    config = ModelConfig(pretrained=False, output_stride=8, **options)
    with pytest.raises(ValueError, match=f"`model.output_stride` is for timm backbones without featmap; {owner} has"):
        build_model(config, Classes.numbered(3), seed=0)


def test_options_of_kernels_that_are_replaced() -> None:
    config = ModelConfig(
        unary="mobilenetv3_small_050",
        pretrained=False,
        pos_w=2.0,
        crf_compatibility="potts",
        crf_kernels=[KernelConfig(xy_std=2)],
    )
    with pytest.raises(ValueError, match=r"`model.pos_w` and `model.crf_compatibility` would change the two usual ker"):
        build_model(config, Classes.numbered(3), seed=0)
    build_model(dataclasses.replace(config, crf_kernels=None), Classes.numbered(3), seed=0)
    usual = {"pos_w": ModelConfig.pos_w, "crf_compatibility": ModelConfig.crf_compatibility}
    build_model(dataclasses.replace(config, **usual), Classes.numbered(3), seed=0)


def test_the_last_row_is_what_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its pairwise networks are trained and nothing after them."""
    found = SimpleNamespace(unary=result(1), context=result(2), crf=result(3))
    monkeypatch.setattr("piecewise_training.cli.results.evaluate", lambda *_, **__: found)
    trainer: Any = SimpleNamespace(model=None, device=None)
    rows = evaluate_stage(trainer, "stage2_context", None, False)
    assert rows == {"+ context": found.context}
    rows = evaluate_stage(trainer, "stage2_context", None, False, last=True)
    assert list(rows.items()) == [("+ context", found.context), ("+ context, + CRF, default", found.crf)]


def test_a_crf_that_harms_is_told() -> None:
    """Nothing is said of one that does not."""
    around = dict.fromkeys(("package", "torch", "device", "processor", "platform", "date"), "x")
    good, bad = result(9), result(0)
    assert good.scores.miou > bad.scores.miou
    told = notes([], {}, "32", around, {"unary alone": good, "+ CRF, default": bad, "+ CRF, learned": bad})
    assert f"takes mIoU from {100 * good.scores.miou:.1f} to {100 * bad.scores.miou:.1f} here" in told[-1]
    assert told[1].endswith("; precision 32")
    for results in (
        {"unary alone": bad, "+ CRF, learned": good},
        {"unary alone": good, "+ CRF, learned": bad, "joint, unary": bad, "joint, + CRF": good},
        {"unary alone": good},
    ):
        assert len(notes([], {}, "32", around, results)) == 3


def write(folder: Path, results: dict[str, Any], *, use_crf: bool = True) -> RunRecord:
    """Results of three images by a network of random weights."""
    model = PiecewiseTrainedModel(3, 1, use_crf, unary=nn.Conv2d(3, 3, 1)).eval()
    write_results(folder, model, SyntheticDataset(3, (32, 48)), results, configuration={})
    return RunRecord.load(folder)


def of_images(*scores: float) -> Any:
    return dataclasses.replace(result(5), images=scores)


@pytest.mark.parametrize(
    ("rows", "network"),
    [
        (("unary alone", "+ CRF, default", "+ CRF, learned", "joint, unary", "joint, + context", "joint, + CRF"), 3),
        (("unary alone", "+ context", "+ CRF, learned"), 0),
        (("+ CRF, learned", "joint, unary", "joint, + CRF"), 1),
        (("+ context", "+ CRF, learned"), None),
    ],
)
def test_the_gallery_compares_the_final_network_with_its_crf(
    rows: tuple[str, ...], network: int | None, tmp_path: Path
) -> None:
    """Whose labels its pictures show, not those of the network as it was after stage 1."""
    results = {name: of_images(0.1 * place, 0.1 * place, 0.1 * place) for place, name in enumerate(rows)}
    for shown in write(tmp_path, results).gallery:
        assert shown.before == (None if network is None else 0.1 * network)
        assert shown.after == 0.1 * (len(rows) - 1)


def failing(after: int, error: type[BaseException]) -> Any:
    """A `predict` that ends like that after some images."""
    left = iter(range(after))

    def predict_some(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is None:
            raise error
        return predict(*args, **kwargs)

    return predict_some


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_is_interrupted_says_one_thing(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new numbers everywhere and no picture of the old ones, or the old ones alone."""
    write(tmp_path, {"unary alone": result(5), "+ CRF": result(9)})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    new = {"unary alone": result(3), "+ another": result(4)}
    for images in (1, 4):  # in the samples, of which nothing is written yet; in the gallery
        with monkeypatch.context() as patch:
            patch.setattr("piecewise_training.cli.results.predict", failing(images, error))
            with pytest.raises(error):
                write(tmp_path, new)
        if images == 1:
            assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    says_what_is_new(tmp_path, new)
    write(tmp_path, {"unary alone": result(5), "+ CRF": result(9)})
    with monkeypatch.context() as patch:  # and in the pictures
        patch.setattr("piecewise_training.visualization.save_figure", failing(0, error))
        with pytest.raises(error):
            write(tmp_path, new)
    says_what_is_new(tmp_path, new)
    assert not [*tmp_path.glob("*.png")]


def says_what_is_new(folder: Path, new: Mapping[str, Result]) -> None:
    """The record, the page and the table, without pictures."""
    record = RunRecord.load(folder)
    assert [*record.results] == [*new]
    assert not record.gallery
    page = (folder / "report.html").read_text()
    assert "+ another" in page
    assert "data:image" not in page
    assert "+ another" in (folder / "metrics_summary.txt").read_text()


@pytest.mark.parametrize(("row", "use_crf"), [("unary alone", False), ("+ CRF, learned", True)])
def test_of_a_single_result_nothing_is_compared(row: str, use_crf: bool, tmp_path: Path) -> None:
    write(tmp_path, {"unary alone": of_images(0.5, 0.5, 0.5), "+ CRF": of_images(0.5, 0.25, 0.75)})
    assert (tmp_path / "crf_comparison.png").is_file()
    record = write(tmp_path, {row: of_images(0.5, 0.25, 0.75)}, use_crf=use_crf)
    assert not (tmp_path / "crf_comparison.png").exists()
    assert (tmp_path / "sample_predictions.png").is_file()
    for shown in record.gallery:
        assert [*shown.pictures] == ["image", "truth", "prediction", "errors"]
        with Image.open(tmp_path / shown.pictures["errors"]) as picture:
            colours = {colour for _, colour in picture.convert("RGB").getcolors() or ()}
        assert colours <= {(232, 236, 240), (160, 32, 40), (255, 255, 255)}  # neither mended nor spoilt
    page = (tmp_path / "report.html").read_text()
    assert "75.0 %</h3>" in page
    assert "In the last picture red is wrong, grey right, white void." in page
    assert "the CRF" not in page.split("<main>")[1]


def test_usual_kernels_and_their_options() -> None:
    config = ModelConfig(**SMALL, pos_xy_std=1.5, crf_compatibility="class", crf_spatial="exact")
    crf = build_model(config, Classes.numbered(3), seed=0).crf
    assert crf is not None
    assert crf.pos_compatibility.shape == (3,)
    assert round(crf.pos_xy_std.item(), 4) == 1.5


def test_kernels_from_yaml(tmp_path: Path) -> None:
    kernels = [{"xy_std": 2}, {"xy_std": 30, "rgb_std": 4, "weight": 1.5, "compatibility": "class"}]
    (tmp_path / "kernels.yaml").write_text(yaml.safe_dump({"model": {"crf_kernels": kernels}}))
    parser = build_parser()
    parsed = parser.parse_args(["train", "--config", str(tmp_path / "kernels.yaml")])
    found = parser.instantiate(parsed).train.model.crf_kernels
    assert found == [KernelConfig(xy_std=2.0), KernelConfig(30.0, 4.0, 1.5, "class")]


def test_context_from_yaml() -> None:
    """The shipped configuration, with a trunk that needs no file."""
    path = Path(__file__).parents[2] / "configs" / "camvid_context_lite0.yaml"
    parser = build_parser()
    flags = ["--model.unary", "mobilenetv3_small_050", "--model.pretrained", "false", "--model.featmap.widths", "[6]"]
    config = parser.instantiate(parser.parse_args(["train", "--config", str(path), *flags])).train.model
    model = build_model(config, Classes.numbered(3), seed=0).eval()
    network: Any = model.unary
    assert (network.scales, network.pooling, network.channels) == ((1.2, 0.8, 0.4), (5, 9), 54)
    assert model.context is not None
    assert model.context.relations == (Relation("surrounding"), Relation("above_below"))
    assert (model.context.channels, model.context.iterations) == (54, 3)
    log_q = model(torch.randn(1, 3, 40, 48))[1]
    assert log_q is not None
    torch.testing.assert_close(log_q.exp().sum(1), torch.ones(1, 40, 48))


def test_papers_configuration() -> None:
    path = Path(__file__).parents[2] / "configs" / "voc2012_context_vgg16.yaml"
    parser = build_parser()
    config = parser.instantiate(parser.parse_args(["train", "--config", str(path)])).train
    assert plan(config.training, context=True)[1].name == "stage2_context"
    assert config.model.featmap == FeatMapConfig(widths=(4096, 512, 512))
    with torch.device("meta"):  # 340 million parameters
        network = build_unary("vgg16", 21, pretrained=False, featmap=dataclasses.asdict(config.model.featmap))
    assert isinstance(network, FeatMapNet)
    assert network.channels == 3 * 3 * 512


def test_relations_of_one_kind_are_told_apart() -> None:
    relations = (RelationConfig("surrounding"), RelationConfig("surrounding"), RelationConfig("above_below"))
    context = ContextConfig(relations, iterations=2, residual=False, stride=9)
    config = ModelConfig(**SMALL, featmap=FeatMapConfig(scales=(1.0,)), context=context)
    model = build_model(config, Classes.numbered(3), seed=0)
    assert model.context is not None
    options = dataclasses.asdict(context)
    assert {name: getattr(model.context, name) for name in options if name != "relations"} == {
        name: value for name, value in options.items() if name != "relations"
    }
    values = crf_values(model)
    assert [name for name in values if name.startswith("context")] == [
        "context_surrounding_w", "context_surrounding2_w", "context_above_below_w",
    ]  # fmt: skip

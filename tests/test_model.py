"""PiecewiseTrainedModel: the first code's interface, shapes, saving and loading, errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from piecewise_training.crf import DenseCRF, Kernel
from piecewise_training.dataset import Classes, normalise
from piecewise_training.model import PiecewiseTrainedModel, load_crf
from piecewise_training.networks import ContextualCRF, Relation, vgg
from piecewise_training.storage import read_header


class Blocks(nn.Module):
    """Somebody's own network: score maps at a fifth of the size, whatever that is."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, num_classes, 5, stride=5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.score(image)


def small_model(num_classes: int = 3, **kwargs: object) -> PiecewiseTrainedModel:
    return PiecewiseTrainedModel(num_classes, unary=Blocks(num_classes), **kwargs).eval()  # type: ignore[arg-type]


def test_first_codes_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network() -> None:
        raise OSError("no network")

    monkeypatch.setattr(vgg, "fetch_vgg16", no_network)
    with pytest.warns(UserWarning, match=r"could not be fetched \(.*\); training starts from random weights"):
        model = PiecewiseTrainedModel(num_classes=21, crf_iterations=10, use_crf=True).eval()
    with torch.no_grad():
        unary_output, crf_output = model(torch.randn(1, 3, 48, 64), apply_crf=True)
    assert unary_output.shape == crf_output.shape == (1, 21, 48, 64)
    assert crf_output.argmax(dim=1).shape == (1, 48, 64)
    assert model.crf is not None
    assert model.crf.num_iterations == 10


@pytest.mark.parametrize(("height", "width"), [(32, 32), (37, 53), (5, 6)])
def test_output_has_the_images_size(height: int, width: int) -> None:
    logits, log_q = small_model()(torch.randn(2, 3, height, width))
    assert log_q is not None
    assert logits.shape == log_q.shape == (2, 3, height, width)
    torch.testing.assert_close(log_q.exp().sum(1), torch.ones(2, height, width))


def test_image_is_continued_to_the_networks_multiple() -> None:
    """A part of a larger image is scored as the larger one is; cut to an odd size, only its borders change."""
    model = PiecewiseTrainedModel(3, use_crf=False, unary="resnet18", pretrained=False).eval()
    assert model.unary.multiple == 16
    image = torch.nn.functional.pad(torch.randn(1, 3, 41, 70), (0, 10, 0, 7), mode="replicate")
    with torch.inference_mode():
        torch.testing.assert_close(model(image[:, :, :41, :70])[0], model(image)[0][:, :, :41, :70])
    assert model.margin(image[:, :, :41, :70]) == (0, 10, 0, 7)
    assert small_model().margin(image[:, :, :41, :70]) == (0, 0, 0, 0)


def test_without_crf() -> None:
    image = torch.randn(1, 3, 20, 20)
    assert small_model()(image, apply_crf=False)[1] is None
    without = small_model(use_crf=False)
    assert without.crf is None
    assert without(image)[1] is None


def test_crf_sees_grey_levels() -> None:
    """The model undoes ImageNet's normalisation itself."""
    pixels = torch.randint(0, 256, (1, 3, 10, 12), dtype=torch.uint8)
    torch.testing.assert_close(small_model().to_grey_levels(normalise(pixels)), pixels.float(), rtol=0, atol=0.01)


def test_crf_is_applied_to_the_logits() -> None:
    model, image = small_model(), torch.randn(1, 3, 20, 25)
    logits, log_q = model(image)
    assert model.crf is not None
    torch.testing.assert_close(log_q, model.crf(logits, model.to_grey_levels(image)))


def test_gradient_reaches_network_and_crf() -> None:
    model = small_model().train()
    _, log_q = model(torch.randn(1, 3, 20, 20))
    nn.functional.nll_loss(log_q, torch.randint(0, 3, (1, 20, 20))).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_options_reach_the_crf() -> None:
    model = small_model(crf_iterations=7, crf={"train_iterations": 2, "pos_xy_std": 1.5})
    assert model.crf is not None
    assert (model.crf.num_iterations, model.crf.train_iterations) == (7, 2)
    assert model.crf.pos_xy_std.item() == pytest.approx(1.5)


def test_saves_and_loads_itself(tmp_path: Path) -> None:
    model = PiecewiseTrainedModel(
        4, 3, unary="mobilenetv3_small_050", pretrained=False, output_stride=32, classes=Classes.named([*"abcd"])
    ).eval()
    assert model.crf is not None
    nn.init.uniform_(model.crf.pos_compatibility)
    model.save(tmp_path / "model.safetensors")
    loaded = PiecewiseTrainedModel.load(tmp_path / "model.safetensors")
    image = torch.randn(1, 3, 33, 40)
    for ours, theirs in zip(loaded(image), model(image), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.classes == model.classes
    assert not loaded.training
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_updates_that_were_set_later_are_saved(tmp_path: Path) -> None:
    model = small_model()
    assert model.crf is not None
    model.crf.num_iterations, model.crf.train_iterations = 1, 2
    model.save(tmp_path / "model.safetensors")
    loaded = PiecewiseTrainedModel.load(tmp_path / "model.safetensors", unary=Blocks(3))
    assert loaded.crf is not None
    assert (loaded.crf.num_iterations, loaded.crf.train_iterations) == (1, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"class_bias": True},
        {"spatial": "exact"},
        {"normalization": "none"},
        {"pos_w": 1.0, "learn_bandwidths": False},
        {"kernels": [Kernel(3.0), Kernel(80.0, 13.0, compatibility="potts")]},
    ],
)
def test_a_crf_that_was_exchanged_is_saved(options: dict[str, Any], tmp_path: Path) -> None:
    model = small_model()
    model.crf = DenseCRF(3, **options)
    with torch.no_grad():
        model.crf.log_pos_w += 0.5
    model.save(tmp_path / "model.safetensors")
    loaded = PiecewiseTrainedModel.load(tmp_path / "model.safetensors", unary=Blocks(3)).crf
    assert loaded is not None
    assert loaded.is_built_like(model.crf)
    assert loaded.configuration() == model.crf.configuration()
    assert all(map(torch.equal, loaded.parameters(), model.crf.parameters()))


def test_a_crf_that_was_taken_away(tmp_path: Path) -> None:
    model = small_model()
    model.crf = None
    model.save(tmp_path / "model.safetensors")
    assert PiecewiseTrainedModel.load(tmp_path / "model.safetensors", unary=Blocks(3)).crf is None


def test_a_crf_that_is_not_for_the_model_is_not_saved(tmp_path: Path) -> None:
    model = small_model()
    model.crf = DenseCRF(4)
    with pytest.raises(ValueError, match="`crf` must have 3 classes; it has 4"):
        model.save(tmp_path / "model.safetensors")
    model.crf = DenseCRF(3, kernels=[Kernel(feature_stds={"depth": 1.0})])
    with pytest.raises(ValueError, match=r"`crf` has kernels of further maps \(depth\)"):
        model.save(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_crf_alone_is_read_without_the_network(tmp_path: Path) -> None:
    model = small_model(crf_iterations=4, crf={"temperature": True, "pos_w": 2.0})
    assert model.crf is not None
    with torch.no_grad():
        model.crf.pos_compatibility += 0.25
    model.save(tmp_path / "piecewise_model_final.safetensors")
    model.crf.save(tmp_path / "crf.safetensors")
    for path in (tmp_path, tmp_path / "piecewise_model_final.safetensors", tmp_path / "crf.safetensors"):
        crf = load_crf(path)
        assert not crf.training
        assert crf.configuration() == model.crf.configuration()
        assert all(map(torch.equal, crf.parameters(), model.crf.parameters()))


@pytest.mark.parametrize(
    "changes", [{"later": 1}, {"kernels": [{"xy_std": 3.0, "later": 1}]}, {"kernels": [{"xy_std": 3.0}]}]
)
def test_a_crf_of_a_later_version_is_refused_in_a_sentence(changes: dict[str, Any], tmp_path: Path) -> None:
    model = small_model()
    assert model.crf is not None
    model.save(tmp_path / "model.safetensors")
    model.crf.save(tmp_path / "crf.safetensors", anything=[1])
    assert json.loads(read_header(tmp_path / "crf.safetensors")["anything"]) == [1]
    for name, part in (("model", "model"), ("crf", "crf")):
        path = tmp_path / f"{name}.safetensors"
        header = read_header(path)
        configuration = json.loads(header[part])
        (configuration["crf"] if name == "model" else configuration).update(changes)
        safetensors.torch.save_file(safetensors.torch.load_file(path), path, header | {part: json.dumps(configuration)})
        with pytest.raises(ValueError, match=rf"{name}.safetensors is damaged, or of a later version: "):
            load_crf(path)


def change_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a saved model's header, whose entries are JSON."""
    header = {name: json.loads(value) if value[0] in "[{" else value for name, value in read_header(path).items()}
    change(header)
    plain = {name: value if isinstance(value, str) else json.dumps(value) for name, value in header.items()}
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, plain)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda header: header["model"].update(later=1), "later"),
        (lambda header: header["model"]["crf"].update(later=1), "later"),
        (lambda header: header["model"]["crf"].update(kernels=[{"xy_std": 3.0, "later": 1}]), "later"),
        (lambda header: header["model"].pop("unary"), "unary"),
        (lambda header: header["model"]["context"]["relations"][0].update(later=1), "later"),
        (lambda header: header["model"]["context"]["relations"][0].update(name="beside"), "beside"),
        (lambda header: header["model"]["context"].pop("relations"), "relations"),
        (lambda header: header["model"]["context"].pop("stride"), "log_factors"),
        (lambda header: header["classes"].pop("colours"), "colours"),
        (lambda header: header.pop("classes"), "classes"),
        (lambda header: header.pop("model"), "model"),
    ],
)
def test_a_model_of_a_later_version_is_refused_in_a_sentence(
    change: Callable[[dict[str, Any]], object], cause: str, tmp_path: Path
) -> None:
    model, path = contextual_model(), tmp_path / "model.safetensors"
    model.save(path)
    change_header(path, change)
    if cause == "log_factors":  # which a model of before strides has under this name
        weights = safetensors.torch.load_file(path)
        del weights["context.log_factors"]
        safetensors.torch.save_file(weights, path, read_header(path))
    with pytest.raises(ValueError, match=rf"model.safetensors (is damaged|does not fit).*: .*{cause}"):
        PiecewiseTrainedModel.load(path, unary=WithFeatures())


def test_a_networks_name_of_a_later_version(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    small_model().save(path)
    change_header(path, lambda header: header["model"].update(unary="later_net"))
    with pytest.raises(ValueError, match=r"model.safetensors is damaged, or of a later version: .*'later_net'"):
        PiecewiseTrainedModel.load(path)


@pytest.mark.parametrize("part", ["model", "crf", "num_classes", "use_crf"])
def test_a_crf_of_a_header_with_a_gap(part: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    small_model().save(path)
    change_header(path, lambda header: (header if part == "model" else header["model"]).pop(part))
    with pytest.raises(ValueError, match=rf"model.safetensors is damaged, or of a later version: '{part}'"):
        load_crf(path)


def test_where_there_is_no_crf_to_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no model .*a.safetensors"):
        load_crf(tmp_path / "a.safetensors")
    small_model(use_crf=False).save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a.safetensors holds a model without a dense CRF"):
        load_crf(tmp_path / "a.safetensors")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="was not written by DenseCRF.save"):
        load_crf(tmp_path / "a.safetensors")


def test_grey_levels_are_exact_after_any_cast() -> None:
    image = torch.rand(1, 3, 4, 5)
    expected = small_model().to_grey_levels(image)
    for cast in (nn.Module.half, nn.Module.bfloat16, nn.Module.double):
        model = small_model()
        assert torch.equal(cast(model).to_grey_levels(image), expected)
        assert torch.equal(model.float().to_grey_levels(image), expected)


def test_a_model_has_images_alone() -> None:
    kernels = [Kernel(3.0), Kernel(30.0, feature_stds={"depth": 1.0})]
    with pytest.raises(ValueError, match=r"`crf` has kernels of further maps \(depth\), but a model is given images"):
        small_model(crf={"kernels": kernels})


def test_loads_from_a_runs_folder(tmp_path: Path) -> None:
    small_model(use_crf=False).save(tmp_path / "piecewise_model_final.safetensors")
    loaded = PiecewiseTrainedModel.load(tmp_path, unary=Blocks(3))
    assert loaded.crf is None


def test_state_dict_round_trip(tmp_path: Path) -> None:
    model, fresh = small_model(), small_model()
    torch.save(model.state_dict(), tmp_path / "piecewise_model_final.pth")
    fresh.load_state_dict(torch.load(tmp_path / "piecewise_model_final.pth"))
    image = torch.randn(1, 3, 20, 20)
    assert torch.equal(fresh(image)[1], model(image)[1])


def test_load_errors(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"the run in .* is not finished .* --resume goes on with it"):
        PiecewiseTrainedModel.load(tmp_path / "run")
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"there is no model .*model.safetensors: name the folder of"):
        PiecewiseTrainedModel.load(path)
    path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"model.safetensors is no safetensors file"):
        PiecewiseTrainedModel.load(path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="holds weights but no model's configuration"):
        PiecewiseTrainedModel.load(path)
    small_model().save(path)
    with pytest.raises(ValueError, match="was saved with a network of its own: pass it as `unary`"):
        PiecewiseTrainedModel.load(path)
    with pytest.raises(ValueError, match="does not fit the network"):
        PiecewiseTrainedModel.load(path, unary=nn.Conv2d(3, 3, 1))
    PiecewiseTrainedModel(3, unary="mobilenetv3_small_050", pretrained=False).save(path)
    with pytest.raises(ValueError, match="was saved with the network 'mobilenetv3_small_050': leave `unary` out"):
        PiecewiseTrainedModel.load(path, unary=Blocks(3))
    with pytest.raises(ValueError, match=r"`path` must end in .safetensors; got .*model.pth"):
        small_model().save(tmp_path / "model.pth")


def test_configuration_is_readable_json(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    PiecewiseTrainedModel(3, 4, unary="mobilenetv3_small_050", pretrained=False).save(path)
    with safetensors.safe_open(path, "pt") as file:
        configuration = json.loads(file.metadata()["model"])
    assert configuration["unary"] == "mobilenetv3_small_050"
    assert configuration["crf_iterations"] == 4


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="`num_classes` must be at least 2; got 1"):
        PiecewiseTrainedModel(1, unary=Blocks(1))
    with pytest.raises(ValueError, match="`num_classes` must be at most 255, which is the label of void; got 256"):
        PiecewiseTrainedModel(256, unary=Blocks(256))
    with pytest.raises(ValueError, match="`classes` must name 3 classes; got 2"):
        small_model(classes=Classes.numbered(2))


@pytest.mark.parametrize("image", [torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8).byte()])
def test_bad_image(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"`image` must be \(B, 3, H, W\) floating point, normalised as ImageNet; got"):
        small_model()(image)


def test_network_that_returns_more_than_scores() -> None:
    class Two(nn.Module):
        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": image, "aux": image}

    message = r"it returned a dict of 'out', 'aux'. Wrap a network that returns more than its scores"
    with pytest.raises(ValueError, match=message):
        PiecewiseTrainedModel(3, unary=Two())(torch.zeros(1, 3, 20, 20))


def test_options_of_any_kind_are_saved(tmp_path: Path) -> None:
    """NumPy's numbers, colours from an array, and kernels as the class that describes them."""
    colours = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    crf = {"kernels": [Kernel(xy_std=np.float32(3)), Kernel(xy_std=30, rgb_std=4)], "train_iterations": np.int64(2)}  # type: ignore[arg-type]
    own = nn.Conv2d(3, 2, 1)
    classes = Classes(("a", "b"), colours)  # type: ignore[arg-type]
    PiecewiseTrainedModel(2, unary=own, crf=crf, classes=classes).save(tmp_path / "m.safetensors")
    loaded = PiecewiseTrainedModel.load(tmp_path / "m.safetensors", unary=own)
    assert loaded.classes.colours == ((1, 2, 3), (4, 5, 6))
    assert loaded.crf is not None
    assert [kernel.xy_std for kernel in loaded.crf.kernels.values()] == [3.0, 30]
    assert loaded.crf.train_iterations == 2


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.second.weight = self.first.weight

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(image))

    model = PiecewiseTrainedModel(3, unary=Tied())
    model.save(tmp_path / "m.safetensors")
    again = PiecewiseTrainedModel.load(tmp_path / "m.safetensors", unary=Tied())
    assert torch.equal(again.unary.first.weight, model.unary.first.weight)


def test_network_of_another_number_of_classes() -> None:
    model = PiecewiseTrainedModel(4, unary=Blocks(3))
    with pytest.raises(ValueError, match=r"`unary` must return 4 score maps .*; it returned \(1, 3, 4, 4\) float32"):
        model(torch.zeros(1, 3, 20, 20))


class WithFeatures(nn.Module):
    """Somebody's own network that shows its feature map."""

    def __init__(self, num_classes: int = 3, channels: int = 5) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, channels, 8, stride=8)
        self.score = nn.Conv2d(channels, num_classes, 1)

    def feature_map(self, image: torch.Tensor) -> torch.Tensor:
        return self.trunk(image)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.score(self.feature_map(image))


def contextual_model(stride: int = 8, **options: Any) -> PiecewiseTrainedModel:
    """One whose pairwise networks are not those that change nothing; its feature map's places lie 8 pixels apart."""
    relations = [Relation("surrounding", box=1.0, hidden=4), Relation("above_below", box=1.0, hidden=4)]
    context = ContextualCRF(5, 3, relations, stride=stride)
    for net in context.nets:
        nn.init.normal_(net.scores.weight, std=3.0)
    return PiecewiseTrainedModel(3, 2, unary=WithFeatures(), context=context, **options).eval()


def test_context_works_on_the_nodes_and_the_crf_on_its_marginals() -> None:
    model, image = contextual_model(), torch.randn(2, 3, 40, 48)
    network: Any = model.unary
    assert model.context is not None
    assert model.crf is not None
    logits, log_q = model(image)
    assert log_q is not None
    features = network.feature_map(image)
    torch.testing.assert_close(logits, nn.functional.interpolate(network.score(features), (40, 48), mode="bilinear"))
    marginals = model.context(network.score(features), features)
    scores = nn.functional.interpolate(marginals, (40, 48), mode="bilinear")
    torch.testing.assert_close(log_q, model.crf(scores, model.to_grey_levels(image)))
    assert not torch.allclose(log_q, model.crf(logits, model.to_grey_levels(image)), atol=1e-2)
    assert model(image, apply_crf=False)[1] is None


@pytest.mark.parametrize(
    ("stride", "rows", "columns"),
    [
        (1, [], []),
        (12, [], []),
        (13, [(0, 2), (2, 4)], [(0, 2), (2, 4), (4, 6)]),
        (19, [(0, 2), (2, 4)], [(0, 2), (2, 4), (4, 6)]),
        (1000, [(0, 4)], [(0, 6)]),
    ],
)
def test_nodes_are_means_of_places_and_the_finer_scores_stay(
    stride: int, rows: list[tuple[int, int]], columns: list[tuple[int, int]]
) -> None:
    """Of 4 x 6 places, 8 pixels apart."""
    model, image = contextual_model(stride), torch.randn(2, 3, 32, 48)
    network: Any = model.unary
    assert model.context is not None
    features = network.feature_map(image)
    nodes = model.score_nodes(image)
    means = features
    if rows:
        cells = [[features[:, :, a:b, c:d].mean((2, 3)) for c, d in columns] for a, b in rows]
        means = torch.stack([torch.stack(row, -1) for row in cells], -2)
    torch.testing.assert_close(nodes.scores, network.score(features))
    torch.testing.assert_close(nodes.features, means)
    torch.testing.assert_close(nodes.coarse, network.score(means))  # a linear layer
    told = model.context(nodes.coarse, means) - network.score(means).log_softmax(1)
    expected = [nn.functional.interpolate(part, (32, 48), mode="bilinear") for part in (nodes.scores, told)]
    torch.testing.assert_close(model.contextual(image, nodes), sum(expected))


def test_context_without_dense_crf() -> None:
    model, image = contextual_model(use_crf=False), torch.randn(1, 3, 40, 48)
    _, log_q = model(image)
    assert log_q is not None
    torch.testing.assert_close(log_q.exp().sum(1), torch.ones(1, 40, 48))
    torch.testing.assert_close(log_q, model.contextual(image, model.score_nodes(image)).log_softmax(1))  # type: ignore[union-attr]


def test_gradient_reaches_the_pairwise_networks() -> None:
    model = contextual_model().train()
    _, log_q = model(torch.randn(1, 3, 40, 48))
    nn.functional.nll_loss(log_q, torch.randint(0, 3, (1, 40, 48))).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_context_is_saved_and_loaded(tmp_path: Path) -> None:
    model, image = contextual_model(), torch.randn(1, 3, 40, 48)
    model.save(tmp_path / "own.safetensors")
    loaded = PiecewiseTrainedModel.load(tmp_path / "own.safetensors", unary=WithFeatures())
    assert torch.equal(loaded(image)[1], model(image)[1])
    named = PiecewiseTrainedModel(
        3,
        2,
        unary="mobilenetv3_small_050",
        pretrained=False,
        featmap={"scales": (1.0, 0.5), "widths": (6,)},
        context={
            "relations": [Relation("above_below", samples=None, hidden=7, symmetric=True)],
            "iterations": 2,
            "stride": 9,
        },
    ).eval()
    assert named.context is not None
    nn.init.normal_(named.context.nets[0].scores.weight)
    named.save(tmp_path / "named.safetensors")
    loaded = PiecewiseTrainedModel.load(tmp_path / "named.safetensors")
    assert torch.equal(loaded(image)[1], named(image)[1])
    assert loaded.context is not None
    assert (loaded.context.relations, loaded.context.iterations) == (named.context.relations, 2)
    assert loaded.context.configuration() == named.context.configuration()


@pytest.mark.parametrize("pretrained", [True, "weights.pth"])
def test_weights_for_a_network_of_ones_own_are_not_left_out_in_silence(pretrained: Any) -> None:
    with pytest.raises(ValueError, match="`pretrained` is for a network by name; load the weights of a module of your"):
        PiecewiseTrainedModel(3, unary=nn.Conv2d(3, 3, 1), pretrained=pretrained)
    PiecewiseTrainedModel(3, unary=nn.Conv2d(3, 3, 1), pretrained=False)


def test_what_was_set_of_a_context_is_saved(tmp_path: Path) -> None:
    model = contextual_model()
    assert model.context is not None
    model.context.iterations = 6
    model.save(tmp_path / "six.safetensors")
    loaded = PiecewiseTrainedModel.load(tmp_path / "six.safetensors", unary=WithFeatures())
    assert loaded.context is not None
    assert loaded.context.iterations == 6
    model.context = None
    model.save(tmp_path / "none.safetensors")
    assert PiecewiseTrainedModel.load(tmp_path / "none.safetensors", unary=WithFeatures()).context is None


def test_a_context_of_before_strides_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its relations had the weight of one each, and its nodes were the feature map's places."""
    model, image = contextual_model(stride=1), torch.randn(1, 3, 40, 48)
    path = tmp_path / "old.safetensors"
    options = model.configuration["context"]
    options.pop("stride")
    with monkeypatch.context() as patch:
        patch.setattr(ContextualCRF, "configuration", lambda self: options)
        model.save(path)
    loaded = PiecewiseTrainedModel.load(path, unary=WithFeatures())
    assert model.context is not None
    assert loaded.context is not None
    assert loaded.context.stride == 1
    torch.testing.assert_close(loaded.context.log_factors, model.context.log_factors + math.log(2))
    model.context.log_factors.data += math.log(2)
    torch.testing.assert_close(loaded(image)[1], model(image)[1])


@pytest.mark.parametrize("name", ["largefov_vgg16", "mobilenetv3_small_050"])
def test_networks_that_show_their_feature_map(name: str) -> None:
    model = PiecewiseTrainedModel(3, 1, unary=name, pretrained=False, context={}).eval()
    image = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        logits, log_q = model(image)
        plain = nn.functional.interpolate(model.unary(image), (32, 48), mode="bilinear")
    assert log_q is not None
    torch.testing.assert_close(logits, plain)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: PiecewiseTrainedModel(3, unary=Blocks(3), context={}),
            "a Blocks has no methods `feature_map` and `score`. Take a FeatMap-Net, or give the network these two",
        ),
        (
            lambda: PiecewiseTrainedModel(3, unary=WithFeatures(), context={}),
            "`context` needs `channels`, those of the feature map, for a network of one's own",
        ),
        (
            lambda: PiecewiseTrainedModel(4, unary=WithFeatures(4), context=ContextualCRF(5, 3)),
            "`context` must have 4 classes; it has 3",
        ),
        (
            lambda: PiecewiseTrainedModel(
                3, unary="mobilenetv3_small_050", pretrained=False, featmap={}, context=ContextualCRF(5, 3)
            ),
            "`context` must take the network's 1152 channels; it takes 5",
        ),
        (
            lambda: PiecewiseTrainedModel(3, unary=Blocks(3), featmap={}),
            "`featmap` needs the name of a trunk as `unary`; got a module",
        ),
    ],
)
def test_contexts_that_do_not_fit(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", ["largefov_vgg16", "fcn8s_vgg16"])
def test_image_is_continued_to_the_cells_of_vggs_poolings(name: str) -> None:
    """Else the cells that stand out beyond the image would be squeezed into it, and the scores shifted with them."""
    model = PiecewiseTrainedModel(3, use_crf=False, unary=name, pretrained=False).eval()
    image = torch.nn.functional.pad(torch.randn(1, 3, 41, 66), (0, 6, 0, 7), mode="replicate")
    with torch.inference_mode():
        torch.testing.assert_close(model(image[:, :, :41, :66])[0], model(image)[0][:, :, :41, :66])


def test_a_context_of_mappings_is_built_and_loaded(tmp_path: Path) -> None:
    options = {"channels": 5, "relations": [{"name": "surrounding", "hidden": 4}]}
    model = PiecewiseTrainedModel(3, unary=WithFeatures(), context=options)
    model.save(tmp_path / "model.safetensors")
    loaded = PiecewiseTrainedModel.load(tmp_path / "model.safetensors", unary=WithFeatures())
    assert loaded.context is not None
    assert loaded.context.relations == (Relation("surrounding", hidden=4),)

"""timm backbones under the decoder."""

from __future__ import annotations

import copy
import pickle
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from piecewise_training.networks import TimmSegmenter, backbones, build_unary
from piecewise_training.networks.backbones import _rename


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 71)])
def test_scores_at_a_quarter(output_stride: int, height: int, width: int) -> None:
    net = TimmSegmenter("mobilenetv3_small_050", 5, output_stride, pretrained=False).eval()
    assert net.backbone.feature_info.reduction()[-1] == output_stride
    assert net(torch.zeros(2, 3, height, width)).shape == (2, 5, -(-height // 4), -(-width // 4))
    assert [output_stride * branch[0].dilation[0] for branch in net.decoder.branches[1:]] == [96, 192]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "convnext_atto",  # stages.0 is stages_0
        "tf_efficientnet_lite0",
        "resnetv2_50",  # stem.conv is stem_conv
        "cspresnet50",
        "densenet121",  # features.conv0 is features_conv0
        "cspnext_tiny",  # below "model"
        "legacy_xception",  # below "body"
    ],
)
def test_weights_of_the_classifier_fit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor of the feature extractor gets what timm's published classifier has."""
    published = timm.create_model(name).state_dict()
    monkeypatch.setattr(backbones, "_fetch", lambda _: published)
    net = TimmSegmenter(name, 5, output_stride=32, pretrained=True)
    own = net.backbone.state_dict()
    renamed = _rename(published, net.backbone)
    assert len({name for name in renamed if name in own}) == len(own)
    assert all(torch.equal(value, renamed[name]) for name, value in own.items())


def test_weights_that_lack_a_layer(tmp_path: Path) -> None:
    state = timm.create_model("resnet18").state_dict()
    del state["conv1.weight"]
    torch.save(state, tmp_path / "headless.pth")
    message = (
        r"headless\.pth lacks 1 of the network's 120 tensors: conv1\.weight\. Take a file of this very network, or"
    )
    with pytest.raises(ValueError, match=message):
        TimmSegmenter("resnet18", 5, pretrained=tmp_path / "headless.pth")


def test_local_weights(lite0_weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "piecewise_training"):
        net = TimmSegmenter("tf_efficientnet_lite0", 11, pretrained=lite0_weights)
    assert "loaded 288 tensors" in caplog.text
    assert "missing: none" in caplog.text
    assert net.backbone.conv_stem.weight.std().item() > 0.1


def test_unknown_backbone() -> None:
    with pytest.raises(ValueError, match="got 'resnet81'. Did you mean .*resnet"):
        TimmSegmenter("resnet81", 5, pretrained=False)
    with pytest.raises(ValueError, match=r"got 'qqqqqqqq'. timm.list_models\(\) gives every name"):
        TimmSegmenter("qqqqqqqq", 5, pretrained=False)


def test_impossible_stride() -> None:
    with pytest.raises(ValueError, match="`output_stride` must be 8, 16 or 32; got 4"):
        TimmSegmenter("resnet18", 5, output_stride=4, pretrained=False)
    with pytest.raises(ValueError, match="'vit_tiny_patch16_224' gives no feature maps at output stride 16"):
        TimmSegmenter("vit_tiny_patch16_224", 5, pretrained=False)


def test_no_early_feature_map(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = torch.nn.Module()
    extractor.feature_info = SimpleNamespace(reduction=lambda: [8, 16], channels=lambda: [4, 8])  # type: ignore[assignment]
    monkeypatch.setattr(backbones, "feature_extractor", lambda *_: extractor)
    for reduction in ([8, 16], [4]):
        extractor.feature_info.reduction = lambda reduction=reduction: reduction
        with pytest.raises(ValueError, match="`unary` 'resnet18' has no feature map at stride 4 or less to find bord"):
            TimmSegmenter("resnet18", 5, pretrained=False)


def answers(_: str, filename: str, *, cached: Any) -> Any:
    """As `huggingface_hub.try_to_load_from_cache`."""
    assert filename == "model.safetensors"
    return cached


def test_cached_weights_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"stem.weight": torch.randn(2, 3)}
    save_file(expected, tmp_path / "cached.safetensors")
    cache = partial(answers, cached=str(tmp_path / "cached.safetensors"))
    monkeypatch.setattr(backbones.huggingface_hub, "try_to_load_from_cache", cache)
    monkeypatch.setattr(backbones.socket, "getaddrinfo", lambda *_: pytest.fail("it asks for the network"))
    found = backbones._fetch("resnet18")
    assert found.keys() == expected.keys()
    assert torch.equal(found["stem.weight"], expected["stem.weight"])


@pytest.mark.parametrize("cached", [None, object()])  # not looked for yet, and known not to be there
def test_weights_that_are_not_cached_are_fetched_if_there_is_a_network(
    cached: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def resolve(host: str, port: int) -> None:
        asked.append((host, port))
        if len(asked) == 1:
            raise socket.gaierror("Name or service not known")

    network = torch.nn.Linear(2, 3)
    monkeypatch.setattr(backbones.huggingface_hub, "try_to_load_from_cache", partial(answers, cached=cached))
    monkeypatch.setattr(backbones.huggingface_hub.constants, "ENDPOINT", "https://hub.test/models")
    monkeypatch.setattr(backbones.urllib.request, "getproxies", dict)
    monkeypatch.setattr(backbones.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(backbones.timm, "create_model", lambda name, pretrained: asked.append(name) or network)
    with pytest.raises(socket.gaierror, match="Name or service not known"):
        backbones._fetch("resnet18")
    assert backbones._fetch("resnet18").keys() == network.state_dict().keys()
    proxies = {"https": "http://proxy.test"}  # which resolves names itself
    monkeypatch.setattr(backbones.urllib.request, "getproxies", lambda: proxies)
    backbones._fetch("resnet34")
    assert asked == [("hub.test", 443), ("hub.test", 443), "resnet18", "resnet34"]


def test_weights_that_nobody_has() -> None:
    with pytest.raises(LookupError, match="timm publishes no weights for darknet17"):
        backbones._fetch("darknet17")


def test_channels_last() -> None:
    with pytest.raises(ValueError, match="'swin_tiny_patch4_window7_224' puts channels last"):
        TimmSegmenter("swin_tiny_patch4_window7_224", 5, output_stride=32, pretrained=False)


def test_names_of_unary_networks() -> None:
    assert type(build_unary("fcn8s_vgg16", 3, pretrained=False)).__name__ == "FCN8s"
    assert type(build_unary("resnet18", 3, pretrained=False, output_stride=32)).__name__ == "TimmSegmenter"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo asks it
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_of_a_compiled_network_have_their_own_weights(copied: Callable[[TimmSegmenter], TimmSegmenter]) -> None:
    """As the guide compiles it for a context, which calls `feature_map` and not the network."""
    torch.compiler.reset()
    net = TimmSegmenter("mobilenetv3_small_050", 3, pretrained=False).eval()
    graphs, image = [], torch.randn(1, 3, 64, 64)
    expected = net.feature_map(image)
    net.backbone.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    torch.testing.assert_close(net.feature_map(image), expected)
    assert graphs
    changed = copied(net)
    with torch.no_grad():
        for parameter in changed.backbone.parameters():
            parameter.zero_()
        assert not torch.allclose(changed.feature_map(image), expected, atol=1e-3)
        torch.testing.assert_close(net.feature_map(image), expected)

"""Where weights come from, and every way in which that fails."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from piecewise_training.networks.weights import initialise, read_state_dict, report_loading, transfer


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1))


def no_network() -> dict[str, torch.Tensor]:
    raise OSError("Name or service not known")


def test_false_leaves_random_weights() -> None:
    net = network()
    before = net[0].weight.clone()
    initialise(net, False, no_network)
    assert torch.equal(net[0].weight, before)


def test_true_and_none_load_what_is_fetched() -> None:
    for pretrained in (True, None):
        net, source = network(), network()
        initialise(net, pretrained, source.state_dict)
        assert torch.equal(net[0].weight, source[0].weight)


def test_true_fails_without_network() -> None:
    with pytest.raises(
        RuntimeError, match=r"`pretrained=True` needs .* could not be fetched \(OSError: Name or service"
    ):
        initialise(network(), True, no_network)


def test_none_warns_once_and_goes_on() -> None:
    with pytest.warns(
        UserWarning, match=r"could not be fetched \(OSError: .*\); training starts from random weights"
    ) as caught:
        initialise(network(), None, no_network)
    assert len(caught) == 1


@pytest.mark.parametrize("kind", ["safetensors", "pth", "checkpoint"])
def test_local_files(tmp_path: Path, kind: str) -> None:
    source, net = network(), network()
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(source.state_dict(), path)
    else:
        torch.save({"state_dict": source.state_dict()} if kind == "checkpoint" else source.state_dict(), path)
    initialise(net, str(path), no_network)
    assert torch.equal(net[1].weight, source[1].weight)


def test_missing_and_unexpected_keys_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    state = network().state_dict()
    del state["1.bias"]
    state["classifier.weight"] = torch.zeros(1)
    with caplog.at_level(logging.INFO):
        report_loading(network(), state, "weights.pth")
    assert "loaded 3 tensors from weights.pth; missing: 1.bias; not used: classifier.weight" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_transfer_takes_what_fits(caplog: pytest.LogCaptureFixture) -> None:
    """A layer for another number of classes begins anew, and is named."""
    net, state = network(), network().state_dict()
    state |= {"1.weight": torch.ones(5, 2, 1, 1), "1.bias": torch.ones(5), "2.bias": torch.ones(5)}
    before = net[1].weight.clone()
    with caplog.at_level(logging.INFO):
        transfer(net, state, "weights.pth")
        transfer(net, net.state_dict(), "the same")
    assert torch.equal(net[0].weight, state["0.weight"])
    assert torch.equal(net[1].weight, before)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "began with 2 of 4 tensors from weights.pth; anew: 1.weight, 1.bias"),
        (logging.INFO, "began with 4 of 4 tensors from the same; anew: none"),
    ]


def test_transfer_of_nothing() -> None:
    with pytest.raises(ValueError, match=r"x.pth has nothing to begin with: it has 0.weight, the model wants 0.weight"):
        transfer(network(), {"0.weight": torch.ones(7)}, "x.pth")


def test_missing_file() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no weights at nowhere.pth: `pretrained` must be True, False, None or"
    ):
        initialise(network(), "nowhere.pth", no_network)


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_broken_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(ValueError, match=f"{name} could not be read as weights"):
        read_state_dict(tmp_path / name)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"evil.pth could not be read as weights"):
        read_state_dict(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_no_state_dict(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list.pth holds no state dict"):
        read_state_dict(tmp_path / "list.pth")


def test_nothing_fits() -> None:
    with pytest.raises(ValueError, match="holds no tensor of this network: it has a, the network wants 0.weight"):
        report_loading(network(), {"a": torch.zeros(1)}, "file")


def test_another_shape() -> None:
    state = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).state_dict()
    with pytest.raises(
        ValueError, match=r"holds 0.bias as \(4,\), the network wants \(2,\), and 3 more tensors differ"
    ):
        report_loading(network(), state, "file")

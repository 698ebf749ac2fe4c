"""The device and the precision of a stage."""

from __future__ import annotations

import pytest
import torch

from piecewise_training.trainer.device import accelerator, best_device, lightning_precision

CPU = torch.device("cpu")


def test_names_for_lightning() -> None:
    assert [accelerator(torch.device(name)) for name in ("cpu", "cuda:1", "mps")] == ["cpu", "gpu", "mps"]
    assert lightning_precision("32", CPU) == lightning_precision(32, CPU) == "32-true"
    assert [lightning_precision(name, torch.device("cuda")) for name in ("bf16", "16")] == ["bf16-mixed", "16-mixed"]


@pytest.mark.parametrize(("capability", "warned"), [("NO AVX", True), ("AVX2", True), ("AVX512", False)])
@pytest.mark.parametrize("precision", ["bf16", "32"])
def test_says_where_bfloat16_is_slow(
    capability: str, warned: bool, precision: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    lightning_precision(precision, CPU)
    said = "bf16 makes training slower on this processor, which has no AVX-512: " in caplog.text
    assert said == (warned and precision == "bf16")


def test_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpu, apple, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda apple=apple: apple)
        assert best_device("auto") == torch.device(expected)
    assert best_device(CPU) == CPU


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="`precision` 16 needs a GPU; on the CPU take bf16 or 32"):
        lightning_precision("16", CPU)
    with pytest.raises(ValueError, match="`device` is cuda:99, but torch finds . GPUs here"):
        best_device("cuda:99")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="`device` is mps, but torch finds no Apple GPU here"):
        best_device("mps")

"""The device and the precision of a stage."""

from __future__ import annotations

import platform

import pytest
import torch

from piecewise_training.trainer.device import accelerator, best_device, lightning_precision

CPU = torch.device("cpu")


def test_names_for_lightning() -> None:
    assert [accelerator(torch.device(name)) for name in ("cpu", "cuda:1", "mps")] == ["cpu", "gpu", "mps"]
    assert lightning_precision("32", CPU) == lightning_precision(32, CPU) == "32-true"
    assert [lightning_precision(name, torch.device("cuda")) for name in ("bf16", "16")] == ["bf16-mixed", "16-mixed"]


@pytest.mark.parametrize(
    ("capability", "known", "missing"),
    [
        ("NO AVX", {}, "AVX-512"),
        ("AVX2", {"avx512_bf16": False}, "AVX-512"),
        ("AVX512", {"avx512_bf16": False, "amx_bf16": False}, "AVX512_BF16"),
        ("AVX512", {"avx512_bf16": False, "amx_bf16": True}, None),
        ("AVX512", {"avx512_bf16": True}, None),
        ("AVX512", None, None),
    ],
)
@pytest.mark.parametrize("precision", ["bf16", "32"])
def test_says_where_bfloat16_is_slow(
    capability: str,
    known: dict[str, bool] | None,
    missing: str | None,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    if known is not None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    lightning_precision(precision, CPU)
    told = [message for message in caplog.messages if "bf16 makes training slower on this processor" in message]
    assert len(told) == (missing is not None and precision == "bf16")
    assert all(f"which has no {missing}: " in message for message in told)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")  # whose capability torch may call NO AVX, too
    caplog.clear()
    lightning_precision(precision, CPU)
    assert not caplog.messages


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

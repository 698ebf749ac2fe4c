"""The device and the precision of a stage."""

from __future__ import annotations

import platform

import pytest
import torch

from piecewise_training.trainer.device import accelerator, best_device, lightning_precision, own_precision

CPU = torch.device("cpu")


def test_names_for_lightning() -> None:
    assert [accelerator(torch.device(name)) for name in ("cpu", "cuda:1", "mps")] == ["cpu", "gpu", "mps"]
    assert [lightning_precision(name) for name in ("32", "bf16", "16")] == ["32-true", "bf16-mixed", "16-mixed"]
    assert own_precision("32", CPU) == own_precision(32, CPU) == "32"
    assert [own_precision(name, torch.device("cuda")) for name in ("bf16", "16", 16)] == ["bf16", "16", "16"]


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
@pytest.mark.parametrize("precision", ["bf16", "32", "auto"])
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
    own_precision(precision, CPU)
    told = [message for message in caplog.messages if "bf16 makes training slower on this processor" in message]
    assert len(told) == (missing is not None and precision == "bf16")
    assert all(f"which has no {missing}: " in message for message in told)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")  # whose capability torch may call NO AVX, too
    caplog.clear()
    own_precision(precision, CPU)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("known", "taken"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": False}, "32"),
        ({"bf16": True}, "32"),  # of an ARM processor, on which nothing was measured
        (None, "32"),
    ],
)
def test_the_precision_that_a_processor_computes_in(
    known: dict[str, bool] | None, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    if known is not None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert own_precision("auto", CPU) == taken
    assert own_precision("auto", torch.device("mps")) == "32"  # whatever its processor can


@pytest.mark.parametrize(("capability", "taken"), [((7, 5), "32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_the_precision_that_a_gpu_computes_in(
    capability: tuple[int, int], taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability)
    assert own_precision("auto", torch.device("cuda:1")) == taken
    assert asked == [torch.device("cuda:1")]


def test_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpu, apple, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda apple=apple: apple)
        assert best_device("auto") == torch.device(expected)
    assert best_device(CPU) == CPU


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="`precision` 16 needs a GPU; on the CPU take bf16 or 32"):
        own_precision("16", CPU)
    with pytest.raises(ValueError, match="`device` is cuda:99, but torch finds . GPUs here"):
        best_device("cuda:99")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="`device` is mps, but torch finds no Apple GPU here"):
        best_device("mps")

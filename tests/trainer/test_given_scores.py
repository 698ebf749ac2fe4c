"""Learning a dense CRF on scores that are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from piecewise_training.crf import DenseCRF, Kernel
from piecewise_training.inference import evaluate_crf
from piecewise_training.losses import cross_entropy
from piecewise_training.processes import Group
from piecewise_training.trainer import learn_crf
from piecewise_training.trainer.given_scores import CRFModule
from tests.crf.scenes import scene

QUANTITIES = {"train_loss", "val_loss", "val_miou", "val_accuracy", "lr", "seconds", "peak_bytes"}
KERNELS = [Kernel(2.0), Kernel(10.0, 10.0)]


def examples(count: int = 4, first: int = 0) -> DataLoader[Any]:
    """Pictures with noisy scores, some void, and the labels behind them; one is smaller than the others."""
    found = []
    for seed in range(first, first + count):
        height, width = (20, 24) if seed % 2 else (18, 21)
        scores, image = scene(height, width, 3, seed)
        noise = torch.randn(scores.shape, generator=torch.Generator().manual_seed(seed))
        target = scores[0].argmax(0)
        target[0, :5] = 255
        found.append(((scores + 2 * noise)[0], image[0], target))
    return DataLoader(found)  # type: ignore[arg-type]


def learned(crf: DenseCRF, *arguments: Any, **options: Any) -> dict[str, list[float]]:
    return learn_crf(crf, examples(), *arguments, progress=False, **{"device": "cpu"} | options)


def state(crf: DenseCRF) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in crf.state_dict().items()}


def test_it_learns() -> None:
    crf = DenseCRF(3, kernels=KERNELS, temperature=True, class_bias=True)
    before = state(crf)
    history = learned(crf, 6, examples(2, first=10), learning_rate=0.05)
    assert history.keys() == QUANTITIES
    assert all(len(values) == 6 for values in history.values())
    assert history["train_loss"][-1] < history["train_loss"][0]
    assert history["lr"][0] == pytest.approx(0.05)
    assert history["lr"][-1] < 0.02
    assert all(not torch.equal(value, before[name]) for name, value in crf.state_dict().items())
    assert not crf.training
    found = evaluate_crf(crf, examples(2, first=10))
    assert found.crf is not None
    assert found.crf.scores.miou > found.unary.scores.miou + 0.05
    assert found.crf.scores.miou == pytest.approx(max(history["val_miou"]))


def test_updates_for_training_and_all_in_validation(updates: list[int]) -> None:
    learned(DenseCRF(3, 6, kernels=KERNELS, train_iterations=2), 2, examples(1, first=10))
    assert updates == [6, 2, 2, 2, 2, 6, 2, 2, 2, 2, 6]


def test_without_validation_the_last_epoch_stays() -> None:
    crf = DenseCRF(3, kernels=KERNELS)
    history = learned(crf)
    assert not history["val_miou"]
    assert len(history["train_loss"]) == 2


def test_the_same_seed_learns_the_same() -> None:
    first, second, third = (DenseCRF(3, kernels=KERNELS) for _ in range(3))
    learned(first, seed=4)
    learned(second, seed=4)
    learned(third, seed=5)  # mirrors other images
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not all(map(torch.equal, first.parameters(), third.parameters()))


def test_a_step_is_that_of_the_loss_or_of_the_mirror_image() -> None:
    scores, image, target = next(iter(examples(1)))
    for flip in (0.0, 1.0):
        crf = DenseCRF(3, kernels=KERNELS)
        module = CRFModule(crf, "cross_entropy", 0.02, flip)
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        loss = module.training_step((scores, image, target), 0)
        batch = [part.flip(-1) if flip else part for part in (scores, image, target)]
        assert torch.equal(loss, cross_entropy(crf(*batch[:2]), batch[2]))


def test_what_was_frozen_stays_so() -> None:
    crf = DenseCRF(3, kernels=KERNELS, learn_bandwidths=False)
    crf.pos_compatibility.requires_grad_(False)
    before = state(crf)
    learned(crf)
    fixed = {name for name, parameter in crf.named_parameters() if not parameter.requires_grad}
    assert fixed == {"log_pos_xy_std", "log_bilateral_xy_std", "log_bilateral_rgb_std", "pos_compatibility"}
    for name, value in crf.state_dict().items():
        assert torch.equal(value, before[name]) == (name in fixed)


def test_a_crf_that_only_got_worse_is_as_it_began(caplog: pytest.LogCaptureFixture) -> None:
    crf = DenseCRF(3, kernels=KERNELS, learn_bandwidths=False)
    before = state(crf)
    learned(crf, 2, examples(2, first=10), learning_rate=2.0)
    assert "the CRF reached" in caplog.text
    assert "it is as it began" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in crf.state_dict().items())


def test_the_best_epoch_stays(caplog: pytest.LogCaptureFixture) -> None:
    crf = DenseCRF(3, kernels=KERNELS, learn_bandwidths=False)
    with caplog.at_level("WARNING"):
        history = learned(crf, 6, examples(2, first=10), learning_rate=0.3)
    assert max(history["val_miou"]) > history["val_miou"][-1]  # it went too far
    assert not caplog.text
    found = evaluate_crf(crf, examples(2, first=10)).crf
    assert found is not None
    assert found.scores.miou == pytest.approx(max(history["val_miou"]))


@pytest.mark.parametrize("steps", [3, 9])  # an epoch has 4: before the first validation, and after two
def test_an_interruption_leaves_no_weights_that_are_worse(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    crf = DenseCRF(3, kernels=KERNELS, learn_bandwidths=False)
    before = state(crf)
    taken: list[int] = []
    step = CRFModule.training_step

    def interrupted(self: CRFModule, batch: Any, index: int) -> torch.Tensor:
        taken.append(index)
        if len(taken) > steps:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(CRFModule, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learned(crf, 4, examples(2, first=10), learning_rate=2.0)
    assert len(taken) == steps + 1
    assert all(torch.equal(value, before[name]) for name, value in crf.state_dict().items())


def test_steps_that_would_spoil_it_end_it() -> None:
    crf = DenseCRF(3, kernels=KERNELS)
    crf.pos_compatibility.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(
        FloatingPointError, match=r"the CRF, step 10: .* not finite, for the 10th .* `learning_rate`\.$"
    ):
        learned(crf, 4)
    assert all(bool(value.isfinite().all()) for value in crf.state_dict().values())
    assert not crf.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "`epochs` must be at least 1; got 0"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0; got 0.0"),
        ({"flip": 1.5}, "`flip` must be from 0 to 1; got 1.5"),
        ({"loss": "hinge"}, "`loss` must be cross_entropy, structured, dice, focal or lovasz; got 'hinge'"),
        ({"val_loader": DataLoader([])}, "`val_loader` yields no batch"),  # type: ignore[arg-type]
        ({"device": "cuda:99"}, "`device` is cuda:99, but torch finds"),
    ],
)
def test_what_cannot_be_learned_with(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learned(DenseCRF(3, kernels=KERNELS), **options)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piecewise_training.processes.current", lambda: Group(rank=1, size=2))
    with pytest.raises(ValueError, match="`learn_crf` learns in one process, and this is one of several"):
        learned(DenseCRF(3, kernels=KERNELS))


def test_what_cannot_be_learned_on() -> None:
    options: dict[str, Any] = {"device": "cpu", "progress": False}
    with pytest.raises(ValueError, match="`train_loader` yields no batch"):
        learn_crf(DenseCRF(3), DataLoader([]), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`crf` has nothing to learn"):
        learn_crf(DenseCRF(3).requires_grad_(False), examples(), **options)
    with pytest.raises(ValueError, match=r"`unary_logits` must have 4 classes; got \(1, 3, 18, 21\)"):
        learn_crf(DenseCRF(4), examples(), **options)
    scores, image, target = next(iter(examples(1)))
    for wrong, message in (
        (target + 1, r"`target` must hold classes 0 to 2 or 255 \(void\); it also holds \[3, 256\]"),
        (
            target[:, 1:],
            r"labels must be \(B, H, W\) and fit their scores; got \(1, 17, 21\) int64 for \(1, 3, 18",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            learn_crf(DenseCRF(3), DataLoader([(scores[0], image[0], wrong[0])]), **options)  # type: ignore[arg-type]

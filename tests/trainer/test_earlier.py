"""Stage 2 on the scores of weights from earlier in stage 1."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from piecewise_training.config import OptimConfig, TrainConfig
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer import PiecewiseTrainer

CONFIG = TrainConfig(crf_scores_at=0.5, optim=OptimConfig(learning_rate=0.05))


class Watched(DataLoader[Any]):
    """A loader that takes down a model's weights whenever an epoch begins, or is interrupted then."""

    def __init__(self, model: PiecewiseTrainedModel, interrupted_at: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        image, label = torch.randn(6, 3, 8, 8, generator=generator), torch.randint(0, 3, (6, 8, 8), generator=generator)
        super().__init__(TensorDataset(image, label), 2)
        self.model, self.interrupted_at = model, interrupted_at
        self.weights: list[dict[str, torch.Tensor]] = []

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if len(self.weights) == self.interrupted_at:
            raise KeyboardInterrupt
        self.weights.append({name: value.clone() for name, value in self.model.unary.state_dict().items()})
        return super().__iter__()


def small_model() -> PiecewiseTrainedModel:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
    return PiecewiseTrainedModel(3, unary=network)


def trainer_of(model: PiecewiseTrainedModel, config: TrainConfig = CONFIG, **options: Any) -> PiecewiseTrainer:
    return PiecewiseTrainer(model, "cpu", 3, config=config, progress=False, **options)


def refined(model: PiecewiseTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The scores that the CRF is given."""
    given: list[torch.Tensor] = []
    refine = model.refine

    def watched(image: torch.Tensor, logits: torch.Tensor, *others: Any) -> torch.Tensor:
        given.append(logits.detach().clone())
        return refine(image, logits, *others)

    monkeypatch.setattr(model, "refine", watched)
    return given


@torch.no_grad()
def test_the_crf_learns_on_the_scores_of_earlier_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    loader, trainer = Watched(model), trainer_of(model)
    trainer.train_unary(loader, 4)
    network = small_model().unary.eval()
    network.load_state_dict(loader.weights[2])  # as the third epoch began
    own = {name: value.clone() for name, value in model.unary.state_dict().items()}
    given = refined(model, monkeypatch)
    trainer.train_crf(loader, 1, val_loader=loader)
    before, learned, after = given[:3], given[3:6], given[6:]
    batches = [image for image, _ in DataLoader(loader.dataset, 2)]
    for scores, image in zip(learned, batches, strict=True):
        torch.testing.assert_close(scores, network(image))
        assert (scores - model.unary(image)).abs().max() > 0.01
    for scores, image in zip(before + after, 2 * batches, strict=True):  # what is judged is the trained network
        torch.testing.assert_close(scores, model.unary(image))
    assert all(torch.equal(value, own[name]) for name, value in model.unary.state_dict().items())


def test_it_is_the_mean_of_weights_where_that_is_kept(tmp_path: Path) -> None:
    model = small_model()
    loader = Watched(model)
    trainer_of(model, replace(CONFIG, ema=0.9), output_dir=tmp_path).train_unary(loader, 4)
    kept = torch.load(tmp_path / "checkpoints/stage1/earlier.ckpt", weights_only=True)["state_dict"]
    short = small_model()
    trainer_of(short, replace(CONFIG, ema=0.9, optim=replace(CONFIG.optim, step_epochs=9))).train_unary(
        Watched(short), 2
    )
    assert {name.removeprefix("model.unary.") for name in kept} == set(short.unary.state_dict())
    for name, value in short.unary.state_dict().items():
        torch.testing.assert_close(kept[f"model.unary.{name}"], value)
    assert not torch.equal(kept["model.unary.0.weight"], loader.weights[2]["0.weight"])


@pytest.mark.parametrize("interrupted_at", [2, 3])
def test_a_resumed_run_learns_on_the_same(
    tmp_path: Path, interrupted_at: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Interrupted as the third epoch began, whose weights are the ones, or after it, when they were kept."""
    model = small_model()
    loader = Watched(model, interrupted_at)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(model, output_dir=tmp_path).train_unary(loader, 4)
    other = small_model()
    caplog.clear()
    for _ in range(2):  # an interrupted stage 1, and then a finished one
        trainer_of(other, output_dir=tmp_path).train_piecewise(Watched(other), 4, 1, 0, resume=True)
        shutil.rmtree(tmp_path / "checkpoints" / "stage2")
    assert not caplog.messages
    kept = torch.load(tmp_path / "checkpoints/stage1/earlier.ckpt", weights_only=True)["state_dict"]
    whole = small_model()
    weights = Watched(whole)
    trainer_of(whole).train_unary(weights, 4)
    for name, value in weights.weights[2].items():
        assert torch.equal(kept[f"model.unary.{name}"], value)


@pytest.mark.parametrize("share", [0.25, 0.0])
def test_resumed_with_another_share_they_are_not_the_ones(
    tmp_path: Path, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model()
    trainer_of(model, output_dir=tmp_path).train_unary(Watched(model), 4)
    given = refined(model, pytest.MonkeyPatch())
    trainer_of(model, replace(CONFIG, crf_scores_at=share), output_dir=tmp_path).train_piecewise(
        Watched(model), 4, 1, 0, resume=True
    )
    with torch.no_grad():
        torch.testing.assert_close(given[0], model.unary(next(iter(Watched(model)))[0]))
    assert len(caplog.messages) == (share > 0)


def test_without_such_weights_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    own = "stage2 learns on the trained network's own scores: "
    model = small_model()
    trainer = trainer_of(model)
    trainer.train_crf(Watched(model), 1)
    assert own + "no weights of earlier in stage 1 were kept, as `crf_scores_at` 0.5 asks" in caplog.messages
    caplog.clear()
    trainer.train_unary(Watched(model), 1)  # the first epoch is the last
    trainer.train_crf(Watched(model), 1)
    assert len(caplog.messages) == 1
    caplog.clear()
    trainer.train_unary(Watched(model), 2)
    trainer.train_crf(Watched(model), 1)
    before = {name: value.clone() for name, value in model.unary.named_parameters()}
    trainer.fine_tune(Watched(model), 1)
    assert not any(torch.equal(value, before[name]) for name, value in model.unary.named_parameters())
    trainer_of(model, TrainConfig()).train_crf(Watched(model), 1)
    assert not caplog.messages


def test_a_contextual_crf_wants_the_trained_network(caplog: pytest.LogCaptureFixture) -> None:
    model = PiecewiseTrainedModel(
        3, unary="mobilenetv3_small_050", pretrained=False, featmap={"scales": [1.0]}, context={}
    )
    trainer = trainer_of(model)
    trainer.train_piecewise(Watched(model), 2, 1, 0)
    assert caplog.messages == [
        "`crf_scores_at` 0.5 has no effect: a contextual CRF reads the trained network's features",
        "stage2 learns on the trained network's own scores: a contextual CRF reads the trained network's features, "
        "whatever `crf_scores_at` 0.5 says",
    ]


def test_weights_of_another_network_are_not_this_ones_earlier_ones(caplog: pytest.LogCaptureFixture) -> None:
    said = "stage2 learns on the trained network's own scores: it is not the one that stage 1 left"
    model = small_model()
    trainer = trainer_of(model)
    trainer.train_unary(Watched(model), 2)
    own = {name: value.clone() for name, value in model.unary.state_dict().items()}
    for network in (small_model().unary, nn.Conv2d(3, 3, 1)):
        caplog.clear()
        model.unary, trained = network, model.unary
        trainer.train_crf(Watched(model), 1)
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith(said)
        model.unary = trained
    caplog.clear()
    trainer.train_crf(Watched(model), 1)
    assert not caplog.messages
    with torch.no_grad():
        model.unary[1].running_mean += 1
    trainer.train_crf(Watched(model), 1)
    assert caplog.messages[0].startswith(said)
    caplog.clear()
    model.unary.load_state_dict(own)
    trainer.train_crf(Watched(model), 1)
    assert not caplog.messages
    trainer.train_unary(Watched(model), 1)  # which keeps none: those of the stage 1 before are not its own
    trainer.train_crf(Watched(model), 1)
    assert "no weights of earlier in stage 1 were kept" in caplog.messages[-1]


def test_weights_that_are_later_than_the_best_are_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = PiecewiseTrainedModel(3, unary=nn.Conv2d(3, 3, 1))
    config = replace(CONFIG, optim=OptimConfig(learning_rate=1e-9))  # the first of equal epochs is the best
    trainer_of(model, config).train_piecewise(Watched(model), 4, 1, 0, Watched(model))
    said = "stage1 keeps the weights of its epoch 1, and those of epoch 2, which `crf_scores_at` 0.5 asks for, are not "
    assert caplog.messages[0].startswith(said)
    assert caplog.messages[1].startswith("stage2 learns on the trained network's own scores: no weights of earlier")


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_the_share_has_a_range(share: float) -> None:
    with pytest.raises(ValueError, match=rf"`crf_scores_at` must be from 0 to below 1; got {share}\."):
        trainer_of(small_model(), TrainConfig(crf_scores_at=share))

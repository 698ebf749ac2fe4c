"""PiecewiseTrainer: what each stage moves and leaves alone, history, best weights, resuming, errors."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from piecewise_training.config import OptimConfig, TrainConfig
from piecewise_training.dataset import Classes, SyntheticDataset
from piecewise_training.dataset.transforms import augmentation
from piecewise_training.inference import evaluate
from piecewise_training.losses import class_weights
from piecewise_training.metrics import SegmentationMetrics
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.processes import Group
from piecewise_training.trainer import PiecewiseTrainer, crf_stage, unary_stage
from piecewise_training.trainer.counting import count_classes
from piecewise_training.trainer.judge import Judge
from piecewise_training.trainer.module import StageModule

QUANTITIES = {"train_loss", "val_loss", "val_miou", "val_accuracy", "lr", "seconds", "peak_bytes"}


class Small(nn.Module):
    """A network with batch norm and dropout, whose running statistics would betray it."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(8, classes, 1)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


def loader(count: int = 8, batch_size: int = 4, seed: int = 0) -> DataLoader[Any]:
    """Images whose class is their brightest channel, in blocks, with noise and some void."""
    g = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 3, (count, 4, 5), generator=g)
    label = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    image = nn.functional.one_hot(label, 3).movedim(-1, 1).float() + 0.4 * torch.randn(count, 3, 16, 20, generator=g)
    label[:, 0, :3] = 255
    return DataLoader(TensorDataset(image, label), batch_size)


class CountsEpochs(DataLoader[Any]):
    """A loader that knows how often it was read from the start."""

    epochs = 0

    def __iter__(self) -> Any:
        self.epochs += 1
        return super().__iter__()


class Killed(CountsEpochs):
    """A loader whose run ends before its third epoch."""

    def __iter__(self) -> Any:
        if self.epochs == 2:
            raise RuntimeError("killed")
        return super().__iter__()


def trainer(model: PiecewiseTrainedModel | None = None, **kwargs: Any) -> PiecewiseTrainer:
    model = PiecewiseTrainedModel(3, 3, unary=Small()) if model is None else model
    return PiecewiseTrainer(model, "cpu", num_classes=3, progress=False, **kwargs)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_three_stages_and_their_history() -> None:
    t = trainer(learning_rate=0.05)
    history = t.train_piecewise(loader(), stage1_epochs=3, stage2_epochs=2, stage3_epochs=1, val_loader=loader(seed=1))
    assert {stage: len(values["train_loss"]) for stage, values in history.items()} == {
        "stage1": 3, "stage2": 2, "stage3": 1,
    }  # fmt: skip
    for values in history.values():
        assert set(values) == QUANTITIES
        assert len({len(v) for v in values.values()}) == 1
        assert all(0 <= v <= 1 for v in values["val_miou"])
    assert history["stage1"]["train_loss"][-1] < history["stage1"]["train_loss"][0]
    assert history["stage3"]["lr"] == [pytest.approx(0.005)]


def test_classes_that_are_not_judged_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    images, labels = loader().dataset[:]  # type: ignore[index]
    lacking = DataLoader(TensorDataset(images, labels.where(labels != 1, 255)), 4)
    model = PiecewiseTrainedModel(3, 3, unary=Small(), classes=Classes.named(["sky", "sea", "land"]))
    t = trainer(model)
    t.train_piecewise(loader(), 2, 1, 0, val_loader=lacking)
    assert caplog.text.count("the validation labels hold no pixel of sea: how well that is learned is not judged") == 1
    assert "write 1" not in caplog.text
    caplog.clear()
    trainer().train_unary(loader(), 1, loader())
    assert "no pixel" not in caplog.text


def test_masks_of_0_and_255_are_told(caplog: pytest.LogCaptureFixture) -> None:
    images, labels = loader().dataset[:]  # type: ignore[index]
    masks = DataLoader(TensorDataset(images, torch.where(labels == 1, 255, 0)), 4)
    model = PiecewiseTrainedModel(2, 3, unary=nn.Conv2d(3, 2, 1))
    PiecewiseTrainer(model, "cpu", num_classes=2, progress=False).train_unary(masks, 1, masks)
    assert "no pixel of class 1: " in caplog.text
    assert "; where masks hold 0 and 255, write 1 in place of 255, which is void" in caplog.text


def test_stage_1_leaves_the_crf_alone() -> None:
    t = trainer(learning_rate=0.05)
    assert t.model.crf is not None
    crf, unary = snapshot(t.model.crf), snapshot(t.model.unary)
    t.train_unary(loader(), 1)
    assert not moved(t.model.crf, crf)
    assert moved(t.model.unary, unary) == set(unary)


def test_stage_2_really_fixes_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one weight or running statistic moves, in training or in validation; everything of the CRF does."""
    monkeypatch.setattr(Judge, "after", lambda *_: None)  # whatever it has brought
    t = trainer()
    assert t.model.crf is not None
    crf, unary = snapshot(t.model.crf), snapshot(t.model.unary)
    t.train_crf(loader(), 2, val_loader=loader(seed=1))
    assert not moved(t.model.unary, unary)
    assert moved(t.model.crf, crf) == set(crf)


def test_the_crf_makes_its_updates_for_training_there_and_all_in_validation(updates: list[int]) -> None:
    model = PiecewiseTrainedModel(3, 7, unary=Small(), crf={"train_iterations": 3})
    trainer(model).train_crf(loader(), 2, loader(4, seed=1))
    assert updates == [7, 3, 3, 7, 3, 3, 7]  # what it begins with, then each epoch's two batches and validation


def test_stage_2_takes_no_gradient_of_the_network() -> None:
    t = trainer()
    seen = []
    t.model.unary.register_forward_hook(lambda module, _, out: seen.append((module.training, out.requires_grad)))
    t.train_crf(loader(), 1)
    assert set(seen) == {(False, False)}


def test_gradients_are_as_the_user_left_them() -> None:
    """What a stage freezes thaws after it; what the user has frozen stays so, and still."""
    t = trainer(learning_rate=0.05)
    first = t.model.unary.layers[0]
    first.requires_grad_(False)
    before = first.weight.clone()
    t.train_piecewise(loader(), 1, 1, 1)
    assert torch.equal(first.weight, before)
    assert [n for n, p in t.model.named_parameters() if not p.requires_grad] == [
        "unary.layers.0.weight", "unary.layers.0.bias",
    ]  # fmt: skip


@pytest.mark.parametrize("epochs", [(1, 0, 0), (0, 1, 0)])
def test_the_model_is_left_on_the_trainers_device(
    epochs: tuple[int, int, int], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning leaves it on the CPU."""
    model = PiecewiseTrainedModel(3, 3, unary=Small())
    moves: list[torch.device] = []
    move = model.to
    monkeypatch.setattr(model, "to", lambda place: moves.append(place) or move(place))
    t = PiecewiseTrainer(model, device, num_classes=3, progress=False)
    t.train_piecewise(loader(), *epochs)
    assert moves[-1] == t.device
    assert {p.device.type for p in model.parameters()} == {device.type}
    assert not model.training


def test_frozen_normalisation_keeps_its_statistics() -> None:
    t = trainer(learning_rate=0.05)
    norm = t.model.unary.layers[1]
    norm.requires_grad_(False)
    before = snapshot(norm)
    t.train_piecewise(loader(), 1, 1, 1)
    assert moved(norm, before) == set()


def test_stage_3_moves_both() -> None:
    t = trainer(learning_rate=0.05)
    before = snapshot(t.model)
    t.fine_tune(loader(), 1)
    assert moved(t.model, before) == set(before)


def test_joint_and_independent() -> None:
    t = trainer(learning_rate=0.05)
    before = snapshot(t.model)
    assert list(t.train_joint(loader(), 1)) == ["stage3"]
    assert moved(t.model, before) == set(before)
    assert list(t.train_independent(loader(), 1, 1)) == ["stage1", "stage2"]


def test_a_method_has_its_own_strategy_and_epochs() -> None:
    """Whatever the configuration says."""
    config = TrainConfig(strategy="joint", stage1_epochs=9, stage2_epochs=9, stage3_epochs=9)
    t = trainer(config=config)

    def epochs(history: dict[str, dict[str, list[float]]]) -> dict[str, int]:
        return {stage: len(values["train_loss"]) for stage, values in history.items()}

    assert epochs(t.train_piecewise(loader(), 1, 2, 0)) == {"stage1": 1, "stage2": 2}
    assert epochs(t.train_independent(loader(), 2, 1)) == {"stage1": 2, "stage2": 1}
    piecewise = trainer(config=dataclasses.replace(config, strategy="piecewise"))
    assert epochs(piecewise.train_joint(loader(), 2)) == {"stage3": 2}


def test_epochs_by_default_are_those_of_the_configuration() -> None:
    def defaults(method: Any) -> dict[str, int]:
        parameters = inspect.signature(method).parameters.values()
        return {p.name: p.default for p in parameters if p.name.endswith("epochs")}

    config = TrainConfig()
    first, second, third = config.stage1_epochs, config.stage2_epochs, config.stage3_epochs
    both = {"stage1_epochs": first, "stage2_epochs": second}
    t = PiecewiseTrainer
    assert defaults(t.train_piecewise) == both | {"stage3_epochs": third}
    assert defaults(t.train_independent) == both
    for method, epochs in (
        (t.train_joint, first + second + third),
        (t.train_unary, first),
        (t.train_context, config.context_epochs),
        (t.train_crf, second),
        (t.fine_tune, third),
    ):
        assert defaults(method) == {"epochs": epochs}


def test_best_weights_are_kept(tmp_path: Path) -> None:
    """Labels that turn wrong after two epochs wreck the network: the best epoch's weights are left."""

    class TurnsWrong(DataLoader[Any]):
        epochs = 0

        def __iter__(self) -> Any:
            self.epochs += 1
            wrong = self.epochs > 2
            return ((image, (label + 1) % 3 if wrong else label) for image, label in super().__iter__())

    t = trainer(learning_rate=0.1, output_dir=tmp_path)
    val = loader(seed=1)
    history = t.run_stage(unary_stage(6), TurnsWrong(loader().dataset, 4), val)
    assert history["val_miou"][-1] < max(history["val_miou"])
    metrics = SegmentationMetrics(3)
    with torch.inference_mode():
        for image, label in val:
            metrics.update(t.model(image, apply_crf=False)[0].argmax(1), label)
    assert metrics.compute().miou == pytest.approx(max(history["val_miou"]))
    assert sorted(p.name for p in (tmp_path / "checkpoints" / "stage1").iterdir()) == [
        "best.ckpt", "history.json", "last.ckpt",
    ]  # fmt: skip


def test_same_seed_same_weights() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        t = trainer(seed=3, learning_rate=0.05)
        t.train_piecewise(loader(), 1, 1, 1)
        results.append(snapshot(t.model))
    assert all(torch.equal(results[0][name], value) for name, value in results[1].items())


def test_processes_go_on_in_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several, the shares of the first epoch after an interruption are not those of the very first one."""
    seeds: list[int] = []

    def share(self: Group, loader: DataLoader[Any], seed: int) -> DataLoader[Any]:
        seeds.append(seed)
        if len(seeds) == 2:
            raise KeyboardInterrupt
        return loader

    model = PiecewiseTrainedModel(3, unary=Small())
    trainer(model, output_dir=tmp_path).train_unary(loader(), 1)
    (tmp_path / "checkpoints" / "stage1" / "history.json").unlink()  # as if more epochs were to come
    monkeypatch.setattr(Group, "training_share", share)
    trainer(model).train_unary(loader(), 1)
    with pytest.raises(KeyboardInterrupt):
        trainer(model, output_dir=tmp_path).run_stage(unary_stage(2), loader(), resume=True)
    assert seeds[0] != seeds[1]


def test_resumed_without_validation_the_last_epoch_stays(tmp_path: Path) -> None:
    """Not one that was best while there still was a validation set."""

    class Stops(CountsEpochs):
        def __iter__(self) -> Any:
            if self.epochs == 2:
                raise KeyboardInterrupt
            return super().__iter__()

    torch.manual_seed(1)
    model = PiecewiseTrainedModel(3, unary=nn.Conv2d(3, 3, 1))
    start = snapshot(model)
    trainer(model).train_unary(loader(), 4)
    expected = snapshot(model)
    model.load_state_dict(start)
    with pytest.raises(KeyboardInterrupt):
        trainer(model, output_dir=tmp_path).run_stage(unary_stage(4), Stops(loader().dataset, 4), loader(seed=1))
    for _ in range(2):  # an interrupted stage, and then a finished one
        model.load_state_dict(start)
        again = trainer(model, output_dir=tmp_path)
        again.run_stage(unary_stage(4), loader(), resume=True)
        assert again.best_miou is None
        assert all(torch.equal(expected[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize(("rate", "ema"), [(0.05, 0.0), (1e-9, 0.0), (0.05, 0.5)])
@pytest.mark.parametrize("name", ["part", "moved"])
def test_resume_goes_on_where_it_stopped(tmp_path: Path, validated: bool, rate: float, ema: float, name: str) -> None:
    """A run killed in epoch 4 of 5 ends as the uninterrupted run does, also if the last epochs were not the best.

    So does one whose folder is called otherwise by then.
    """
    val = loader(seed=1) if validated else None

    class KilledError(Exception):
        pass

    class Stops(DataLoader[Any]):
        epochs = 0

        def __iter__(self) -> Any:
            Stops.epochs += 1
            if Stops.epochs == 4:
                raise KilledError
            return super().__iter__()

    torch.manual_seed(1)
    model = PiecewiseTrainedModel(3, unary=nn.Conv2d(3, 3, 1))
    start = snapshot(model)
    config = TrainConfig(ema=ema, optim=OptimConfig(learning_rate=rate))
    whole = trainer(model, output_dir=tmp_path / "whole", config=config)
    expected = whole.run_stage(unary_stage(5), loader(), val)
    final = snapshot(model)

    model.load_state_dict(start)
    with pytest.raises(KilledError):
        trainer(model, output_dir=tmp_path / "part", config=config).run_stage(
            unary_stage(5), Stops(loader().dataset, 4), val
        )
    model.load_state_dict(start)
    (tmp_path / "part").rename(tmp_path / name)
    again = trainer(model, output_dir=tmp_path / name, config=config)
    seen = CountsEpochs(loader().dataset, 4)
    history = again.run_stage(unary_stage(5), seen, val, resume=True)
    assert seen.epochs == 2
    assert history["train_loss"] == pytest.approx(expected["train_loss"])
    assert len(history["lr"]) == 5
    logs = tmp_path / name / "logs" / "csv"
    assert {folder.name for folder in logs.iterdir()} == {"stage1", "stage1_resumed_1"}
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, final[key])


def test_a_resumed_stage_sees_other_batches(tmp_path: Path) -> None:
    """Shuffled anew, and not in the order of the epochs before the interruption."""
    seen: list[list[int]] = []

    class Order(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            seen[-1].append(index)
            return super().__getitem__(index)

    class Notes(DataLoader[Any]):
        epochs = 0

        def __iter__(self) -> Any:
            Notes.epochs += 1
            if Notes.epochs == 3:
                raise RuntimeError("killed")
            seen.append([])
            return super().__iter__()

    def shuffled() -> Notes:
        data = Order(*loader(16).dataset.tensors)  # type: ignore[attr-defined]
        return Notes(data, 4, shuffle=True, generator=torch.Generator().manual_seed(0))

    with pytest.raises(RuntimeError, match="killed"):
        trainer(output_dir=tmp_path).run_stage(unary_stage(4), shuffled())
    trainer(output_dir=tmp_path).run_stage(unary_stage(4), shuffled(), resume=True)
    assert len({tuple(order) for order in seen}) == len(seen) == 4


def test_an_interrupt_is_an_interrupt() -> None:
    class Interrupted(Small):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer(PiecewiseTrainedModel(3, unary=Interrupted())).train_unary(loader(), 1)
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_skips_what_is_finished(tmp_path: Path) -> None:
    first = trainer(output_dir=tmp_path, learning_rate=0.05)
    history = first.run_stage(unary_stage(2), loader(), loader(seed=1))
    fresh = trainer(output_dir=tmp_path)
    fresh.model.load_state_dict(snapshot(fresh.model))
    assert fresh.run_stage(unary_stage(2), [], None, resume=True) == history  # type: ignore[arg-type]
    assert torch.equal(fresh.model.unary.layers[0].weight, first.model.unary.layers[0].weight)
    with pytest.raises(ValueError, match="finds stage1 finished with 2 epochs in .*, and 3 are asked for"):
        fresh.run_stage(unary_stage(3), loader(), None, resume=True)


def test_a_run_begun_anew_leaves_nothing_of_later_stages_to_resume(tmp_path: Path) -> None:
    val = loader(seed=1)
    trainer(output_dir=tmp_path).train_piecewise(loader(), 1, 1, 1, val)
    broken = TensorDataset(torch.zeros(8, 3, 16, 20), torch.full((8, 16, 20), 7))
    with pytest.raises(ValueError, match="`target` must hold classes 0 to 2"):
        trainer(output_dir=tmp_path).train_piecewise(DataLoader(broken, 4), 1, 1, 1, val)
    assert not [*(tmp_path / "checkpoints").glob("*/history.json")]
    again = trainer(output_dir=tmp_path)
    before = snapshot(again.model.unary)
    again.train_piecewise(loader(), 1, 1, 0, val, resume=True)
    assert moved(again.model.unary, before)


@pytest.mark.parametrize("schedule", ["poly", "step"])
def test_rates_go_on_by_epochs_where_a_resumed_one_has_other_steps(tmp_path: Path, schedule: Any) -> None:
    """As where a run goes on in another number of processes, each of which has a share of the batches."""
    optim = OptimConfig(learning_rate=0.01, schedule=schedule, step_epochs=2)
    images = loader(32).dataset

    for name, batch_size in (("finer", 2), ("coarser", 16)):
        with pytest.raises(RuntimeError, match="killed"):
            trainer(output_dir=tmp_path / name, config=TrainConfig(optim=optim)).run_stage(
                unary_stage(4), Killed(images, 8)
            )
        again = trainer(output_dir=tmp_path / name, config=TrainConfig(optim=optim))
        history = again.run_stage(unary_stage(4), DataLoader(images, batch_size), resume=True)
        whole = trainer(config=TrainConfig(optim=optim)).run_stage(unary_stage(4), DataLoader(images, batch_size))
        assert len(whole["lr"]) == 4
        assert history["lr"][2:] == pytest.approx(whole["lr"][2:])


def test_a_resumed_stage_has_the_options_of_now(tmp_path: Path) -> None:
    """Somebody lowers the rate of a run that went astray."""
    images = loader(16).dataset

    first = TrainConfig(optim=OptimConfig(learning_rate=0.01, weight_decay=0.1))
    now = TrainConfig(optim=OptimConfig(learning_rate=0.001, weight_decay=0.2, momentum=0.5))
    with pytest.raises(RuntimeError, match="killed"):
        trainer(output_dir=tmp_path, config=first).run_stage(unary_stage(4), Killed(images, 4))
    history = trainer(output_dir=tmp_path, config=now).run_stage(unary_stage(4), DataLoader(images, 4), resume=True)
    assert history["lr"] == pytest.approx([0.01, 0.01, 0.001, 0.001])
    checkpoint = torch.load(tmp_path / "checkpoints/stage1/last.ckpt", weights_only=True)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    assert [(group["momentum"], group["weight_decay"]) for group in groups] == [(0.5, 0.2), (0.5, 0.0)]
    assert checkpoint["lr_schedulers"][0]["base_lrs"] == [0.001, 0.001]


def test_logs_and_history_on_disk(tmp_path: Path) -> None:
    t = trainer(output_dir=tmp_path)
    history = t.run_stage(crf_stage(1), loader(), loader(seed=1))
    assert json.loads((tmp_path / "checkpoints" / "stage2" / "history.json").read_text()) == history
    assert (tmp_path / "logs" / "csv" / "stage2" / "metrics.csv").is_file()
    assert list((tmp_path / "logs" / "tensorboard" / "stage2").glob("events*"))


def test_leaves_nothing_behind_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer().train_unary(loader(), 1, loader(seed=1))
    assert not list(tmp_path.iterdir())


def test_mean_of_the_weights(tmp_path: Path) -> None:
    """The exponential mean is validated, saved and left; its statistics are those of batch norm's too."""
    torch.manual_seed(2)
    model = PiecewiseTrainedModel(3, use_crf=False, unary=nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    start = snapshot(model)
    config = TrainConfig(optim=OptimConfig(learning_rate=0.05, momentum=0.0, weight_decay=0.0))
    plain, steps = trainer(model, config=config), [start]

    class Watches(DataLoader[Any]):
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                steps.append(snapshot(model))
                yield batch

    plain.run_stage(unary_stage(3), Watches(loader(4).dataset, 4))
    states = [*steps[2:], snapshot(model)]  # after each step
    means = dict(states[0])
    for own, state in zip((2 / 11, 0.2), states[1:], strict=True):
        for name, value in state.items():
            means[name] = own * means[name] + (1 - own) * value if value.is_floating_point() else value
    model.load_state_dict(start)
    averaged = trainer(model, config=dataclasses.replace(config, ema=0.2), output_dir=tmp_path)
    val = loader(seed=1)
    history = averaged.run_stage(unary_stage(3), loader(4), val)
    saved = torch.load(tmp_path / "checkpoints" / "stage1" / "last.ckpt", weights_only=True)["state_dict"]
    assert not torch.allclose(means["unary.1.running_mean"], states[-1]["unary.1.running_mean"], rtol=1e-3)
    for name, mean in means.items():
        torch.testing.assert_close(saved[f"model.{name}"], mean)
    metrics = SegmentationMetrics(3)
    with torch.inference_mode():
        for image, label in val:
            metrics.update(model(image)[0].argmax(1), label)
    assert metrics.compute().miou == pytest.approx(max(history["val_miou"]))


@pytest.mark.parametrize("loss", ["structured", "dice", "focal", "lovasz"])
def test_losses_and_class_weights(loss: Any) -> None:
    config = TrainConfig(
        loss=loss, crf_loss=loss, class_weights="median", precision="bf16", optim=OptimConfig(optimizer="adamw")
    )
    history = trainer(config=config).train_piecewise(loader(), 1, 1, 1)
    assert all(v == v for values in history.values() for v in values["train_loss"])


def test_accumulation_and_clipping_change_the_steps() -> None:
    results = []
    for optim in (OptimConfig(), OptimConfig(accumulate=2), OptimConfig(clip=1e-3)):
        torch.manual_seed(0)
        t = trainer(config=TrainConfig(optim=optim))
        start = t.model.unary.layers[0].weight.detach().clone()
        t.train_unary(loader(), 1)
        results.append((t.model.unary.layers[0].weight - start).norm().item())
    assert results[1] < results[0]
    assert results[2] < 0.1 * results[0]


def test_two_batches_accumulated_are_one_step_on_both() -> None:
    results = []
    for batch_size, optim in ((4, OptimConfig(learning_rate=0.1, accumulate=2)), (8, OptimConfig(learning_rate=0.1))):
        torch.manual_seed(0)
        model = PiecewiseTrainedModel(3, unary=nn.Conv2d(3, 3, 1))
        start = snapshot(model.unary)
        trainer(model, config=TrainConfig(optim=optim)).train_unary(loader(8, batch_size), 2)
        results.append(snapshot(model.unary))
        assert moved(model.unary, start) == set(start)
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name])


@pytest.mark.parametrize("patience", [1, 2])
def test_early_stopping(patience: int) -> None:
    """After so many validations that were not better than the first."""
    config = TrainConfig(patience=patience, optim=OptimConfig(learning_rate=1e-12))
    model = PiecewiseTrainedModel(3, unary=nn.Conv2d(3, 3, 1))
    history = trainer(model, config=config).train_unary(loader(), 10, loader(seed=1))
    assert len(history["train_loss"]) == 1 + patience


@pytest.mark.parametrize(("every", "validated"), [(2, [1, 3, 5]), (3, [2, 5]), (9, [5]), (1, [0, 1, 2, 3, 4, 5])])
def test_validating_every_so_many_epochs(tmp_path: Path, every: int, validated: list[int]) -> None:
    """The last is always among them, and so is the one that is kept."""
    model = PiecewiseTrainedModel(3, unary=nn.Conv2d(3, 3, 1))
    config = TrainConfig(validate_every=every)
    history = trainer(model, config=config, output_dir=tmp_path).train_unary(loader(), 6, loader(seed=1))
    lengths = {name: len(values) for name, values in history.items()}
    assert set(lengths.values()) == {6}, lengths
    for name in ("val_miou", "val_loss", "val_accuracy"):
        assert [epoch for epoch, value in enumerate(history[name]) if not math.isnan(value)] == validated
    best = torch.load(tmp_path / "checkpoints" / "stage1" / "best.ckpt", weights_only=True)
    assert best["epoch"] in validated
    kept = json.loads((tmp_path / "checkpoints" / "stage1" / "history.json").read_text())
    np.testing.assert_equal(kept, history)


def test_a_stage_that_is_seldom_validated_is_undone_as_well() -> None:
    t = trainer(config=TrainConfig(validate_every=2, optim=OptimConfig(crf_learning_rate=1e-12)))
    t._judge.before = lambda *args, **kwargs: 1.0  # type: ignore[method-assign]
    undone: list[float] = []
    t._judge.after = lambda stage, folder, start, best: undone.append(best)  # type: ignore[method-assign]
    history = t.train_crf(loader(), 4, loader(seed=1))
    assert undone == [max(history["val_miou"][1], history["val_miou"][3])]


def test_another_process_may_leave_a_stage_first_and_take_the_folder_along() -> None:
    """What this one still needs of it after they have met for the last time, it would look for in vain."""

    class Meeting(Group):
        folder = ""
        met = 0
        last: int | None = None

        def share(self, value: Any) -> Any:
            Meeting.folder = value
            return value

        def wait(self) -> None:
            Meeting.met += 1
            if Meeting.met == Meeting.last:
                shutil.rmtree(Meeting.folder)

    for _ in range(2):  # the first time to see how often they meet
        t, Meeting.met = trainer(learning_rate=0.05), 0
        t.group = Meeting()
        history = t.train_unary(loader(), 2, loader(seed=1))
        assert t.best_miou == max(history["val_miou"])
        assert not Path(Meeting.folder).exists()
        Meeting.last = Meeting.met


def test_patience_counts_validations_and_not_epochs() -> None:
    config = TrainConfig(patience=2, validate_every=3, optim=OptimConfig(learning_rate=1e-12))
    model = PiecewiseTrainedModel(3, unary=nn.Conv2d(3, 3, 1))
    history = trainer(model, config=config).train_unary(loader(), 30, loader(seed=1))
    assert len(history["train_loss"]) == 9


def test_class_weights_are_those_of_the_images() -> None:
    t = trainer(config=TrainConfig(class_weights="inverse"))
    one, other = loader(seed=1), loader(seed=2)
    found = []
    for batches in (one, one, other):
        t.train_unary(batches, 1)
        found.append(t._weight)
    assert found[0] is found[1]
    assert not torch.equal(found[1], found[2])
    wrong = loader(seed=3)
    wrong.dataset.tensors[1][:] = 7  # type: ignore[attr-defined]
    for _ in range(2):  # as often as one tries
        with pytest.raises(ValueError, match="`target` must hold classes 0 to 2"):
            t.train_unary(wrong, 1)


@pytest.mark.parametrize("validating", [False, True])
def test_being_told_to_end_is_no_success(validating: bool) -> None:
    class Ended(Small):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if self.training != validating:
                signal.raise_signal(signal.SIGTERM)
            return super().forward(image)

    t = trainer(PiecewiseTrainedModel(3, 3, unary=Ended()))
    with pytest.raises(SystemExit) as end:
        t.train_crf(loader(), 1, loader(seed=1)) if validating else t.train_unary(loader(), 1)
    assert end.value.code == 143


def test_class_weights_are_counted_before_augmentation() -> None:
    """Crops would give other weights in every run."""
    data = SyntheticDataset(6, image_size=(32, 40))
    data.transform = augmentation((16, 16), (2.0, 2.0), 0.5, 0.3)
    t = PiecewiseTrainer(
        PiecewiseTrainedModel(7, 2, unary=Small(7)),
        "cpu",
        7,
        config=TrainConfig(class_weights="median"),
        progress=False,
    )
    t.train_unary(DataLoader(data, 2), 1)
    counts = count_classes((torch.from_numpy(data.read(i)[1])[None] for i in range(6)), 7)
    torch.testing.assert_close(t._weight, class_weights(*counts, "median"))


def test_a_stage_that_only_harms_is_undone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    t = trainer(learning_rate=0.05, output_dir=tmp_path)
    val = loader(seed=1)
    first = t.train_unary(loader(), 6, val)
    before = snapshot(t.model)
    wrong = [(image, torch.where(label < 3, (label + 1) % 3, label)) for image, label in loader()]
    images, labels = (torch.cat(part) for part in zip(*wrong, strict=True))
    t.config = TrainConfig(optim=OptimConfig(learning_rate=0.5))
    harm = t.run_stage(unary_stage(3), DataLoader(TensorDataset(images, labels), 4), val)
    assert max(harm["val_miou"]) < max(first["val_miou"])
    assert not moved(t.model, before)
    assert "stage1 reached" in caplog.text
    assert "it is undone" in caplog.text
    again = trainer(output_dir=tmp_path)
    again.run_stage(unary_stage(3), loader(), val, resume=True)
    assert not moved(again.model, before)


def test_a_first_crf_stage_that_only_harms_is_undone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is judged by another prediction than the stage before it, so that its own start is measured."""
    t = trainer(learning_rate=0.05, output_dir=tmp_path)
    val = loader(seed=1)
    t.train_unary(loader(), 6, val)
    before = snapshot(t.model)
    t.config = TrainConfig(optim=OptimConfig(crf_learning_rate=1.0))
    wrong = [(image, torch.where(label < 3, (label + 1) % 3, label)) for image, label in loader()]
    images, labels = (torch.cat(part) for part in zip(*wrong, strict=True))
    harm = t.run_stage(crf_stage(4), DataLoader(TensorDataset(images, labels), 4), val)
    start = evaluate(t.model, val).crf
    assert start is not None
    assert t.best_miou == pytest.approx(start.scores.miou, abs=1e-6)
    assert max(harm["val_miou"]) < t.best_miou
    assert not moved(t.model, before)
    assert "stage2 reached" in caplog.text
    again = trainer(output_dir=tmp_path)
    again.run_stage(unary_stage(6), loader(), val, resume=True)
    again.run_stage(crf_stage(4), loader(), val, resume=True)
    assert not moved(again.model, before)
    assert again.best_miou == t.best_miou
    again.train_crf(loader(), 1)  # without validation
    assert again.best_miou is None


def test_errors(tmp_path: Path) -> None:
    model = PiecewiseTrainedModel(3, unary=Small())
    with pytest.raises(ValueError, match="`num_classes` is 4, the model's 3"):
        PiecewiseTrainer(model, "cpu", num_classes=4)
    with pytest.raises(ValueError, match=r"give `learning_rate` and `weight_decay` in `config.optim` or as arguments"):
        PiecewiseTrainer(model, "cpu", 3, learning_rate=0.5, config=TrainConfig())
    with pytest.raises(ValueError, match="stage2 trains a CRF, but the model has none. Build it with use_crf=True"):
        trainer(PiecewiseTrainedModel(3, use_crf=False, unary=Small())).train_crf(loader(), 1)
    without = trainer(PiecewiseTrainedModel(3, use_crf=False, unary=Small()))
    counting = CountsEpochs(loader().dataset, 4)
    with pytest.raises(ValueError, match="stage2 trains a CRF"):
        without.train_piecewise(counting)
    assert counting.epochs == 0
    with pytest.raises(ValueError, match="stage1 must have at least 1 epoch; got 0"):
        trainer().train_unary(loader(), 0)
    with pytest.raises(ValueError, match="`train_loader` yields no batch: its images do not fill one"):
        trainer().train_unary(DataLoader(loader(3).dataset, 4, drop_last=True), 1)
    with pytest.raises(ValueError, match="`val_loader` yields no batch: its images do not fill one, or it has none"):
        trainer().train_piecewise(loader(), 1, 1, 1, DataLoader(loader().dataset, 99, drop_last=True))
    with pytest.raises(ValueError, match="`patience` counts validations: give a `val_loader`"):
        trainer(config=TrainConfig(patience=2)).train_unary(loader(), 1)
    with pytest.raises(ValueError, match="`optimizer` must be one of sgd, adamw; got 'rmsprop'"):
        trainer(config=TrainConfig(optim=OptimConfig(optimizer="rmsprop")))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`precision` must be one of 32, bf16, 16, auto; got 'fp16'"):
        trainer(config=TrainConfig(precision="fp16"))  # type: ignore[arg-type]
    frozen = PiecewiseTrainedModel(3, unary=Small()).requires_grad_(False)
    with pytest.raises(ValueError, match="stage2 has nothing to train"):
        trainer(frozen).train_crf(loader(), 1)
    with pytest.raises(ValueError, match="`resume` needs the trainer's `output_dir`"):
        trainer().run_stage(unary_stage(1), loader(), resume=True)
    with pytest.raises(ValueError, match="`precision` 16 needs a GPU"):
        trainer(config=TrainConfig(precision="16"))
    with pytest.raises(ValueError, match="`device` is cuda:99"):
        PiecewiseTrainer(model, "cuda:99", num_classes=3)


def test_labels_that_are_no_class() -> None:
    data = TensorDataset(torch.randn(2, 3, 8, 8), torch.full((2, 8, 8), 3))
    with pytest.raises(ValueError, match=r"`target` must hold classes 0 to 2 or 255 \(void\); it also holds \[3\]"):
        trainer().train_unary(DataLoader(data), 1)
    with pytest.raises(ValueError, match=r"`target` must hold classes 0 to 2"):
        trainer().train_unary(loader(), 1, DataLoader(data))


def test_stages_on_images_of_their_own() -> None:
    everywhere, for_crf, for_both = (CountsEpochs(loader(seed=seed).dataset, 4) for seed in (0, 3, 4))
    trainer().train_piecewise(everywhere, 2, 3, 1, crf_loader=for_crf)
    assert (everywhere.epochs, for_crf.epochs) == (3, 3)
    trainer().train_piecewise(everywhere, 2, 1, 4, joint_loader=for_both)
    assert (everywhere.epochs, for_both.epochs) == (3 + 3, 4)
    trainer(config=TrainConfig(strategy="joint")).train_joint(everywhere, 2)
    assert everywhere.epochs == 8


class Spoilt(Small):
    """A network whose last layer gets a gradient of NaN in some backward passes."""

    def __init__(self, passes: set[int]) -> None:
        super().__init__()
        self.count = 0
        self.layers[-1].weight.register_hook(lambda gradient: self.spoil(gradient, passes))

    def spoil(self, gradient: torch.Tensor, passes: set[int]) -> torch.Tensor:
        self.count += 1
        return gradient * float("nan") if self.count in passes else gradient


def test_a_step_with_a_broken_gradient_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    spoilt = PiecewiseTrainedModel(3, 3, unary=Spoilt({2}))
    trainer(spoilt).train_unary(loader(), 2)
    assert "stage1, step 2: the gradient of model.unary.layers.4.weight and 0 others is not finite" in caplog.text
    assert caplog.text.count("left out") == 1
    assert all(bool(value.isfinite().all()) for value in spoilt.state_dict().values())


def test_a_step_that_is_left_out_leaves_no_statistics(caplog: pytest.LogCaptureFixture) -> None:
    """Batch norm takes them down on the way forwards, and what is not finite once would stay so."""
    images, labels = next(iter(loader()))
    images = torch.cat([images, torch.full_like(images, float("inf")), images])
    batches = DataLoader(TensorDataset(images, labels.repeat(3, 1, 1)), 4)
    torch.manual_seed(0)
    model = PiecewiseTrainedModel(3, unary=Small())
    for config in (TrainConfig(), TrainConfig(ema=0.5), TrainConfig(optim=OptimConfig(accumulate=3))):
        t = trainer(model, config=config)
        history = t.train_unary(batches, 2, loader(seed=1))
        assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
        assert len(history["val_miou"]) == 2
    assert "stage1, step 2: " in caplog.text


def test_a_step_that_is_left_out_leaves_no_statistics_of_any_scale() -> None:
    """A FeatMap-Net keeps those of its other scales beside its trunk."""
    images = torch.randn(3, 3, 64, 64)
    images[1] = float("inf")
    batches = DataLoader(TensorDataset(images, torch.zeros(3, 64, 64, dtype=torch.long)))
    model = PiecewiseTrainedModel(
        3, unary="mobilenetv3_small_050", pretrained=False, featmap={"scales": [1.0, 0.5]}, context={}
    )
    trainer(model).train_unary(batches, 1)
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())


def test_training_ends_where_gradients_stay_broken() -> None:
    spoilt = PiecewiseTrainedModel(3, 3, unary=Spoilt(set(range(3, 100))))
    with pytest.raises(FloatingPointError, match=r"stage1, step 12: the gradient of .* Lower `learning_rate`"):
        trainer(spoilt).train_unary(loader(), 20)
    assert all(bool(value.isfinite().all()) for value in spoilt.state_dict().values())


def test_half_precision_has_its_scaler_come_down_before_training_ends() -> None:
    """Its scaler leaves steps out by itself: 16 of them halve its scale to 1, and what goes on is another fault."""
    module = StageModule(PiecewiseTrainedModel(3, 3, unary=Small()), unary_stage(1), TrainConfig())
    module._trainer = SimpleNamespace(precision="16-mixed", global_step=4)  # type: ignore[assignment]
    module.on_train_epoch_start()
    optimizer = torch.optim.SGD(module.parameters())

    def step(gradient: float) -> None:
        for parameter in module.model.unary.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        module.on_before_optimizer_step(optimizer)

    for _ in range(2):
        for _ in range(25):
            step(float("inf"))
            assert all(parameter.grad is not None for parameter in module.model.unary.parameters())
        step(1.0)
    for _ in range(25):
        step(float("nan"))
    with pytest.raises(FloatingPointError, match="stage1, step 5: the gradient of .* for the 26th step in a row"):
        step(float("nan"))


@pytest.mark.parametrize("precision", ["bf16", "32", "auto"])
def test_networks_of_ones_own_are_adapted_gradients_that_are_noise(
    precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dilated grouped convolutions work in single precision on a CPU; see `networks.depthwise`."""
    network = Small()
    layer = nn.Conv2d(3, 3, 3, padding=2, dilation=2, groups=3)
    network.layers.append(layer)
    image = torch.randn(1, 3, 8, 8)
    exact = layer(image).bfloat16()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)  # for auto
    t = trainer(PiecewiseTrainedModel(3, 1, unary=network), config=TrainConfig(precision=precision))
    assert t.precision == ("32" if precision == "32" else "bf16")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(image), exact) == (precision != "32")

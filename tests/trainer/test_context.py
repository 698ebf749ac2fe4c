"""Training a contextual CRF: what each stage moves, the likelihood it minimises, and that it learns context."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from piecewise_training.config import OptimConfig, TrainConfig
from piecewise_training.inference import evaluate
from piecewise_training.losses import cross_entropy, edge_nll, marginal_nll, node_labels
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.networks import ContextualCRF, Relation
from piecewise_training.networks.nodes import area_means
from piecewise_training.trainer import PiecewiseTrainer, context_stage, joint_stage, together, unary_stage
from piecewise_training.trainer.module import StageModule
from tests.networks.test_contextual import layouts
from tests.test_model import WithFeatures, contextual_model
from tests.trainer.test_trainer import moved, snapshot, trainer


def loader(count: int = 6, batch_size: int = 2) -> DataLoader[Any]:
    """Noise with labels in blocks as large as nodes, and some void."""
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 3, (count, 3, 4), generator=generator)
    label = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    label[:, :9] = torch.where(torch.arange(32) < 9, 255, label[:, :9])
    return DataLoader(TensorDataset(torch.randn(count, 3, 24, 32, generator=generator), label), batch_size)


def parts(model: PiecewiseTrainedModel) -> dict[str, nn.Module]:
    assert model.context is not None
    assert model.crf is not None
    return {"unary": model.unary, "nets": model.context.nets, "crf": model.crf}


@pytest.mark.parametrize(
    ("stages", "moving", "factors"),
    [
        ([unary_stage(1)], {"unary"}, False),
        ([together(unary_stage(1))], {"unary", "nets"}, False),
        ([context_stage(1)], {"nets"}, False),
        ([joint_stage(1, 1.0)], {"unary", "nets", "crf"}, True),
    ],
)
def test_what_a_stage_moves(stages: list[Any], moving: set[str], factors: bool) -> None:
    model = contextual_model()
    assert model.context is not None
    before = {name: snapshot(part) for name, part in parts(model).items()}
    start = model.context.log_factors.detach().clone()
    t = trainer(model, learning_rate=0.05)
    for stage in stages:
        t.run_stage(stage, loader())
    for name, part in parts(model).items():
        assert moved(part, before[name]) == (set(before[name]) if name in moving else set())
    assert torch.equal(model.context.log_factors, start) is not factors


def test_stage_2_learns_the_crf_and_the_relations_weights() -> None:
    model = contextual_model()
    assert model.context is not None
    before, start = snapshot(model.context.nets), model.context.log_factors.detach().clone()
    trainer(model).train_crf(loader(), 1)
    assert not moved(model.context.nets, before)
    assert not torch.equal(model.context.log_factors, start)


def test_stage_2_without_a_dense_crf() -> None:
    model = contextual_model(use_crf=False)
    before = snapshot(model)
    history = trainer(model).train_crf(loader(), 1, loader())
    assert moved(model, before) == {"context.log_factors"}
    assert history["val_miou"]


@pytest.mark.parametrize(("stride", "rows", "columns"), [(8, 3, 4), (16, 2, 2)])
def test_losses_are_the_literal_sum(stride: int, rows: int, columns: int) -> None:
    """Nodes and edges each by their own count; in stage 3 the marginals', too."""
    model, (image, target) = contextual_model(stride), next(iter(loader()))
    weight = torch.tensor([0.5, 1.0, 1.5])
    network: Any = model.unary
    assert model.context is not None
    features = network.feature_map(image)
    logits = model.enlarged(network.score(features), image)
    labels = node_labels(target, (rows, columns)).flatten(1)
    means = area_means(features, (rows, columns))
    assert (labels == 255).any()
    pairs = sum(
        edge_nll(scores, edges, labels, weight)
        for scores, edges in zip(
            model.context.edge_scores(network.score(means), means), model.context.edges(means), strict=True
        )
    )
    unary, marginals = cross_entropy(logits, target, weight), marginal_nll(model(image)[1], target, weight)
    for stage, expected in (
        (context_stage(1), pairs),
        (together(unary_stage(1)), unary + pairs),
        (joint_stage(1, 1.0), 0.5 * unary + 0.5 * pairs + marginals),
    ):
        module = StageModule(model, stage, TrainConfig(), weight).eval()
        module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
        torch.testing.assert_close(module.training_step((image, target), 0), expected)


def test_piecewise_plan_with_context() -> None:
    history = trainer(contextual_model()).train_piecewise(loader(), 1, 1, 1, val_loader=loader())
    assert list(history) == ["stage1", "stage2_context", "stage2", "stage3"]
    assert all(0 <= values["val_miou"][0] <= 1 for values in history.values())
    with_it = trainer(contextual_model(), config=TrainConfig(context_training="together", precision="bf16"))
    assert list(with_it.train_piecewise(loader(), 1, 1, 1)) == ["stage1", "stage2", "stage3"]


def test_context_stage_is_judged_by_the_contextual_crf() -> None:
    model, config = contextual_model(), TrainConfig(optim=OptimConfig(context_learning_rate=1e-12))
    history = trainer(model, config=config).train_context(loader(), 1, loader())
    outcome = evaluate(model, loader())
    assert outcome.context is not None
    assert history["val_miou"] == [pytest.approx(float(outcome.context.scores.miou))]
    assert outcome.context.scores.miou != outcome.unary.scores.miou
    assert outcome.crf is not None
    assert outcome.crf.seconds > outcome.context.seconds > outcome.unary.seconds


def test_context_that_only_harms_is_undone(caplog: pytest.LogCaptureFixture) -> None:
    """Before it is trained it changes nothing, so that the network's own mIoU is where it begins."""
    model = contextual_model()
    assert model.context is not None
    assert not model.context.silent
    for net in model.context.nets:
        nn.init.zeros_(net.scores.weight)
    assert model.context.silent
    t = trainer(model, learning_rate=0.05)
    t.train_unary(loader(), 3, loader())
    images, labels = next(iter(DataLoader(loader().dataset, 6)))
    wrong = torch.where(labels == 255, labels, (labels + 1) % 3)
    t.config = TrainConfig(optim=OptimConfig(context_learning_rate=5.0))
    t.train_context(DataLoader(TensorDataset(images, wrong), 2), 3, loader())
    assert "stage2_context reached" in caplog.text
    assert model.context.silent


def test_errors() -> None:
    without = PiecewiseTrainedModel(3, unary=WithFeatures())
    with pytest.raises(ValueError, match="stage2_context trains pairwise networks, but the model has none. Build it"):
        trainer(without).train_context(loader(), 1)
    with pytest.raises(ValueError, match="`context_training` must be one of after, together; got 'before'"):
        trainer(contextual_model(), config=TrainConfig(context_training="before"))  # type: ignore[arg-type]


class Trunk(nn.Module):
    """A network that sees 28 pixels, with a node every 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 4, 4),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, 1, 1),
            nn.ReLU(),
        )
        self.score = nn.Conv2d(32, 3, 1)

    def feature_map(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.score(self.feature_map(image))


@pytest.mark.slow
def test_three_stages_learn_what_only_the_layout_tells() -> None:
    """Sky and water look alike, above and below a boat: the same trunk and epochs err far less with context."""
    train = DataLoader(TensorDataset(*layouts(256, seed=1)), 16, shuffle=True)
    val = DataLoader(TensorDataset(*layouts(64, seed=2)), 16)
    config = TrainConfig(optim=OptimConfig(optimizer="adamw", learning_rate=3e-3, context_learning_rate=3e-3))
    relations = [Relation(name, box=1.5, hidden=32) for name in ("surrounding", "above_below")]

    def fresh() -> PiecewiseTrainer:
        torch.manual_seed(0)
        model = PiecewiseTrainedModel(
            3, use_crf=False, unary=Trunk(), context=ContextualCRF(32, 3, relations, stride=8)
        )
        return PiecewiseTrainer(model, "cpu", 3, config=config, progress=False)

    def errors(trainer: PiecewiseTrainer) -> tuple[float, float]:
        outcome = evaluate(trainer.model, val)
        assert outcome.context is not None
        return 1 - outcome.unary.scores.pixel_accuracy, 1 - outcome.context.scores.pixel_accuracy

    plain, piecewise = fresh(), fresh()
    plain.train_unary(train, 20)
    piecewise.train_unary(train, 10)
    piecewise.train_context(train, 10)
    alone, _ = errors(plain)
    unary, context = errors(piecewise)
    piecewise.fine_tune(train, 4)
    _, joint = errors(piecewise)
    assert context < 0.5 * min(alone, unary)
    assert joint < context

"""The benchmarks' scripts run, and write what the pages are made of; figures are theirs, at full size."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from piecewise_training import cli

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import context_ablation  # noqa: E402
import cpu_step  # noqa: E402
import crf_gain  # noqa: E402
import crf_levers  # noqa: E402
import crf_scores  # noqa: E402
import degraded_labels  # noqa: E402
import measuring  # noqa: E402
import pages  # noqa: E402
import precision_step  # noqa: E402
import recipe_levers  # noqa: E402
import tables  # noqa: E402
import weak_nets  # noqa: E402
import why_piecewise  # noqa: E402

TINY = """
data: {name: synthetic, train_scenes: 4, val_scenes: 2, image_size: [48, 64], batch_size: 2, workers: 0}
model: {unary: mobilenetv3_small_050, pretrained: false, crf_iterations: 1, crf_train_iterations: 1}
training:
  stage1_epochs: 1
  context_epochs: 1
  stage2_epochs: 1
  stage3_epochs: 1
  optim: {optimizer: adamw, learning_rate: 0.001}
device: cpu
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of a few scenes and epochs."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def tiny_run(tiny: Path) -> Path:
    """What `piecewise train` makes of it."""
    run = tiny.parent / "run"
    assert cli.main(["train", "--config", str(tiny), "--output", str(run)]) == 0
    return run


def run_script(script: object, monkeypatch: pytest.MonkeyPatch, output: Path, *arguments: str) -> tables.Report:
    """What a script writes."""
    monkeypatch.setattr(sys, "argv", [str(script), *arguments, "--output", str(output)])
    script.main()  # type: ignore[attr-defined]
    report: tables.Report = json.loads(output.read_text())
    assert output.with_suffix(".txt").read_text().strip()
    return report


def names(report: tables.Report) -> Sequence[str]:
    """Those of its rows."""
    rows = report["rows"]
    return list(rows) if isinstance(rows, dict) else [row["name"] for row in rows]


@pytest.mark.slow
def test_strategies_are_compared(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, options = tmp_path / "found.json", ("--config", str(tiny), "--seeds")
    report = run_script(why_piecewise, monkeypatch, output, *options, "1")
    assert len(report["rows"]) == 5
    assert all(len(row["curve"]) == sum(row["epochs"]) for row in report["rows"])
    assert "independent, equal time" in pages.why_piecewise(report, "a few scenes", "curves.png")
    monkeypatch.setattr(why_piecewise.Comparison, "one", None)  # which would fail: nothing is trained again
    assert run_script(why_piecewise, monkeypatch, output, *options, "1") == report


@pytest.mark.slow
@pytest.mark.parametrize(("given_up", "left"), [("joint", 4), ("independent", 4), ("piecewise", 3)])
def test_a_strategy_that_diverges_is_a_row(
    given_up: str, left: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no result, and gives no time for others; the rest of the seed and the next one are trained."""

    class GivingUp(why_piecewise.PiecewiseTrainer):
        def run_stage(self, *arguments: Any) -> Any:
            if self.config.strategy == given_up and self.seed == 0:
                raise FloatingPointError("the gradient is not finite")
            return super().run_stage(*arguments)

    monkeypatch.setattr(why_piecewise, "PiecewiseTrainer", GivingUp)
    config = Path(shutil.copy(tiny, tmp_path))
    output, options = tmp_path / "found.json", ("--config", str(config), "--seeds", "2")
    report = run_script(why_piecewise, monkeypatch, output, *options)
    first, second = ([row for row in report["rows"] if row["seed"] == seed] for seed in (0, 1))
    without = [(row["name"], row["diverged"]) for row in first if row["crf"] is None]
    assert without == [(given_up if given_up == "piecewise" else f"{given_up}, equal epochs", True)]
    assert (len(first), len(second)) == (left, 5)
    assert "1 of 2" in pages.why_piecewise(report, "a few scenes", "curves.png")
    pages.curves(report)
    config.write_text(f"# with a comment\n{config.read_text()}")
    monkeypatch.setattr(why_piecewise.Comparison, "one", None)  # which would fail: nothing is trained again
    assert run_script(why_piecewise, monkeypatch, output, *options) == report


@pytest.mark.slow
def test_weak_nets_and_recipes(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--config", str(tiny), "--strides", "32", "--epochs", "1")
    report = run_script(weak_nets, monkeypatch, tmp_path / "weak.json", *options)
    assert names(report) == ["stride 32, 1 epochs"]
    assert "stride 32, 1 epochs" in pages.weak_nets(report)
    options = ("--config", str(tiny), "--variants", "base", "half the rate")
    report = run_script(recipe_levers, monkeypatch, tmp_path / "recipe.json", *options)
    assert names(report) == ["base", "half the rate"]
    assert "half the rate" in pages.recipe_levers(report)


@pytest.mark.slow
def test_levers_of_stage_2(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "levers.json"
    variants = ["as configured", "augmented images", *(name for name in crf_levers.VARIANTS if "limit" in name)]
    options = ("--run", str(tiny_run), "--every", "1", "--epochs", "1", "--variants")
    report = run_script(crf_levers, monkeypatch, output, *options, *variants[:2])
    again = run_script(crf_levers, monkeypatch, output, *options, *variants)
    assert names(again) == ["the network alone", *variants]
    assert [again["rows"][name] for name in variants[:2]] == [report["rows"][name] for name in variants[:2]]
    assert "a limit" in pages.crf_levers(again)
    with pytest.raises(SystemExit, match=r"levers\.json holds rows of another epochs: give another --output\."):
        run_script(crf_levers, monkeypatch, output, "--run", str(tiny_run), "--every", "1", "--variants", variants[0])


@pytest.mark.slow
def test_scores_of_earlier_weights(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = tiny_run / "checkpoints/stage1/last.ckpt"
    options = ("--run", str(tiny_run), "--every", "1", "--epochs", "1", "--earlier", str(last))
    report = run_script(crf_scores, monkeypatch, tmp_path / "scores.json", *options)
    sources = [f"{source}, {kernels}" for source in ("the network itself", "epoch 1") for kernels in crf_scores.KERNELS]
    assert names(report) == ["no CRF", *sources]
    assert "| epoch 1, 6 px and 8 grey levels |" in pages.crf_scores(report)
    with pytest.raises(SystemExit, match=r"are of one epoch, whose rows would have one name: give one\."):
        run_script(crf_scores, monkeypatch, tmp_path / "scores.json", *options, str(last))


@pytest.mark.slow
def test_gains_and_context(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--run", str(tiny_run), "--tuning", "1", "--scales", "1")
    monkeypatch.setattr(crf_gain, "GRID", {"pos_w": (1.0, 3.0)})
    report = run_script(crf_gain, monkeypatch, tmp_path / "gain.json", *options)
    assert names(report)[0] == "unary alone"
    assert "joint, + CRF, averaged" in pages.gain_pages.crf_gain(report)
    last = [*context_ablation.NETWORKS][-1]  # of which the contexts are
    monkeypatch.setattr(context_ablation, "NETWORKS", {last: context_ablation.NETWORKS[last]})
    options = ("--config", str(tiny_run / "config.yaml"))
    report = run_script(context_ablation, monkeypatch, tmp_path / "context.json", *options)
    assert names(report) == [last, *context_ablation.CONTEXTS]
    assert "Stage 2 gave the relations these factors" in pages.context_ablation(report, "Parts", "Context")
    monkeypatch.setattr(context_ablation, "CONTEXTS", {"+ dense CRF": None})
    report = run_script(context_ablation, monkeypatch, tmp_path / "of_run.json", "--run", str(tiny_run))
    assert names(report) == ["the network alone", "+ dense CRF"]


@pytest.mark.slow
def test_degraded_labels(camvid_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(degraded_labels, "SPOILT", {"coarse": degraded_labels.coarse})
    monkeypatch.setattr(degraded_labels, "EPOCHS", 1)
    options = ("--camvid", str(camvid_root), "--images", "1", "--every", "367")
    report = run_script(degraded_labels, monkeypatch, tmp_path / "labels.json", *options)
    kinds = report["results"]["coarse"]
    assert [*kinds] == ["before", *degraded_labels.SETTINGS, *degraded_labels.LOSSES]
    assert {kind for kind, row in kinds.items() if "as_it_began" in row} == {*degraded_labels.LOSSES}
    kinds["learned"]["as_it_began"] = True
    assert "| coarse: learned, as it began |" in pages.degraded_labels(report)


@pytest.mark.slow
def test_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_step, "instructions", lambda: "AVX512_BF16")  # whether or not there are
    size = ("--network", "mobilenetv3_small_050", "--size", "64x64", "--batch", "2", "--runs", "1")
    report = run_script(precision_step, monkeypatch, tmp_path / "precision.json", *size)
    assert names(report) == ["AVX512_BF16", "AVX512_BF16, unused"]
    assert all(row["cosine"] > precision_step.LEAST_COSINE for row in report["rows"].values())
    assert "| AVX512_BF16, unused |" in pages.speed_pages.precision_step(report)


@pytest.mark.slow
def test_steps_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = ("--network", "mobilenetv3_small_050", "--size", "64x64", "--batch", "2", "--runs", "2")
    report = run_script(cpu_step, monkeypatch, tmp_path / "step.json", *size)
    assert {kind: len(row["seconds"]) for kind, row in report["rows"].items()} == dict.fromkeys(cpu_step.KINDS, 2)
    page = pages.speed_pages.cpu_step(report, report)
    assert page.count("| mobilenetv3_small_050, stride 16 | + memory kept |") == 2


@pytest.mark.slow
def test_steps_whose_gradients_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(trained: torch.nn.Module, _: object) -> None:
        adapted = any(isinstance(part, cpu_step._Adapted) for part in trained.modules())
        for weight in trained.parameters():
            weight.grad = torch.full_like(weight, 1.002 if adapted else 1.0)

    monkeypatch.setattr(cpu_step, "backwards", other)
    with pytest.raises(SystemExit, match=r"are 0\.002 of their size apart: nothing is timed"):
        cpu_step.check(cpu_step.Setup(network="mobilenetv3_small_050", stride=16, size="64x64", batch=2, classes=3))


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "told"), [(-1.0, r"-1\.000, .* is 1 times"), (1.5, r"1\.000, .* is 1\.5 times")])
def test_precisions_that_differ_are_not_timed(factor: float, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(trained: torch.nn.Module, precision: str, _: object) -> None:
        for weight in trained.parameters():
            weight.grad = torch.full_like(weight, 1.0 if precision == "32" else factor)

    monkeypatch.setattr(precision_step, "backwards", other)
    with pytest.raises(SystemExit, match=rf"have a cosine of {told} as large: nothing is timed"):
        precision_step.check(precision_step.Setup(network="mobilenetv3_small_050", size="64x64", batch=2, classes=3))


def test_rows_of_other_commits_are_named() -> None:
    report = measuring.surroundings() | {"commit": "a" * 40}
    now = {"commit": "a" * 40, "date": "2026-11-27"}
    rows = {"new": now, "old": now | {"commit": "b" * 40}, "older": {}}
    assert f"commit {'a' * 10}. Of commit {'b' * 10} of 2026-11-27: old." in tables.origin(report | {"rows": rows})
    assert tables.origin(report | {"rows": {"new": now}}).endswith(f"commit {'a' * 10}.")


def test_each_step_of_an_update_is_timed(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter, or with `--device cuda`."""
    pytest.importorskip("triton")
    import dense_crf
    import dense_crf_gpu

    monkeypatch.setattr(dense_crf, "ITERATIONS", 2)
    # A phase by itself sums up memory that none before it has filled; the interpreter minds overflows.
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    scores, image = torch.randn(1, 2, 4, 5), torch.randint(0, 256, (1, 3, 4, 5), dtype=torch.uint8)
    steps = dense_crf_gpu.kernel_times(scores.to(device), image.to(device), speed=1e9, runs=1)
    kinds = {step["kernel"] for step in steps}
    blurs = {f"spatial: blur {axis}" for axis in (1, 2, 3)} | {f"bilateral: blur {axis}" for axis in range(1, 7)}
    parts = {f"{term}: {part}" for term in ("spatial", "bilateral") for part in ("splat", "gather", "all of these")}
    expected = blurs | parts | {"read and update", "all updates", "bilateral: lattice"}
    assert kinds - {"all updates, as a graph"} == expected
    assert all(step["ms"] and step["floor_ms"] > 0 and step["ratio"] > 0 for step in steps)

"""piecewise train, evaluate and predict from end to end on a few small scenes."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image

from piecewise_training import inference
from piecewise_training.cli import build_parser, main
from piecewise_training.config import InferenceConfig
from piecewise_training.dataset import SyntheticDataset, build_datasets, val_loader
from piecewise_training.inference import predict
from piecewise_training.metrics import border_band
from piecewise_training.model import PiecewiseTrainedModel

TINY = [
    "--data.image_size", "[32,48]", "--data.train_scenes", "8", "--data.val_scenes", "5", "--data.batch_size", "4",
    "--data.workers", "0", "--model.unary", "mobilenetv3_small_050", "--model.pretrained", "false",
    "--model.crf_iterations", "2", "--training.stage1_epochs", "2", "--training.stage2_epochs", "1",
    "--training.stage3_epochs", "1", "--device", "cpu",
]  # fmt: skip
FILES = {
    "config.yaml", "piecewise_model_final.pth", "piecewise_model_final.safetensors", "training_curves.png",
    "confusion_matrix.png", "per_class_iou.png", "sample_predictions.png", "crf_comparison.png", "metrics_summary.txt",
    "metrics_summary.csv", "per_class_performance.csv", "checkpoints", "logs", "results.json", "report.html",
    "report_pictures",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "training_results"
    assert main(["train", *TINY, "--output", str(folder)]) == 0
    return folder


def test_leaves_everything_it_promises(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == FILES
    for path in run.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 300


def test_tables(run: Path) -> None:
    with (run / "metrics_summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == [
        "unary alone", "+ CRF, default", "+ CRF, learned", "joint, unary", "joint, + CRF",
    ]  # fmt: skip
    assert all(0 <= float(row["mIoU"]) <= 100 for row in rows)
    text = (run / "metrics_summary.txt").read_text()
    assert "CRF parameters: pos_xy_std 3.00 -> " in text
    with (run / "per_class_performance.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert [row["class"] for row in classes][:2] == ["ground", "sky"]
    assert sum(int(row["pixels"]) for row in classes) == 5 * 32 * 48


def test_with_context(tmp_path: Path) -> None:
    """Training, evaluation and prediction with a contextual CRF."""
    context = [
        "--model.featmap", "{scales: [1.0, 0.5], widths: [8], hidden: 8}",
        "--model.context", "{relations: [{name: above_below, hidden: 8}]}", "--training.context_epochs", "1",
    ]  # fmt: skip
    assert main(["train", *TINY, *context, "--output", str(tmp_path / "run")]) == 0
    with (tmp_path / "run" / "metrics_summary.csv").open() as file:
        rows = [row["model"] for row in csv.DictReader(file)]
    assert rows == [
        "unary alone", "+ CRF, default", "+ context", "+ CRF, learned", "joint, unary", "joint, + context",
        "joint, + CRF",
    ]  # fmt: skip
    assert (tmp_path / "run" / "checkpoints" / "stage2_context" / "history.json").is_file()
    assert "context_above_below_w 1.00 -> " in (tmp_path / "run" / "metrics_summary.txt").read_text()
    model = PiecewiseTrainedModel.load(tmp_path / "run")
    assert model.context is not None
    assert main(["evaluate", "--model", str(tmp_path / "run"), "--output", str(tmp_path / "evaluation")]) == 0
    with (tmp_path / "evaluation" / "metrics_summary.csv").open() as file:
        again = [row["model"] for row in csv.DictReader(file)]
    assert again == ["unary alone", "+ context", "+ CRF"]
    assert main(["train", *TINY, *context, "--output", str(tmp_path / "run"), "--resume"]) == 0


def test_a_context_that_is_trained_together_with_the_network(tmp_path: Path) -> None:
    """It is judged after stage 1, and has no stage of its own."""
    context = [
        "--model.featmap", "{scales: [1.0], widths: [8], hidden: 8}", "--training.stage1_epochs", "1",
        "--model.context", "{relations: [{name: above_below, hidden: 8}]}", "--training.context_training", "together",
    ]  # fmt: skip
    assert main(["train", *TINY, *context, "--output", str(tmp_path / "run")]) == 0
    with (tmp_path / "run" / "metrics_summary.csv").open() as file:
        rows = [row["model"] for row in csv.DictReader(file)]
    assert rows == [
        "unary alone", "+ context", "+ CRF, default", "+ CRF, learned", "joint, unary", "joint, + context",
        "joint, + CRF",
    ]  # fmt: skip
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"stage1", "stage2", "stage3"}


def test_both_files_hold_the_model(run: Path) -> None:
    model = PiecewiseTrainedModel.load(run)
    state = torch.load(run / "piecewise_model_final.pth", weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert model.classes.names[0] == "ground"


def test_resolved_configuration_repeats_the_run(run: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["train_scenes"] == 8
    assert config["training"]["optim"]["optimizer"] == "adamw"  # the recipe's, which the flags left alone
    assert main(["train", "--config", str(run / "config.yaml"), "--output", str(tmp_path / "again")]) == 0
    first, second = (PiecewiseTrainedModel.load(f).state_dict() for f in (run, tmp_path / "again"))
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_what_failed_before_it_began_is_begun_anew(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder in which nothing has been trained is not a run that could be lost."""
    folder = tmp_path / "failed"
    (folder / "logs").mkdir(parents=True)
    (folder / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    broken = ["--data.batch_size", "100000", "--data.workers", "0"]
    assert main(["train", *TINY, *broken, "--output", str(folder)]) == 1
    assert "already holds a run" not in capsys.readouterr().err
    (folder / "checkpoints" / "stage1").mkdir(parents=True)
    for name in ("checkpoints/stage1/last.ckpt", "piecewise_model_final.pth", "results.json", "report.html"):
        (folder / name).touch()
        assert main(["train", *TINY, "--output", str(folder)]) == 1
        assert "already holds a run" in capsys.readouterr().err
        (folder / name).unlink()


def test_an_earlier_run_is_not_lost(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "piecewise_model_final.pth").read_bytes()
    assert main(["train", *TINY, "--output", str(run)]) == 1
    assert "already holds a run. Pass --overwrite to replace it, --resume to go on with it" in capsys.readouterr().err
    assert (run / "piecewise_model_final.pth").read_bytes() == before


def test_resume(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "--output", str(tmp_path / "new"), "--resume"]) == 1
    assert "there is no run to resume in" in capsys.readouterr().err
    assert main(["train", *TINY, "--output", str(run), "--seed", "4", "--resume"]) == 1
    assert "but seed differs from it" in capsys.readouterr().err
    changed = ["--training.optim.learning_rate", "0.5", "--data.crop", "[32,32]"]
    assert main(["train", "--output", str(run), "--resume", *changed]) == 1
    assert "but data.crop and training.optim.learning_rate differ from it" in capsys.readouterr().err
    assert main(["train", "--output", str(run), "--resume", "--overwrite"]) == 1
    assert "goes on with a run and `overwrite` replaces it" in capsys.readouterr().err
    before = PiecewiseTrainedModel.load(run).state_dict()
    assert main(["train", "--output", str(run), "--resume", "--data.workers", "1"]) == 0
    assert all(torch.equal(before[k], v) for k, v in PiecewiseTrainedModel.load(run).state_dict().items())


def test_resumes_what_an_earlier_version_began(run: Path, tmp_path: Path) -> None:
    """Its configuration lacks an option that has come since, which has its default."""
    folder = tmp_path / "earlier"
    shutil.copytree(run, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["model"]["crf_spatial"], config["training"]["optim"]["clip"], config["data"]["void_is_border"]
    config["data"]["val_fraction"] = 0.2  # was the default of all data sets, though only folders have it
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--output", str(folder), "--resume"]) == 0
    found = ["--model", str(folder), "--output", str(tmp_path / "found"), "--device", "cpu"]
    assert main(["evaluate", *found]) == 0


def test_one_run_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with FileLock(folder / ".lock"):  # as another run holds it
        assert main(["train", *TINY, "--output", str(folder)]) == 1
    assert f"another run is training into `output` {folder} just now" in capsys.readouterr().err
    assert not list(folder.glob("*.yaml"))
    broken = ["--data.batch_size", "100000", "--output", str(folder)]
    for _ in range(2):  # a run that fails leaves no lock, and the folder that was there
        assert main(["train", *TINY, *broken]) == 1
        assert "Lower data.batch_size" in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """As on some network file systems."""
    monkeypatch.setattr(FileLock, "acquire", lambda *_, **__: (_ for _ in ()).throw(OSError("no locks available")))
    assert main(["train", *TINY, "--data.batch_size", "100000", "--output", str(tmp_path / "out")]) == 1
    assert "cannot be locked (no locks available): see to it that no other run writes there" in caplog.text
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["train", *TINY, "--output", str(tmp_path / "file")]) == 1
    assert f"`output` {tmp_path / 'file'} is a file. Give a folder." in capsys.readouterr().err


def test_a_run_that_is_told_to_end_is_not_finished(tmp_path: Path) -> None:
    """As Slurm and Docker do it; status 0 would say that the model is there."""
    command = [sys.executable, "-m", "piecewise_training", "train", *TINY, "--training.stage1_epochs", "1000"]
    deadline = time.monotonic() + 120
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([*command, "--output", str(tmp_path / "out")], stderr=said, stdout=said)
        while not list(tmp_path.glob("out/checkpoints/stage1/last.ckpt")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.terminate()
        assert process.wait(timeout=120) == 128 + signal.SIGTERM
    message = (tmp_path / "said").read_text()
    assert "piecewise train: ended from outside (SIGTERM); --resume goes on with it" in message


def test_begins_with_itself(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for start in (run, run / "piecewise_model_final.pth"):
        assert main(["train", *TINY, "--model.start_from", str(start), "--output", str(run), "--overwrite"]) == 1
        assert f"`model.start_from` {start} lies in `output` {run}, where it would be" in capsys.readouterr().err
    other = run / "weights" / "mine.pth"  # which no run removes; it does not exist, either
    assert main(["train", *TINY, "--model.start_from", str(other), "--output", str(run), "--overwrite"]) == 1
    assert f"no weights at {other}" in capsys.readouterr().err
    assert (run / "piecewise_model_final.pth").is_file()


def test_begins_with_a_trained_network(run: Path, tmp_path: Path) -> None:
    """Only the CRF is trained; the first row is what the network was worth before."""
    begun = ["--model.start_from", str(run), "--training.stage1_epochs", "0", "--training.stage3_epochs", "0"]
    assert main(["train", *TINY, *begun, "--output", str(tmp_path / "out")]) == 0
    rows = {}
    for folder in (run, tmp_path / "out"):
        with (folder / "metrics_summary.csv").open() as file:
            rows[folder] = {row.pop("model"): row["mIoU"] for row in csv.DictReader(file)}
    assert [*rows[tmp_path / "out"]] == ["unary alone", "+ CRF, learned"]
    assert rows[tmp_path / "out"]["unary alone"] == rows[run]["joint, unary"]


def test_a_crf_without_stage_1(tmp_path: Path) -> None:
    """On a network of random weights, whose scores nobody wants to see."""
    alone = ["--training.stage1_epochs", "0", "--training.stage3_epochs", "0"]
    assert main(["train", *TINY, *alone, "--output", str(tmp_path / "out")]) == 0
    with (tmp_path / "out/metrics_summary.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["+ CRF, learned"]


def test_evaluate_on_the_runs_own_data(run: Path, tmp_path: Path) -> None:
    assert main(["evaluate", "--model", str(run), "--output", str(tmp_path), "--device", "cpu"]) == 0
    with (tmp_path / "metrics_summary.csv").open() as file, (run / "metrics_summary.csv").open() as other:
        ours, theirs = list(csv.DictReader(file)), list(csv.DictReader(other))
    assert [row["model"] for row in ours] == ["unary alone", "+ CRF"]
    assert ours[1]["mIoU"] == theirs[-1]["mIoU"]
    assert not (tmp_path / "training_curves.png").exists()


def test_evaluate_on_the_runs_data_with_a_change(run: Path, tmp_path: Path) -> None:
    model = str(run / "piecewise_model_final.safetensors")
    arguments = ["--model", model, "--output", str(tmp_path), "--device", "cpu", "--data.val_scenes", "2"]
    assert main(["evaluate", *arguments]) == 0
    with (tmp_path / "per_class_performance.csv").open() as file:
        assert sum(int(row["pixels"]) for row in csv.DictReader(file)) == 2 * 32 * 48


def test_evaluate_on_another_folder_takes_all_of_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = SyntheticDataset(5, (32, 48))
    for index in range(5):
        for kind, picture in zip(("images", "labels"), scenes.read(index), strict=True):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / "data" / kind / f"{index}.png")
    folder = ["--data.name", "folder", "--data.root", str(tmp_path / "data"), "--data.num_classes", "7"]
    arguments = ["evaluate", "--model", str(run), "--device", "cpu", *folder]
    assert main([*arguments, "--output", str(tmp_path / "all")]) == 0
    assert "5 images of 7 classes" in capsys.readouterr().out
    for fraction, count in (("0.4", 2), ("0.2", 1)):
        assert main([*arguments, "--output", str(tmp_path / "share"), "--data.val_fraction", fraction]) == 0
        assert f"{count} images of 7 classes" in capsys.readouterr().out


def test_a_run_is_found_and_judged_from_any_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    scenes = SyntheticDataset(5, (32, 48))
    for kind in ("images", "labels"):
        (tmp_path / "here" / "data" / kind).mkdir(parents=True)
    for index in range(5):
        for kind, picture in zip(("images", "labels"), scenes.read(index), strict=True):
            Image.fromarray(picture).save(tmp_path / "here" / "data" / kind / f"{index}.png")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    own = ["--data.name", "folder", "--data.num_classes", "7", "--data.root"]
    tiny = [*TINY[:2], *TINY[8:], "--data.batch_size", "2"]
    assert main(["train", *tiny, *own, "data", "--output", "run"]) == 0
    monkeypatch.chdir(tmp_path / "there")
    run = ["--model", "../here/run", "--device", "cpu"]
    for index, data in enumerate(([], [*own, "../here/data"], [*own, str(tmp_path / "here" / "data")])):
        capsys.readouterr()
        assert main(["evaluate", *run, *data, "--output", f"found{index}"]) == 0
        assert "1 images of 7 classes" in capsys.readouterr().out  # that which was held out
    assert main(["train", "--output", "../here/run", "--resume"]) == 0
    assert main(["train", "--output", "../here/run", "--resume", "--data.root", "../here/data"]) == 0
    assert "run began with" not in caplog.text
    moved = (tmp_path / "here" / "data").rename(tmp_path / "moved")
    assert main(["train", "--output", "../here/run", "--resume", "--data.root", str(moved)]) == 0
    assert f"data.root is {moved} now; the run began with {tmp_path / 'here' / 'data'}" in caplog.text


def held_out_pixels(folder: Path) -> list[str]:
    """How many pixels of each class the images have that were judged on."""
    with (folder / "per_class_performance.csv").open() as file:
        return [row["pixels"] for row in csv.DictReader(file)]


def test_labels_by_another_name_and_of_other_numbers(
    make_pairs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the run was told, so it is judged and resumed."""
    short = ["--training.stage1_epochs", "1", "--training.strategy", "independent", "--data.num_classes", "2"]
    arguments = [*folder_arguments(make_pairs), *short, "--data.label_suffix", "_gt"]
    run, labels = tmp_path / "run", tmp_path / "data" / "labels"
    for path in labels.iterdir():
        path.rename(labels / f"{path.stem}_gt.png")
    assert main([*arguments, "--data.label_map", "{0: 255, 2: 0}", "--output", str(run)]) == 0
    judged = held_out_pixels(run)
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["label_map"] == {0: 255, 2: 0}
    own = ["evaluate", "--model", str(run), "--device", "cpu", "--output", str(tmp_path / "own")]
    assert main(own) == 0
    assert held_out_pixels(tmp_path / "own") == judged
    shutil.rmtree(run / "checkpoints" / "stage2")
    assert main(["train", "--output", str(run), "--resume"]) == 0
    assert held_out_pixels(run) == judged
    capsys.readouterr()
    assert main(["train", "--output", str(run), "--resume", "--data.label_map", "{0: 255, 2: 1}"]) == 1
    assert "data.label_map" in capsys.readouterr().err


def test_images_that_come_later_change_no_split(
    make_pairs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    short = ["--training.stage1_epochs", "1", "--training.strategy", "independent", "--data.num_classes", "3"]
    arguments = [*folder_arguments(make_pairs), *short]
    run, data = tmp_path / "run", tmp_path / "data"
    assert main([*arguments, "--output", str(run)]) == 0
    split = json.loads((run / "split.json").read_text())
    assert sorted(split["train"] + split["val"]) == list("abcdefgh")
    assert len(split["val"]) == 2
    for folder, suffix in (("images", "jpg"), ("labels", "png")):
        shutil.copy(data / folder / f"a.{suffix}", data / folder / f"0.{suffix}")
    judged = held_out_pixels(run)
    own = ["evaluate", "--model", str(run), "--device", "cpu"]
    same = ["--data.images", str(data / "images"), "--data.labels", str(data / "labels")]
    for given in ([], same, ["--data.val_fraction", "0.2"]):
        caplog.clear()
        assert main([*own, *given, "--output", str(tmp_path / "own")]) == 0
        assert caplog.messages == ["'0' came after the run had begun and is left out"]
        assert held_out_pixels(tmp_path / "own") == judged
    caplog.clear()
    assert main([*own, "--data.val_fraction", "0.9", "--output", str(tmp_path / "own")]) == 0
    assert f"have names of images that {run} was trained on" in caplog.text
    shutil.rmtree(run / "checkpoints" / "stage2")
    capsys.readouterr()
    caplog.clear()
    assert main(["train", "--output", str(run), "--resume"]) == 0
    assert "6 training and 2 validation images" in capsys.readouterr().out
    assert "'0' came after the run had begun and is left out" in caplog.text
    assert held_out_pixels(run) == judged
    (data / "images" / f"{split['val'][0]}.jpg").unlink()
    (data / "labels" / f"{split['val'][0]}.png").unlink()
    for command in ([*own, "--output", str(tmp_path / "own")], ["train", "--output", str(run), "--resume"]):
        assert main(command) == 1
        assert f"of the run's 2 validation images '{split['val'][0]}' is gone" in capsys.readouterr().err
    (run / "split.json").unlink()  # as a run of before has none
    assert main([*own, "--output", str(tmp_path / "own")]) == 0


def test_images_that_a_network_was_trained_on_do_not_judge_it_unsaid(
    make_pairs: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = ["--training.stage1_epochs", "1", "--training.strategy", "independent", "--data.num_classes", "3"]
    arguments = [*folder_arguments(make_pairs), *short]
    run = tmp_path / "run"
    assert main([*arguments, "--output", str(run)]) == 0
    begun = ["--model.start_from", str(run), "--training.stage1_epochs", "0", "--output", str(tmp_path / "other")]
    known = f"have names of images that {run} was trained on"
    caplog.clear()
    assert main([*arguments, *begun]) == 0
    assert known not in caplog.text
    assert main([*arguments, *begun, "--overwrite", "--seed", "1"]) == 0
    assert known in caplog.text
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    caplog.clear()
    copied = ["--data.root", str(tmp_path / "copy"), "--output", str(tmp_path / "judged"), "--device", "cpu"]
    assert main(["evaluate", "--model", str(run), *copied]) == 0
    assert "6 of the 8 images to be judged on, such as " in caplog.text
    assert known in caplog.text
    listed = tmp_path / "all.txt"
    listed.write_text("\n".join("abcdefgh"))  # which leaves none for training, and none is wanted
    assert main(["evaluate", "--model", str(run), *copied, "--data.val_list", str(listed)]) == 0


def test_somebodys_split_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "split.json").write_text("mine")
    assert main(["train", *TINY, "--output", str(tmp_path)]) == 1
    assert "holds split.json, but no run. Give a folder of its own" in capsys.readouterr().err
    assert (tmp_path / "split.json").read_text() == "mine"


def test_another_models_evaluation_is_not_replaced(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    found = ["--output", str(tmp_path / "found"), "--device", "cpu", "--data.val_scenes", "1"]
    for own in (run, run / "piecewise_model_final.safetensors"):  # its own is
        assert main(["evaluate", "--model", str(own), *found]) == 0
    before = (tmp_path / "found" / "results.json").read_bytes()
    assert main(["evaluate", "--model", str(other), *found]) == 1
    message = capsys.readouterr().err
    file = run.resolve() / "piecewise_model_final.safetensors"
    assert f"holds the evaluation of {file}. Give another folder, or pass --overwrite" in message
    assert (tmp_path / "found" / "results.json").read_bytes() == before
    assert main(["evaluate", "--model", str(other), *found, "--overwrite"]) == 0
    (tmp_path / "found" / "results.json").write_text("{")
    assert main(["evaluate", "--model", str(other), *found]) == 1
    assert "results.json is no JSON" in (message := capsys.readouterr().err)
    assert "To replace it, pass --overwrite" in message


def test_evaluate_says_at_once_what_cannot_be_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inference, "evaluate", lambda *_, **__: pytest.fail("it was evaluated"))
    (tmp_path / "file").touch()
    assert main(["evaluate", "--model", str(run), "--output", str(tmp_path / "file" / "results")]) == 1
    assert "Not a directory" in capsys.readouterr().err


def test_evaluate_errors(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(run / "piecewise_model_final.safetensors")
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", str(tmp_path), "--output", str(tmp_path)])
    assert "holds no config.yaml that names the data" in capsys.readouterr().err
    assert main(["evaluate", "--model", model, "--data.name", "camvid", "--data.root", "x"]) == 1
    assert "`root` x is not in VOC's layout" in capsys.readouterr().err
    assert main(["evaluate", "--model", str(run), "--output", str(run)]) == 1
    assert "holds a run, whose own results would be lost" in capsys.readouterr().err


def test_predict(run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name, size in (("a.png", (33, 47, 3)), ("b.jpg", (40, 30, 3))):
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(tmp_path / "in" / name)
    out = tmp_path / "out"
    arguments = ["--model", str(run), "--output", str(out), "--device", "cpu"]
    assert main(["predict", str(tmp_path / "in"), *arguments, "--probabilities"]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "a.png", "a_overlay.png", "a_probabilities.npz", "b.png", "b_overlay.png", "b_probabilities.npz",
    ]  # fmt: skip
    with Image.open(out / "a.png") as label:
        assert (label.mode, label.size) == ("P", (47, 33))
        labels = np.asarray(label)
    probabilities = np.load(out / "a_probabilities.npz")["probabilities"]
    assert probabilities.shape == (7, 33, 47)
    assert np.mean(probabilities.argmax(0) == labels) > 0.99
    globbed = [str(tmp_path / "in" / "*.jpg"), *arguments, "--overlay", "false", "--crf", "false"]
    assert main(["predict", *globbed, "--output", str(tmp_path / "plain")]) == 0
    assert [p.name for p in (tmp_path / "plain").iterdir()] == ["b.png"]


LOOKS = ["--inference.scales", "[0.8,1.3]", "--inference.flip", "true", "--inference.window", "[24,28]"]
HOW = InferenceConfig(scales=(0.8, 1.3), flip=True, window=(24, 28), overlap=0.25)


def test_predict_looks_as_it_is_told(run: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), "--model", str(run), "--device", "cpu", "--probabilities"]
    assert main(["predict", *arguments, *LOOKS, "--inference.overlap", "0.25", "--output", str(tmp_path / "out")]) == 0
    found = np.load(tmp_path / "out" / "a_probabilities.npz")["probabilities"].astype(np.float32)
    model = PiecewiseTrainedModel.load(run)
    np.testing.assert_allclose(found, predict(model, image, how=HOW).probabilities, atol=1e-3)  # in half precision
    assert np.abs(found - predict(model, image).probabilities).max() > 0.01


def test_evaluate_looks_as_it_is_told(run: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(run), "--device", "cpu", "--output", str(tmp_path)]
    assert main(["evaluate", *arguments, *LOOKS, "--inference.overlap", "0.25"]) == 0
    parser = build_parser()
    settings = parser.instantiate(parser.parse_args(["train", "--config", str(run / "config.yaml")])).train
    _, held_out = build_datasets(settings.data, settings.seed)
    model, batches = PiecewiseTrainedModel.load(run), val_loader(held_out, settings.data)
    expected, plain = (inference.evaluate(model, batches, how=how) for how in (HOW, InferenceConfig()))
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    for name, own, other in (("unary alone", expected.unary, plain.unary), ("+ CRF", expected.crf, plain.crf)):
        assert own is not None
        assert other is not None
        assert results[name]["confusion"] == own.confusion.tolist() != other.confusion.tolist()


def test_predictions_replace_neither_each_other_nor_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "a.jpg", "b.png", "b_overlay.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    for names, target in ((("a.png", "a.jpg"), "a.png"), (("b.png", "b_overlay.jpg"), "b_overlay.png")):
        assert main(["predict", *(str(tmp_path / name) for name in names), "--output", str(tmp_path / "out")]) == 1
        assert f"would both be written as {tmp_path / 'out' / target}" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "a.png"), "--output", str(tmp_path)]) == 1
    assert f"{tmp_path / 'a.png'} would be replaced. Give another folder" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "a.jpg"), "--output", str(tmp_path)]) == 1  # beside which its labels lie
    assert f"{tmp_path / 'a.png'} would be replaced. Give another folder" in capsys.readouterr().err


def test_one_broken_image_does_not_stop_the_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 32)).save(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"nothing")
    out = tmp_path / "out"
    assert main(["predict", str(tmp_path), "--model", str(run), "--output", str(out), "--device", "cpu"]) == 1
    assert "a.png is no image that Pillow can read" in capsys.readouterr().err
    assert (out / "b.png").is_file()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("there is no memory"),
        RuntimeError("there is no memory\nException raised from"),
        OSError("there is no memory"),
    ],
)
def test_an_image_that_fails_does_not_stop_the_others(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    for name, width in (("a", 500), ("b", 40)):
        Image.new("RGB", (width, 32)).save(tmp_path / f"{name}.png")

    def scarce(model: PiecewiseTrainedModel, image: Image.Image, **kwargs: Any) -> Any:
        if image.width == 500:
            raise error
        return predict(model, image, **kwargs)

    monkeypatch.setattr(inference, "predict", scarce)
    out = tmp_path / "out"
    assert main(["predict", str(tmp_path), "--model", str(run), "--output", str(out), "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert f"{tmp_path / 'a.png'}: there is no memory\n" in captured.err
    assert "1 predictions are in" in captured.out
    assert (out / "b.png").is_file()


def test_a_prediction_that_cannot_be_written_does_not_stop_the_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside `a_long_name.png` the overlay's name is too long for a file."""
    long = "a" * 246
    for name in (long, "b"):
        Image.new("RGB", (40, 32)).save(tmp_path / f"{name}.png")
    out = tmp_path / "out"
    assert main(["predict", str(tmp_path), "--model", str(run), "--output", str(out), "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert f"{long}.png: [Errno 36] File name too long" in captured.err
    assert (out / f"{long}.png").is_file()
    assert (out / "b_overlay.png").is_file()


def test_an_option_out_of_its_range_is_said_once(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        Image.new("RGB", (40, 32)).save(tmp_path / f"{name}.png")
    arguments = [str(tmp_path), "--model", str(run), "--output", str(tmp_path / "out"), "--inference.overlap", "2"]
    assert main(["predict", *arguments]) == 1
    assert capsys.readouterr().err == "piecewise predict: `overlap` must be from 0 to below 1; got 2.0.\n"


def folder_arguments(make_pairs: Any, **kwargs: Any) -> list[str]:
    images, labels = make_pairs(tuple("abcdefgh"), **kwargs)
    return [
        "train", *TINY, "--data.name", "folder", "--data.images", str(images), "--data.labels", str(labels),
        "--data.image_size", "null", "--data.crop", "[32,32]", "--data.train_scenes", "320", "--data.val_scenes", "64",
    ]  # fmt: skip


def test_own_folders(make_pairs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = folder_arguments(make_pairs)
    assert main([*arguments, "--data.class_names", "[x,y,z]", "--output", str(tmp_path / "run")]) == 0
    assert PiecewiseTrainedModel.load(tmp_path / "run").classes.names == ("x", "y", "z")
    own = ["evaluate", "--model", str(tmp_path / "run"), "--device", "cpu", "--output", str(tmp_path / "evaluated")]
    folder = ["--data.name", "folder", "--data.images", str(tmp_path / "." / "data" / ".." / "data" / "images")]
    folder += ["--data.labels", str(tmp_path / "data" / "labels"), "--data.num_classes", "3"]
    assert main([*own, *folder]) == 0
    assert "2 images of 3 classes" in capsys.readouterr().out  # the share that the run held out
    assert main([*own, *folder, "--data.class_names", "[x,z,y]"]) == 1
    assert "`data.class_names` are x, z, y, but those of the model x, y, z. If the labels" in capsys.readouterr().err


def test_borders_under_void(tmp_path: Path) -> None:
    """Where a strip of void covers every border, as in PASCAL VOC, nothing is near one, unless void counts as one."""
    scenes = SyntheticDataset(6, (32, 48))
    for index in range(6):
        image, label = scenes.read(index)
        label[border_band(torch.from_numpy(label)[None].long(), 5)[0].numpy()] = 255
        for kind, picture in (("images", image), ("labels", label)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(picture).save(tmp_path / kind / f"{index}.png")
    folder = ["--data.name", "folder", "--data.root", str(tmp_path), "--data.num_classes", "7"]
    plain = ["--data.image_size", "null", "--data.train_scenes", "320", "--data.val_scenes", "64"]
    options = [*TINY, *plain, *folder, "--training.strategy", "independent", "--data.void_is_border", "true"]
    run, strict = tmp_path / "run", tmp_path / "strict"
    assert main(["train", *options, "--output", str(run)]) == 0
    arguments = ["--model", str(run), "--output", str(strict), "--device", "cpu", "--data.void_is_border", "false"]
    assert main(["evaluate", *arguments]) == 0
    for output, empty in ((run, False), (strict, True)):
        with (output / "metrics_summary.csv").open() as file:
            assert {math.isnan(float(row["trimap 4 px"])) for row in csv.DictReader(file)} == {empty}


def test_faults_of_own_folders(make_pairs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*folder_arguments(make_pairs), "--output", str(tmp_path / "run")]
    assert main(arguments) == 1
    assert "`data.name` folder needs data.num_classes or data.class_names" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "--data.num_classes", "2"]) == 1
    assert "holds the value 2, but classes go from 0 to 1" in capsys.readouterr().err


def test_overwrite_leaves_nothing_to_resume(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    arguments = ["--output", str(folder), "--overwrite", "--data.name", "folder", "--data.num_classes", "2"]
    assert main(["train", *arguments]) == 1  # the data is missing: the old run is still whole
    arguments = ["--output", str(folder), "--overwrite", "--training.patience", "-1"]
    assert main(["train", *TINY, *arguments]) == 1  # so it is where an option makes no sense
    assert (folder / "metrics_summary.txt").is_file()
    assert (folder / "checkpoints" / "stage3" / "history.json").is_file()
    (folder / "report_pictures" / "mine.png").write_bytes(b"mine")
    assert main(["train", *TINY, "--output", str(folder), "--overwrite", "--training.strategy", "independent"]) == 0
    assert not (folder / "checkpoints" / "stage3").exists()
    assert (folder / "report_pictures" / "mine.png").read_bytes() == b"mine"


def test_somebodys_folders_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.txt").write_text("mine")
    assert main(["train", *TINY, "--output", str(tmp_path), "--overwrite"]) == 1
    assert "holds logs, but no run. Give a folder of its own" in capsys.readouterr().err
    assert (tmp_path / "logs" / "mine.txt").read_text() == "mine"


def test_somebodys_model_and_tables_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("piecewise_model_final.safetensors", "metrics_summary.csv"):
        (tmp_path / name).write_text("mine")
    assert main(["train", *TINY, "--output", str(tmp_path), "--overwrite"]) == 1
    said = "holds piecewise_model_final.safetensors and metrics_summary.csv, but no run. Give a folder of its own"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("began", [False, True])
@pytest.mark.parametrize("way", [[], ["--overwrite"]])
def test_an_interrupted_run_can_be_gone_on_with_once_it_has_begun(
    began: bool,
    way: list[str],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if way:
        shutil.copytree(run, tmp_path / "run")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    place = "trainer.PiecewiseTrainer.run_stage" if began else "dataset.build_datasets"
    monkeypatch.setattr(f"piecewise_training.{place}", interrupted)
    assert main(["train", *TINY, "--output", str(tmp_path / "run"), *way]) == 130
    hint = "; --resume goes on with it" if began else ""
    assert capsys.readouterr().err.endswith(f"piecewise train: interrupted{hint}\n")


@pytest.mark.parametrize("config", ["a: 1", "", "[1, 2]", "fit: {data: {}, model: {}, seed: 0}", "a: [", "\xff"])
@pytest.mark.parametrize("way", [[], ["--overwrite"], ["--resume"]])
def test_a_folder_of_another_program_is_left_alone(
    config: str, way: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"config.yaml": config, "checkpoints/last.ckpt": "theirs", "logs/mine.txt": "mine"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="latin-1")
    assert main(["train", *TINY, "--output", str(tmp_path), *way]) == 1
    said = (
        "holds no config.yaml of one." if way == ["--resume"] else "holds config.yaml and checkpoints and logs, but no"
    )
    assert said in capsys.readouterr().err
    for name, content in files.items():
        assert (tmp_path / name).read_text(encoding="latin-1") == content


def test_data_without_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data.images", "x", "--output", str(tmp_path / "run")]) == 1
    message = "`data.images` does not belong to data.name synthetic. Give --data.name folder."
    assert message in capsys.readouterr().err


def test_a_fault_in_a_worker_is_one_sentence(
    make_pairs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*folder_arguments(make_pairs), "--output", str(tmp_path / "run"), "--data.workers", "1"]
    assert main([*arguments, "--data.num_classes", "2"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("piecewise train: label ")
    assert "holds the value 2, but classes go from 0 to 1" in error


def test_printed_configuration_is_the_one_that_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "seed.yaml").write_text("seed: 3\n")
    for arguments in (["train"], ["--traceback", "train"], ["train", "--config", str(tmp_path / "seed.yaml")]):
        with pytest.raises(SystemExit):
            main([*arguments, "--print_config"])
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["model"]["unary"] == "mobilenetv3_small_050"
    assert printed["seed"] == 3


def test_printed_configuration_with_relations_by_default_can_be_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--model.context.stride", "8", "--print_config"])
    text = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["train", "--config", str(tmp_path / "printed.yaml"), "--print_config"])
    assert capsys.readouterr().out == text
    context = yaml.safe_load(text)["model"]["context"]
    assert [relation["name"] for relation in context["relations"]] == ["surrounding", "above_below"]
    assert context["stride"] == 8


@pytest.mark.slow
def test_devices(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two processes leave one run, which as many or one more can resume."""
    output = ["--output", str(tmp_path / "run"), "--device", "cpu"]
    assert main(["train", *TINY, *output, "--data.batch_size", "2", "--devices", "2"]) == 0
    assert capfd.readouterr().out.count("stage1: unary CNN, 2 epochs") == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    assert not list(tmp_path.glob("**/*_resumed_*"))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "stage3")
    assert main(["train", *output, "--resume", "--devices", "2"]) == 0
    assert main(["train", *output, "--resume"]) == 0


@pytest.mark.slow
def test_devices_without_stage_1(run: Path, tmp_path: Path) -> None:
    """The first process judges the network that is given before any stage has connected the others with it."""
    given = ["--model.start_from", str(run), "--training.stage1_epochs", "0", "--data.batch_size", "2"]
    output = ["--output", str(tmp_path / "run"), "--device", "cpu", "--devices", "2"]
    assert main(["train", *TINY, *given, *output]) == 0
    assert "unary alone" in (tmp_path / "run" / "metrics_summary.txt").read_text()


def test_devices_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "--output", str(tmp_path / "run"), "--devices", "0"]) == 1
    assert "`devices` must be at least 1; got 0." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_that_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = ["--data.val_scenes", "1", "--devices", "2", "--output", str(tmp_path / "run")]
    assert main(["train", *TINY, *few]) == 1
    error = capfd.readouterr().err
    assert "1 validation images cannot be shared out among 2 processes." in error
    assert "one of 2 processes failed, see above." in error

"""piecewise learn, and piecewise refine with what it has learned."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from piecewise_training.cli import main
from piecewise_training.cli.scored import ScoredImages
from piecewise_training.crf import DenseCRF
from piecewise_training.dataset import Classes
from piecewise_training.dataset.files import DataError
from piecewise_training.inference import refine, scores_from_labels
from piecewise_training.model import PiecewiseTrainedModel, load_crf
from piecewise_training.storage import read_header
from piecewise_training.trainer.given_scores import CRFModule
from tests.crf.scenes import scene


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images, scores of them with noise, and true labels; of one image there are no labels."""
    for name in ("images", "scores", "labels"):
        (tmp_path / name).mkdir()
    for seed in range(5):
        scores, image = scene(20, 24 - seed % 2, 3, seed)
        noise = torch.randn(scores.shape, generator=torch.Generator().manual_seed(seed))
        np.save(tmp_path / "scores" / f"{seed}.npy", (scores + 2 * noise)[0].numpy())
        Image.fromarray(image[0].movedim(0, -1).numpy()).save(tmp_path / "images" / f"{seed}.png")
        if seed:
            Image.fromarray(scores[0].argmax(0).byte().numpy()).save(tmp_path / "labels" / f"{seed}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_scores_to_refined_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernels = "[{xy_std: 2, compatibility: class}, {xy_std: 10, rgb_std: 10}]"
    assert main(["learn", "scores", "--kernels", kernels, "--device", "cpu", "--val_fraction", "0.5"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "2 images to learn on, 2 held out, 3 classes 1 files without true labels are left out" in told
    assert "scores alone" in told
    assert "+ CRF, learned" in told
    assert "the CRF is in crf.safetensors; piecewise refine --crf crf.safetensors uses it" in told
    crf = load_crf("crf.safetensors")
    assert [(k.xy_std, k.rgb_std, k.compatibility) for k in crf.kernels.values()] == [
        (2, None, "class"),
        (10, 10, "matrix"),
    ]
    assert (crf.num_iterations, crf.train_iterations) == (10, 3)
    assert not torch.equal(crf.pos_compatibility, torch.ones(3))
    assert float(crf.temperature.detach()) != 1
    assert crf.bilateral_xy_std.item() == pytest.approx(10)
    assert main(["refine", "scores", "--crf", "crf.safetensors"]) == 0
    for seed in range(5):
        with (
            Image.open(folder / "images" / f"{seed}.png") as image,
            Image.open(folder / "refined" / f"{seed}.png") as out,
        ):
            labels, _ = refine(np.load(folder / "scores" / f"{seed}.npy"), image, crf)
            np.testing.assert_array_equal(np.asarray(out), labels)


def test_a_number_of_epochs_and_no_validation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--val_fraction", "0", "--epochs", "1", "--temperature", "false", "--iterations", "4"]
    assert main(["learn", "scores", "--device", "cpu", "--output", "made/a.safetensors", *arguments]) == 0
    told = capsys.readouterr().out
    assert "4 images to learn on, 0 held out" in told
    assert "scores alone" not in told
    assert "temperature" not in told
    crf = load_crf("made/a.safetensors")
    assert crf.num_iterations == 4
    assert crf.log_temperature is None
    assert list(crf.kernels) == ["pos", "bilateral", "bilateral2"]
    assert crf.bilateral2_rgb_std.item() == pytest.approx(12)


def test_few_images_are_seen_often(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("piecewise_training.trainer.learn_crf", lambda *arguments, **_: seen.append(arguments))
    for fraction in ("0", "0.25"):
        assert main(["learn", "scores", "--device", "cpu", "--val_fraction", fraction, "--overwrite"]) == 0
    assert [(len(loader.dataset), epochs) for _, loader, epochs, *_ in seen] == [(4, 50), (3, 67)]


def test_label_images_as_scores(folder: Path) -> None:
    for path in (folder / "scores").iterdir():
        Image.fromarray(np.load(path).argmax(0).astype(np.uint8)).save(path.with_suffix(".png"))
        path.unlink()
    flags = ["--class_names", "[a,b,c]", "--confidence", "0.6", "--epochs", "1", "--device", "cpu"]
    assert main(["learn", "scores", *flags]) == 0
    assert main(["refine", "scores", "--crf", "crf.safetensors", "--confidence", "0.6"]) == 0
    assert len([*(folder / "refined").glob("?.png")]) == 5


def test_an_image_is_scores_pixels_and_labels(folder: Path) -> None:
    data = ScoredImages(["scores/2.npy"], folder / "images", folder / "labels")
    ((scores, image, target),) = (data[index] for index in range(len(data)))
    given, pixels = scene(20, 24, 3, 2)
    assert torch.equal(image, pixels[0])
    assert torch.equal(target, given[0].argmax(0))
    np.testing.assert_array_equal(scores.numpy(), np.load("scores/2.npy"))
    assert (scores.dtype, target.dtype) == (torch.float32, torch.int64)


def colours(path: str) -> set[tuple[int, ...]]:
    """Of the palette of a label image."""
    with Image.open(path) as image:
        palette = image.getpalette() or []
    return {tuple(palette[place : place + 3]) for place in range(0, 9, 3)}


def test_what_it_was_learned_with_is_kept(folder: Path) -> None:
    for path in (folder / "scores").iterdir():
        Image.fromarray(np.load(path).argmax(0).astype(np.uint8)).save(path.with_suffix(".png"))
        path.unlink()
    flags = ["--class_names", "[a,b,c]", "--confidence", "0.9", "--epochs", "1", "--device", "cpu"]
    assert main(["learn", "scores", *flags]) == 0
    header = read_header(folder / "crf.safetensors")
    assert (json.loads(header["classes"])["names"], json.loads(header["confidence"])) == (["a", "b", "c"], 0.9)
    kept, other = [], []
    for confidence, found in ((None, kept), ("0.5", other)):
        flags = [] if confidence is None else ["--confidence", confidence]
        assert main(["refine", "scores", "--crf", "crf.safetensors", *flags, "--probabilities"]) == 0
        with np.load("refined/1_probabilities.npz") as file:
            found.append(file["probabilities"])
    label = np.asarray(Image.open("scores/1.png"))
    with Image.open("images/1.png") as image:
        _, expected = refine(scores_from_labels(label, 3, 0.9), image, load_crf("crf.safetensors"))
    np.testing.assert_array_equal(kept[0], expected.astype(np.float16))
    assert not np.array_equal(kept[0], other[0])


def test_a_crf_of_a_run(folder: Path) -> None:
    classes = Classes(("a", "b", "c"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    model = PiecewiseTrainedModel(3, 4, unary=torch.nn.Conv2d(3, 3, 1), crf={"pos_w": 0.5}, classes=classes)
    model.save("run/piecewise_model_final.safetensors")
    assert model.crf is not None
    for flags, iterations in (([], 4), (["--iterations", "1"], 1)):
        assert main(["refine", "scores/1.npy", "--crf", "run", "--output", f"out{iterations}", *flags]) == 0
        model.crf.num_iterations = iterations
        with Image.open("images/1.png") as image, Image.open(f"out{iterations}/1.png") as out:
            np.testing.assert_array_equal(np.asarray(out), refine(np.load("scores/1.npy"), image, model.crf.eval())[0])
        assert colours(f"out{iterations}/1.png") == set(classes.colours)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "crf.pth"], "`output` must end in .safetensors; got crf.pth"),
        (
            ["--output", "there.safetensors"],
            "`output` there.safetensors already exists. Pass --overwrite",
        ),
        (["--val_fraction", "1"], "`val_fraction` must be from 0 to below 1; got 1.0"),
        (["--labels", "images"], "images/0.png is a colour image (RGB), not one of class indices"),
        (["--labels", "none"], "`labels` none is no folder"),
        (["--num_classes", "4"], "0.npy holds scores of 3 classes, not of 4"),
        (["--epochs", "0"], "`epochs` must be at least 1; got 0"),
        (["--flip", "2"], "`flip` must be from 0 to 1; got 2.0"),
        (["--device", "cuda:99"], "`device` is cuda:99, but torch finds"),
        (["--kernels", "[{weight: 1}]"], "A kernel needs the bandwidth of something"),
    ],
)
def test_faults(folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    (folder / "there.safetensors").write_bytes(b"work")
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(folder / "labels" / "0.png")
    assert main(["learn", "scores", "--device", "cpu", *flags]) == 1
    assert message in capsys.readouterr().err
    assert (folder / "there.safetensors").read_bytes() == b"work"
    assert not (folder / "crf.safetensors").exists()


def test_options_are_looked_at_before_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "scores" / "1.npy").write_bytes(b"nothing")
    for flags, message in ((["--flip", "2"], "`flip`"), (["--kernels", "[{weight: 1}]"], "A kernel needs")):
        assert main(["learn", "scores", "--device", "cpu", *flags]) == 1
        assert message in capsys.readouterr().err


def test_an_image_is_learned_on_or_judged_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("scores/1.npz", np.load("scores/1.npy"))
    assert main(["learn", "scores", "--device", "cpu"]) == 1
    assert "scores/1.npy and scores/1.npz are both of images/1.png. Give one of them" in capsys.readouterr().err
    assert main(["learn", "labels", "--num_classes", "3", "--device", "cpu"]) == 1
    assert "labels/1.png is given as scores and lies in `labels`" in capsys.readouterr().err


def test_a_crf_that_did_not_learn_is_called_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--device", "cpu", "--epochs", "1", "--learning_rate", "9"]
    assert main(["learn", "scores", *flags]) == 0
    told = capsys.readouterr().out
    assert "+ CRF, as it began" in told
    assert "learned" not in told.replace("learn on", "")
    assert torch.equal(load_crf("crf.safetensors").pos_compatibility, 1 - torch.eye(3))


@pytest.mark.parametrize("validates", [True, False])
def test_what_an_interruption_leaves(
    folder: Path, validates: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best epoch so far, or the last step."""
    before: list[dict[str, torch.Tensor]] = []  # each step
    step = CRFModule.training_step

    def interrupted(self: CRFModule, batch: Any, index: int) -> torch.Tensor:
        before.append(copy.deepcopy(self.crf.state_dict()))
        if len(before) == 8:
            raise KeyboardInterrupt
        if validates and len(before) == 3:  # after the first epoch of two steps: no later one is as good
            with torch.no_grad():
                self.crf.pos_compatibility.mul_(-30)
        return step(self, batch, index)

    monkeypatch.setattr(CRFModule, "training_step", interrupted)
    flags = ["--device", "cpu", "--val_fraction", "0.5" if validates else "0"]
    assert main(["learn", "scores", *flags]) == 130
    captured = capsys.readouterr()
    assert "what was learned so far is in crf.safetensors" in captured.out
    assert captured.err == "piecewise learn: interrupted\n"
    left = load_crf("crf.safetensors").state_dict()
    assert not torch.equal(left["pos_compatibility"], 1 - torch.eye(3))
    expected = before[2 if validates else 7]
    assert all(torch.equal(left[name], value) for name, value in expected.items())
    assert read_header(folder / "crf.safetensors")["confidence"] == "0.7"


def test_an_interruption_before_anything_was_learned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CRFModule, "training_step", interrupted)
    assert main(["learn", "scores", "--device", "cpu"]) == 130
    assert not (folder / "crf.safetensors").exists()


def test_faults_of_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learn", "scores/0.npy", "--device", "cpu"]) == 1
    assert "none of the 1 files, such as scores/0.npy, has a label of its name in labels" in capsys.readouterr().err
    assert main(["learn", "scores/1.npy", "--device", "cpu"]) == 1
    assert "one image cannot be split. Give more, or --val_fraction 0" in capsys.readouterr().err
    np.save("scores/3.npy", np.zeros((4, 20, 23), np.float32))
    with pytest.raises(DataError, match=r"1.npy holds scores of 3 classes, and .*3.npy of 4. They must be the same"):
        ScoredImages(["scores"], Path("images"), Path("labels")).classes()
    Image.fromarray(np.full((20, 23), 3, np.uint8)).save("labels/1.png")
    assert main(["learn", "scores", "--device", "cpu"]) == 1
    assert "labels/1.png holds the value 3, but classes go from 0 to 2" in capsys.readouterr().err
    Image.fromarray(np.zeros((5, 5), np.uint8)).save("labels/1.png")
    assert main(["learn", "scores", "--device", "cpu"]) == 1
    assert "labels/1.png is 5 x 5 pixels, its image 23 x 20" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pos_w", "2", "--bilateral_xy_std", "9"], "has kernels of its own: leave out pos_w, bilateral_xy_std"),
        (["--num_classes", "4"], "`num_classes` is 4, but the CRF of crf.safetensors has 3 classes"),
        (["--iterations", "-1"], "`iterations` must be at least 0; got -1"),
    ],
)
def test_what_a_learned_crf_contradicts(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    DenseCRF(3).save("crf.safetensors")
    assert main(["refine", "scores", "--crf", "crf.safetensors", *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (folder / "refined").exists()


def test_scores_of_other_classes_than_the_crf(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DenseCRF(5).save("crf.safetensors")
    assert main(["refine", "scores/1.npy", "--crf", "crf.safetensors"]) == 1
    assert "scores/1.npy holds scores of 3 classes, not of 5" in capsys.readouterr().err

"""The examples run, one on what the other wrote; and so does the first code's interface, line by line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SMALL = ["--unary", "tf_efficientnet_lite0", "--size", "64"]

INTERFACE = """
import torch, warnings
warnings.simplefilter("ignore")
from torch.utils.data import DataLoader
from {prefix}piecewise_training.model import PiecewiseTrainedModel
from {prefix}piecewise_training.trainer import PiecewiseTrainer
from {prefix}piecewise_training.dataset import SegmentationDataset
from {prefix}piecewise_training import networks
networks.vgg.fetch_vgg16 = lambda: 1 / 0  # as without a network: the test must not download half a gigabyte

model = PiecewiseTrainedModel(num_classes=3, crf_iterations=10, use_crf=True)
dataset = SegmentationDataset({images!r}, {labels!r}, image_size=(64, 64))
train_loader = val_loader = DataLoader(dataset, batch_size=2, shuffle=True)
trainer = PiecewiseTrainer(model, torch.device("cpu"), num_classes=3, learning_rate=1e-3, weight_decay=5e-4)
history = trainer.train_piecewise(train_loader, stage1_epochs=1, stage2_epochs=1, stage3_epochs=1,
                                  val_loader=val_loader)
assert len(history["stage3"]["val_miou"]) == 1
torch.save(model.state_dict(), {weights!r})

model = PiecewiseTrainedModel(num_classes=3, crf_iterations=10, use_crf=True)
model.load_state_dict(torch.load({weights!r}))
model.eval()
from PIL import Image
from torchvision import transforms
transform = transforms.Compose([
    transforms.Resize((512, 512)), transforms.ToTensor(),
    transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
])
image_tensor = transform(Image.open({image!r}).convert("RGB")).unsqueeze(0)
with torch.no_grad():
    unary_output, crf_output = model(image_tensor, apply_crf=True)
prediction = crf_output.argmax(dim=1)
assert prediction.shape == (1, 512, 512)
"""


def run(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_train_then_infer(tmp_path: Path) -> None:
    weights, picture, out = (str(tmp_path / name) for name in ("weights.pth", "photo.png", "out.png"))
    train = run("examples/train_example.py", *SMALL, "--epochs", "1", "1", "1", "--output", weights)
    assert "stage3: best validation mIoU" in train
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)).save(picture)
    assert "the CRF changed" in run("examples/inference_example.py", weights, picture, *SMALL, "--output", out)
    with Image.open(out) as labels:
        assert labels.size == (64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "src."])
def test_first_codes_interface(make_pairs, tmp_path: Path, prefix: str) -> None:  # type: ignore[no-untyped-def]
    images, labels = make_pairs(("a", "b"), (64, 64))
    code = INTERFACE.format(
        prefix=prefix,
        images=str(images),
        labels=str(labels),
        weights=str(tmp_path / "piecewise_model_final.pth"),
        image=str(images / "a.jpg"),
    )
    run("-c", code)

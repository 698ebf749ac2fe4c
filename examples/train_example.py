"""Trains a network and a CRF in three stages on a folder of images and a folder of labels.

    python examples/train_example.py --images IMAGES --labels LABELS --num-classes 21

Without folders it draws a few scenes into a temporary one and trains on those.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, random_split

from piecewise_training.dataset import SegmentationDataset, SyntheticDataset
from piecewise_training.model import PiecewiseTrainedModel
from piecewise_training.trainer import PiecewiseTrainer


def main() -> None:
    """Reads the command line, trains, and saves the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder of images")
    parser.add_argument("--labels", help="folder of label images of the same names")
    parser.add_argument("--num-classes", type=int, default=7)
    parser.add_argument("--unary", default="largefov_vgg16", help="network; tf_efficientnet_lite0 is quick on a CPU")
    parser.add_argument("--size", type=int, default=512, help="side of the square that images are resized to")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--epochs", type=int, nargs=3, default=(20, 4, 8), help="of the three stages")
    parser.add_argument("--output", default="piecewise_model_final.pth")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        image_dir, label_dir = arguments.images, arguments.labels
        if not image_dir:
            image_dir, label_dir = draw_scenes(Path(folder))
        dataset = SegmentationDataset(
            image_dir, label_dir, image_size=(arguments.size, arguments.size), num_classes=arguments.num_classes
        )
        train_set, val_set = random_split(dataset, [0.8, 0.2], torch.Generator().manual_seed(0))
        train_loader = DataLoader(train_set, arguments.batch_size, shuffle=True, drop_last=True)
        val_loader = DataLoader(val_set)

        model = PiecewiseTrainedModel(arguments.num_classes, crf_iterations=10, use_crf=True, unary=arguments.unary)
        trainer = PiecewiseTrainer(model, "auto", num_classes=arguments.num_classes, learning_rate=1e-3)
        stage1, stage2, stage3 = arguments.epochs
        history = trainer.train_piecewise(
            train_loader, stage1_epochs=stage1, stage2_epochs=stage2, stage3_epochs=stage3, val_loader=val_loader
        )

    for stage, values in history.items():
        print(f"{stage}: best validation mIoU {max(values['val_miou']):.3f}")
    torch.save(model.state_dict(), arguments.output)
    print(f"weights are in {arguments.output}")


def draw_scenes(folder: Path, count: int = 40) -> tuple[Path, Path]:
    """Writes drawn scenes and their labels as PNG files into two folders."""
    image_dir, label_dir = folder / "images", folder / "labels"
    image_dir.mkdir()
    label_dir.mkdir()
    scenes = SyntheticDataset(count)
    for index in range(count):
        image, label = scenes.read(index)
        Image.fromarray(image).save(image_dir / f"{index:03}.png")
        Image.fromarray(label).save(label_dir / f"{index:03}.png")
    return image_dir, label_dir


if __name__ == "__main__":
    main()

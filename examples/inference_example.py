"""Segments one image with a trained model, before and after the CRF.

python examples/inference_example.py piecewise_model_final.pth photo.jpg --num-classes 21
"""

import argparse

import torch
from PIL import Image
from torchvision import transforms

from piecewise_training.dataset import Classes
from piecewise_training.figures import paint
from piecewise_training.model import PiecewiseTrainedModel


def main() -> None:
    """Reads the command line, predicts, and writes the painted labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a state dict, such as examples/train_example.py writes")
    parser.add_argument("image")
    parser.add_argument("--num-classes", type=int, default=7)
    parser.add_argument("--unary", default="largefov_vgg16", help="the network that was trained")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--output", default="prediction.png")
    arguments = parser.parse_args()

    model = PiecewiseTrainedModel(
        arguments.num_classes, crf_iterations=10, use_crf=True, unary=arguments.unary, pretrained=False
    )
    model.load_state_dict(torch.load(arguments.weights, map_location="cpu", weights_only=True))
    model.eval()

    transform = transforms.Compose(
        [
            transforms.Resize((arguments.size, arguments.size)),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    image_tensor = transform(Image.open(arguments.image).convert("RGB")).unsqueeze(0)
    with torch.no_grad():
        unary_output, crf_output = model(image_tensor, apply_crf=True)
    before, after = unary_output.argmax(dim=1)[0], crf_output.argmax(dim=1)[0]

    Image.fromarray(paint(after.numpy(), Classes.numbered(arguments.num_classes))).save(arguments.output)
    print(f"the CRF changed {(before != after).float().mean():.1%} of the pixels; labels are in {arguments.output}")


if __name__ == "__main__":
    main()

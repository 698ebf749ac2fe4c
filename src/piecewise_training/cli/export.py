"""piecewise export: a trained network as one file for other programs."""

from __future__ import annotations


def run(model: str, output: str, size: tuple[int, int] | None = None) -> None:
    """Writes a trained network as ONNX or as torch.export's .pt2, and compares the file with the model.

    The file takes RGB images in grey levels from 0 to 255 and gives scores of every class and pixel. The dense CRF is
    not in it: piecewise refine, or the model's own in Python, works on the scores.

    Args:
        model: folder of a run, or a .safetensors file in one
        output: the file; .onnx, which needs the extra "export", or .pt2
        size: height and width of images, where they are fixed; a contextual CRF needs it
    """
    from piecewise_training.export import export
    from piecewise_training.model import PiecewiseTrainedModel

    difference = export(PiecewiseTrainedModel.load(model), output, size)
    print(f"{output}: scores differ from the model's by at most {difference:.1g}")

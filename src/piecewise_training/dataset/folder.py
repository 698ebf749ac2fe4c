"""Images and labels on disk as a torch data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from piecewise_training.dataset.classes import Classes
from piecewise_training.dataset.files import check_label, label_table, read_image, read_label
from piecewise_training.dataset.pairing import Pair, pair_by_stem, read_names
from piecewise_training.dataset.transforms import normalise, resize

Transform = Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[Tensor, Tensor]]
Item = tuple[Float[Tensor, "3 h w"], Int[Tensor, "h w"]]


class SegmentationDataset(Dataset[Item]):
    """Pairs of an image and a label image, found by name in two folders.

    An item is the image as (3, H, W) float, normalised by ImageNet's mean and standard deviation, and the label as
    (H, W) int64 of class indices with 255 for void. Images may be jpg, png, webp, bmp or tif, grey, palette, RGBA or
    CMYK, and are turned as their EXIF orientation says. Labels are palette or grey images of class indices and are
    only ever resized by nearest neighbour.

    Args:
        image_dir: folder of images.
        label_dir: folder of labels of the same names.
        image_size: (height, width) to which both are resized; None keeps the size of the file.
        transform: called after resizing with an 8-bit image and its mask (torchvision tv_tensors), returns both;
            `transforms.augmentation` gives the usual one. Of torchvision's v2 transforms flips, crops and changes of
            colour fit as they are. Those that fill (RandomRotation, RandomAffine, RandomPerspective, Pad, RandomCrop
            with pad_if_needed) would make new pixels of class 0: give them
            `fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}`. Those that resize (Resize, RandomResizedCrop) take the
            pixels of a mask half a pixel beside those of the image.
        image_list: a text file or a sequence of names, to take only these, in this order.
        label_suffix: what a label's name has behind its image's, such as "_mask"; both may lie in one folder then.
        label_map: classes for values of the label images, such as {0: 255, 1: 0}, or all 256 of them as an array; those
            that it does not have stay as they are.
        num_classes: if given, labels are checked to hold nothing else than classes and void.
        classes: names and colours, for reports; gives `num_classes` too.

    Raises:
        TypeError: a folder is no path.
        ValueError: `image_size` is not (height, width), `num_classes` and `classes` contradict each other, or
            `label_map` holds what is no byte.
        DataError: a folder, a partner or a listed file is missing; or, at an item, a file is broken or does not fit.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("images", "labels"):
        ...     (root / name).mkdir()
        >>> Image.new("RGB", (40, 30)).save(root / "images" / "a.jpg")
        >>> Image.new("L", (40, 30), 1).save(root / "labels" / "a.png")
        >>> image, label = SegmentationDataset(root / "images", root / "labels", image_size=(24, 32))[0]
        >>> image.shape, label.shape, label.unique()
        (torch.Size([3, 24, 32]), torch.Size([24, 32]), tensor([1]))
    """

    def __init__(
        self,
        image_dir: str | Path,
        label_dir: str | Path,
        image_size: tuple[int, int] | None = (512, 512),
        transform: Transform | None = None,
        image_list: str | Path | Sequence[str] | None = None,
        *,
        label_suffix: str = "",
        label_map: Mapping[int, int] | np.ndarray | None = None,
        num_classes: int | None = None,
        classes: Classes | None = None,
    ) -> None:
        for argument, folder in (("image_dir", image_dir), ("label_dir", label_dir)):
            if not isinstance(folder, str | Path):
                raise TypeError(f"`{argument}` must be the path of a folder; got {folder!r}.")
        names = None if image_list is None else read_names(image_list)
        self._setup(
            pair_by_stem(Path(image_dir), Path(label_dir), names, label_suffix),
            image_size=image_size,
            transform=transform,
            num_classes=num_classes,
            classes=classes,
            label_map=label_map,
        )

    @classmethod
    def from_pairs(
        cls,
        pairs: Sequence[Pair],
        image_size: tuple[int, int] | None = None,
        transform: Transform | None = None,
        *,
        num_classes: int | None = None,
        classes: Classes | None = None,
        label_map: Mapping[int, int] | np.ndarray | None = None,
    ) -> SegmentationDataset:
        """A data set from pairs found elsewhere.

        Args:
            pairs: the images and labels.
            image_size: as above.
            transform: as above.
            num_classes: as above.
            classes: as above.
            label_map: as above; labels are mapped before anything else.
        """
        dataset = cls.__new__(cls)
        dataset._setup(
            pairs,
            image_size=image_size,
            transform=transform,
            num_classes=num_classes,
            classes=classes,
            label_map=label_map,
        )
        return dataset

    def _setup(
        self,
        pairs: Sequence[Pair],
        *,
        image_size: tuple[int, int] | None,
        transform: Transform | None,
        num_classes: int | None,
        classes: Classes | None,
        label_map: Mapping[int, int] | np.ndarray | None = None,
    ) -> None:
        if image_size is not None and (np.shape(image_size) != (2,) or min(image_size) < 1):
            raise ValueError(f"`image_size` must be (height, width) of at least 1 or None; got {image_size!r}.")
        if classes is not None and num_classes not in (None, len(classes)):
            raise ValueError(f"`num_classes` {num_classes} and the {len(classes)} `classes` contradict each other.")
        self.pairs = list(pairs)
        self.image_size = image_size
        self.transform = transform
        self.num_classes = len(classes) if classes is not None else num_classes
        self.classes = Classes.numbered(num_classes) if classes is None and num_classes else classes
        self.label_map = None if label_map is None else label_table(label_map)

    @property
    def names(self) -> list[str]:
        """The name of each item."""
        return [pair.name for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        image, mask = self._resized(index)
        if self.transform is not None:
            image, mask = self.transform(image, mask)
        return normalise(image).as_subclass(Tensor), mask.as_subclass(Tensor).long()

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image (H, W, 3) and the label (H, W), both uint8, at `image_size` and before any transform."""
        image, mask = self._resized(index)
        return image.permute(1, 2, 0).contiguous().numpy(), mask.numpy()

    def read_label(self, index: int) -> np.ndarray:
        """The label (H, W) uint8 of `read`, without decoding the image, against whose size it is not checked."""
        path, label = self.pairs[index].label, self._indices(index)
        check_label(path, label, label.shape, self.num_classes)
        return self._sized(tv_tensors.Mask(torch.from_numpy(label))).numpy()

    def _resized(self, index: int) -> tuple[Any, Any]:
        pixels, label = np.array(read_image(self.pairs[index].image)), self._indices(index)
        check_label(self.pairs[index].label, label, pixels.shape[:2], self.num_classes)
        image = self._sized(tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)))
        return image, self._sized(tv_tensors.Mask(torch.from_numpy(label)))

    def _indices(self, index: int) -> np.ndarray:
        label = read_label(self.pairs[index].label)
        return np.array(label) if self.label_map is None else self.label_map[label]

    def _sized(self, value: Any) -> Any:
        return value if self.image_size is None else resize(value, self.image_size)

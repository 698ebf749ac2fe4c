"""What the classes of a data set are called and how they are painted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Classes:
    """The names of the classes, in the order of their indices, and the colour of each.

    Raises:
        ValueError: there are fewer than two classes or more than 255, not as many colours as names, a name is empty or
            stands there twice, or a colour goes beyond 0 to 255.

    Example:
        >>> Classes.numbered(3).names
        ('class 0', 'class 1', 'class 2')
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]

    def __post_init__(self) -> None:
        if isinstance(self.names, str):  # which would be a class a letter
            raise ValueError(f"`names` must be several names, as a list; got {self.names!r} alone.")
        if not 2 <= len(self.names) <= 255:
            raise ValueError(f"there must be 2 to 255 classes; got {len(self.names)}.")
        name, count = Counter(self.names).most_common(1)[0]
        if count > 1:
            raise ValueError(f"`names` must each be another; got {name!r} {count} times.")
        if not all(isinstance(name, str) and name.strip() for name in self.names):
            raise ValueError(f"`names` must be words; got {self.names}.")
        if len(self.colours) != len(self.names):
            raise ValueError(f"{len(self.names)} classes need as many colours; got {len(self.colours)}.")
        plain = tuple((int(red), int(green), int(blue)) for red, green, blue in self.colours)
        wrong = [colour for colour in plain if min(colour) < 0 or max(colour) > 255]
        if wrong:
            raise ValueError(f"`colours` must be red, green and blue from 0 to 255; got {wrong[0]}.")
        object.__setattr__(self, "colours", plain)  # which may be NumPy's numbers

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def named(cls, names: Sequence[str]) -> Classes:
        """Classes with names of one's own, in PASCAL VOC's colours."""
        whole: Any = names if isinstance(names, str) else tuple(names)  # a bare string is refused, not spelt
        return cls(whole, voc_colours(len(names)))

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> Classes:
        """Classes as a file holds them: what `dataclasses.asdict` gives of them, as JSON."""
        return cls(tuple(values["names"]), tuple((r, g, b) for r, g, b in values["colours"]))

    @classmethod
    def numbered(cls, count: int) -> Classes:
        """Classes without names, in PASCAL VOC's colours."""
        return cls.named([f"class {k}" for k in range(count)])


def voc_colours(count: int) -> tuple[Colour, ...]:
    """PASCAL VOC's colour map: the bits of the index, dealt out to red, green and blue from the highest bit down.

    Example:
        >>> voc_colours(3)
        ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """

    def colour(index: int) -> Colour:
        channels = [0, 0, 0]
        for place in range(8):
            for channel in range(3):
                channels[channel] |= (index >> (3 * place + channel) & 1) << (7 - place)
        return channels[0], channels[1], channels[2]

    return tuple(colour(index) for index in range(count))

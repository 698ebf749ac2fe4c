"""What a run leaves to be reported, in one JSON file: nothing has to be computed again for a page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from piecewise_training.dataset import Classes
from piecewise_training.inference import Result
from piecewise_training.metrics import scores_from_confusion
from piecewise_training.report.gallery import Shown
from piecewise_training.writing import atomic_write

RECORD_FILE = "results.json"
"""The file of a run's folder that `RunRecord.save` writes and `RunRecord.load` reads."""
_FORMAT = "piecewise-training results 1"


@dataclass(frozen=True)
class Parameter:
    """A learned number of the CRF before and after training.

    Attributes:
        name: as `DenseCRF` has it.
        unit: "px", "grey levels" or "".
        before: at the start.
        after: at the end.
    """

    name: str
    unit: str
    before: float
    after: float


@dataclass(frozen=True)
class RunRecord:
    """Everything that the page of a run shows.

    Attributes:
        name: of the run's folder when it was written; a page has that of now.
        classes: names and colours.
        results: by name, from the plainest to the best.
        history: by stage and quantity, a value for each epoch; empty if nothing was trained.
        titles: what each stage trained.
        parameters: of the CRF.
        costs: of labels beside each other that the CRF has learned, (K, K) or (K,) by kernel.
        configuration: of the run, as nested mappings.
        surroundings: versions, machine and date, in words.
        gallery: images to show.
    """

    name: str
    classes: Classes
    results: Mapping[str, Result]
    history: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)
    parameters: Sequence[Parameter] = ()
    costs: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    surroundings: Mapping[str, str] = field(default_factory=dict)
    gallery: Sequence[Shown] = ()

    def save(self, folder: Path) -> None:
        """Writes the record into the run's folder; what is no number, or infinite, is null there."""
        content = {
            "format": _FORMAT,
            "name": self.name,
            "classes": asdict(self.classes),
            "results": {name: _plain(result) for name, result in self.results.items()},
            "history": {stage: dict(values) for stage, values in self.history.items()},
            "titles": dict(self.titles),
            "parameters": [asdict(parameter) for parameter in self.parameters],
            "costs": dict(self.costs),
            "configuration": dict(self.configuration),
            "surroundings": dict(self.surroundings),
            "gallery": [asdict(shown) for shown in self.gallery],
        }
        with atomic_write(folder / RECORD_FILE) as temporary:
            temporary.write_text(json.dumps(_finite(content), allow_nan=False))

    @classmethod
    def load(cls, folder: Path) -> RunRecord:
        """Reads the record of a run's folder; where a number is null, it is NaN.

        Raises:
            FileNotFoundError: the folder holds none.
            ValueError: the file is not one.
        """
        path = folder / RECORD_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no {RECORD_FILE} in {folder}: give the folder of a finished `piecewise train` or `evaluate`."
            )
        try:
            content = json.loads(path.read_text())
        except ValueError as error:  # in JSON, or bytes that are no text
            raise ValueError(f"{path} is no JSON ({error}).") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"{path} was not written by piecewise train or evaluate of this version.")
        try:
            return cls(**_fields(content))
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged, or of another version ({type(error).__name__}: {error}). Write it again by "
                "`piecewise train --resume` or `evaluate`."
            ) from error


def _fields(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": content["name"],
        "classes": Classes.stored(content["classes"]),
        "results": {name: _result(values) for name, values in content["results"].items()},
        "history": _numbers(content["history"]),
        "titles": content["titles"],
        "parameters": [Parameter(**_numbers(values)) for values in content["parameters"]],
        "costs": _numbers(content.get("costs", {})),  # runs of before have none
        "configuration": content["configuration"],
        "surroundings": content["surroundings"],
        "gallery": [Shown(**values) for values in content["gallery"]],
    }


def _plain(result: Result) -> dict[str, Any]:
    return {
        "confusion": result.confusion.tolist(),
        "borders": result.borders,
        "seconds": result.seconds,
        "images": list(result.images),
    }


def _result(values: Mapping[str, Any]) -> Result:
    confusion = torch.tensor(values["confusion"])
    scores = scores_from_confusion(confusion)
    known = _numbers(values)
    return Result(scores, confusion, known["borders"], known["seconds"], tuple(known["images"]))


def _finite(value: Any) -> Any:
    """The same with None for the numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(value: Any) -> Any:
    """The same with NaN for None."""
    if isinstance(value, Mapping):
        return {key: _numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_numbers(part) for part in value]
    return math.nan if value is None else value

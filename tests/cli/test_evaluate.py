"""piecewise evaluate: which images it takes, from what is said and what the model's run was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from piecewise_training.cli import build_parser, main
from piecewise_training.cli.evaluate import with_data_of_run

OWN = {"name": "folder", "root": "own", "num_classes": 7, "val_fraction": 0.1}
APART = {"name": "folder", "images": "own/images", "labels": "own/labels", "num_classes": 7}


@pytest.fixture
def completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What becomes of arguments beside a run of seed 7 with the given data."""
    monkeypatch.chdir(tmp_path)

    def complete(trained: dict[str, Any], *arguments: str) -> Any:
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "config.yaml").write_text(
            yaml.safe_dump({"data": trained, "model": {}, "training": {}, "seed": 7})
        )
        parser = build_parser()
        return parser.parse_args(with_data_of_run(parser, ["evaluate", "--model", "run", *arguments])).evaluate

    return complete


def test_the_runs_own_data(completed: Any) -> None:
    found = completed(OWN)
    assert (found.data.root, found.data.val_fraction, found.seed) == ("own", 0.1, 7)
    changed = completed(OWN, "--data.image_size", "[64,64]", "--seed", "3")
    assert (changed.data.root, changed.data.val_fraction, changed.seed) == ("own", 0.1, 3)


@pytest.mark.parametrize(
    "split",
    [{"val_images": "v/images", "val_labels": "v/labels"}, {"val_list": "v.txt"}, {"image_list": "i.txt"}, {}],
)
@pytest.mark.parametrize("place", [["--data.images", "x", "--data.labels", "y"], ["--data.root", "z"]])
def test_of_other_images_the_run_holds_out_none(completed: Any, place: list[str], split: dict[str, str]) -> None:
    found = completed({**OWN, **split}, *place).data
    given = {part.removeprefix("--data."): value for part, value in zip(place[::2], place[1::2], strict=True)}
    assert {key: found[key] for key in ("root", "images", "labels")} == {
        "root": None, "images": None, "labels": None, **given
    }  # fmt: skip
    assert [found[key] for key in ("image_list", "val_images", "val_labels", "val_list")] == [None] * 4
    assert (found.name, found.num_classes, found.val_fraction) == ("folder", 7, None)
    assert completed({**OWN, **split}, *place, "--data.val_list", "mine.txt").data.val_list == "mine.txt"


@pytest.mark.parametrize("trained", [OWN, {**APART, "val_fraction": 0.1}])
@pytest.mark.parametrize("name", [["--data.name", "folder", "--data.num_classes", "7"], []])
@pytest.mark.parametrize(
    "place",
    [
        ["--data.root", "own"],
        ["--data.root", "./own/"],
        ["--data.root", "ABSOLUTE/own"],
        ["--data.images", "own/../own/images", "--data.labels", "ABSOLUTE/own/labels"],
    ],
)
def test_the_runs_own_images_by_any_name_are_split_as_they_were(
    completed: Any, tmp_path: Path, trained: dict[str, Any], name: list[str], place: list[str]
) -> None:
    """Otherwise the network would be judged on images that it was trained on."""
    given = [part.replace("ABSOLUTE", str(tmp_path)) for part in place]
    found = completed(trained, *name, *given)
    assert (found.data.val_fraction, found.seed) == (0.1, 7)
    assert (found.data.root is None) == ("--data.root" not in place)
    listed = completed({**trained, "val_list": "v.txt", "image_list": "i.txt"}, *name, *given).data
    assert (listed.val_list, listed.image_list) == ("v.txt", "i.txt")


NAMED = ["--data.name", "folder", "--data.root", "own"]


@pytest.mark.parametrize("named", [NAMED, []])
@pytest.mark.parametrize(
    ("trained", "given", "expected"),
    [
        ({"val_list": "v.txt"}, {"val_list": "mine.txt"}, {"val_list": "mine.txt"}),
        ({"val_list": "v.txt"}, {"val_fraction": 0.3}, {"val_fraction": 0.3}),
        ({"val_list": "v.txt"}, {"val_images": "a", "val_labels": "b"}, {"val_images": "a", "val_labels": "b"}),
        ({"val_images": "a", "val_labels": "b"}, {"val_fraction": 0.3}, {"val_fraction": 0.3}),
        ({"val_fraction": 0.1}, {"val_fraction": 0.2}, {"val_fraction": 0.2}),
    ],
)
def test_a_split_of_ones_own_is_not_mixed_with_the_runs(
    completed: Any, named: list[str], trained: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    options = [part for key, value in given.items() for part in (f"--data.{key}", str(value))]
    found = completed({"name": "folder", "root": "own", "num_classes": 7, **trained}, *named, *options)
    keys = ("val_images", "val_labels", "val_list")
    assert [found.data[key] for key in keys] == [expected.get(key) for key in keys]
    assert "val_fraction" not in expected or found.data.val_fraction == expected["val_fraction"]
    assert found.seed == 7


def test_what_stands_in_a_configuration_of_ones_own(completed: Any, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({"data": {**OWN, "val_fraction": 0.3}, "seed": 3}))
    found = completed({**OWN, "val_list": "v.txt"}, "--config", "e.yaml")
    assert (found.data.val_list, found.data.val_fraction, found.seed) == (None, 0.3, 3)
    found = completed({**OWN, "val_list": "v.txt"}, "--data", json.dumps({"name": "folder", "root": "own"}))
    assert (found.data.val_list, found.data.val_fraction, found.seed) == ("v.txt", 0.1, 7)


@pytest.mark.parametrize("content", [{"inference": {"flip": True}}, {"data": {"workers": 3}}])
def test_a_configuration_that_names_no_data(completed: Any, tmp_path: Path, content: Any) -> None:
    (tmp_path / "how.yaml").write_text(yaml.safe_dump(content))
    found = completed({**OWN, "val_list": "v.txt"}, "--config", "how.yaml")
    assert (found.data.name, found.data.root, found.data.val_list, found.seed) == ("folder", "own", "v.txt", 7)
    assert found.data.workers == content.get("data", {"workers": 2})["workers"]


def test_data_in_a_file_of_their_own(completed: Any, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"name": "camvid", "root": "c"}))
    (tmp_path / "how.yaml").write_text("data: data.yaml\n")
    found = completed(OWN, "--config", "how.yaml")
    assert (found.data.name, found.data.root, found.seed) == ("camvid", "c", 0)


def test_other_labels_of_the_runs_images(completed: Any) -> None:
    """Corrected ones, for instance: the images are those that the network knows."""
    found = completed({**APART, "val_fraction": 0.1}, "--data.labels", "corrected")
    assert (found.data.images, found.data.labels, found.data.val_fraction) == ("own/images", "corrected", 0.1)
    both = ["--data.images", "own/images", "--data.labels", "corrected"]
    for trained in (OWN, {**APART, "val_fraction": 0.1}, {**OWN, **APART}):
        for named in ([], ["--data.name", "folder", "--data.num_classes", "7"]):
            found = completed(trained, *named, *both)
            assert (found.data.root, found.data.val_fraction, found.seed) == (None, 0.1, 7)


def test_data_of_another_kind(completed: Any) -> None:
    found = completed(OWN, "--data.name", "camvid", "--data.root", "own")
    assert (found.data.name, found.data.val_fraction, found.seed) == ("camvid", None, 0)


@pytest.mark.parametrize("content", ["", "a: 1", "[1, 2]", "data: 3"])
def test_a_configuration_of_another_program(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(content)
    parser = build_parser()
    named = ["evaluate", "--model", str(tmp_path / "m.safetensors"), "--data.name", "synthetic"]
    assert with_data_of_run(parser, named) == named
    with pytest.raises(SystemExit):
        with_data_of_run(parser, named[:3])
    assert "holds no config.yaml that names the data" in capsys.readouterr().err


def test_an_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text(json.dumps({}))
    arguments = ["--model", str(tmp_path), "--output", str(tmp_path / "file"), "--data.name", "synthetic"]
    assert main(["evaluate", *arguments]) == 1
    assert f"`output` {tmp_path / 'file'} is a file. Give a folder." in capsys.readouterr().err

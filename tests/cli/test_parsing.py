"""Flags, YAML and help: what is known, what is refused, and with which suggestion."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecewise_training import __version__
from piecewise_training.cli import build_parser, main


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("train", "evaluate", "predict", "refine", "data"))


def test_help_of_train_comes_from_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: piecewise train [options]" in text
    assert "--data.crop CROP Height and width of the training crops" in text
    assert "--training.optim.learning_rate LEARNING_RATE Rate of the CNN in stage 1." in text


def test_precision_is_the_same_with_and_without_quotes_in_yaml(tmp_path: Path) -> None:
    found = []
    for text in ("32", '"32"', "bf16", "auto"):
        (tmp_path / "run.yaml").write_text(f"training:\n  precision: {text}\n")
        parser = build_parser()
        settings = parser.instantiate(parser.parse_args(["train", "--config", str(tmp_path / "run.yaml")])).train
        found.append(str(settings.training.precision))
    assert found == ["32", "32", "bf16", "auto"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "invalid choice: 'trian'.* Did you mean train?"),
        (["train", "--model.unray", "x"], "unrecognized arguments: --model.unray x. Did you mean model.unary?"),
        (["train", "--trainig.loss", "dice"], "Did you mean training.loss?"),
        (["train", "--resum"], "Did you mean resume?"),
        (["train", "--training.seed", "5"], "Did you mean seed?"),
        (["train", "--data.crop", "[384]"], r"data.crop must be a list of 2; got \[384\]."),
        (["train", "--zzzzzzz", "1"], "unrecognized arguments: --zzzzzzz 1.\nSee piecewise train --help."),
        (["data", "chek", "x"], "invalid choice: 'chek'.* Did you mean check?"),
        (["data", "check", "x", "--num_clases", "3"], "Did you mean num_classes?"),
        (["train", "--data.name", "camvidd"], r"Expected one of \['synthetic', .*\]. Got value: camvidd"),
        (["train", "--data.batch_size", "many"], "data.batch_size.*Got value: many"),
        (["predict"], "required: predict.inputs"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    assert re.search(message.replace("?", r"\?"), refusal(arguments, capsys))


def test_mistyped_keys_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("training:\n  optim:\n    learnig_rate: 0.1\n")
    message = refusal(["train", "--config", str(tmp_path / "c.yaml")], capsys)
    assert "does not accept option 'training.optim.learnig_rate'" in message
    assert "Did you mean training.optim.learning_rate?" in message


def test_flags_override_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data:\n  batch_size: 3\n  crop: [64, 96]\nseed: 5\n")
    parser = build_parser()
    arguments = ["train", "--config", str(tmp_path / "c.yaml"), "--data.batch_size", "7", "--resume"]
    train = parser.instantiate(parser.parse_args(arguments)).train
    assert (train.data.batch_size, train.data.crop, train.seed, train.resume) == (7, (64, 96), 5, True)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_configuration_parses(path: Path) -> None:
    parser = build_parser()
    train = parser.instantiate(parser.parse_args(["train", "--config", str(path)])).train
    assert train.data.name != "synthetic"
    assert train.output == f"runs/{path.stem}"


def test_faults_end_with_a_sentence_and_not_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "nowhere.jpg"]) == 1
    assert capsys.readouterr().err == ("piecewise predict: there is no file or folder 'nowhere.jpg'.\n")
    with pytest.raises(FileNotFoundError):
        main(["--traceback", "predict", "nowhere.jpg"])

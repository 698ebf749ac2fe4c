"""The pages that are made from the code: the command line, the configuration, every public name; and the notebook."""

from __future__ import annotations

import shutil
from pathlib import Path

from piecewise_training.cli import build_parser
from piecewise_training.cli.parsing import Parser

NOTEBOOK = Path(__file__).parents[1] / "piecewise_training_pipeline.ipynb"
PACKAGES = {
    "crf": "The CRF",
    "model": "The model",
    "trainer": "Training",
    "inference": "Prediction and evaluation",
    "dataset": "Data sets",
    "networks": "Networks",
    "losses": "Losses",
    "metrics": "Metrics",
    "report": "The report",
    "export": "Export",
    "visualization": "Tables and pictures",
    "figures": "Figures",
    "pydensecrf.densecrf": "pydensecrf's classes",
    "pydensecrf.utils": "pydensecrf's functions",
}
_PACKAGES_OF_NAMES = {"crf", "trainer", "inference", "dataset", "networks", "report"}  # their names come from inside


def write(folder: Path) -> None:
    """Writes the pages into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "cli.md").write_text(command_line())
    (folder / "config.md").write_text(configuration())
    shutil.copy(NOTEBOOK, folder / "pipeline.ipynb")
    for name, title in PACKAGES.items():
        (folder / f"{name}.md").write_text(package(name, title))


def command_line() -> str:
    """The help of every command."""
    root = build_parser()
    parts = ["# The command line", _help(root)]
    for name, parser in _commands(root):
        parts += [f"## piecewise {name}", _help(parser)]
    return "\n\n".join(parts) + "\n"


def configuration() -> str:
    """The dataclasses of the configuration."""
    return _page("The configuration", "config", imported=False)


def package(name: str, title: str) -> str:
    """Every public name of a module."""
    return _page(title, name, imported=name in _PACKAGES_OF_NAMES)


def _page(title: str, name: str, *, imported: bool) -> str:
    options = [":members:", *([":imported-members:"] if imported else [])]
    options += [":exclude-members: DenseCRF"] if name == "model" else []  # it is the CRF's
    directive = "\n".join([f".. automodule:: piecewise_training.{name}", *(f"   {option}" for option in options)])
    return f"# {title}\n\n```{{eval-rst}}\n{directive}\n```\n"


def _help(parser: Parser) -> str:
    text = parser.format_help().replace(" \b", "")  # jsonargparse goes back by one column on the screen
    return f"```text\n{text.strip()}\n```"


def _commands(parser: Parser, prefix: str = "") -> list[tuple[str, Parser]]:
    found: list[tuple[str, Parser]] = []
    for name, child in parser._subparsers_by_name().items():
        assert isinstance(child, Parser)
        nested = _commands(child, f"{prefix}{name} ")
        found += nested or [(f"{prefix}{name}", child)]
    return found

"""The pages that are made from the code: the command line, the configuration, every public name; and the notebook."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import piecewise_training
from piecewise_training.cli import build_parser
from piecewise_training.cli.parsing import Parser

NOTEBOOK = Path(__file__).parents[1] / "piecewise_training_pipeline.ipynb"
PACKAGES = {
    "config": "The configuration",
    "crf": "The CRF",
    "model": "The model",
    "trainer": "Training",
    "inference": "Prediction and evaluation",
    "dataset": "Data sets",
    "dataset.download": "Fetching data sets",
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


def write(folder: Path) -> None:
    """Writes the pages into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "cli.md").write_text(command_line())
    (folder / "package.md").write_text(package_page())
    shutil.copy(NOTEBOOK, folder / "pipeline.ipynb")
    for name, title in PACKAGES.items():
        (folder / f"{name}.md").write_text(module_page(name, title))


def command_line() -> str:
    """The help of every command."""
    root = build_parser()
    parts = ["# The command line", _help(root)]
    for name, parser in _commands(root):
        parts += [f"## piecewise {name}", _help(parser)]
    return "\n\n".join(parts) + "\n"


def package_page() -> str:
    """The names that the package itself has, which lead to their own pages."""
    return _page("The package", piecewise_training)


def module_page(name: str, title: str) -> str:
    """Every public name of a module."""
    return _page(title, importlib.import_module(f"piecewise_training.{name}"))


def public_names(module: ModuleType) -> list[str]:
    """Those in `__all__`; without it the module's own classes and functions, and constants that say what they are."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    constants = [name for name in vars(module) if name.isupper() and _text_below(module, name)]
    return [*constants, *(name for name in own if not name.startswith("_") and name not in constants)]


def _page(title: str, module: ModuleType) -> str:
    entries = [f".. automodule:: {module.__name__}", *(_entry(module, name) for name in public_names(module))]
    return f"# {title}\n\n```{{eval-rst}}\n" + "\n\n".join(entries) + "\n```\n"


def _entry(module: ModuleType, name: str) -> str:
    """A name in reStructuredText: a class or function with its text, or a link to it, or a constant with its value."""
    value, full = getattr(module, name), f"{module.__name__}.{name}"
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        shown = repr(value) if isinstance(value, str) else str(value).replace("piecewise_training.", "")
        return f".. py:data:: {full}\n   :value: {shown}\n\n   {_text_below(module, name)}".rstrip()
    home = _home(value)
    if home != module.__name__:
        return f"``{name}`` is :py:obj:`{home}.{name}`."
    return f".. autoclass:: {full}\n   :members:" if inspect.isclass(value) else f".. autofunction:: {full}"


def _home(value: Any) -> str:
    """The module, of those that have a page, by whose name a class or function goes."""
    pages = [f"piecewise_training.{name}" for name in PACKAGES]
    return max((page for page in pages if f"{value.__module__}.".startswith(f"{page}.")), key=len)


def _text_below(module: ModuleType, name: str) -> str:
    """The docstring below a constant, in the module where it is assigned: the constant itself cannot have one."""
    body = ast.parse(inspect.getsource(module)).body
    for line, below in itertools.pairwise([*body, ast.Pass()]):
        if isinstance(line, ast.ImportFrom) and line.module and name in [alias.name for alias in line.names]:
            return _text_below(importlib.import_module(line.module), name)
        targets = line.targets if isinstance(line, ast.Assign) else []
        assigned = [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
        if name in assigned and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            return inspect.cleandoc(str(below.value.value)).replace("\n", "\n   ")
    return ""


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

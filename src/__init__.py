"""Lets `from src.piecewise_training...`, the import path of the first code, work from the repository's root.

Such a name stands for the same module as without `src.`, so that no class exists twice. It is not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_ALIAS = f"{__name__}.piecewise_training"


class _Alias(MetaPathFinder, Loader):
    """Finds src.piecewise_training.x by importing piecewise_training.x."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for names below the alias."""
        del path, target
        if fullname != _ALIAS and not fullname.startswith(f"{_ALIAS}."):
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The real module, with its own spec kept for `exec_module` to put back."""
        module = importlib.import_module(spec.name.removeprefix(f"{__name__}."))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the module has run. Gives it back the spec that the import system replaced."""
        alias = module.__spec__
        if alias is not None and alias.loader_state is not None:
            module.__spec__ = alias.loader_state


if importlib.util.find_spec("piecewise_training") is None:
    sys.path.insert(0, str(Path(__file__).parent))
sys.meta_path.insert(0, _Alias())

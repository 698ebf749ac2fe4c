"""Sphinx: the pages in Markdown, the reference from the code itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
os.environ["COLUMNS"] = "86"  # of the commands' help

import reference  # noqa: E402

from piecewise_training import __version__  # noqa: E402

project = "piecewise-training"
author = "The piecewise-training authors"
version = release = __version__
extensions = ["mathml", "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "results/*.txt"]
html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"piecewise-training {__version__}"
html_show_copyright = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebook is committed with the outputs of a real run, and run by a test
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_rtype = False
napoleon_use_ivar = True


def setup(app: Any) -> None:
    """Writes the pages that come from the code before Sphinx looks for pages."""
    reference.write(HERE / "reference")
    app.connect("autodoc-skip-member", _is_a_field)


def _is_a_field(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples stand in the text of their class."""
    del app, what, name, skip, options
    return True if (getattr(member, "__doc__", None) or "").startswith("Alias for field number") else None

"""Every Python block of the documentation runs, one after the other on each page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from piecewise_training.cli import build_parser

DOCS = Path(__file__).parents[1] / "docs"
GUIDES = [path for path in sorted([*DOCS.glob("*.md"), *DOCS.glob("guides/*.md")]) if "```python" in path.read_text()]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_code_runs(guide: Path) -> None:
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", guide.read_text(), re.MULTILINE | re.DOTALL))
    if "import onnxruntime" in code:
        pytest.importorskip("onnxruntime")
    exec(compile(code, guide.name, "exec"), {"__name__": guide.stem})


def commands() -> list[str]:
    """Every piecewise command in a shell block of the documentation and the README."""
    found = []
    for path in [DOCS.parent / "README.md", *DOCS.glob("**/*.md")]:
        for block in re.findall(r"^```(?:ba)?sh\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
            lines = re.split(r"\n|&&", block.replace("\\\n", " "))
            found += [line.strip() for line in lines if line.strip().startswith("piecewise ")]
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str) -> None:
    build_parser().parse_args(shlex.split(command, comments=True)[1:])

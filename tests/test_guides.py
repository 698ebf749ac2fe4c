"""Every Python block of the documentation runs, one after the other on each page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
GUIDES = [path for path in sorted([*DOCS.glob("*.md"), *DOCS.glob("guides/*.md")]) if "```python" in path.read_text()]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_code_runs(guide: Path) -> None:
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", guide.read_text(), re.MULTILINE | re.DOTALL))
    exec(compile(code, guide.name, "exec"), {"__name__": guide.stem})

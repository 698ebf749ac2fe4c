"""Every Python block of the guides runs, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDES = sorted((Path(__file__).parents[1] / "docs" / "guides").glob("*.md"))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_code_runs(guide: Path) -> None:
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", guide.read_text(), re.MULTILINE | re.DOTALL))
    assert code
    exec(compile(code, guide.name, "exec"), {"__name__": guide.stem})

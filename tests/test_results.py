"""The pages of docs/results are those that benchmarks/pages.py makes of the committed results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import pages  # noqa: E402


def test_pages_are_generated(tmp_path: Path) -> None:
    written = pages.write_pages(ROOT / "benchmarks/results", tmp_path)
    assert {path.name for path in written} == {path.name for path in (ROOT / "docs/results").glob("*.md")} - {
        "index.md"
    }
    for path in written:
        assert path.read_text() == (ROOT / "docs/results" / path.name).read_text(), (
            f"run benchmarks/pages.py: {path.name}"
        )


@pytest.mark.parametrize("name", sorted(pages.TABLES))
def test_the_readmes_tables_are_generated(name: str) -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"<!-- {name} -->" in readme
    assert pages.with_tables(readme, ROOT / "benchmarks/results") == readme, "run benchmarks/pages.py"


@pytest.mark.parametrize("name", sorted(pages.PLOTS))
def test_plots_exist_where_a_page_shows_them(name: str) -> None:
    page = ROOT / f"docs/results/{name}.md"
    assert page.is_file() == (ROOT / f"docs/results/{name}.png").is_file()

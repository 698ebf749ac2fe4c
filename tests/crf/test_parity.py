"""Mean field equals pydensecrf's after ten iterations."""

from __future__ import annotations

import pytest

from tests.crf.parity import CASES, Case, difference

pytest.importorskip("pydensecrf")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_pydensecrf(case: Case) -> None:
    assert difference(case) < 1e-4

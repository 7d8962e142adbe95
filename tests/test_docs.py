"""The documentation points at what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_formula_points_at_the_line_that_computes_it(page: Path) -> None:
    for symbol, target, line in re.findall(r"\[`([\w.]+)`\]\(([^)#]+)#L(\d+)\)", page.read_text()):
        code = (page.parent / target).read_text().splitlines()[int(line) - 1]
        assert re.match(rf"\s*(def|class) {symbol.rpartition('.')[2]}\b", code), f"{symbol}: {code}"

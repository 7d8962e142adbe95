"""The section on thoughts cut short sets forced answers beside trimmed ones."""

from __future__ import annotations

from typing import Any

from reports.truncation import section
from studies.truncation import analyse


def found(*budgets: int, cue: str = "#") -> list[dict[str, Any]]:
    """Two problems, two samples; forcing always finds the answer, trimming never does."""
    shared = {"arm": "longcot", "task_label": "walk", "cut": True, "cue": cue, "answer_tokens": 16, "error": None}
    keys = [(b, p, s) for b in budgets for p in "pq" for s in (0, 1)]
    return [{**shared, "budget": b, "problem": p, "sample": s, "forced": 1.0, "trimmed": 0.0} for b, p, s in keys]


def test_every_budget_has_both_and_their_difference() -> None:
    made = section("run-", analyse(found(64, 128)))
    [table] = made.tables
    assert list(table.shown["cut at"]) == ["64", "128"]
    assert all(cell.startswith("100 [") for cell in table.shown["forced, %"])
    assert all(cell.startswith("0 [") for cell in table.shown["trimmed, %"])
    [drawing] = made.drawings
    assert "16 tokens of the model" in drawing.caption


def test_one_budget_is_a_table_alone_and_a_cue_is_shown_safely() -> None:
    made = section("run-", analyse(found(64, cue="\x1b[2J")))
    assert made.drawings == []
    assert "\x1b" not in made.tables[0].caption

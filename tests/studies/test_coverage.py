"""The simulation of intervals: a part of its table, and that it would see a wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studies import coverage
from studies.coverage import Cell, cells, page


@pytest.mark.parametrize(
    ("samples", "problems", "accuracy", "spread"),
    [(64, 1, 0.5, False), (64, 10, 0.5, True), (64, 30, 0.1, True), (128, 5, 0.9, True), (128, 30, 0.03, False)],
)
def test_from_64_samples_intervals_hold_for_the_problems_asked(
    samples: int, problems: int, accuracy: float, spread: bool
) -> None:
    """Of 600 simulated, 93 to 97 % within the 2.5 standard errors that so few can tell."""
    row = Cell("average", samples, problems, accuracy, spread).simulate(600, 500, 0)
    assert 0.93 - 0.025 <= row["held"] <= 0.97 + 0.02


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_at_the_ends_they_always_hold(accuracy: float) -> None:
    assert Cell("average", 64, 10, accuracy, False).simulate(50, 200, 0)["held"] == 1


def test_intervals_for_these_problems_are_too_narrow_for_others_and_those_of_few_samples_are_not() -> None:
    fixed = Cell("average", 64, 10, 0.5, True).simulate(200, 300, 0)
    assert fixed["held_for_new"] < 0.5
    assert Cell("average", 4, 30, 0.5, True).simulate(300, 300, 0)["held_for_new"] > 0.9


def test_votes_of_all_samples_near_a_tie_hold_less_often_than_those_of_few() -> None:
    few, all_of_them = (Cell("majority", 64, 3, 0.5, False, k).simulate(200, 200, 0)["held"] for k in (8, 64))
    assert few > 0.9
    assert 0.78 < all_of_them < 0.9


def test_the_same_seed_gives_the_same_row() -> None:
    cell = Cell("ratio", 64, 3, 0.5, True)
    assert cell.simulate(5, 200, 1) == cell.simulate(5, 200, 1)
    assert cell.simulate(5, 200, 1) != cell.simulate(5, 200, 2)


def test_the_command_writes_numbers_and_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [Cell("average", 64, 3, 0.5, False), Cell("average", 64, 3, 0.5, True), Cell("pass", 16, 3, 0.5, True)]
    monkeypatch.setattr(coverage, "cells", lambda: chosen)
    coverage.main(["--repeats", "4", "--resamples", "100", "--out", str(tmp_path / "c.json")])
    record = json.loads((tmp_path / "c.json").read_text())
    assert (record["repeats"], record["resamples"], record["seed"]) == (4, 100, 0)
    assert [row["problems"] for row in record["rows"]] == [3, 3, 3]
    assert (tmp_path / "c.md").read_text() == page(record["rows"])
    assert page(record["rows"]) in capsys.readouterr().out


def test_the_page_of_statistics_shows_what_was_run() -> None:
    """docs/runs/statistics.json and .md are of one run, of all cells."""
    runs = Path(__file__).parents[2] / "docs" / "runs"
    rows = json.loads((runs / "statistics.json").read_text())["rows"]
    assert len(rows) == len(list(cells()))
    assert (runs / "statistics.md").read_text() == page(rows)
    assert page(rows) in (runs.parent / "statistics.md").read_text()


def test_too_few_repeats_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        coverage.main(["--repeats", "0"])
    assert "give at least 1" in capsys.readouterr().err

"""The simulation of the timing gate: that it runs the real decision, and would see a worse one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from scaling.gate.sequential import read
from studies import gate_power
from studies.gate_power import FLOOR, KINDS, SLOWDOWNS, Cell, Family, cells, families, noise, page, sides

RUNS = Path(__file__).parents[2] / "docs" / "runs"


@pytest.mark.parametrize("kind", KINDS)
def test_in_every_kind_of_noise_the_requirements_are_kept(kind: str) -> None:
    """Of 600 sessions at 2 % of noise: all that a row has to fulfil."""
    for row in Cell(kind, 0.02, "coin", 20).simulate(600, 1):
        for requirement, fulfilled in gate_power.requirements(row):
            assert fulfilled, (row["slowdown"], requirement)


def test_at_half_a_percent_of_noise_two_percent_above_the_floor_are_called_within_twenty_pairs() -> None:
    (more,) = (row for row in Cell("independent", 0.005, "coin", 20).simulate(300, 0) if row["slowdown"] > FLOOR)
    assert more["regression"] >= 0.99
    assert more["mean_pairs"] < 8


def test_in_much_noise_it_is_undecided_rather_than_wrong() -> None:
    none, floor, more = Cell("independent", 0.05, "coin", 20).simulate(600, 0)
    assert none["undecided"] > 0.6
    assert more["undecided"] > 0.7
    assert none["regression"] <= 0.01
    assert floor["visible_over_truth"] == pytest.approx(1, abs=0.1)


def test_in_the_order_abba_waves_break_what_the_coin_keeps() -> None:
    abba, coin = ([row["held"] for row in Cell("waves", 0.02, o, 20).simulate(1500, 0)] for o in ("ABBA", "coin"))
    assert min(abba) < 0.94
    assert min(coin) > 0.945


def test_tests_against_a_stored_baseline_alarm_where_nothing_has_changed() -> None:
    none, *_ = Cell("independent", 0.005, "coin", 20).simulate(600, 0)
    assert none["rank_test"] > 0.3
    assert none["rank_test_slower_day"] > 0.6
    assert none["over_3"] > 0.2
    assert none["over_10"] == none["regression"] == 0


def test_what_is_simulated_is_the_decision_itself_series_by_series() -> None:
    """The truth of `visible` is found without `read`; by `read`, four of five series call it."""
    rng = np.random.default_rng(0)
    unchanged = 0.03 * rng.standard_normal((4000, 20))
    change = math.log1p(gate_power.smallest_called(unchanged, FLOOR))
    called = [read(series, FLOOR, 20).answer == "regression" for series in (unchanged + change).tolist()]
    assert np.mean(called) == pytest.approx(0.8, abs=0.001)


@pytest.mark.parametrize(
    ("kind", "after_one_run"),
    [("independent", 0), ("AR(1) 0.3", 0.3), ("AR(1) 0.6", 0.6), ("AR(1) 0.9", 0.9), ("waves", 0.41)],
)
def test_noise_is_as_large_and_as_correlated_as_it_says(kind: str, after_one_run: float) -> None:
    found = noise(kind, 0.02, 4000, 40, np.random.default_rng(0))
    assert found.std() == pytest.approx(0.02, rel=0.03)
    assert (found[:, 1:] * found[:, :-1]).mean() / 0.02**2 == pytest.approx(after_one_run, abs=0.05)


def test_one_slow_run_in_twenty_is_ten_to_thirty_percent_slower() -> None:
    found = np.expm1(noise("slow runs", 1e-6, 1000, 40, np.random.default_rng(0)))
    slow = found[found > 0.01]
    assert slow.size / found.size == pytest.approx(0.05, abs=0.005)
    assert (round(slow.min(), 2), round(slow.max(), 2)) == (0.1, 0.3)


@pytest.mark.parametrize("order", ["coin", "ABBA"])
def test_each_pair_is_of_two_neighbouring_runs_one_of_either_side(order: str) -> None:
    baseline, candidate = sides(np.arange(80.0).reshape(2, 40), order, 3)
    both = np.stack([baseline, candidate])
    assert np.array_equal(both.min(0), np.arange(0, 80, 2).reshape(2, 20))
    assert np.array_equal(both.max(0), np.arange(1, 80, 2).reshape(2, 20))
    if order == "ABBA":
        assert baseline[0, :4].tolist() == [0, 3, 4, 7]


def test_series_that_share_the_budget_raise_no_more_alarms_together_than_one() -> None:
    alone, whole, shared = (
        next(row for row in family.simulate(200, 0) if row["changed"] == "all at the floor")["exit_1"]
        for family in (Family(1, 20, True), Family(20, 20, False), Family(20, 20, True))
    )
    assert alone <= 0.05
    assert shared <= 0.05
    assert whole > 0.25


def test_a_family_is_as_bad_as_its_worst_and_good_only_if_all_are() -> None:
    assert gate_power.exit_code(["fine", "undecided", "regression"]) == 1
    assert gate_power.exit_code(["fine", "undecided", "fine"]) == 3
    assert gate_power.exit_code(["fine", "fine"]) == 0


def test_the_same_seed_gives_the_same_rows() -> None:
    cell = Cell("waves", 0.02, "coin", 20)
    assert cell.simulate(30, 1) == cell.simulate(30, 1) != cell.simulate(30, 2)


def test_the_command_writes_numbers_and_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [Cell("independent", 0.005, order, 20) for order in ("coin", "ABBA")]
    monkeypatch.setattr(gate_power, "cells", lambda: chosen)
    monkeypatch.setattr(gate_power, "families", lambda: [Family(5, 20, True)])
    gate_power.main(["--sessions", "20", "--out", str(tmp_path / "g.json")])
    record = json.loads((tmp_path / "g.json").read_text())
    assert (record["sessions"], record["seed"], record["floor"]) == (20, 0, FLOOR)
    assert [row["slowdown"] for row in record["cells"]] == list(SLOWDOWNS) * 2
    assert [row["sessions"] for row in record["families"]] == [4] * 3
    assert (tmp_path / "g.md").read_text() == page(record)
    shown = capsys.readouterr()
    assert page(record) in shown.out
    assert "3 of 3 cells" in shown.err
    gate_power.main(["--sessions", "20", "--json"])
    assert json.loads(capsys.readouterr().out) == record


def test_the_page_shows_what_was_run() -> None:
    """docs/runs/gate-power.json and .md are of one run, of all cells, and docs/gate-power.md shows its tables."""
    record = json.loads((RUNS / "gate-power.json").read_text())
    assert len(record["cells"]) == len(list(cells())) * len(SLOWDOWNS)
    assert len(record["families"]) == len(list(families())) * 3
    assert (RUNS / "gate-power.md").read_text() == page(record)
    shown = (RUNS.parent / "gate-power.md").read_text()
    rows = record["cells"]
    for table in (
        gate_power.missed_table(rows),
        gate_power.gate_table(rows, "coin", 20),
        gate_power.visible_table(rows, 20),
        gate_power.stored_table(rows, 20),
        gate_power.family_table(record["families"]),
    ):
        assert table in shown


def test_what_the_page_says_of_its_tables_is_what_was_run() -> None:
    rows = json.loads((RUNS / "gate-power.json").read_text())["cells"]
    text = (RUNS.parent / "gate-power.md").read_text()

    def of(figure: str, order: str = "coin", **wanted: object) -> list[float]:
        chosen = (row for row in rows if row["order"] == order and wanted.items() <= row.items())
        return [100 * row[figure] for row in chosen if row[figure] is not None]

    none, floor, more = ({"slowdown": slowdown} for slowdown in SLOWDOWNS)
    waves = {"order": "ABBA", "kind": "waves"}
    for said in (
        f"at most {max(of('regression', **none)):.1f} % of sessions without a change exit 1",
        f"no more than {max(of('fine', **more)):.1f} % with a slowdown of 5 % exit 0",
        f"at most {max(of('regression', **floor)):.1f} % at a slowdown equal to the floor",
        f"hold in {min(of('held')):.1f} % or more of the sessions",
        f"with waves intervals hold in {min(of('held', **waves)):.0f} to {max(of('held', **waves)):.0f} %",
        f"up to {max(of('regression', **waves, **floor)):.1f} % at the floor exit 1",
        f"up to {max(of('regression', **waves, **none)):.1f} % without any change",
        f"called in {min(of('regression', **more, noise=0.005, pairs=20)):.1f} % and more at 0.5 %",
        f"{min(of('regression', **more, noise=0.01, pairs=20)):.0f} % and more at 1 %",
        f"without a change, {min(of('fine', **none, noise=0.02, pairs=20)):.0f} to 100 % exit 0",
        f"is called in {min(of('regression', **more, noise=0.02, pairs=20)):.0f} to 100 %",
        f"40 pairs call {min(of('regression', **more, noise=0.02, pairs=40)):.0f} to 100 % of them",
        f"up to {max(of('undecided', **none, pairs=20)):.0f} % of the sessions without a change",
        f"up to {max(of('undecided', **more, pairs=20)):.0f} % at a slowdown of 5 %",
        f"in {min(of('visible_within_a_fifth', pairs=20)):.0f} to 100 % of the sessions with 20 pairs",
        f"in {min(of('visible_within_a_fifth', pairs=40)):.0f} to 100 % with 40",
        f"medians are within {max(abs(ratio - 100) for ratio in of('visible_over_truth')):.0f} % of the truth",
        *(
            f"{before} {min(of(test, **none, pairs=20)):.0f} to {max(of(test, **none, pairs=20)):.0f} %"
            for before, test in (
                ("The rank test alarms in", "rank_test"),
                ("A limit of 3 % alarms in", "over_3"),
                ("A limit of 10 % is nearly silent,", "over_10"),
            )
        ),
    ):
        assert said in text, said


def test_too_few_sessions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gate_power.main(["--sessions", "0"])
    assert "give at least 1" in capsys.readouterr().err

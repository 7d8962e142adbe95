"""The trials of the timing gate on itself: every one of them is in the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from studies.gate_trials import main, to_markdown

READING = {"pairs": 8, "ratio": 1.1, "low": 1.05, "high": 1.15, "noise": 0.02}


def record(*trials: dict[str, Any]) -> dict[str, Any]:
    return {"floor": "3%", "budget": "8m", "machine": "this", "trials": list(trials)}


def test_a_trial_that_failed_is_counted_and_said_and_shortens_no_mean() -> None:
    decided = {"slowdown": 0.1, "exit_code": 1, "series": [{"reading": READING}], "elapsed_seconds": 180.0}
    failed = {"slowdown": 0.1, "exit_code": 2, "error": "error: no | room\nleft"}
    table = to_markdown(record(decided, failed)).splitlines()
    assert "| 10% | 2 | 0 | 1 | 0 | 1 | 8 | 3.0 |" in table
    assert "| 1 | 10% | 1, regression | 1.100 | 1.050 to 1.150 | 8 | 2.0 % |" in table
    assert "| 2 | 10% | 2, error | error: no \\| room left | | | |" in table


def test_where_no_trial_came_to_a_series_there_are_tables_all_the_same() -> None:
    crashed = {"slowdown": 0.0, "exit_code": 1, "series": [], "sentences": ["The candidate fails."]}
    killed = {"slowdown": 0.0, "exit_code": -9, "error": ""}
    table = to_markdown(record(crashed, killed)).splitlines()
    assert "| 0% | 2 | 0 | 1 | 0 | 1 |  |  |" in table
    assert "| 1 | 0% | 1, regression | The candidate fails. | | | |" in table
    assert "| 2 | 0% | -9, error | it said nothing | | | |" in table


def test_trials_of_other_conditions_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "trials.json"
    out.write_text(json.dumps(record() | {"floor": "5%"}))
    with pytest.raises(SystemExit):
        main(["--out", str(out)])
    assert "has trials with floor 5%, not 3%; give another --out" in capsys.readouterr().err

"""What sampling the arms of a study took, as a table."""

from __future__ import annotations

from reports.arms import sampling_section


def test_an_arm_that_is_in_doubt_stands_beside_one_that_is_not() -> None:
    sampled = {"traces": 8, "device_seconds_per_trace": 0.5, "tokens_per_second": 40.0, "concurrency_mean": 2.0}
    resumed = {"traces": 8, "device_seconds_per_trace": None, "tokens_per_second": None, "concurrency_mean": None}
    arms = [
        {"arm": "a", **sampled, "device": "a CPU", "reason": None},
        {"arm": "b", **resumed, "device": "a CPU", "reason": "resumed: its traces were not sampled in one go"},
    ]
    (table,) = sampling_section("run-", arms).tables
    assert list(table.shown["doubtful"]) == ["", "resumed: its traces were not sampled in one go"]
    assert list(table.shown["device-s / trace"]) == ["0.500", "–"]

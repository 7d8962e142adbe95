"""What all studies' chapters share."""

from __future__ import annotations

from reports.arms import sampling_section


def test_what_sampling_took_says_which_arm_is_doubtful_and_of_others_nothing() -> None:
    took = {"traces": 4, "device_seconds_per_trace": 0.5, "tokens_per_second": 96.0, "concurrency_mean": 4.0}
    lacking = dict.fromkeys(("device_seconds_per_trace", "tokens_per_second", "concurrency_mean"))
    arms = [
        {"arm": "longcot", **took, "device": "a CPU", "reason": None},
        {"arm": "delethink", **took, "device": "a CPU", "reason": "another process took the processors"},
        {"arm": "folding", **took, **lacking, "device": "a CPU", "reason": "resumed"},
    ]
    (table,) = sampling_section("run-", arms).tables
    assert list(table.shown["doubtful"]) == ["", "another process took the processors", "resumed"]
    assert list(table.shown["device-s / trace"]) == ["0.500", "0.500", "–"]
    assert all(isinstance(cell, str) for name in table.shown for cell in table.shown[name])

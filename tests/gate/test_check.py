"""What a check says of two sides: which differences fail it, which are welcome, and which are advice."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from scaling.errors import UsageError
from scaling.gate.check import check

# counters


def test_equal_counters_are_fine_whatever_the_fingerprints(side: Any, cell: Any) -> None:
    outcome = check(side(cell()), side(cell(), name="change", fingerprint_id="fp1"))
    assert (outcome.exit_code, outcome.moved) == (0, ())
    assert outcome.sentence == "1 cell does the same work at the same cost."


@pytest.mark.parametrize("chunks", [11, 13])
def test_another_count_of_work_fails_either_way_and_its_costs_are_not_compared(
    side: Any, cell: Any, chunks: int
) -> None:
    changed = cell(counters={"chunks": chunks, "prefill_computed_tokens": 1, "flops_causal": 1})
    outcome = check(side(cell()), side(changed))
    assert outcome.exit_code == 1
    (found,) = outcome.cells
    assert found.verdict == "other work"
    assert [change.counter for change in found.changes] == ["chunks"]
    assert found.sentence == (
        f"Delethink C=1k m=512 at 2k tokens, rollout does other work: chunks 12 → {chunks} "
        f"({100 * (chunks / 12 - 1):+.3g} %). What it costs is not compared."
    )


def test_a_cost_that_grew_by_one_token_in_millions_is_a_regression(side: Any, cell: Any) -> None:
    millions = {"prefill_computed_tokens": 50_000_000}
    more = {"prefill_computed_tokens": 50_000_001}
    outcome = check(side(cell(counters=millions)), side(cell(counters=more)))
    assert outcome.exit_code == 1
    (found,) = outcome.cells
    assert found.sentence.endswith("costs more: prefill tokens computed 50,000,000 → 50,000,001 (+2e-06 %).")
    assert outcome.sentence == "1 of 1 cell fails the check: 1 costing more."


def test_a_cost_that_fell_is_an_improvement_to_save(side: Any, cell: Any) -> None:
    outcome = check(side(cell()), side(cell(counters={"flops_causal": 25_000_000_000})))
    assert outcome.exit_code == 0
    assert outcome.cells[0].verdict == "improvement"
    assert outcome.cells[0].sentence.endswith("costs less: FLOPs (causal) 50,000,000,000 → 25,000,000,000 (-50 %).")
    assert outcome.sentence == (
        "1 cell does the same work, and 1 costs less: an improvement to keep in a new baseline."
    )


def test_a_regression_beside_an_improvement_is_a_regression_that_tells_both(side: Any, cell: Any) -> None:
    changed = cell(counters={"flops_causal": 25_000_000_000, "prefill_computed_tokens": 5665})
    outcome = check(side(cell()), side(changed))
    assert outcome.exit_code == 1
    assert "costs more: prefill tokens computed" in outcome.cells[0].sentence
    assert "; it costs less: FLOPs" in outcome.cells[0].sentence


@pytest.mark.parametrize(("cached", "verdict"), [(99, "regression"), (101, "improvement")])
def test_fewer_tokens_from_the_cache_are_what_costs(side: Any, cell: Any, cached: int, verdict: str) -> None:
    before, after = ({"prefill_cached_tokens": tokens} for tokens in (100, cached))
    assert check(side(cell(counters=before)), side(cell(counters=after))).cells[0].verdict == verdict


def test_planned_seconds_are_a_cost_and_no_timing(side: Any, cell: Any) -> None:
    before, after = (cell(counters={"planned_seconds": seconds}, seconds=(seconds,) * 3) for seconds in (2.5, 2.75))
    outcome = check(side(before), side(after))
    assert outcome.exit_code == 1
    assert outcome.cells[0].sentence.endswith("costs more: planned seconds 2.5 → 2.75 (+10 %).")
    assert outcome.cells[0].timing is None


def test_a_count_that_came_from_nothing_has_no_ratio_and_is_a_regression(side: Any, cell: Any) -> None:
    outcome = check(side(cell(counters={"preemptions": 0})), side(cell(counters={"preemptions": 3})))
    assert outcome.exit_code == 1
    assert outcome.cells[0].sentence.endswith("costs more: preemptions 0 → 3.")


def test_a_count_on_which_repeats_no_longer_agree_is_a_regression(side: Any, cell: Any) -> None:
    outcome = check(side(cell()), side(cell(counters={"prefill_computed_tokens": None})))
    assert outcome.exit_code == 1
    assert "prefill tokens computed 5,664 → none" in outcome.cells[0].sentence


def test_a_count_of_work_on_which_repeats_no_longer_agree_is_other_work(side: Any, cell: Any) -> None:
    outcome = check(side(cell()), side(cell(counters={"chunks": None, "prefill_computed_tokens": 1})))
    assert (outcome.exit_code, outcome.cells[0].verdict) == (1, "other work")
    assert outcome.cells[0].sentence.endswith("other work: chunks 12 → none. What it costs is not compared.")


def test_a_count_below_nothing_has_no_ratio_and_more_of_it_is_a_regression(side: Any, cell: Any) -> None:
    loss = [cell(counters={"loss": value}) for value in (-3, 2, -2)]
    for before, after, verdict in ((0, 1, "regression"), (0, 2, "regression"), (1, 0, "improvement")):
        (found,) = check(side(loss[before]), side(loss[after])).cells
        assert (found.verdict, found.changes[0].ratio, found.size) == (verdict, None, math.inf)
    assert "costs more: loss -3 → 2." in check(side(loss[0]), side(loss[1])).cells[0].sentence


def test_flops_that_are_no_longer_counted_are_a_regression(side: Any, cell: Any) -> None:
    outcome = check(side(cell()), side(cell(counters={"flops_causal": None})))
    assert (outcome.exit_code, outcome.cells[0].verdict) == (1, "regression")


def test_flops_of_another_convention_and_new_counters_are_noted(side: Any, cell: Any) -> None:
    outcome = check(side(cell()), side(cell(counters={"flops_causal": None, "flops_full": 6e10, "new": 1})))
    assert outcome.exit_code == 0
    assert outcome.cells[0].verdict == "note"
    assert outcome.sentence == "1 cell does the same work at the same cost."
    assert "FLOPs (full) none → 60,000,000,000" in outcome.cells[0].sentence


def test_a_counter_of_ones_own_is_a_cost(side: Any, cell: Any) -> None:
    outcome = check(side(cell(counters={"allocations": 7})), side(cell(counters={"allocations": 8})))
    assert outcome.exit_code == 1
    assert "allocations 7 → 8" in outcome.cells[0].sentence


@pytest.mark.parametrize(
    ("peak", "verdict"), [(1.009e9, "same"), (0.991e9, "same"), (1.011e9, "regression"), (0.98e9, "improvement")]
)
def test_the_peak_of_memory_may_move_by_a_hundredth(side: Any, cell: Any, peak: float, verdict: str) -> None:
    assert check(side(cell()), side(cell(memory_bytes=peak))).cells[0].verdict == verdict


def test_a_peak_that_is_no_longer_counted_is_noted(side: Any, cell: Any) -> None:
    (found,) = check(side(cell()), side(cell(memory_bytes=None))).moved
    assert found.verdict == "note"
    assert found.sentence.endswith("what only one side counts: peak memory bytes 1,000,000,000 → none.")


def test_a_peak_that_the_baseline_lacks_is_not_compared(side: Any, cell: Any) -> None:
    assert check(side(cell(memory_bytes=None)), side(cell())).moved == ()


# cells


def test_a_missing_cell_fails_by_name_and_a_new_one_is_noted(side: Any, cell: Any) -> None:
    gone, new = cell(key="gone", label="LongCoT at 4k tokens, rollout"), cell(key="new", label="Folding at 4k tokens")
    outcome = check(side(cell(), gone), side(cell(), new))
    assert outcome.exit_code == 1
    assert [found.sentence for found in outcome.moved] == [
        "LongCoT at 4k tokens, rollout is missing: only the baseline has it.",
        "Folding at 4k tokens is new: the baseline lacks it.",
    ]
    assert outcome.sentence == "1 of 3 cells fails the check: 1 missing."


def test_a_cell_that_fails_now_is_a_regression_with_its_reason(side: Any, cell: Any) -> None:
    failed = cell(status="oom", reason="3 of 3 repeats: no memory", counters={"chunks": None})
    outcome = check(side(cell()), side(failed))
    assert outcome.exit_code == 1
    assert outcome.cells[0].sentence.endswith("failed (oom: 3 of 3 repeats: no memory); in the baseline it was fine.")


def test_a_cell_that_failed_before_is_noted_whether_it_is_mended_or_not(side: Any, cell: Any) -> None:
    fine, failed = cell(key="fine"), cell(status="error", reason="1 of 1 repeats: crash")
    otherwise = cell(status="oom", reason="1 of 1 repeats: no memory")
    for now, said in (
        (failed, "failed (error: 1 of 1 repeats: crash), as it did in the baseline."),
        (otherwise, "no memory); in the baseline too, it failed (error: 1 of 1 repeats: crash)."),
        (cell(), "is fine; in the baseline it failed (error: 1 of 1 repeats: crash)."),
    ):
        outcome = check(side(failed, fine), side(now, fine))
        assert (outcome.exit_code, outcome.cells[0].verdict) == (0, "note")
        assert outcome.cells[0].sentence.endswith(said)
        assert outcome.sentence == "1 cell does the same work at the same cost."


def test_where_nothing_could_be_compared_nothing_is_fine(side: Any, cell: Any) -> None:
    failed, nothing = cell(status="error", reason="1 of 1 repeats: crash"), side(measured={})
    for baseline, candidate in ((side(failed), side()), (side(failed), side(failed)), (nothing, side())):
        outcome = check(baseline, candidate)
        assert (outcome.exit_code, outcome.to_json()["verdict"]) == (2, "nothing compared")
        assert outcome.sentence == "No cell could be compared: none is fine on both sides."


def test_what_matters_most_comes_first(side: Any, cell: Any) -> None:
    def cells(**by_key: Any) -> Any:
        return side(*(each.__class__(**{**_fields(each), "key": key, "label": key}) for key, each in by_key.items()))

    more, most = (cell(counters={"prefill_computed_tokens": tokens}) for tokens in (5700, 9000))
    fine, less, other = cell(), cell(counters={"flops_causal": 1}), cell(counters={"chunks": 1})
    failed = cell(status="timeout", reason="slow")
    before = cells(same=fine, less=fine, more=fine, most=fine, other=fine, failed=fine, gone=fine)
    after = cells(new=fine, same=fine, less=less, more=more, most=most, other=other, failed=failed)
    assert [found.key for found in check(before, after).cells] == [
        "failed", "gone", "other", "most", "more", "less", "new", "same",
    ]  # fmt: skip


# seconds


def test_seconds_are_advice_that_never_fails_and_points_to_the_test_that_decides(side: Any, cell: Any) -> None:
    outcome = check(side(cell()), side(cell(seconds=(1.98, 2.0, 2.02))))
    assert outcome.exit_code == 0
    (found,) = outcome.moved
    assert found.verdict == "advice"
    assert found.advice == (
        "Delethink C=1k m=512 at 2k tokens, rollout took 100.0 % more time (1 → 2 s, 1.96 to 2.04 times), as advice."
    )
    assert outcome.timing_sentence == (
        "Timings, as advice alone: the candidate takes 2.00 times the baseline's seconds at the median of 1 cell; "
        "`scaling ab` decides."
    )


@pytest.mark.parametrize(
    "seconds",
    [(0.9, 2.0, 2.1), (1.02, 1.03, 1.04), (2.0, 2.1), (2.0,), ()],
    ids=["ranges overlap", "too little", "two repeats", "one repeat", "none"],
)
def test_seconds_that_say_little_are_not_shown(side: Any, cell: Any, seconds: tuple[float, ...]) -> None:
    outcome = check(side(cell()), side(cell(seconds=seconds)))
    assert (outcome.exit_code, outcome.moved) == (0, ())


def test_seconds_of_other_machines_are_not_compared(side: Any, cell: Any) -> None:
    for one, other in (("fp0", "fp1"), (None, None)):
        outcome = check(side(cell(), fingerprint_id=one), side(cell(seconds=(9.0,) * 3), fingerprint_id=other))
        assert outcome.moved == ()
        assert outcome.cells[0].timing is None
        assert outcome.timing_sentence.startswith("Timings are not compared: machines or versions differ")


# refusals


def test_other_configurations_are_refused_with_the_difference(side: Any) -> None:
    changed = {"model": "tiny", "lengths": [2048], "concurrency": 4}
    with pytest.raises(UsageError) as error:
        check(side(config={**changed, "concurrency": 2, "seed": 0}), side(config={**changed, "seed": 1}))
    assert str(error.value) == (
        "main and main measured different things: concurrency is 2 in the baseline and 4 in the candidate, and so is "
        "seed; measure the candidate as the baseline was (`scaling run --from`), or save a new baseline"
    )


def test_more_lengths_phases_and_repeats_are_no_other_configuration(side: Any) -> None:
    before = {"lengths": [1024], "modes": ["longcot"], "phases": ["rollout"], "repeats": 3}
    after = {"lengths": [2048], "modes": ["delethink"], "phases": ["update"], "repeats": 1, "added_later": None}
    assert check(side(config=before), side(config=after)).exit_code == 0


def test_a_run_is_not_compared_with_benchmarks(side: Any) -> None:
    with pytest.raises(UsageError, match="give two runs or two files of pytest-benchmark"):
        check(side(), side(kind="benchmarks"))


# the outcome


def test_the_outcome_as_json_has_every_cell_with_its_sentence(side: Any, cell: Any) -> None:
    outcome = check(side(cell()), side(cell(counters={"chunks": 13})))
    said = json.loads(json.dumps(outcome.to_json(), allow_nan=False))
    assert (said["verdict"], said["exit_code"]) == ("regression", 1)
    assert said["cells"][0]["changes"] == [
        {
            "counter": "chunks",
            "title": "chunks",
            "baseline": 12,
            "candidate": 13,
            "ratio": pytest.approx(13 / 12),
            "verdict": "other work",
        }
    ]


def _fields(each: Any) -> dict[str, Any]:
    return {name: getattr(each, name) for name in each.__slots__}

"""What a frame of traces says of thinking longer: by budget, by environment, by price, by vote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pytest

from reports.chapter import Chapter
from reports.test_time import test_time_chapter as chapter_of
from scaling.errors import FitError
from studies.test_time_scaling import analyse
from studies.trace_cost import Price
from studies.trace_frame import COLUMNS

BUDGETS = (10, 20, 40)


def trace(
    problem: str, sample: int, tokens: int, right: bool, *, error: str | None = None, **changed: Any
) -> dict[str, Any]:
    """A trace of so many tokens, which earns its score at the budgets that it fits in."""
    environment = changed.get("environment", "longcot")
    parameters = {"thinking_budget": 40} if environment == "longcot" else {"context_size": 10, "state_size": 5}
    score = None if error else float(right)
    return {
        "run": "first",
        "arm": environment,
        "model": "tiny",
        "trained": None,
        "environment": environment,
        "environment_parameters": json.dumps(parameters),
        "context_size": parameters.get("context_size"),
        "state_size": parameters.get("state_size"),
        "budget": 40,
        "task": "sums",
        "problem": problem,
        "difficulty": None,
        "sample": sample,
        "thinking_tokens": tokens,
        "chunks": 1,
        "response_lengths": [tokens],
        "ended": tokens < 40,
        "correct": None if error else right,
        "score": score,
        "answer": None if error else ("5" if right else str(sample)),
        "error": error,
        "seconds": 1.0,
        "scores": {} if error else {budget: float(right and tokens <= budget) for budget in BUDGETS},
        **changed,
    }


def framed(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=kind) for name, kind in COLUMNS.items()})


def two_arms() -> list[dict[str, Any]]:
    """LongCoT, right in half of its 15-token traces; Delethink, right in all of its 30-token ones."""
    rows = []
    for problem in ("a", "b", "c", "d"):
        for sample in range(4):
            rows.append(trace(problem, sample, 15, sample % 2 == 0))
            rows.append(trace(problem, sample, 30, True, environment="delethink"))
    return rows


def linear(arm: Mapping[str, Any], lengths: Sequence[int], budget: int) -> Price:
    """A millisecond a token, Delethink at half the price."""
    each = 0.001 if arm["environment"] == "longcot" else 0.0005
    return Price(each * sum(min(n, budget) for n in lengths) / len(lengths), None, None, "test")


def value(record: Mapping[str, Any], arm: str, budget: int) -> float:
    (point,) = (p for p in record["accuracy"] if (p["arm"], p["budget"]) == (arm, budget))
    return float(point["value"])


def test_accuracy_at_a_budget_is_that_of_traces_cut_there():
    record = analyse(framed(two_arms()))
    assert [value(record, "longcot", budget) for budget in BUDGETS] == [0, 0.5, 0.5]
    assert [value(record, "delethink", budget) for budget in BUDGETS] == [0, 0, 1]
    assert [p["mean_tokens"] for p in record["accuracy"] if p["arm"] == "delethink"] == [10, 20, 30]


def test_delethink_is_compared_with_longcot_of_the_same_checkpoint():
    (made,) = analyse(framed(two_arms()))["comparisons"]
    assert (made["arm"], made["against"]) == ("delethink", "longcot")
    assert made["ratio"]["value"] == pytest.approx(2)
    assert made["difference"]["low"] <= 0.5 <= made["difference"]["high"]


def test_arms_are_compared_at_the_budget_that_both_have():
    """Delethink's last chunk may reach beyond it, and only there come to its answer."""
    rows = two_arms()
    for row in rows:
        if row["environment"] == "delethink":
            row |= {"thinking_tokens": 44, "scores": dict.fromkeys(BUDGETS, 0.0)}
    record = analyse(framed(rows))
    (made,) = record["comparisons"]
    assert (made["budget"], made["ratio"]["value"]) == (40, 0)
    assert any(
        "delethink keeps 0 [" in said and "of longcot at 40 thinking tokens" in said
        for said in chapter_of("first", record).sentences
    )


def test_pass_and_majority_count_several_traces_and_their_tokens():
    found = {(p["arm"], p["k"]): p for p in analyse(framed(two_arms()))["parallel"]}
    assert {k for arm, k in found if arm == "longcot"} == {1, 2, 4}
    assert found["longcot", 2]["pass"]["value"] == pytest.approx(5 / 6)  # 1 − C(2, 2) / C(4, 2)
    assert found["longcot", 4]["majority"]["value"] == 1  # the right answer has two votes, each wrong one has one
    assert found["longcot", 4]["tokens"] == 60


def test_the_front_holds_what_nothing_is_both_cheaper_and_as_right_as():
    record = analyse(framed(two_arms()), linear)
    front = {(p["arm"], p["budget"]) for p in record["costs"] if p["on_front"]}
    # LongCoT at 20 and 40 tokens costs 15 ms, as Delethink at 40, which is right twice as often
    assert front == {("delethink", 10), ("delethink", 40)}


def test_trained_by_sampled_needs_two_environments_of_training():
    trained = [
        trace(p, s, 15, s < n, environment=e, trained=t, arm=f"{t} in {e}")
        for t, e, n in (("longcot", "longcot", 1), ("delethink", "longcot", 2), ("delethink", "delethink", 3))
        for p in ("a", "b")
        for s in range(4)
    ]
    table = {(r["trained"], r["environment"], r["budget"]): r["value"] for r in analyse(framed(trained))["transfer"]}
    assert table["delethink", "delethink", 40] == 0.75
    assert table["delethink", "longcot", 40] == 0.5
    assert analyse(framed(two_arms()))["transfer"] == []


def test_checkpoints_that_differ_in_their_seed_are_also_taken_together():
    rows = [
        trace(p, s, 15, s < n, model=f"walk-{seed}/step-000100", trained=e, environment=e, arm=f"{seed} in {e}")
        for seed, n in ((0, 1), (1, 3))
        for e in ("longcot", "delethink")
        for p in ("a", "b")
        for s in range(4)
    ]
    record = analyse(framed(rows), linear)
    assert [arm["label"] for arm in record["seeds"]["arms"]] == ["walk, in longcot", "walk, in delethink"]
    (last,) = (p for p in record["seeds"]["accuracy"] if (p["arm"], p["budget"]) == ("walk, in longcot", 40))
    assert (last["low"], last["value"], last["high"], last["samples"]) == (0.25, 0.5, 0.75, 16)
    assert "no interval" in last["method"]
    assert len(record["accuracy"]) == 12
    chapter = chapter_of("first", record)
    assert chapter.sentences[0].startswith("walk, in longcot: 50 [25, 75] % right at 40")
    assert [t.name for s in chapter.sections for t in s.tables][:2] == ["first-accuracy", "first-each-accuracy"]
    assert analyse(framed(two_arms()))["seeds"] == {}


def test_checkpoints_of_different_steps_are_not_taken_for_seeds():
    models = ("walk-0/step-000050", "walk-0/step-000100", "walk-1/step-000100")
    rows = [trace(p, s, 15, s < 2, model=m, trained="longcot", arm=m) for m in models for p in "ab" for s in range(4)]
    assert analyse(framed([row for row in rows if row["model"] != models[2]]))["seeds"] == {}
    pooled = {arm["label"]: arm.get("checkpoints") for arm in analyse(framed(rows))["seeds"]["arms"]}
    assert pooled == {models[0]: 1, "walk, in longcot": 2}


def test_failed_traces_are_left_out_and_counted():
    rows = [*two_arms(), trace("a", 9, 3, False, error="the server died")]
    record = analyse(framed(rows))
    (longcot,) = (arm for arm in record["arms"] if arm["label"] == "longcot")
    assert (longcot["traces"], longcot["failed"]) == (17, 1)
    assert value(record, "longcot", 40) == 0.5


def test_an_arm_without_a_trace_that_did_not_fail_has_no_accuracy():
    rows = [*two_arms(), *(trace("a", s, 0, False, error="dead", arm="third") for s in range(2))]
    record = analyse(framed(rows))
    assert {point["arm"] for point in record["accuracy"]} == {"longcot", "delethink"}
    assert "third: every one of 2 traces failed." in chapter_of("first", record).sentences


def test_a_model_may_be_called_what_reads_as_a_formula():
    name = "$\\frac$ in longcot"
    chapter = chapter_of("first", analyse(framed([{**row, "arm": name} for row in two_arms()])))
    assert all("frac$ in longcot" in drawing.svg for section in chapter.sections for drawing in section.drawings)


def test_nothing_to_judge_is_said():
    with pytest.raises(FitError, match="every trace failed"):
        analyse(framed([trace("a", 0, 0, False, error="dead")]))
    with pytest.raises(FitError, match="no traces"):
        analyse(framed([]))


@pytest.mark.parametrize("right", [False, True])
def test_none_right_or_all_right_has_an_interval(right: bool):
    record = analyse(framed([trace("only", s, 15, right) for s in range(4)]), linear)
    last = record["accuracy"][-1]
    assert last["value"] == float(right)
    assert last["low"] < last["high"]
    json.dumps(record, allow_nan=False)
    assert chapter_of("first", record).sections


def test_the_chapter_shows_every_arm_and_budget_with_interval_and_method():
    record = json.loads(json.dumps(analyse(framed(two_arms()), linear)))
    chapter: Chapter = chapter_of("my run", record)
    assert [section.anchor for section in chapter.sections] == ["my-run-accuracy", "my-run-cost", "my-run-parallel"]
    names = [drawing.name for section in chapter.sections for drawing in section.drawings]
    assert names == ["my-run-accuracy", "my-run-front", "my-run-parallel"]
    (shown,) = (t.shown for s in chapter.sections for t in s.tables if t.name == "my-run-accuracy")
    assert list(shown["arm"]) == ["longcot", "delethink"]
    assert shown["40"][1].startswith("100 [")
    assert any("keeps 200 [" in sentence for sentence in chapter.sentences)
    captions = [d.caption for s in chapter.sections for d in s.drawings]
    assert all("95 %" in c or "cheaper" in c for c in captions)

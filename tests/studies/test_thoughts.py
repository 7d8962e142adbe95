"""What traces look like: lengths by outcome, the sweet spot, repetition, and chunk boundaries."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from reports.thoughts import sentences, thoughts_chapter
from scaling.errors import FitError, StoreError
from scaling.traces import TraceFile
from studies.thoughts import analyse, by_arm

LONGCOT: dict[str, Any] = {"environment": "longcot", "environment_parameters": {"thinking_budget": 1000}}
DELETHINK: dict[str, Any] = {
    "environment": "delethink",
    "environment_parameters": {"context_size": 40, "state_size": 20, "iterations": 9, "head": 0},
}


def trace(problem: str, chunks: Sequence[Sequence[int]], right: bool, **given: Any) -> dict[str, Any]:
    """A trace whose text has no spaces, so that it is taken by tokens."""
    return {
        "schema_version": "1.0",
        "model": {"name": "tiny"},
        **LONGCOT,
        "problem": {"id": problem, "question": "?", "answer": "5", "meta": {}},
        "chunks": [
            {"prompt": [], "response": list(c), "carried": "", "text": "x" * len(c), "finish": "stop"} for c in chunks
        ],
        "thinking_tokens": sum(map(len, chunks)),
        "score": float(right),
        "error": None,
        **given,
    }


def one_arm(traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    (arm,) = analyse(by_arm(traces))["arms"]
    return dict(arm)


def test_right_and_wrong_traces_are_compared_within_problems():
    easy = [trace("easy", [range(n)], True) for n in (10, 12)]
    hard = [trace("hard", [range(100)], True), trace("hard", [range(160)], False), trace("hard", [range(140)], False)]
    other = [trace("other", [range(80)], True), trace("other", [range(90)], False)]
    arm = one_arm([*easy, *hard, *other])
    assert (arm["lengths"]["right"]["mean"], arm["lengths"]["wrong"]["mean"]) == (50.5, 130)
    assert arm["difference"]["value"] == pytest.approx(((100 - 150) + (80 - 90)) / 2)
    assert arm["difference"]["problems"] == 2


def test_an_interval_needs_problems_to_resample():
    def apart(problems: int) -> dict[str, Any]:
        pairs = [trace(str(n), [range(100 - right * n)], bool(right)) for n in range(problems) for right in (0, 1)]
        return dict(one_arm(pairs)["difference"])

    assert apart(4) == {"value": -1.5, "low": None, "high": None, "problems": 4}
    five = apart(5)
    assert -4 <= five["low"] < five["value"] < five["high"] <= 0


def test_the_sweet_spot_is_read_off_lengths_normalised_within_each_problem():
    traces = [
        trace(p, [range(base + step)], step == 50) for p, base in (("a", 10), ("b", 500)) for step in (0, 50, 100)
    ]
    same = [trace("c", [range(30)], True), trace("c", [range(30)], False)]
    spot = one_arm([*traces, *same])["sweet_spot"]
    assert (spot["problems"], spot["equal"]) == (2, 1)
    assert [found and found["value"] for found in spot["bins"]] == [0, None, 1, None, 0]


def test_chunk_boundaries_that_cause_repetition_are_told_from_depth():
    """After each boundary the chunked traces say again what they said before it; LongCoT's never repeat."""
    fresh = iter(range(10**6))
    traces = []
    for problem in ("a", "b", "c"):
        first = [next(fresh) for _ in range(40)]
        again = [*first[-15:], *(next(fresh) for _ in range(5))]
        chunked = [first, again, [*again[-15:], *(next(fresh) for _ in range(5))]]
        traces.append(trace(problem, chunked, True, **DELETHINK))
        traces.append(trace(problem, [[next(fresh) for _ in range(80)]], True))
    arms = {arm["label"]: arm for arm in analyse(by_arm(traces))["arms"]}
    bound = arms["delethink"]["boundary"]
    assert (bound["boundaries"], bound["window"]) == (6, 10)
    assert bound["after"]["value"] == 1
    assert bound["excess"]["value"] == pytest.approx(bound["after"]["value"] - bound["before"]["value"])
    assert bound["longcot"]["difference"]["value"] == 0
    assert arms["longcot"]["boundary"] is None


def test_what_stands_astride_a_boundary_is_no_repetition_of_either_side():
    fresh = iter(range(10**6))
    chunks = [[next(fresh) for _ in range(40)], [next(fresh) for _ in range(20)]]
    bound = one_arm([trace("a", chunks, True, **DELETHINK)])["boundary"]
    assert (bound["before"]["value"], bound["after"]["value"]) == (0, 0)


def test_words_are_counted_where_texts_have_them():
    spoken = trace("a", [range(12)], True)
    spoken["chunks"][0]["text"] = "we add we add we add we add we add"
    record = analyse(by_arm([spoken]))
    assert record["unit"] == "words"
    assert record["arms"][0]["by_outcome"][0]["repeated"]["value"] == pytest.approx(4 / 6)
    assert analyse(by_arm([trace("a", [range(12)], True)]))["unit"] == "tokens"


def test_difficulties_are_grouped_where_there_are_many():
    traces = [
        {**trace("", [range(20)], True), "problem": {"id": f"p{n}", "meta": {"difficulty": n}}} for n in range(12)
    ]
    assert [g["group"] for g in one_arm(traces)["by_difficulty"]] == ["0 to 2", "3 to 5", "6 to 8", "9 to 11"]
    assert one_arm([trace("a", [range(20)], True)])["by_difficulty"] == []


@pytest.mark.parametrize("right", [False, True])
def test_none_right_or_one_problem_has_no_interval_and_no_error(right: bool):
    record = json.loads(json.dumps(analyse(by_arm([trace("only", [range(20)], right)])), allow_nan=False))
    (arm,) = record["arms"]
    assert arm["difference"] is None
    assert arm["by_outcome"][0 if right else 1]["repeated"]["low"] is None
    assert thoughts_chapter("first", record).sections


def test_failed_traces_are_left_out_and_an_arm_of_them_says_so():
    dead = trace("a", [], False, error="the server died", score=None, arm="dead")
    record = analyse(by_arm([trace("a", [range(20)], True), dead]))
    assert [(arm["label"], arm["failed"]) for arm in record["arms"]] == [("longcot", 0), ("dead", 1)]
    assert "dead: every one of 1 traces failed." in sentences(record)
    with pytest.raises(FitError, match="no trace was judged"):
        analyse(by_arm([dead]))
    with pytest.raises(FitError, match="no trace was judged"):
        analyse(by_arm([]))


def test_what_is_no_trace_is_refused():
    with pytest.raises(StoreError, match="has no chunks"):
        by_arm([{name: value for name, value in trace("a", [range(9)], True).items() if name != "chunks"}])


def test_hostile_text_is_only_counted():
    hostile = trace("a", [range(9)], True, **{"arm": "<script>\x1b[31m"})
    hostile["chunks"][0]["text"] = "\x00 \x1b[31m \u202e <script>alert(1)</script> \x00 \x1b[31m \u202e"
    chapter = thoughts_chapter("first", analyse(by_arm([hostile])))
    assert "alert" not in str(chapter.sections)
    assert "a trace that its budget ended" in chapter.sections[0].tables[0].caption
    assert "\x1b" not in chapter.sentences[0]


def test_the_command_reads_a_file_and_says_what_is_wrong_with_it(cli: Any, tmp_path: Path):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    with TraceFile(good) as file:
        for n in (10, 20):
            file.write(trace("a", [range(n)], n == 20))
    ran = cli("thoughts", good)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("longcot: mean tokens of right ones 20.0 (n = 1) and wrong ones 10.0 (n = 1)")
    (shown,) = json.loads(cli("thoughts", good, "--json").out)["thoughts"]
    assert shown["thoughts"]["format"] == "thoughts"
    bad.write_text('{"schema_version": "9.0"}\n')
    for arguments, said in (((bad,), "newer than"), ((), "no traces given"), ((tmp_path / "none",), "no run at")):
        ran = cli("thoughts", *arguments)
        assert ran.code != 0
        assert said in ran.err
        assert ran.err.count("\n") == 1


def test_ten_thousand_traces_take_seconds():
    chance = random.Random(0)
    some = [trace(f"p{n % 50}", [[chance.randrange(50) for _ in range(1000)]], n % 2 == 0) for n in range(50)]
    begun = time.process_time()
    analyse({"longcot": lambda: (some[n % 50] for n in range(1000))})
    assert time.process_time() - begun < 5  # ten times as many in less than a minute

"""Stages of a thought: they cover it, cycles are counted, and hostile rules are refused in a line."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scaling.errors import FitError, UsageError
from studies.stages import Labelled, Labeller, Stage, label, parse_rules, read_rules, summarise, words

RULES = parse_rules(
    {
        "first": "definition",
        "rules": [
            {"stage": "bloom", "opens": ["first,"], "cycle": True, "once": True},
            {"stage": "reconstruction", "opens": ["wait", "alternatively"], "cycle": True},
            {"stage": "final", "opens": ["so the answer"]},
        ],
    }
)
TEXT = "We need 2+2. First, add. It is 4.\nWait, check it. Alternatively count! Sure. So the answer is 4."


def test_stages_cover_a_text_in_order_and_cycles_are_numbered() -> None:
    stages = label(TEXT, RULES)
    assert [(s.stage, s.cycle) for s in stages] == [
        ("definition", None),
        ("bloom", 1),
        ("reconstruction", 2),
        ("reconstruction", 3),
        ("final", None),
    ]
    assert "".join(TEXT[s.start : s.end] for s in stages) == TEXT
    assert TEXT[stages[3].start : stages[3].end] == "Alternatively count! Sure. "


def test_cues_count_where_a_sentence_begins_and_once_means_once() -> None:
    with Labeller(RULES) as labeller:
        assert [s.stage for s in labeller.label("I wait here. Then first, this.")] == ["definition"]
        assert [s.stage for s in labeller.label("First, a. First, b.")] == ["bloom"]
        assert labeller.label("") == []


def test_a_regular_expression_that_never_ends_is_stopped() -> None:
    rules = parse_rules({"first": "a", "rules": [{"stage": "b", "opens": ["(x+)+y"]}]})
    began = time.monotonic()
    with Labeller(rules, seconds=1.0) as labeller, pytest.raises(UsageError, match="took more than 1 s"):
        labeller.label("x" * 60)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("loaded", "said"),
    [
        ([], "not an object"),
        ({"first": "a"}, "`rules` is not a list"),
        ({"rules": []}, "`first` is not"),
        ({"first": "a", "rules": [{"opens": ["x"]}]}, "rule 1 has no `stage`"),
        ({"first": "a", "rules": [{"stage": "b", "opens": "x"}]}, "`opens` of rule 1"),
        ({"first": "a", "rules": [{"stage": "b", "opens": ["x"], "cycle": 1}]}, "neither true nor false"),
        ({"first": "a", "rules": [{"stage": "b", "open": ["x"]}]}, "rule 1 is not an object"),
    ],
)
def test_rules_that_are_none_are_refused_in_one_line(loaded: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(loaded))
    with pytest.raises(UsageError, match=said) as refused:
        read_rules(path)
    assert "\n" not in str(refused.value)


def test_an_expression_that_is_none_is_named() -> None:
    with pytest.raises(UsageError, match=r"'\(' is no regular expression"):
        Labeller(parse_rules({"first": "a", "rules": [{"stage": "b", "opens": ["("]}]}))


def test_lengths_are_by_stage_outcome_and_cycle() -> None:
    def trace(problem: str, correct: bool, *lengths: int) -> Labelled:
        named = [("definition", None), ("bloom", 1), ("reconstruction", 2)]
        stages = [Stage(*each, 0, 1) for each in named[: len(lengths)]]
        return Labelled("arm", problem, correct, stages, lengths)

    few = [trace("p", True, 10, 20), trace("q", False, 30, 40, 50)]
    assert all(point["low"] is None for point in summarise(few, RULES)["stages"])
    record = summarise([replace(one, problem=f"{one.problem}{n}") for n in range(3) for one in few], RULES)
    found = {(p["stage"], p["outcome"]): p for p in record["stages"]}
    assert found["definition", "all"]["value"] == 20
    assert found["bloom", "right"]["value"] == 20
    assert found["reconstruction", "all"]["share"] == 0.5
    assert ("reconstruction", "right") not in found
    assert found["bloom", "all"]["low"] <= 30 <= found["bloom", "all"]["high"]
    assert found["bloom", "right"]["low"] is None  # three problems tell little of others
    cycles = {(p["cycle"], p["outcome"]): p["value"] for p in record["cycles"]}
    assert cycles[2, "wrong"] == 50
    json.dumps(record, allow_nan=False)


def test_nothing_to_label_is_said() -> None:
    with pytest.raises(FitError, match="no trace to label"):
        summarise([], RULES)


def test_words_are_what_white_space_parts() -> None:
    assert words("two  words\n") == 2

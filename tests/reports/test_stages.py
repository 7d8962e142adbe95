"""The section on stages says how long they are, and how many traces the rules say nothing about."""

from __future__ import annotations

from reports.stages import section
from studies.stages import Labelled, Stage, parse_rules, summarise

RULES = parse_rules({"first": "definition", "rules": [{"stage": "bloom", "opens": ["x"], "cycle": True}]})


def test_the_section_has_stages_and_cycles_with_their_lengths() -> None:
    stages = [Stage("definition", None, 0, 1), Stage("bloom", 1, 1, 2), Stage("bloom", 2, 2, 3)]
    traces = [Labelled("arm", p, right, stages, (10, n, 5)) for p, right, n in (("p", True, 20), ("q", False, 40))]
    made = section("run-", summarise(traces, RULES))
    assert made.text == [
        "arm: the first cycle has 30.0 words; 0 of 2 traces have no more than one stage by these rules."
    ]
    [table] = made.tables
    assert list(table.shown["stage"]) == ["definition", "bloom"]
    assert list(table.shown["right"]) == ["10.0", "25.0"]
    [drawing] = made.drawings
    assert drawing.name == "run-cycles"
    assert set(drawing.data["cycle"]) == {1, 2}


def test_rules_that_fit_nothing_leave_a_table_without_a_drawing() -> None:
    alone = [Labelled("arm", "p", True, [Stage("definition", None, 0, 1)], (3,))]
    made = section("run-", summarise(alone, RULES))
    assert made.drawings == []
    assert "no cycle was found; 1 of 1" in made.text[0]

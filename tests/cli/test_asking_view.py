"""What a study says while it asks, and when it is interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaling.cli.asking_view import AskingView
from scaling.results import Store
from studies.asking import Outcome, Progress

COMMAND = "scaling probe --resume runs/first"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "run", {})


def steps(arm: str, place: int, since: int, total: int, right: int = 1) -> list[Progress]:
    """An arm that had so many traces before, and is asked the rest."""
    return [
        Progress(arm, place, 2, done, total, min(right, done), 0, None if done == since else {})
        for done in range(since, total + 1)
    ]


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.splitlines()


def test_every_arm_is_a_line_when_it_is_done(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with AskingView(store, COMMAND) as view:
        for progress in [*steps("longcot", 0, 4, 4), *steps("delethink C=1k m=512", 1, 1, 4)]:
            view(progress)
        assert lines(capsys) == [
            "longcot: 4 traces, 25% right, sampled before",
            "delethink C=1k m=512: 4 traces, 25% right in 0s, 1 of them before",
        ]


def test_an_interrupt_says_where_the_traces_are_and_how_to_go_on(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        with AskingView(store, COMMAND) as view:
            view(steps("longcot", 0, 0, 4)[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (line,) = lines(capsys)
    assert line.endswith(f"interrupted; all traces that ended are saved in {store.path}; go on with: {COMMAND}")


def test_an_arm_that_failed_is_a_warning(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with AskingView(store, COMMAND) as view:
        assert view.done([Outcome("a", 4, 2, 0, None), Outcome("b\x1b[2J", 4, 0, 4, "no such\nmodel")])
        assert not view.done([Outcome("c", 4, 2, 0, None, 1, "took more than 5 s")])
    first, second = lines(capsys)
    assert r"every trace of 'b\x1b[2J' failed: no such\nmodel; it has no accuracy" in first
    assert "1 of 4 traces of 'c' were not judged and count as wrong; the first: took more than 5 s" in second


def test_an_arm_without_verdicts_has_no_share(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    failed: Any = [Progress("a", 0, 1, 0, 1, 0, 0, None), Progress("a", 0, 1, 1, 1, 0, 1, {})]
    with AskingView(store, COMMAND) as view:
        for progress in failed:
            view(progress)
    assert lines(capsys) == ["a: 1 traces, - right in 0s"]


def test_on_a_terminal_a_bar_counts_the_traces_of_all_arms(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from scaling.cli import asking_view

    monkeypatch.setattr(asking_view.console, "_force_terminal", True)
    with AskingView(store, COMMAND) as view:
        for progress in steps("[red]hostile\x1b[2J", 1, 0, 4)[:3]:
            view(progress)
        assert view._bar is not None
        (task,) = view._bar.tasks
        assert (task.completed, task.total, task.fields["right"]) == (6, 8, "50%")
        assert task.description == r"\[red]hostile\x1b[2J"

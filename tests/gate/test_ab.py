"""Builds of real commits are told apart by their speed, or it is said that they are not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scaling.errors import UsageError
from scaling.gate import ab, builds
from scaling.gate.ab import Progress, Series, Trial
from scaling.gate.builds import Build
from scaling.gate.sequential import MOST_PAIRS, Reading
from scaling.gate.sessions import Benchmarks, Cells, CrashError

Compare = Callable[..., Trial]
BENCHMARK = """
from quick import work

def test_work(benchmark):
    benchmark.pedantic(work, rounds=5)
"""
SUITE = Benchmarks(["benchmarks"])
FAST, SLOW = "time.sleep(0.004)", "time.sleep(0.006)"

pytestmark = pytest.mark.usefixtures("lean_pytest")


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    def compared(a: str, b: str, work: Benchmarks | Cells = SUITE, *, budget: float = 45, **options: Any) -> Trial:
        made = []
        for name, spec in (("a", a), ("b", b)):
            (tmp_path / name).mkdir()
            made.append(builds.make(spec, tmp_path / name))
        return ab.compare(*made, work, tmp_path / "pairs", floor=0.2, budget=budget, seed=1, **options)

    return compared


def test_a_slower_candidate_is_a_regression_and_a_benchmark_of_one_side_is_said(project: Any, compare: Compare) -> None:
    more = BENCHMARK + BENCHMARK.partition("\n\n")[2].replace("test_work", "test_new")
    trial = compare(project.commit(FAST), project.commit(SLOW, more))
    (series,) = trial.series
    assert (trial.outcome, trial.exit_code) == ("regression", 1)
    assert series.label == "test_work"
    assert series.reading.ratio == pytest.approx(1.5, rel=0.1)
    assert series.reading.low is not None
    assert series.reading.low > 1.2
    assert trial.sentences[0].endswith("slower by more than the floor of 20 %.")
    assert trial.counters is not None
    said = [cell.sentence for cell in trial.counters.moved if cell.verdict != "advice"]
    assert said == ["test_new is new: the baseline lacks it."]


def test_the_same_code_is_fine_and_stops_early(project: Any, compare: Compare) -> None:
    commit, seen = project.commit(FAST), []
    trial = compare(commit, commit, observe=seen.append)
    assert (trial.outcome, trial.exit_code) == ("fine", 0)
    (series,) = trial.series
    assert series.reading.pairs == len(series.log_ratios) < trial.pairs
    assert [(step.made, step.pairs) for step in seen] == [
        (0, None),
        *((made, trial.pairs) for made in range(series.reading.pairs)),
    ]
    assert trial.sentences[0].endswith("no slowdown of 20 % or more.")


def test_a_candidate_that_crashes_is_a_regression_with_its_error(project: Any, compare: Compare) -> None:
    trial = compare(project.commit(FAST), project.commit("raise ValueError('no such kernel')"))
    assert (trial.outcome, trial.exit_code, trial.series) == ("regression", 1, ())
    assert "fails where the baseline does not" in trial.sentences[0]
    assert "no such kernel" in trial.sentences[0]


def test_what_fails_on_both_sides_is_no_regression(project: Any, compare: Compare) -> None:
    commit = project.commit("raise ValueError('no such kernel')")
    with pytest.raises(CrashError, match="no such kernel"):
        compare(commit, commit)


def test_a_crash_in_a_later_pair_is_a_regression_too(project: Any, compare: Compare, tmp_path: Path) -> None:
    once = f"open({str(tmp_path / 'there')!r}, 'x').close()"
    trial = compare(project.commit(FAST), project.commit(once, BENCHMARK.replace("rounds=5", "rounds=1")))
    assert trial.outcome == "regression"
    assert "FileExistsError" in trial.sentences[0]


def test_too_little_time_decides_nothing_and_says_how_much_would(project: Any, compare: Compare) -> None:
    trial = compare(project.commit(FAST), project.commit(SLOW), budget=1)
    assert (trial.outcome, trial.exit_code, trial.series) == ("undecided", 3, ())
    assert "fewer than 6 cannot decide; --budget 1m would do" in trial.sentences[0]


def test_a_pair_is_foreseen_to_last_as_long_as_all_its_benchmarks_and_several_need_more_pairs(
    compare: Compare, tmp_path: Path
) -> None:
    bodies = ["None"] * 4 + ["time.sleep(1)"]
    tests = (f"def test_{n}(benchmark):\n    benchmark.pedantic(lambda: {body})\n" for n, body in enumerate(bodies))
    (tmp_path / "test_some.py").write_text("import time\n\n" + "\n".join(tests))
    trial = compare(sys.prefix, sys.prefix, Benchmarks([str(tmp_path / "test_some.py")]), budget=1)
    assert trial.pair_seconds > 2
    assert trial.fewest == 8
    assert "fewer than 8 cannot decide" in trial.sentences[0]


def test_the_seconds_of_a_repeat_are_those_of_the_median_one() -> None:
    assert ab._repeat([0.1, 0.1, 5.0, 5.0, 0.2, 0.2, 5.0, 5.0, 0.1, 60.0, 5.0, 5.0], 3) == pytest.approx(10.4)


def test_a_budget_has_room_for_as_many_pairs_as_would_be_said_to_settle_a_question(
    compare: Compare, tmp_path: Path
) -> None:
    class EnoughError(Exception):
        pass

    def observe(progress: Progress) -> None:
        if progress.pairs is not None:
            raise EnoughError(progress.pairs)

    (tmp_path / "test_some.py").write_text("def test_it(benchmark):\n    benchmark.pedantic(lambda: None)\n")
    with pytest.raises(EnoughError) as foreseen:
        compare(sys.prefix, sys.prefix, Benchmarks([str(tmp_path / "test_some.py")]), budget=1e6, observe=observe)
    assert foreseen.value.args == (MOST_PAIRS,)


def test_tests_without_a_benchmark_have_nothing_to_time(compare: Compare, tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text("def test_it():\n    pass\n")
    with pytest.raises(UsageError, match="nothing in common to time"):
        compare(sys.prefix, sys.prefix, Benchmarks([str(tmp_path / "test_plain.py")]))


def test_builds_with_nothing_in_common_are_refused(project: Any, compare: Compare) -> None:
    with pytest.raises(UsageError, match="nothing in common"):
        compare(project.commit(FAST), project.commit(FAST, BENCHMARK.replace("test_work", "test_other")))


def test_arguments_without_a_benchmark_are_an_error_of_the_baseline(project: Any, compare: Compare) -> None:
    commit = project.commit(FAST)
    with pytest.raises(CrashError, match=r"exit code [45]"):
        compare(commit, commit, Benchmarks(["benchmarks", "-k", "absent"]))


def test_a_build_without_our_package_measures_no_cells(project: Any, compare: Compare) -> None:
    commit = project.commit(FAST)
    with pytest.raises(UsageError, match="does not install 'scaling'"):
        compare(commit, commit, Cells({}))


def test_an_undecided_series_says_what_it_could_have_seen_and_what_would_settle_it() -> None:
    reading = Reading("undecided", 20, 1.021, 0.998, 1.045, noise=0.03, visible=0.051, settling=60)
    build = Build("main", "commit 0123456789ab", Path(sys.executable))
    series = Series("k", "a cell", (0.02,) * 20, reading)
    trial = Trial(build, build, 0.03, 480.0, 1, 420.0, 20, 6, 20.0, (series,), None, None)
    assert (trial.outcome, trial.exit_code) == ("undecided", 3)
    (told,) = trial.sentences
    assert "differs by +2.1 % (95 % interval -0.2 % to +4.5 %, 20 pairs): undecided against the floor of 3 %" in told
    assert "The smallest slowdown that this would have shown is 5.1 %" in told
    assert "About 60 pairs would settle a difference like this: --budget 23m." in told
    hopeless = replace(trial, series=(replace(trial.series[0], reading=replace(reading, settling=None)),))
    assert "More pairs would hardly settle it: ask about another --floor." in hopeless.sentences[0]

"""`scaling ab`, on commits of a real project."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
FAST, SLOW = "time.sleep(0.004)", "time.sleep(0.008)"
TIMED = ("--", "pytest", "benchmarks")

pytestmark = pytest.mark.usefixtures("lean_pytest")


def test_a_slower_working_tree_exits_1_and_says_it_in_json_and_markdown(cli: Cli, project: Any, tmp_path: Path) -> None:
    project.commit(FAST)
    project.write(SLOW)
    summary = tmp_path / "summary.md"
    done = cli(
        "ab", "--a", "HEAD", "--floor", "30%", "--json", "--markdown", summary, "--seed", 7, "--budget", "45s", *TIMED
    )
    assert done.code == 1
    told = json.loads(done.out)
    assert (told["outcome"], told["exit_code"], told["floor"], told["seed"]) == ("regression", 1, 0.3, 7)
    assert told["b"]["described"].startswith("working tree with changes to ")
    assert told["series"][0]["reading"]["ratio"] == pytest.approx(2, rel=0.2)
    text = summary.read_text()
    assert text.startswith("### ❌ `scaling ab`: . (working tree with changes to ")
    assert "| regression | test\\_work |" in text
    assert "slower by more than the floor of 30 %" in text


def test_too_short_a_budget_exits_3_and_says_what_would_do(cli: Cli, project: Any) -> None:
    project.commit(FAST)
    done = cli("ab", "--a", "HEAD", "--b", "HEAD", "--budget", "1s", *TIMED)
    assert done.code == 3
    assert "a budget of 1 s has room for" in done.out
    assert "--budget 1m would do" in done.out


def test_what_was_measured_is_shown_even_where_the_file_for_it_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("def test_it(benchmark):\n    benchmark.pedantic(lambda: None)\n")
    same = ("--a", sys.prefix, "--b", sys.prefix, "--budget", "1s")
    done = cli("ab", *same, "--markdown", tmp_path / "absent" / "ab.md", "--", "pytest", tmp_path / "test_some.py")
    assert done.code == 2
    assert "a budget of 1 s has room for" in done.out
    assert "cannot write" in done.err


def test_a_candidate_that_crashes_exits_1_with_its_error(cli: Cli, project: Any) -> None:
    project.commit(FAST)
    project.write("raise ValueError('no [bold] kernel')")
    done = cli("ab", "--a", "HEAD", *TIMED)
    assert done.code == 1
    assert "ValueError: no [bold] kernel" in done.out


def test_a_baseline_that_crashes_exits_2(cli: Cli, project: Any) -> None:
    project.commit("raise ValueError('no kernel')")
    done = cli("ab", "--a", "HEAD", *TIMED)
    assert done.code == 2
    assert "no kernel" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "missing option '--a'"),
        (("--a", "absent"), "'absent' is no build; expected a git ref"),
        (("--a", "HEAD", "--floor", "much"), "floor 'much' is no share; expected a slowdown such as 3% or 0.03"),
        (("--a", "HEAD", "--floor", "nan"), "floor 'nan' is no share"),
        (("--a", "HEAD", "--floor", "-1%"), "floor '-1%' is no share"),
        (("--a", "HEAD", "--budget", "soon"), "budget 'soon' is no time; expected one such as 90s, 8m or 1h"),
        (("--a", "HEAD", "--budget", "0m"), "budget '0m' is no time"),
        (("--a", "HEAD", "--json", "--markdown", "-"), "both write to stdout"),
        (("--a", "HEAD", "--", "--model", "absent"), "absent"),
        (("--a", "HEAD", "--", "--lenghts", "1k"), "did you mean --lengths"),
        (("--a", "HEAD", "--", "--out", "somewhere"), "--out is no part of a cell"),
        (("--a", "HEAD", "--", "--repeats", "9"), "--repeats is no part of a cell"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("project")
def test_what_makes_no_sense_is_one_line(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    done = cli("ab", *arguments)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert done.out == ""


def test_a_cell_of_ours_is_timed_by_the_options_of_a_run(cli: Cli) -> None:
    cell = ("--mode", "longcot", "--lengths", "8", "--prompt-tokens", "8")
    done = cli("ab", "--a", sys.prefix, "--b", sys.prefix, "--budget", "1s", "--json", "--", *cell)
    assert done.code == 3
    told = json.loads(done.out)
    (found,) = told["counters"]["cells"]
    assert (found["label"], found["verdict"]) in {("LongCoT at 8 tokens, rollout", v) for v in ("same", "advice")}

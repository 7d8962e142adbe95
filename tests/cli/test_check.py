"""`scaling check`, on real runs of the tiny model and of the simulated engine, and on a file of pytest-benchmark."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaling.cli.check import EXAMPLES
from scaling.cli.check_view import plain
from scaling.measure.run import run
from scaling.results import Store

Cli = Callable[..., Any]

TINY = {"model": "tiny", "modes": ("longcot", "delethink"), "context_size": 64, "state_size": 32, "head": 8}
TINY |= {"prompt_tokens": 8, "lengths": (96,), "phases": ("rollout", "update"), "method": "full", "repeats": 2}
SIMULATED = {"engine": "simulated", "gpu": "h100", "lengths": (8192, 16384), "method": "full", "repeats": 1}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same measured twice, by the local engine in `a` and `b`, by the simulated one in `c` and `d`."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"a": TINY, "b": TINY, "c": SIMULATED, "d": SIMULATED}
    return {name: run(out=folder / name, **given).path for name, given in options.items()}


@pytest.fixture
def altered(tmp_path: Path) -> Callable[..., Path]:
    """`altered(run, {column: value}, environment=…)`: the run again, those columns changed in the rows of one."""

    def alter(path: Path, changes: dict[str, Any], *, environment: str, name: str = "altered") -> Path:
        shutil.copytree(path, tmp_path / name)
        for part in (tmp_path / name).glob("*.parquet"):
            table = pq.read_table(part)
            (row,) = table.to_pylist()
            if row["environment"] == environment and row["phase"] == "rollout":
                pq.write_table(pa.Table.from_pylist([row | changes], table.schema), part)
        return tmp_path / name

    return alter


@pytest.fixture
def without_rows(tmp_path: Path) -> Callable[..., Path]:
    """The run again, without what it measured in one environment."""

    def take(path: Path, environment: str) -> Path:
        shutil.copytree(path, tmp_path / "less")
        frame = Store.open(path).frame()
        for key in frame[frame["environment"] == environment]["cell_id"].unique():
            for part in (tmp_path / "less").glob(f"{key}-*.parquet"):
                part.unlink()
        return tmp_path / "less"

    return take


# real runs


def test_the_same_measured_twice_has_the_same_counters(cli: Cli, measured: dict[str, Path]) -> None:
    ran = cli("check", measured["a"], measured["b"])
    assert ran.code == 0
    assert ran.out.splitlines()[-1] == "4 cells do the same work at the same cost."
    assert "Timings, as advice alone: the candidate takes" in ran.out
    assert ran.err == ""


def test_what_was_simulated_twice_has_the_same_planned_seconds(cli: Cli, measured: dict[str, Path]) -> None:
    ran = cli("check", measured["c"], measured["d"], "--json")
    said = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert said["schema_version"] == "1.0"
    assert (said["verdict"], [cell["verdict"] for cell in said["cells"]]) == ("fine", ["same"] * 4)


def test_a_slower_plan_is_a_regression_that_is_shown_cell_by_cell(
    cli: Cli, measured: dict[str, Path], altered: Any
) -> None:
    slower = altered(measured["c"], {"wall_seconds": 1e4}, environment="delethink")
    ran = cli("check", measured["c"], slower)
    assert ran.code == 1
    heading, _, first, second = ran.out.splitlines()[:4]
    assert heading.split() == ["verdict", "cell", "what", "baseline", "candidate", "change"]
    for line in (first, second):
        assert line.startswith("regression   Delethink C=8k m=4k at ")
        assert " planned seconds " in line
        assert " 10,000 " in line
    assert ran.out.splitlines()[-1] == "2 of 4 cells fail the check: 2 costing more."
    assert "Delethink C=8k m=4k at 8k tokens, rollout costs more: planned seconds " in ran.out


def test_a_candidate_that_crashes_is_a_regression_with_its_error(
    cli: Cli, measured: dict[str, Path], altered: Any
) -> None:
    failed = {"status": "error", "reason": "RuntimeError: \x1b[2Jcrashed", "chunks": None}
    ran = cli("check", measured["a"], altered(measured["a"], failed, environment="longcot"))
    assert ran.code == 1
    assert "failed (error: 2 of 2 repeats: RuntimeError: \\x1b[2Jcrashed); in the baseline it was fine." in ran.out
    assert "\x1b" not in ran.out


def test_missing_cells_fail_by_name_and_more_cells_do_not(
    cli: Cli, measured: dict[str, Path], without_rows: Any
) -> None:
    less = without_rows(measured["a"], "delethink")
    ran = cli("check", measured["a"], less)
    assert ran.code == 1
    assert "Delethink C=64 m=32 at 96 tokens, rollout is missing: only the baseline has it." in ran.out
    ran = cli("check", less, measured["a"])
    assert ran.code == 0
    assert "Delethink C=64 m=32 at 96 tokens, rollout is new: the baseline lacks it." in ran.out


def test_runs_of_different_things_are_refused_with_the_difference(cli: Cli, measured: dict[str, Path]) -> None:
    ran = cli("check", measured["a"], measured["c"])
    assert (ran.code, ran.out) == (2, "")
    assert "measured different things: model is 'tiny' in the baseline and 'r1-distill-qwen-1.5b'" in ran.err


# baselines


def test_a_baseline_is_saved_and_held_against(
    cli: Cli, measured: dict[str, Path], altered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved = cli("check", measured["a"], "--save", "main")
    assert saved.code == 0
    assert Path(saved.out.strip()).parent == Path("baselines/main")
    assert cli("check", measured["b"], "--against", "main").code == 0
    worse = altered(measured["b"], {"prefill_computed_tokens": 10**6}, environment="delethink")
    ran = cli("check", worse, "--against", "main")
    assert ran.code == 1
    assert "costs more: prefill tokens computed 112 → 1,000,000" in ran.out
    assert f"where that is meant: scaling check {worse} --save main" in ran.err


def test_another_machines_baseline_holds_for_counters_alone(
    cli: Cli, measured: dict[str, Path], tmp_path: Path
) -> None:
    saved = cli("check", measured["a"], "--save", "main", "--directory", tmp_path, "--json")
    path = Path(json.loads(saved.out)["baseline"])
    path.write_text(path.read_text().replace(path.stem, "feedfeedfeed"))
    path.rename(path.with_name("feedfeedfeed.json"))
    ran = cli("check", measured["b"], "--against", "main", "--directory", tmp_path)
    assert ran.code == 0
    assert "Timings are not compared: machines or versions differ (fingerprints feedfeedfeed and " in ran.out


def test_a_different_configuration_under_one_name_is_refused_with_the_difference(
    cli: Cli, measured: dict[str, Path], tmp_path: Path
) -> None:
    cli("check", measured["a"], "--save", "main", "--directory", tmp_path)
    ran = cli("check", measured["c"], "--against", "main", "--directory", tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert "engine" in ran.err
    assert "save a new baseline" in ran.err


def test_no_baseline_yet_exits_2_with_the_command_that_saves_one(
    cli: Cli, measured: dict[str, Path], tmp_path: Path
) -> None:
    ran = cli("check", measured["a"], "--against", "main", "--directory", tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert f"save one with `scaling check RUN --save main --directory {tmp_path}`" in " ".join(ran.err.split())


def test_failed_cells_are_saved_with_a_warning(
    cli: Cli, measured: dict[str, Path], altered: Any, tmp_path: Path
) -> None:
    failed = altered(measured["a"], {"status": "oom", "reason": "no memory"}, environment="longcot")
    ran = cli("check", failed, "--save", "main", "--directory", tmp_path)
    assert ran.code == 0
    assert "LongCoT at 96 tokens, rollout failed (oom: 2 of 2 repeats: no memory); the baseline keeps that" in ran.err
    assert cli("check", failed, "--against", "main", "--directory", tmp_path).code == 0


def test_a_baseline_of_other_measurements_is_replaced_with_a_warning(
    cli: Cli, measured: dict[str, Path], tmp_path: Path
) -> None:
    def saved(source: Path) -> str:
        return str(cli("check", source, "--save", "main", "--directory", tmp_path).err)

    assert saved(measured["c"]) == saved(measured["d"]) == ""
    assert "main was a baseline of other measurements, and is replaced: model was " in saved(measured["a"])
    assert saved(measured["b"]) == ""


def test_a_run_that_is_not_finished_is_saved_with_a_warning(
    cli: Cli, measured: dict[str, Path], without_rows: Any, tmp_path: Path
) -> None:
    less = without_rows(measured["a"], "delethink")
    ran = cli("check", less, "--save", "main", "--directory", tmp_path)
    assert ran.code == 0
    assert f"{less} is not finished: it lacks 4 rows, " in ran.err
    assert f"`scaling run --resume --out {less}`" in ran.err
    assert cli("check", measured["a"], "--save", "main", "--directory", tmp_path).err == ""


def test_a_check_that_compared_nothing_does_not_pass(
    cli: Cli, measured: dict[str, Path], altered: Any, without_rows: Any, tmp_path: Path
) -> None:
    one, failure = without_rows(measured["c"], "longcot"), {"status": "oom", "reason": "no memory"}
    failed = altered(one, failure, environment="delethink")
    ran = cli("check", failed, failed, "--markdown", tmp_path / "report.md")
    assert ran.code == 2
    assert ran.out.splitlines()[-1] == "No cell could be compared: none is fine on both sides."
    assert (tmp_path / "report.md").read_text().startswith("### ⚠️ ")


def test_a_newer_baseline_is_refused(cli: Cli, measured: dict[str, Path], tmp_path: Path) -> None:
    saved = cli("check", measured["a"], "--save", "main", "--directory", tmp_path)
    path = Path(saved.out.strip())
    path.write_text(path.read_text().replace('"schema_version": "1.0"', '"schema_version": "2.0"'))
    ran = cli("check", measured["b"], "--against", "main", "--directory", tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert "has schema 2.0, newer than the 1.x that is understood; upgrade to read it" in ran.err


# benchmarks


def test_other_projects_gate_the_counters_of_their_benchmarks(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import os\n\ndef test_sum(benchmark):\n"
        '    benchmark.extra_info["calls"] = int(os.environ["CALLS"])\n    benchmark(sum, [1, 2])\n'
    )
    for name, calls in (("before", "2"), ("after", "3")):
        command = ["-m", "pytest", "test_it.py", "--benchmark-json", f"{name}.json", "--benchmark-max-time", "0.01"]
        environment = {"PATH": "", "CALLS": calls}
        subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, check=True, capture_output=True)
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    assert cli("check", before, before).code == 0
    ran = cli("check", before, after)
    assert ran.code == 1
    assert "test_sum costs more: calls 2 → 3 (+50 %)." in ran.out
    assert ran.out.splitlines()[-1] == "1 of 1 benchmark fails the check: 1 costing more."


# what is written where


def test_markdown_has_verdict_table_and_sentences(
    cli: Cli, measured: dict[str, Path], altered: Any, tmp_path: Path
) -> None:
    other = altered(measured["a"], {"chunks": 7}, environment="delethink", name="a|<b>")
    report = tmp_path / "report.md"
    ran = cli("check", measured["a"], other, "--markdown", report)
    assert ran.code == 1
    assert ran.out.splitlines()[-1] == "1 of 4 cells fails the check: 1 doing other work."
    assert cli("check", measured["a"], other, "--markdown", "-").out == report.read_text()
    lines = report.read_text().splitlines()
    assert lines[0] == "### ❌ `scaling check`: a\\|&lt;b> against a"
    assert lines[2].startswith("**1 of 4 cells fails the check: 1 doing other work.** Timings")
    assert lines[4:7] == [
        "| verdict | cell | what | baseline | candidate | change |",
        "|---|---|---|--:|--:|--:|",
        "| other work | Delethink C=64 m=32 at 96 tokens, rollout | chunks | 4 | 7 | +75 % |",
    ]
    assert lines[-1] == (
        "- Delethink C=64 m=32 at 96 tokens, rollout does other work: chunks 4 → 7 (+75 %). What it costs is not "
        "compared."
    )


def test_markdown_shows_backslashes_and_marks_as_they_are() -> None:
    assert plain(r"a\|b \[x](y) :ok:") == r"a\\\|b \\\[x\](y) :ok:"


def test_words_between_colons_are_no_pictures(cli: Cli, measured: dict[str, Path], altered: Any) -> None:
    failed = {"status": "error", "reason": "see :ok:"}
    ran = cli("check", measured["a"], altered(measured["a"], failed, environment="longcot"))
    assert "see :ok:" in ran.out


def test_markdown_of_a_check_that_nothing_failed_is_two_lines(cli: Cli, measured: dict[str, Path]) -> None:
    lines = cli("check", measured["c"], measured["d"], "--markdown", "-").out.splitlines()
    assert lines == [
        "### ✅ `scaling check`: d against c",
        "",
        "**4 cells do the same work at the same cost.** There are no timings to compare.",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a"], "give two sides, or one with --against NAME or --save NAME"),
        (["a", "b", "--save", "main"], "give two sides, or one with --against NAME or --save NAME"),
        (["a", "--save", "x", "--against", "y"], "give two sides, or one with --against NAME or --save NAME"),
        (["a", "b", "--json", "--markdown", "-"], "both write to stdout; give --markdown a file"),
        (["a", "--save", "main", "--markdown", "x.md"], "leave --markdown out"),
        (["nowhere", "a"], "nothing at nowhere; expected the directory of a run"),
        (["a", "b", "--markdown", "nowhere/x.md"], "cannot write nowhere/x.md"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_2(
    cli: Cli,
    measured: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(measured["a"].parent)
    ran = cli("check", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1


def test_the_examples_of_the_help_run(
    cli: Cli, measured: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(measured["a"], "runs/main")
    shutil.copytree(measured["b"], "runs/candidate")
    saved = cli("check", "runs/main", "--save", "main").out.strip()
    for name in ("before.json", "after.json"):
        shutil.copy(saved, name)
    for example in EXAMPLES:
        words = shlex.split(example.partition(" >> ")[0], comments=True)
        assert cli(*words[1:]).code == 0, example

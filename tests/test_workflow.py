"""The reusable workflow of the gate: what its steps do, by running them in a real repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from scaling.cli import COMMANDS

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "gate.yml"
needs_gate = pytest.mark.skipif(not {"ab", "check"} <= set(COMMANDS), reason="`scaling ab` is not there yet")
pytestmark = pytest.mark.usefixtures("lean_pytest")


def parsed(text: str) -> dict[str, Any]:
    """YAML 1.1 takes the key `on` for a truth value."""
    found = yaml.safe_load(text)
    return {"on" if key is True else key: value for key, value in found.items()}


GATE = parsed(WORKFLOW.read_text())
INPUTS: dict[str, dict[str, Any]] = GATE["on"]["workflow_call"]["inputs"]
JOB: dict[str, Any] = GATE["jobs"]["gate"]


def examples() -> list[str]:
    """What users are shown: the comment on top, and the blocks of YAML in the documentation."""
    comment = re.findall(r"^# {3}(.*)$", WORKFLOW.read_text(), re.MULTILINE)
    pages = [re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL) for page in (ROOT / "docs").glob("*.md")]
    return ["\n".join(comment), *(block for blocks in pages for block in blocks if "gate.yml" in block)]


def valid(path: Path) -> str:
    """What GitHub's schema of workflows, as `check-jsonschema` ships it, has against a file."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_the_workflow_is_one_by_githubs_schema(tmp_path: Path) -> None:
    assert valid(WORKFLOW) == ""
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOW.read_text().replace("runs-on:", "runs_on:"))
    assert "runs_on" in valid(broken)


@pytest.mark.parametrize("example", examples())
def test_a_users_workflow_is_five_lines_that_pass_it_inputs_it_has(example: str, tmp_path: Path) -> None:
    (tmp_path / "speed.yml").write_text(example)
    assert valid(tmp_path / "speed.yml") == ""
    (job,) = parsed(example)["jobs"].values()
    assert job["uses"] == "OWNER/REPOSITORY/.github/workflows/gate.yml@main"
    assert job.get("with", {}).keys() <= INPUTS.keys()


def test_the_shortest_example_has_five_lines() -> None:
    assert min(len(example.strip().splitlines()) for example in examples()) <= 5


def test_every_input_is_used_and_every_one_used_is_declared() -> None:
    used = set(re.findall(r"inputs\.([\w-]+)", WORKFLOW.read_text()))
    assert used == INPUTS.keys()
    assert all("default" in declared and declared["type"] for declared in INPUTS.values())


def test_no_input_is_pasted_into_a_script_where_it_could_run() -> None:
    assert not any("${{" in step.get("run", "") for step in JOB["steps"])


def test_it_sees_the_whole_history_and_may_only_read() -> None:
    (checkout,) = (step for step in JOB["steps"] if step.get("uses", "").startswith("actions/checkout@"))
    assert checkout["with"]["fetch-depth"] == 0
    assert GATE["permissions"] == {"contents": "read"}


# How a runner goes through a job, as far as this one asks for.


@dataclass(frozen=True)
class Ran:
    outcomes: dict[str, str]
    codes: dict[str, int]
    out: str
    summary: str


def evaluated(expression: str, names: dict[str, Any]) -> Any:
    inside = re.sub(r"^\$\{\{(.*)\}\}$", r"\1", expression.strip()).strip()
    python = re.sub(r"!(?!=)", "not ", inside).replace("&&", " and ").replace("||", " or ")
    return eval(re.sub(r"inputs\.([\w-]+)", lambda found: f"inputs['{found[1]}']", python), {}, names)


def run_job(repository: Path, tmp_path: Path, **inputs: Any) -> Ran:
    given = {name: declared["default"] for name, declared in INPUTS.items()}
    given |= {name.replace("_", "-"): value for name, value in inputs.items()}
    assert given.keys() == INPUTS.keys()
    names: dict[str, Any] = {"inputs": given, "cancelled": lambda: False, "steps": SimpleNamespace()}
    temporary, summary = tmp_path / "temporary", tmp_path / "summary.md"
    temporary.mkdir()
    environment = os.environ | {"RUNNER_TEMP": str(temporary), "GITHUB_STEP_SUMMARY": str(summary)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for name, value in JOB["env"].items():
        filled = evaluated(value, names)
        environment[name] = str(filled).lower() if isinstance(filled, bool) else str(filled)
    outcomes: dict[str, str] = {}
    codes: dict[str, int] = {}
    out = ""
    for step in (step for step in JOB["steps"] if "run" in step):
        failed = "failure" in outcomes.values()
        if evaluated(step["if"], names) if "if" in step else not failed:
            assert JOB["defaults"]["run"]["shell"] == "bash"
            script = tmp_path / "step.sh"
            script.write_text(step["run"])
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
                check=False,
                capture_output=True,
                text=True,
                cwd=repository,
                env=environment,
            )
            codes[step["name"]] = done.returncode
            out += done.stdout + done.stderr
        outcome = {0: "success", None: "skipped"}.get(codes.get(step["name"]), "failure")
        outcomes[step["name"]] = outcome
        if "id" in step:
            setattr(names["steps"], step["id"], SimpleNamespace(outcome=outcome))
    return Ran(outcomes, codes, out, summary.read_text() if summary.exists() else "")


BENCHMARK = """\
import pytest

from quick import work


@pytest.mark.parametrize("size", [2000])
def test_work(benchmark, size):
    benchmark.pedantic(work, (size,), rounds=3, iterations=1)
"""
PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "quick"
version = "1.0"
"""
WORK = "def work(size):\n    return sum(i * i for i in range(size))\n"
OPTIONS = "pytest 'tests of speed' --benchmark-only"


@pytest.fixture
def repository(tmp_path: Path, quick_ends: str) -> Path:
    """A project with a benchmark, in a folder with a space in its name, and three commits that do the same work."""
    path = tmp_path / "repository"
    (path / "tests of speed").mkdir(parents=True)
    (path / "pyproject.toml").write_text(PROJECT)
    (path / "quick.py").write_text(WORK)
    (path / "tests of speed" / "test_quick.py").write_text(BENCHMARK)
    (path / "tests of speed" / "conftest.py").write_text(quick_ends)
    git(path, "init", "--quiet", "--initial-branch=main")
    for number in range(3):
        (path / "README").write_text(f"{number}\n")
        commit(path)
    return path


def git(repository: Path, *arguments: str) -> None:
    who = ["-c", "user.name=Someone", "-c", "user.email=someone@example.org"]
    subprocess.run(["git", *who, *arguments], check=True, cwd=repository, capture_output=True)


def commit(repository: Path) -> None:
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "A change")


def test_what_cannot_be_installed_is_not_timed(repository: Path, tmp_path: Path) -> None:
    ran = run_job(repository, tmp_path, install="echo no wheels today >&2; false")
    assert ran.outcomes == {"Install": "failure", "Counters": "skipped", "Timing": "skipped"}
    assert "no wheels today" in ran.out


def test_several_commands_install(repository: Path, tmp_path: Path) -> None:
    ran = run_job(repository, tmp_path, install="touch 'one of two'\ntouch two\nfalse")
    assert ran.outcomes["Install"] == "failure"
    assert (repository / "one of two").exists()
    assert (repository / "two").exists()


@needs_gate
def test_what_changed_nothing_is_fine(repository: Path, tmp_path: Path) -> None:
    ran = run_job(repository, tmp_path, options=OPTIONS, floor="90%", budget="45s", install="true")
    assert ran.outcomes == {"Install": "success", "Counters": "skipped", "Timing": "success"}, ran.out
    assert "no slowdown of 90 %" in ran.summary
    assert "::warning" not in ran.out


@needs_gate
def test_a_candidate_that_crashes_fails_the_job_with_the_exit_code_of_a_regression(
    repository: Path, tmp_path: Path
) -> None:
    (repository / "quick.py").write_text("def work(size):\n    raise RuntimeError('out of luck')\n")
    commit(repository)
    ran = run_job(repository, tmp_path, options=OPTIONS, budget="30s", install="true")
    assert (ran.outcomes["Timing"], ran.codes["Timing"]) == ("failure", 1), ran.out
    assert "out of luck" in ran.summary


@needs_gate
def test_a_timing_that_decides_nothing_fails_the_job_where_it_is_asked_to(repository: Path, tmp_path: Path) -> None:
    ran = run_job(repository, tmp_path, options=OPTIONS, budget="1s", install="true", inconclusive_fails=True)
    assert ran.codes["Timing"] == 3, ran.out
    assert ran.summary
    assert "::warning" not in ran.out


@needs_gate
def test_counters_are_checked_where_a_baseline_is_named_and_a_timing_that_decides_nothing_warns(
    repository: Path, tmp_path: Path
) -> None:
    saved(repository, tmp_path / "baseline.json")
    ran = run_job(repository, tmp_path, options=OPTIONS, baseline="main", budget="1s", install="true")
    assert ran.outcomes == {"Install": "success", "Counters": "success", "Timing": "success"}, ran.out
    assert "::warning title=Timing is inconclusive::HEAD^1 and HEAD cannot be told apart at 3%25 within 1s" in ran.out
    assert "scaling check" in ran.summary
    assert "scaling ab" in ran.summary


@needs_gate
def test_where_counters_moved_the_job_fails_and_timing_is_tried_all_the_same(repository: Path, tmp_path: Path) -> None:
    saved(repository, tmp_path / "baseline.json")
    benchmark = repository / "tests of speed" / "test_quick.py"
    benchmark.write_text(benchmark.read_text().replace("test_work", "test_other"))
    ran = run_job(repository, tmp_path, a="origin/nowhere", options=OPTIONS, baseline="main", install="true")
    assert ran.codes == {"Install": 0, "Counters": 1, "Timing": 2}, ran.out
    assert "1 missing" in ran.summary
    assert "origin/nowhere" in ran.out


def saved(repository: Path, run: Path) -> None:
    """Saves the baseline `main` of what is in the working tree, and commits it."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in (
        ["python", "-m", "pytest", "tests of speed", "--benchmark-only", f"--benchmark-json={run}"],
        ["scaling", "check", str(run), "--save", "main"],
    ):
        subprocess.run(command, check=True, cwd=repository, env=environment, capture_output=True)
    commit(repository)

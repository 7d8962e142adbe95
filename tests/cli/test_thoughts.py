"""`scaling thoughts`: what traces of a small random model look like, cut short, and labelled by rules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling.results import Store
from studies.trace_frame import labels
from studies.truncation import results

pytest.importorskip("reasoning_gym", reason="the extra [tasks] is not installed")

Cli = Callable[..., Any]
STAGES = Path(__file__).parents[2] / "docs" / "stages-example.json"


@pytest.fixture(scope="module")
def asked(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from scaling.cli import main

    out = tmp_path_factory.mktemp("runs") / "asked"
    words = ["--task", "chain_sum:max_terms=2,max_digits=1", "--problems", "2", "--samples", "2"]
    sizes = ["--thinking-tokens", "48", "--context-size", "16", "--state-size", "8", "--head", "0"]
    assert main(["probe", "--model", str(chat_model), *words, *sizes, "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(asked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(asked, tmp_path / "run"))


def forced(run: Path) -> list[dict[str, Any]]:
    store = Store.open(run)
    return [one for label in labels(store) for one in results(store, label)]


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes every record of the JSONL files in a folder."""
    for file in folder.iterdir():
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for record in records:
            change(record)
        file.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_run_and_its_files_are_told_of(cli: Cli, run: Path) -> None:
    ran = cli("thoughts", run)
    assert ran.code == 0, ran.err
    assert [line.partition(":")[0] for line in ran.out.splitlines()][:2] == ["longcot", "delethink C=16 m=8"]
    file = run / "traces" / "01-longcot.jsonl"
    both = cli("thoughts", run, file, "--json")
    assert [each["of"] for each in json.loads(both.out)["thoughts"]] == [str(run), str(file)]


def test_thoughts_are_cut_by_the_model_that_the_run_remembers_and_once(cli: Cli, run: Path, chat_model: Path) -> None:
    ran = cli("thoughts", run, "--truncate", "8,16", "--answer-tokens", "4", "--json")
    assert ran.code == 0, ran.err
    points = json.loads(ran.out)["thoughts"][0]["truncation"]["points"]
    assert [(p["arm"], p["budget"]) for p in points] == [
        (arm, budget) for arm in ("delethink C=16 m=8", "longcot") for budget in (8, 16)
    ]
    before = {path: path.read_bytes() for path in (run / "truncation").iterdir()}
    again = cli("thoughts", run, "--truncate", "16", "--answer-tokens", "4", "--json", "--model", chat_model)
    (record,) = json.loads(again.out)["thoughts"]
    assert {p["budget"] for p in record["truncation"]["points"]} == {16}
    assert {path: path.read_bytes() for path in (run / "truncation").iterdir()} == before


def test_a_box_in_the_thoughts_is_not_taken_for_the_forced_answer(cli: Cli, run: Path) -> None:
    boxed = _bytes(run, r"\boxed{77}")

    def think(record: dict[str, Any]) -> None:
        chunk = record["chunks"][0]
        chunk["response"] = boxed + chunk["response"][len(boxed) :]

    edit(run / "traces", think)
    assert cli("thoughts", run, "--truncate", "12", "--answer-tokens", "2").code == 0
    found = [one for one in forced(run) if one["cut"]]
    assert found
    assert all(one["answer"] != "77" for one in found)


def _bytes(run: Path, text: str) -> list[int]:
    from scaling.text import Text

    return list(Text(Path(Store.open(run).manifest["options"]["model"])).encode(text))


def test_a_report_outlives_answers_that_all_failed(cli: Cli, run: Path) -> None:
    assert cli("thoughts", run, "--truncate", "8", "--answer-tokens", "2").code == 0
    edit(run / "truncation", lambda one: one.update(error="the server is gone", forced=None))
    ran = cli("report", run)
    assert ran.code == 0, ran.err
    assert "run: no thought was cut and judged" in ran.err


def test_stages_are_labelled_by_the_rules_of_a_file(cli: Cli, run: Path) -> None:
    ran = cli("thoughts", run, "--stages", STAGES, "--json")
    assert ran.code == 0, ran.err
    (told,) = json.loads(ran.out)["thoughts"]
    assert [arm["arm"] for arm in told["stages"]["arms"]] == ["longcot", "delethink C=16 m=8"]
    assert "of 4 traces have no more than one stage" in cli("thoughts", run, "--stages", STAGES).out


def test_a_report_has_stages_where_it_is_given_rules(cli: Cli, run: Path, tmp_path: Path) -> None:
    ran = cli("report", run, "--stages", STAGES)
    assert ran.code == 0, ran.err
    assert "Length of stages" in (run / "report" / "index.html").read_text()
    assert (run / "report" / "tables" / "run-stages.csv").exists()
    ran = cli("report", run, "--stages", tmp_path / "none.json", "--out", tmp_path / "other")
    assert (ran.code, (tmp_path / "other").exists()) == (2, False)
    assert "cannot read" in ran.err


def test_what_cannot_be_done_is_one_line(cli: Cli, run: Path, tmp_path: Path) -> None:
    file = run / "traces" / "01-longcot.jsonl"
    record = json.loads(file.read_text().splitlines()[0])
    for number, changed in enumerate(({"chunks": 5}, {"chunks": [{}]}, {"model": None}, {"problem": {"id": 7}}), 1):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps(record | changed) + "\n")
    del record["model"]
    (tmp_path / "0.jsonl").write_text(json.dumps(record) + "\n")
    for arguments, message in (
        ((), "no traces given"),
        ((tmp_path / "none",), "no run at"),
        ((file, "--truncate", "8"), "is a file; --truncate and --stages take a run"),
        ((run, "--truncate", "0"), "0 is not positive"),
        ((run, "--truncate", "8", "--answer-cue", ""), "an empty cue forces nothing"),
        ((run, "--stages", tmp_path / "none.json"), "cannot read"),
        ((tmp_path / "0.jsonl",), "a trace has no model"),
        *(((tmp_path / f"{n}.jsonl",), "a trace has a part of the wrong kind") for n in range(1, 5)),
    ):
        ran = cli("thoughts", *arguments)
        assert (ran.code, ran.out) == (2, ""), ran.err
        assert message in ran.err
        assert ran.err.count("\n") == 1


def test_a_run_that_does_not_remember_its_tasks_is_not_cut(cli: Cli, run: Path) -> None:
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["options"]
    path.write_text(json.dumps(manifest))
    ran = cli("thoughts", run, "--truncate", "8")
    assert ran.code == 2
    assert "does not remember its tasks" in ran.err

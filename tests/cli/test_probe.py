"""`scaling probe`: a real model, small and random, on real questions."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling.results import Store
from studies.trace_frame import frame

pytest.importorskip("reasoning_gym", reason="the extra [tasks] is not installed")

Cli = Callable[..., Any]
TASK = ("--task", "chain_sum:max_terms=2,max_digits=1")
SMALL = (*TASK, "--thinking-tokens", "48", "--context-size", "16", "--problems", "2", "--samples", "2")


@pytest.fixture(scope="module")
def probed(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from scaling.cli import main

    out = tmp_path_factory.mktemp("runs") / "probed"
    assert main(["probe", "--model", str(chat_model), *SMALL, "--out", str(out)]) == 0
    return out


def test_every_arm_is_asked_the_same_questions(probed: Path) -> None:
    table = frame(probed)
    assert set(table["arm"]) == {"longcot", "delethink C=16 m=8"}
    asked = table.groupby("arm")[["problem", "sample"]].apply(lambda rows: sorted(map(tuple, rows.to_numpy())))
    assert asked.iloc[0] == asked.iloc[1]
    assert len(asked.iloc[0]) == 4
    manifest = Store.open(probed).manifest
    assert (manifest["study"], manifest["budgets"]) == ("probe", [6, 12, 24, 48])
    assert manifest["options"]["context_size"] == ["16"]


def test_a_probe_says_what_it_found_and_what_is_next(cli: Cli, chat_model: Path, tmp_path: Path) -> None:
    ran = cli("probe", "--model", chat_model, *SMALL, "--out", tmp_path / "p")
    assert ran.code == 0, ran.err
    longcot, chunked, verdict, path = ran.out.splitlines()
    assert longcot.startswith("longcot: 0 [0, ")
    assert "% of several chunks, " in chunked
    assert "LongCoT solves nothing at 48 thinking tokens" in verdict
    assert path == str(tmp_path / "p")
    assert "no GPU was named" in ran.err
    assert "longcot: 4 traces, 0% right" in ran.err


def test_a_whole_probe_goes_on_to_nothing_and_tells_the_same(cli: Cli, probed: Path) -> None:
    before = {path: path.read_bytes() for path in (probed / "traces").iterdir()}
    ran = cli("probe", "--resume", "--out", probed, "--json")
    assert ran.code == 0, ran.err
    printed = json.loads(ran.out)
    assert printed["analysis"]["format"] == "probe"
    assert [outcome["traces"] for outcome in printed["outcomes"]] == [4, 4]
    assert {path: path.read_bytes() for path in (probed / "traces").iterdir()} == before


def test_an_interrupted_probe_is_resumed_by_its_directory_alone(cli: Cli, chat_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    options = [*SMALL[:-1], "12", "--out", str(out), "--concurrency", "1"]
    command = [sys.executable, "-m", "scaling", "probe", "--model", str(chat_model), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        first = out / "traces" / "01-longcot.jsonl"
        deadline = time.monotonic() + 60
        while not (first.exists() and first.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"go on with: scaling probe --resume --out {out}" in err
    assert "Traceback" not in err
    kept = first.read_bytes()
    assert len(frame(out)) < 48

    ran = cli("probe", "--resume", "--out", out, "--concurrency", "8")
    assert ran.code == 0, ran.err
    assert first.read_bytes().startswith(kept)
    table = frame(out)
    assert len(table) == len(table.drop_duplicates(["arm", "problem", "sample"])) == 48


def test_a_preset_is_planned_before_anything_is_fetched_or_read(cli: Cli, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SCALING_HOME", str(tmp_path / "empty"))
    ran = cli("probe", "--preset", "r1-distill-1.5b", "--gpu", "h100", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    planned = json.loads(ran.out)
    assert planned["model"] == "r1-distill-qwen-1.5b"
    assert [(arm["arm"], arm["traces"]) for arm in planned["arms"]] == [
        ("longcot", 30 * 256), ("delethink C=8k m=4k", 30 * 256)
    ]  # fmt: skip
    for arm in planned["arms"]:
        assert 0 < arm["gpu_hours"] < arm["most_gpu_hours"]
        assert arm["most_thinking_tokens"] == 30 * 256 * 32768
    assert planned["gpu_hours"] == pytest.approx(sum(arm["gpu_hours"] for arm in planned["arms"]))


def test_options_beside_a_preset_override_it(cli: Cli) -> None:
    ran = cli("probe", "--preset", "r1-distill-1.5b", "--samples", "4", "--context-size", "4k", "--dry-run", "--json")
    assert [(arm["arm"], arm["traces"]) for arm in json.loads(ran.out)["arms"]] == [
        ("longcot", 120), ("delethink C=4k m=2k", 120)
    ]  # fmt: skip
    assert json.loads(ran.out)["gpu_hours"] is None


def test_every_preset_can_be_planned_on_a_node(cli: Cli) -> None:
    from studies.probe_presets import PRESETS

    for name in PRESETS:
        ran = cli("probe", "--preset", name, "--gpu", "h100", "--gpus", "8", "--dry-run")
        assert ran.code == 0, ran.err
        assert "GPU-hours" in ran.out
        assert "…" not in ran.out  # a figure that is cut off is another figure


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "r1-distill-2b"), "unknown preset 'r1-distill-2b'; did you mean r1-distill-7b"),
        (("--context-size", "64"), "context size 64 holds all of 48 thinking tokens"),
        (("--ablation", "size"), "unknown ablation 'size'"),
        (("--state-size", "16"), "state size 16 must be below context size 16"),
        (("--task", "chain_sums"), "unknown task 'chain_sums'; did you mean chain_sum"),
        (("--budgets", "64"), "budget 64 is more than 'longcot' may think"),
        (("--gpu", "h1000"), "unknown gpu 'h1000'; did you mean h100"),
        (("--temperature", "0"), "greedy samples of a problem are all the same"),
        (("--model", "smollm2-135m"), "run: scaling fetch smollm2-135m"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    cli: Cli, chat_model: Path, tmp_path: Path, monkeypatch: Any, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setenv("SCALING_HOME", str(tmp_path / "empty"))
    ran = cli("probe", "--model", chat_model, *SMALL, "--out", tmp_path / "p", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_a_task_there_is_nothing_to_think_about(cli: Cli) -> None:
    ran = cli("probe")
    assert ran.code == 2
    assert "give --task, as in --task chain_sum" in ran.err


def test_what_cannot_be_resumed_says_why(cli: Cli, probed: Path, tmp_path: Path) -> None:
    Store.create(tmp_path / "costs", {"config": {}})
    for arguments, message in (
        (("--out", tmp_path / "none"), "no run at"),
        (("--out", tmp_path / "costs"), "it is a run of no study"),
        ((), "say which, as in --resume --out"),
        (("--out", probed, "--samples", "3"), "asks on as the run was begun; leave --samples out"),
        (("--out", probed, "--dry-run"), "leave --dry-run out"),
    ):
        ran = cli("probe", "--resume", *arguments)
        assert (ran.code, ran.out) == (2, "")
        assert message in ran.err


def test_a_taken_directory_is_not_written_over(cli: Cli, chat_model: Path, probed: Path) -> None:
    ran = cli("probe", "--model", chat_model, *SMALL, "--out", probed)
    assert ran.code == 2
    assert "is not empty; give a new directory" in ran.err


def test_a_report_has_the_probe_its_cost_and_its_traces(cli: Cli, probed: Path, tmp_path: Path) -> None:
    ran = cli("report", probed, "--out", tmp_path / "report")
    assert ran.code == 0, ran.err
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Markovian probe of bytes, probed" in page
    assert "What sampling took" in page
    assert "traces.html" in page
    assert (tmp_path / "report" / "traces.html").exists()
    assert (tmp_path / "report" / "figures" / "probed-accuracy.csv").exists()
    assert (tmp_path / "report" / "tables" / "probed-coverage.csv").exists()


def test_a_probe_that_has_just_begun_is_reported_as_such(cli: Cli, probed: Path, tmp_path: Path) -> None:
    manifest = json.loads((probed / "manifest.json").read_text())
    Store.create(tmp_path / "begun", manifest)
    ran = cli("report", tmp_path / "begun")
    assert ran.code == 0, ran.err
    assert "there are no traces yet" in ran.err

    traces = tmp_path / "begun" / "traces"
    traces.mkdir()
    whole = (probed / "traces" / "01-longcot.jsonl").read_bytes()
    (traces / "01-longcot.jsonl").write_bytes(whole[: len(whole) - 10])  # a kill cut the last line short
    ran = cli("report", tmp_path / "begun")
    assert ran.code == 0, ran.err
    assert "Not finished: 5 of 8 traces are still to be sampled" in ran.out

    (traces / "01-longcot.jsonl").write_bytes(whole)  # the next arm not begun
    ran = cli("report", tmp_path / "begun")
    assert "Not finished: 4 of 8 traces are still to be sampled" in ran.out


def test_costs_and_a_probe_share_a_report(cli: Cli, probed: Path, tmp_path: Path, make_row: Callable[..., Any]) -> None:
    store = Store.create(tmp_path / "costs", {"config": {"model": "tiny"}})
    for tokens in (1024, 2048, 4096):
        row = make_row(cell_id=f"c{tokens}", mean_thinking_tokens=tokens, device_seconds_per_trace=tokens / 1000)
        store.append(row)
    ran = cli("report", store.path, probed, "--out", tmp_path / "report")
    assert ran.code == 0, ran.err
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.index("Markovian probe of bytes") < page.index("Cost by thinking length")

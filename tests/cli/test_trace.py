"""`scaling trace`: a real model, small and random, on real questions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from scaling.tasks import TASKS
from scaling.traces import read_traces

pytest.importorskip("reasoning_gym", reason="the extra [tasks] is not installed")

Cli = Callable[..., Any]
TASK = "chain_sum:max_terms=2,max_digits=1"
SMALL = ("--task", TASK, "--context-size", "16", "--state-size", "8", "--head", "2", "--problems", "2")


def test_delethink_shows_every_chunk_and_what_it_carries(cli: Cli, chat_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    ran = cli("trace", "--model", chat_model, *SMALL, "--mode", "delethink", "--out", out)
    assert ran.code == 0, ran.err
    traces = list(read_traces(out))
    assert len(traces) == 2
    assert traces[0]["environment_parameters"] == {
        "context_size": 16,
        "state_size": 8,
        "iterations": 3,
        "head": 2,
        "carryover": "algorithm1",
    }
    for trace in traces:
        query, chunks = trace["query"], trace["chunks"]
        assert trace["thinking_tokens"] == sum(len(chunk["response"]) for chunk in chunks) <= 16 + 8 + 8
        head = chunks[0]["response"][:2]
        for before, chunk in pairwise(chunks):
            assert chunk["prompt"] == query + head + before["response"][-8:]
        assert trace["problem"]["id"] in ran.out
        assert trace["score"] is not None
    assert "chunk 2 · carries 10 tokens" in ran.out
    assert "delethink: 0 of 2 traces right (0 %, 95 % interval" in ran.out


def test_both_environments_share_queries_and_budget(cli: Cli, chat_model: Path) -> None:
    ran = cli("trace", "--model", chat_model, *SMALL, "--json")
    assert ran.code == 0, ran.err
    printed = json.loads(ran.out)
    assert [s["environment"] for s in printed["summary"]] == ["longcot", "delethink"]
    assert {t["thinking_budget"] for t in printed["traces"]} == {32}
    queries = {(t["problem"]["id"], tuple(t["query"])) for t in printed["traces"]}
    assert len(queries) == 2
    model = printed["traces"][0]["model"]
    assert (model["name"], model["weights"], len(model["digest"])) == ("bytes", "checkpoint", 64)


def test_a_seed_gives_the_same_traces(cli: Cli, chat_model: Path) -> None:
    def responses(seed: int) -> list[Any]:
        ran = cli("trace", "--model", chat_model, *SMALL, "--mode", "delethink", "--seed", seed, "--json")
        ordered = sorted(json.loads(ran.out)["traces"], key=lambda trace: trace["index"])
        return [[chunk["response"] for chunk in trace["chunks"]] for trace in ordered]

    assert responses(1) == responses(1) != responses(2)


def test_samples_of_a_problem_differ(cli: Cli, chat_model: Path) -> None:
    ran = cli("trace", "--model", chat_model, *SMALL[:-1], "1", "--mode", "longcot", "--samples", "3", "--json")
    traces = json.loads(ran.out)["traces"]
    assert sorted(trace["sample"] for trace in traces) == [0, 1, 2]
    assert len({tuple(trace["chunks"][0]["response"]) for trace in traces}) == 3


def test_a_walk_checkpoint_is_asked_like_any_model_and_judged_as_in_training(
    cli: Cli, taught: Path, tmp_path: Path
) -> None:
    from scaling.tasks.walk import Walk

    checkpoint = tmp_path / "taught"
    shutil.copytree(taught, checkpoint)
    Walk.tokenizer.save(checkpoint)
    sizes = ("--context-size", "8", "--state-size", "4", "--head", "0", "--iterations", "5", "--temperature", "1")
    asked = ("--task", "walk:low=0,high=2", "--seed", "3", "--problems", "30")
    ran = cli("trace", "--model", checkpoint, "--mode", "delethink", *asked, *sizes, "--json")
    assert ran.code == 0, ran.err
    traces = json.loads(ran.out)["traces"]
    assert {trace["text"]["rules"][0] for trace in traces} == {"after-hash"}
    walk = Walk(30, 3, 0, 2)
    problems = {problem.id: problem for problem in walk.problems(30)}
    ended = [trace for trace in traces if trace["chunks"][-1]["finish"] == "stop"]
    for trace in ended:
        response = [id for chunk in trace["chunks"] for id in chunk["response"]]
        assert trace["score"] == walk.reward(problems[trace["problem"]["id"]], response)
    assert 0 < sum(trace["score"] for trace in ended) < 30


def test_a_square_is_found_between_its_tags_and_other_rules_may_be_given(cli: Cli, chat_model: Path) -> None:
    grid = ("--model", chat_model, "--task", "grid:size=4", "--problems", "1", "--mode", "longcot", "--json")
    for given, rules in (((), ["answer-tag", "boxed"]), (("--answer", "last-line"), ["last-line"])):
        ran = cli("trace", *grid, "--thinking-tokens", "8", *given)
        assert json.loads(ran.out)["traces"][0]["text"]["rules"] == rules


def test_the_help_lists_the_tasks(cli: Cli) -> None:
    said = " ".join(cli("trace", "--help").out.replace("│", " ").split())
    for name in TASKS:
        assert name in said


def test_a_thinking_budget_sets_the_chunks(cli: Cli, chat_model: Path) -> None:
    ran = cli("trace", "--model", chat_model, *SMALL, "--mode", "delethink", "--thinking-tokens", "40", "--json")
    assert json.loads(ran.out)["traces"][0]["environment_parameters"]["iterations"] == 4


def test_contexts_beyond_the_trained_positions_are_remarked(cli: Cli, chat_model: Path) -> None:
    ran = cli("trace", "--model", chat_model, *SMALL, "--mode", "longcot", "--thinking-tokens", "500", "--samples", "1")
    assert ran.code == 0
    assert "bytes was trained on at most 512" in ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "smollm2-135"), "unknown model 'smollm2-135'; did you mean smollm2-135m"),
        (("--model", "smollm2-135m"), "run: scaling fetch smollm2-135m"),
        (("--mode", "delthink"), "unknown mode 'delthink'; did you mean delethink"),
        (("--engine", "vlm"), "unknown engine 'vlm'; did you mean vllm"),
        (("--tensor-parallel", "2"), "goes with --engine vllm alone"),
        (("--dtype", "float8"), "unknown dtype 'float8'"),
        (("--state-size", "16"), "state size 16 must be below context size 16"),
        (("--head", "8"), "head 8 must be at least 0 and below"),
        (("--context-size", "many"), "expected a number of tokens like"),
        (("--iterations", "3", "--thinking-tokens", "1k"), "both set the thinking budget; give one of them"),
        (("--task", "chain_sums"), "unknown task 'chain_sums'; did you mean chain_sum"),
        (("--answer", "boxed,last"), "unknown answer rule 'last'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    cli: Cli,
    chat_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setenv("SCALING_HOME", str(tmp_path / "empty"))
    ran = cli("trace", "--model", chat_model, *SMALL, "--out", tmp_path / "t.jsonl", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_keeps_the_traces_that_ended(chat_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    # SIGINT from inside, as soon as the second trace is on disk: where a Ctrl-C in the middle of the work lands.
    code = (
        "import os, signal, sys\n"
        "from scaling import traces\n"
        "from scaling.cli import main\n"
        "write = traces.TraceFile.write\n"
        "def then_interrupt(self, record):\n"
        "    write(self, record)\n"
        "    if record['index'] == 1: os.kill(os.getpid(), signal.SIGINT)\n"
        "traces.TraceFile.write = then_interrupt\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "trace", "--model", str(chat_model), *SMALL[:-1], "6", "--out", str(out)]
    ran = subprocess.run(
        [*command, "--concurrency", "1"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert ran.returncode == 130, ran.stderr
    assert f"2 traces are saved in {out}" in " ".join(ran.stderr.split())
    assert [trace["index"] for trace in read_traces(out)] == [0, 1]


def environment_trace(cli: Cli, model: Path, *arguments: str) -> dict[str, Any]:
    small = ("--task", TASK, "--context-size", "32", "--problems", "1", "--temperature", "0", "--json")
    ran = cli("trace", "--model", model, *small, *arguments)
    assert ran.code == 0, ran.err
    (trace,) = json.loads(ran.out)["traces"]
    return trace  # type: ignore[no-any-return]


def test_a_summary_is_asked_for_in_the_given_words(cli: Cli, chat_model: Path) -> None:
    trace = environment_trace(cli, chat_model, "--mode", "summary", "--summary-size", "8", "--cue", "So far:")
    assert trace["thinking_budget"] == 3 * 32
    for thought, summary, later in zip(*(trace["chunks"][n::2] for n in range(3)), strict=False):
        assert len(thought["response"]) == 24
        assert summary["carried"].endswith("So far:")
        assert later["prompt"] == trace["query"] + summary["response"][:-1]


def test_a_model_that_ends_early_is_made_to_go_on(cli: Cli, chat_model: Path) -> None:
    trace = environment_trace(
        *(cli, chat_model, "--mode", "budget-forcing", "--extensions", "2", "--thinking-tokens", "400"),
        *("--temperature", "1.5"),
    )
    first, second, *_ = trace["chunks"]
    assert first["finish"] == "stop"
    assert second["carried"].endswith("Wait")
    assert len(second["prompt"]) == len(first["prompt"]) + len(first["response"]) - 1 + len("Wait")


def test_folding_takes_the_markers_that_the_model_has(cli: Cli, chat_model: Path) -> None:
    trace = environment_trace(cli, chat_model, "--mode", "folding", "--cue", "#", "--stop", "|", "--summary-size", "8")
    parameters = trace["environment_parameters"]
    assert parameters["opening"] != parameters["closing"]
    assert trace["chunks"][2]["carried"].startswith("#")
    refused = cli("trace", "--model", chat_model, "--task", TASK, "--mode", "folding")
    assert refused.code == 2
    assert "marker '<step>' is 6 tokens of this model's tokenizer, and a marker is one" in refused.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cue", "Wait"], "--cue goes with --mode summary or budget-forcing or folding"),
        (["--mode", "summary", "--mode", "folding", "--cue", "Wait"], "the words of one environment"),
        (["--mode", "summary", "--extensions", "2"], "--extensions goes with --mode budget-forcing"),
    ],
)
def test_words_and_sizes_of_another_environment_are_refused(
    cli: Cli, chat_model: Path, arguments: list[str], said: str
) -> None:
    refused = cli("trace", "--model", chat_model, "--task", TASK, *arguments)
    assert refused.code == 2
    assert said in refused.err

"""`scaling trace --show`: traces that a study or a file kept, printed for eyes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling.cli.trace_view import TracePrinter
from scaling.results import Store
from scaling.traces import TraceFile

Cli = Callable[..., Any]


def record(number: int, **changes: Any) -> dict[str, Any]:
    """A trace as it is stored; right unless changed."""
    return {
        "schema_version": "1.0",
        "problem": {"id": f"p{number}", "question": "What is 1 + 1?", "answer": "2"},
        "sample": 0,
        "environment": "longcot",
        "environment_parameters": {"budget": 8},
        "query": [3, 4],
        "query_text": "What is 1 + 1?",
        "chunks": [{"prompt": [3, 4], "response": [5], "carried": "", "text": "It is 2", "finish": "stop"}],
        "thinking_tokens": 1,
        "seconds": 0.1,
        "error": None,
        "answer": "2",
        "answer_rule": "last-number",
        "score": 1.0,
        "verdict_error": None,
    } | changes


WRONG = {"answer": "3", "score": 0.0}
FAILED = {"answer": None, "score": None, "error": "no such model", "chunks": []}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two right traces, one wrong one, one that failed."""
    path = tmp_path / "t.jsonl"
    with TraceFile(path) as out:
        for number, changes in enumerate([{}, WRONG, FAILED, {}]):
            out.write(record(number, **changes))
    return path


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A run of two arms, a right and a wrong trace each."""
    arms = [{"label": label, "file": f"traces/{label}.jsonl"} for label in ("long", "chunked")]
    store = Store.create(tmp_path / "run", {"study": "probe", "arms": arms})
    for arm in arms:
        with TraceFile(store.path / arm["file"]) as out:
            for number, changes in enumerate([{}, WRONG]):
                out.write(record(number, arm=arm["label"], **changes))
    return store.path


def titles(printed: str) -> list[str]:
    return [line.partition(" sample")[0] for line in printed.splitlines() if " sample 0 · " in line]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ((), ["p0", "p1", "p2", "p3"]),
        (("--only", "right"), ["p0", "p3"]),
        (("--only", "wrong"), ["p1"]),
        (("--only", "failed"), ["p2"]),
        (("--limit", "2"), ["p0", "p1"]),
        (("--only", "right", "--limit", "1"), ["p0"]),
    ],
)
def test_traces_of_a_file_are_shown_by_their_outcome(
    cli: Cli, file: Path, options: tuple[str, ...], shown: list[str]
) -> None:
    ran = cli("trace", "--show", file, *options)
    assert ran.code == 0, ran.err
    assert titles(ran.out) == shown
    assert f"{len(shown)} " in ran.err


def test_a_trace_is_shown_whole(cli: Cli, file: Path) -> None:
    ran = cli("trace", "--show", file, "--only", "wrong")
    assert ran.out.splitlines() == [
        "p1 sample 0 · longcot · budget 8",
        "query · 2 tokens",
        "│ What is 1 + 1?",
        "chunk 1 · thinks 1 · stop",
        "│ It is 2",
        "answer 3 by last-number · wrong (score 0), expected 2 · 1 thinking tokens, 1 chunks, 0.1 s",
        "",
    ]


def test_every_arm_of_a_study_is_shown_and_limited_apart(cli: Cli, study: Path) -> None:
    assert titles(cli("trace", "--show", study, "--limit", "1").out) == ["long · p0", "chunked · p0"]
    assert titles(cli("trace", "--show", study, "--only", "wrong").out) == ["long · p1", "chunked · p1"]


def test_json_is_the_records(cli: Cli, study: Path) -> None:
    printed = json.loads(cli("trace", "--show", study, "--only", "right", "--json").out)
    assert [(trace["arm"], trace["problem"]["id"]) for trace in printed["traces"]] == [
        ("long", "p0"),
        ("chunked", "p0"),
    ]


def test_what_a_kill_left_of_a_line_is_left_out(cli: Cli, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])
    assert titles(cli("trace", "--show", file).out) == ["p0", "p1", "p2"]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def newer_run(tmp_path: Path) -> Path:
    path = Store.create(tmp_path / "run", {"study": "probe", "arms": []}).path
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": "1.0"', '"schema_version": "2.0"'))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp: tmp / "nowhere", "no run at"),
        (lambda tmp: tmp, "is not a run: it has no manifest.json"),
        (lambda tmp: Store.create(tmp / "run", {}).path, "holds no traces; expected a run of `scaling probe`"),
        (lambda tmp: write(tmp / "t.jsonl", "{}\n"), "line 1 is not a trace"),
        (lambda tmp: write(tmp / "t.jsonl", '{"schema_version": "9.1"}\n'), "has schema 9.1, newer than"),
        (lambda tmp: write(tmp / "m.jsonl", '{"schema_version": "1.0", "step": 3}\n'), "line 1 is no trace"),
        (lambda tmp: write(tmp / "p.jsonl", json.dumps(record(0, problem=3)) + "\n"), "line 1 is no trace"),
        (lambda tmp: write(tmp / "c.jsonl", json.dumps(record(0, chunks=[{}])) + "\n"), "line 1 is no trace"),
        (newer_run, "has schema 2.0, newer than the 1.x that is understood"),
    ],
)
def test_what_holds_no_traces_of_ours_is_refused_in_one_line(
    cli: Cli, tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    ran = cli("trace", "--show", make(tmp_path))
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--show", "x", "--only", "rigth"), "unknown outcome 'rigth'; did you mean right"),
        (("--show", "x", "--limit", "0"), "limit 0 is not positive"),
        (("--show", "x", "--model", "tiny"), "--show prints old traces, and --model is for new ones"),
        (("--show", "x", "--out", "y"), "--show prints old traces, and --out is for new ones"),
        (("--only", "right", "--task", "gcd"), "--only chooses among old traces; give --show with it"),
        ((), "give --task, as in --task chain_sum, or --show"),
    ],
)
def test_options_that_do_not_go_together_are_refused(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    ran = cli("trace", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_model_text_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\x00[bold]<b>\u202e\nchunk 9 · forged"
    query = [3, 4]
    TracePrinter()(
        {
            "problem": {"id": "p\x1b[0m", "question": hostile, "answer": "\x1b[1m"},
            "sample": 0,
            "arm": f"arm{hostile}",
            "environment": "delethink",
            "environment_parameters": {"context_size": 16},
            "query": query,
            "query_text": hostile,
            "chunks": [
                {"prompt": query, "response": [2], "carried": "", "text": hostile, "finish": "length"},
                {"prompt": [*query, *range(7)], "response": [2], "carried": hostile, "text": hostile, "finish": "stop"},
            ],
            "thinking_tokens": 2,
            "seconds": 0.1,
            "error": None,
            "answer": hostile,
            "answer_rule": "last-line",
            "score": 0.0,
            "verdict_error": None,
        }
    )
    printed = capsys.readouterr().out
    assert not {"\x1b", "\x00", "\u202e"} & set(printed)
    assert r"│ \x1b[2J\x00[bold]<b>\u202e" in printed
    assert [line for line in printed.splitlines() if line.startswith("chunk")] == [
        "chunk 1 · thinks 1 · length",
        "chunk 2 · carries 7 tokens, thinks 1 · stop",
    ]

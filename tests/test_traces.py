"""Traces on disk: complete lines, whatever they hold and whenever the writer dies."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scaling.cli.trace_view import summary_line
from scaling.errors import StoreError, UsageError
from scaling.traces import TraceFile, read_traces, summarise


def record(**changes: Any) -> dict[str, Any]:
    """What `summarise` and `read_traces` look at in a trace's record."""
    return {
        "schema_version": "1.0",
        "environment": "delethink",
        "problem": {"id": "p0"},
        "chunks": [{}, {}],
        "thinking_tokens": 100,
        "answer": "1",
        "score": 1.0,
        "error": None,
        "seconds": 1.0,
    } | changes


def test_any_text_survives_the_file(tmp_path: Path) -> None:
    hostile = "\x00\x1b[2J\u202e\ud800\u2028\n\r\U0010ffff<b>" + "9" * 10_000
    with TraceFile(tmp_path / "new" / "t.jsonl") as file:
        file.write(record(answer=hostile))
        file.write(record())
    first, second = read_traces(tmp_path / "new" / "t.jsonl")
    assert (first["answer"], second["answer"]) == (hostile, "1")


def test_a_file_that_exists_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("mine")
    with pytest.raises(UsageError, match="exists already; give --out a new file"):
        TraceFile(tmp_path / "t.jsonl")
    assert (tmp_path / "t.jsonl").read_text() == "mine"


def test_a_file_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    line = json.dumps(record()).encode() + b"\n"
    path.write_bytes(line + b"x" * 3_000_000)
    with TraceFile(path, append=True) as file:
        file.write(record(answer="2"))
    assert path.read_bytes().startswith(line)
    assert [trace["answer"] for trace in read_traces(path)] == ["1", "2"]


@pytest.mark.parametrize("torn", [b"", b"x" * 3_000_000])
def test_a_file_without_a_whole_line_begins_anew(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(torn)
    with TraceFile(path, append=True) as file:
        file.write(record())
    assert len(list(read_traces(path))) == 1


def test_two_processes_do_not_append_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with TraceFile(path, append=True), pytest.raises(StoreError, match="is being written by another process"):
        TraceFile(path, append=True)
    TraceFile(path, append=True).__exit__(None, None, None)


WRITE_FOREVER = """
import sys
from pathlib import Path
from scaling.traces import TraceFile
with TraceFile(Path(sys.argv[1])) as file:
    for index in range(10**9):
        file.write({"schema_version": "1.0", "index": index, "text": "x" * 100_000})
        print(index, flush=True)
"""


def test_a_kill_loses_nothing_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    command = [sys.executable, "-c", WRITE_FOREVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        confirmed = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        confirmed += process.stdout.readlines()
    indices = [trace["index"] for trace in read_traces(path)]
    assert indices[: len(confirmed)] == list(range(len(confirmed)))
    assert len(indices) - len(confirmed) in (0, 1)


def test_a_line_cut_short_at_the_end_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    line = json.dumps(record()).encode() + b"\n"
    path.write_bytes(line + line[:40])
    assert len(list(read_traces(path))) == 1


def test_a_full_disk_is_one_line_and_keeps_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with TraceFile(path) as file:
        file.write(record())
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, limits[1]))
        try:
            with pytest.raises(StoreError, match="the traces before are kept"):
                file.write(record())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes().count(b"\n") == 1
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not json\n", "line 1 is not a trace"),
        (b"[]\n", "line 1 is not a trace"),
        (b'{"answer": 1}\n', "line 1 is not a trace"),
        (b'{"schema_version": "2.0"}\n', "has schema 2.0, newer than 1.0; update scaling"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(StoreError, match=message):
        list(read_traces(tmp_path / "t.jsonl"))


def test_accuracy_is_right_over_judged_with_its_interval() -> None:
    records = [record(problem={"id": f"p{i}"}, score=1.0 if i < 3 else 0.2) for i in range(10)]
    failed = record(
        problem={"id": "p10"}, score=None, answer=None, error="out of memory", thinking_tokens=1, chunks=[{}]
    )
    (summary,) = summarise([*records, failed])
    assert (summary["traces"], summary["failed"], summary["right"], summary["accuracy"]) == (10, 1, 3, 0.3)
    assert summary["mean_score"] == pytest.approx(0.44)
    assert (summary["mean_thinking_tokens"], summary["mean_chunks"]) == (100, 2)
    assert summary["interval"] == pytest.approx([0.0927, 0.6058], abs=1e-3)  # Jeffreys, 3 of 10


def test_what_never_worked_has_no_means() -> None:
    (summary,) = summarise([record(score=None, answer=None, error="out of memory", thinking_tokens=1)])
    assert (summary["traces"], summary["failed"]) == (0, 1)
    assert {summary[key] for key in ("accuracy", "mean_score", "mean_thinking_tokens", "mean_chunks")} == {None}
    assert summary_line(summary) == "delethink: 0 of 0 traces right, 1 failed"


def test_the_interval_reaches_the_bound_that_was_seen() -> None:
    (none_right,) = summarise([record(problem={"id": f"p{i}"}, score=0.0) for i in range(5)])
    (all_right,) = summarise([record(problem={"id": f"p{i}"}) for i in range(5)])
    assert none_right["interval"][0] == 0
    assert all_right["interval"][1] == 1


def test_traces_of_one_problem_have_no_interval_for_they_are_not_independent() -> None:
    (summary,) = summarise([record(), record()])
    assert (summary["accuracy"], summary["interval"]) == (1.0, None)


def test_environments_are_summarised_apart() -> None:
    both = summarise([record(), record(environment="longcot", score=0.0)])
    assert [(s["environment"], s["right"]) for s in both] == [("delethink", 1), ("longcot", 0)]

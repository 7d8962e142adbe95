"""The page on which traces are read: all of them, filtered and paged, texts packed until one is opened."""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from reports.drawing import THEME
from scaling.text import show

TOGETHER = 50
"""Traces whose texts are packed together: opening one unpacks so many."""

Record = Mapping[str, Any]


def reader(runs: Mapping[str, Iterable[Record]]) -> str:
    """The page of the traces of some runs, by the run's name; records as `scaling.traces.trace_record` makes them.

    Nothing in it is loaded from anywhere. Model text reaches the page as data, and is shown as text alone.
    """
    index: list[list[Any]] = []
    blocks: list[str] = []
    for batch in _batched(
        ((name if len(runs) > 1 else "", record) for name, records in runs.items() for record in records)
    ):
        index += [_line(run, record) for run, record in batch]
        blocks.append(_packed([_text(record) for _, record in batch]))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    script = environment.get_template("reader.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("reader.html.j2").render(
        theme=THEME,
        script=Markup(script),
        digest=digest,
        index=Markup(_json(index)),
        blocks=blocks,
        together=TOGETHER,
        count=len(index),
    )


def _batched(records: Iterator[tuple[str, Record]]) -> Iterator[list[tuple[str, Record]]]:
    while batch := list(itertools.islice(records, TOGETHER)):
        yield batch


def _line(run: str, record: Record) -> list[Any]:
    """What the list shows of a trace, and filters by."""
    arm = record.get("arm") or record["environment"]
    if record["error"] is not None:
        outcome = "failed"
    elif record["answer"] is None:
        outcome = "unanswered"
    else:
        outcome = "right" if record["score"] == 1 else "wrong"
    return [
        show(f"{run} · {arm}" if run else arm),
        show(record["problem"]["id"]),
        record["sample"],
        outcome,
        record["thinking_tokens"],
        len(record["chunks"]),
        bool(record["chunks"]) and record["chunks"][-1]["finish"] == "stop",
    ]


def _text(record: Record) -> dict[str, Any]:
    problem = record["problem"]
    return {
        "question": show(problem["question"]),
        "expected": show(problem["answer"]),
        "answer": None if record["answer"] is None else show(record["answer"]),
        "error": None if record["error"] is None else show(record["error"]),
        "chunks": [
            [show(chunk["carried"]), show(chunk["text"]), len(chunk["response"]), chunk["finish"]]
            for chunk in record["chunks"]
        ],
    }


def _packed(texts: list[dict[str, Any]]) -> str:
    return base64.b64encode(gzip.compress(json.dumps(texts).encode(), 6, mtime=0)).decode()


def _json(value: object) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")

"""Shows traces in the terminal: those that are being sampled, and those that a study or a file kept."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from scaling.cli.console import print_json, say
from scaling.errors import StoreError, UsageError, unknown
from scaling.text import show

OUTCOMES = ("right", "wrong", "failed")
"""What may come of a trace: score 1, less, or no answer at all because the engine failed it."""

_NEEDED = {
    "": {
        *("problem", "sample", "environment", "environment_parameters", "query", "chunks", "thinking_tokens"),
        *("answer", "answer_rule", "score", "verdict_error", "error", "seconds"),
    },
    "problem": {"id", "question", "answer"},
    "chunks": {"prompt", "response", "carried", "text", "finish"},
}
"""Of a trace, of its problem, and of each of its chunks."""


def show_traces(place: Path, only: str | None, limit: int | None, json: bool) -> None:
    """Prints the traces of a study's run, or of a file of `scaling trace --out`: at most `limit` of each arm, `only`
    those of one outcome.

    Raises `UsageError` for a run without traces, `StoreError` for what cannot be read or is something else.
    """
    if only not in (None, *OUTCOMES):
        raise unknown("outcome", str(only), OUTCOMES)
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit} is not positive; as in --limit 5")
    found, seen = [], 0
    printer = None if json else TracePrinter()
    for records in _arms(place):
        chosen = (record for record in records if only in (None, outcome(record)))
        for record in islice(chosen, limit):
            seen += 1
            if printer is None:
                found.append(record)
            else:
                printer(record)
    if printer is None:
        print_json({"traces": found})
    say(f"{seen} {f'{only} ' if only else ''}trace{'s' if seen != 1 else ''} of {place}")


def outcome(record: dict[str, Any]) -> str:
    """One of `OUTCOMES`."""
    if record["error"] is not None:
        return "failed"
    return "right" if record["score"] == 1 else "wrong"


def _arms(place: Path) -> Iterator[Iterator[dict[str, Any]]]:
    """The traces of each arm of a run, or of a file as one."""
    from scaling.results import Store
    from scaling.traces import read_traces

    if place.is_file():
        yield _whole(read_traces(place), place)
        return
    from studies.trace_frame import labels, records

    store = Store.open(place)
    for arm in labels(store):
        yield _whole(records(store, arm), place)


def _whole(records: Iterator[dict[str, Any]], place: Path) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(records, 1):
        if not _is_trace(record):
            raise StoreError(f"{place}, line {number} is no trace; expected a file of `scaling trace --out`, or a run")
        yield record


def _is_trace(record: dict[str, Any]) -> bool:
    if not record.keys() >= _NEEDED[""] or not isinstance(record["chunks"], list):
        return False
    parts = [("problem", record["problem"]), *(("chunks", chunk) for chunk in record["chunks"])]
    return all(isinstance(part, dict) and part.keys() >= _NEEDED[name] for name, part in parts)


class TracePrinter:
    """Prints traces for eyes: model text escaped, every line of it behind a mark that it cannot write itself."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)

    def __call__(self, record: dict[str, Any]) -> None:
        """`record`: as `scaling.traces.trace_record` makes it, or a study, which names its arm."""
        values = (f"{key} {value}" for key, value in record["environment_parameters"].items())
        title = f"{record['problem']['id']} sample {record['sample']} · {record['environment']} · {', '.join(values)}"
        self._line(f"{record['arm']} · {title}" if "arm" in record else title, "bold")
        self._line(f"query · {len(record['query'])} tokens", "cyan")
        self._block("│ ", record.get("query_text", record["problem"]["question"]), "")
        for number, chunk in enumerate(record["chunks"], 1):
            carried = len(chunk["prompt"]) - len(record["query"])
            kept = f"carries {carried} tokens, " if number > 1 else ""
            self._line(f"chunk {number} · {kept}thinks {len(chunk['response'])} · {chunk['finish']}", "cyan")
            if carried:
                self._block("┊ ", chunk["carried"], "dim")
            self._block("│ ", chunk["text"], "")
        self._line(*_verdict(record))
        self._console.print()

    def _line(self, text: str, style: str) -> None:
        one_line = show(text).replace("\n", r"\n")  # an answer of several lines must not look like lines of ours
        self._console.print(one_line, style=style, markup=False, soft_wrap=True)

    def _block(self, mark: str, text: str, style: str) -> None:
        from rich.text import Text

        width = self._console.width - len(mark) if self._console.is_terminal else 1 << 20
        for line in show(text).split("\n"):
            for piece in Text(line, style).wrap(self._console, width) or [Text()]:
                self._console.print(Text.assemble((mark, "dim"), piece), soft_wrap=True)


def _verdict(record: dict[str, Any]) -> tuple[str, str]:
    """What came of a trace, and the style to say it in."""
    cost = f"{record['thinking_tokens']} thinking tokens, {len(record['chunks'])} chunks, {record['seconds']:.1f} s"
    if record["error"] is not None:
        return f"failed: {record['error']} · {cost}", "red"
    reference = record["problem"]["answer"]
    if record["answer"] is None:
        return f"no answer, expected {reference} · {cost}", "yellow"
    right = record["score"] == 1
    verdict = "right" if right else f"wrong (score {record['score']:.2g}), expected {reference}"
    if record["verdict_error"]:
        verdict += f" ({record['verdict_error']})"
    return f"answer {record['answer']} by {record['answer_rule']} · {verdict} · {cost}", "green" if right else "yellow"


def summary_line(summary: dict[str, Any]) -> str:
    line = f"{summary['environment']}: {summary['right']} of {summary['traces']} traces right"
    if summary["interval"] is not None:
        low, high = summary["interval"]
        line += f" ({100 * summary['accuracy']:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
    if summary["failed"]:
        line += f", {summary['failed']} failed"
    if not summary["traces"]:
        return line
    return (
        f"{line}; {summary['mean_thinking_tokens']:.0f} thinking tokens and {summary['mean_chunks']:.1f} chunks a trace"
    )

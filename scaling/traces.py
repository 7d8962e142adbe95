"""Real traces kept for reading: one JSON line each, with what was asked, thought, answered and judged."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from scaling.errors import StoreError, UsageError
from scaling.models import Source
from scaling.results import SCHEMA_VERSION
from scaling.rollout import Sampling, Trace
from scaling.tasks import Problem, Task
from scaling.text import Text
from scaling.thinking import Environment, standing

_BLOCK = 1 << 20


def trace_record(
    trace: Trace,
    problem: Problem,
    *,
    sample: int,
    source: Source,
    environment: Environment,
    sampling: Sampling,
    text: Text,
    task: Task,
) -> dict[str, Any]:
    """One trace as a JSON object, complete by itself. A failed trace has no answer and no score."""
    answer = text.answer(standing(trace.chunks)) if trace.error is None else None
    verdict = task.verify(problem, answer.text if answer else None) if trace.error is None else None
    model = source.record()
    del model["config"]
    return {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "environment": environment.name,
        "environment_parameters": environment.parameters(),
        "thinking_budget": environment.budget,
        "sampling": asdict(sampling),
        "text": text.handling.record(),
        "task": task.parameters(),
        "problem": asdict(problem),
        "sample": sample,
        "index": trace.index,
        "query": list(trace.query),
        "query_text": text.decode(trace.query),
        "chunks": [
            {
                "prompt": list(chunk.prompt),
                "response": list(chunk.response),
                "carried": text.decode(chunk.prompt[len(trace.query) :]),
                "text": text.decode(chunk.response),
                "finish": chunk.finish,
            }
            for chunk in trace.chunks
        ],
        "thinking_tokens": trace.thinking_tokens,
        "answer": answer.text if answer else None,
        "answer_rule": answer.rule if answer else None,
        "score": verdict.score if verdict else None,
        "verdict_error": verdict.error if verdict else None,
        "error": trace.error,
        "seconds": trace.finished - trace.started,
    }


class TraceFile:
    """A JSONL file that a kill cannot harm: a line is written at once and synced, so only traces in flight go."""

    def __init__(self, path: Path, *, append: bool = False) -> None:
        """A new file; with `append`, one that may be there goes on, after a last line that a kill cut short is cut off.

        Raises `UsageError` if it is there already and is not to go on, `StoreError` if it cannot be written or
        another process appends to it.
        """
        self.path = path
        mode = os.O_RDWR if append else os.O_WRONLY | os.O_EXCL
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, mode | os.O_CREAT | os.O_APPEND, 0o644)
        except FileExistsError:
            raise UsageError(f"{path} exists already; give --out a new file") from None
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}") from None
        if append:
            try:
                self._go_on()
            except BaseException:
                os.close(self._descriptor)
                raise

    def _go_on(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:  # else it is a file system without locks, which has none to refuse
                raise StoreError(f"{self.path} is being written by another process; wait for it to end") from None
        try:
            os.ftruncate(self._descriptor, _whole(self._descriptor))
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror}") from None

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def write(self, record: dict[str, Any]) -> None:
        """Appends one line; raises `StoreError` where the disk is full, leaving the lines before it whole."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        end = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, end)
            raise StoreError(f"cannot write {self.path}: {error.strerror}; the traces before are kept") from None


def _whole(descriptor: int) -> int:
    """Bytes of a file up to the end of its last whole line."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read_traces(path: Path) -> Iterator[dict[str, Any]]:
    """The traces of a file, in order. A last line that a kill cut short is left out.

    Raises `StoreError` for a file that cannot be read, is damaged elsewhere, or has a newer major schema version.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                yield _parse(line, f"{path}, line {number}")
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        major = int(record["schema_version"].split(".")[0])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(f"{where} is not a trace; expected a JSON object with schema_version") from None
    if major > int(SCHEMA_VERSION.split(".")[0]):
        raise StoreError(f"{where} has schema {record['schema_version']}, newer than {SCHEMA_VERSION}; update scaling")
    loaded: dict[str, Any] = record
    return loaded


def summarise(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy and thinking of each environment, over the traces that did not fail; accuracy: those with score 1.

    `interval`: Jeffreys' 95 % interval where every problem has one trace; None where traces of a problem, which are
    not independent, are counted together.
    """
    from scipy.stats import beta

    summaries = []
    for environment in dict.fromkeys(record["environment"] for record in records):
        mine = [record for record in records if record["environment"] == environment]
        judged = [record for record in mine if record["error"] is None]
        right = sum(record["score"] == 1 for record in judged)
        wrong = len(judged) - right
        alone = judged and len({record["problem"]["id"] for record in judged}) == len(judged)
        interval = None
        if alone:
            low, high = (float(beta.ppf(q, right + 0.5, wrong + 0.5)) for q in (0.025, 0.975))
            interval = [0.0 if right == 0 else low, 1.0 if wrong == 0 else high]
        summaries.append(
            {
                "environment": environment,
                "traces": len(judged),
                "failed": len(mine) - len(judged),
                "right": right,
                "accuracy": right / len(judged) if judged else None,
                "interval": interval,
                "mean_score": _mean([record["score"] for record in judged]),
                "answered": sum(record["answer"] is not None for record in judged),
                "mean_thinking_tokens": _mean([record["thinking_tokens"] for record in judged]),
                "mean_chunks": _mean([len(record["chunks"]) for record in judged]),
                "seconds": sum(record["seconds"] for record in mine),
            }
        )
    return summaries


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None

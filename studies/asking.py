"""Asks the same problems of several arms, checkpoints in thinking environments, and keeps every trace as it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from scaling.engines.base import Engine
from scaling.measure import sampler
from scaling.measure.fingerprint import fingerprint, fingerprint_id
from scaling.models import Source
from scaling.results import Store
from scaling.rollout import Trace, rollout
from scaling.thinking import Environment, LongCoT
from scaling.traces import TraceFile, trace_record
from studies.arm_costs import ELSEWHERE, OTHERWISE, RESUMED, Tally, Watched, cost_row
from studies.study import Arm, Asked, Questions, Study, begin, check_same
from studies.trace_frame import file_of, frame, records
from studies.trimming import scores

__all__ = ["Arm", "Outcome", "Progress", "Questions", "Study", "ask", "begin", "frame", "records"]

WARM_UP_TOKENS = 8

OpenEngine = Callable[[Source, Sequence[Environment], int], Engine]
"""Opens an engine for a model, long enough for these environments after a query of at most so many tokens."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a study is: `done` of `total` traces of the arm that is asked, `arms_done` of `arms` arms before it.

    `record`: the trace that was just written, None as the arm begins.
    """

    arm: str
    arms_done: int
    arms: int
    done: int
    total: int
    right: int
    failed: int
    record: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an arm: traces in all, right ones (score 1), failed ones, and those whose answer the verifier gave
    up on, which count as wrong; `reason` and `unjudged_reason`: of the first of them."""

    arm: str
    traces: int
    right: int
    failed: int
    reason: str | None
    unjudged: int = 0
    unjudged_reason: str | None = None

    @property
    def remarks(self) -> list[str]:
        """A line about each thing that did not go well."""
        lines, of = [], f"of {self.traces} traces of {self.arm!r}"
        if self.failed and self.failed == self.traces:
            lines.append(f"every trace of {self.arm!r} failed: {self.reason}; it has no accuracy")
        elif self.failed:
            lines.append(f"{self.failed} {of} failed and are left out; the first: {self.reason}")
        if self.unjudged:
            lines.append(f"{self.unjudged} {of} were not judged and count as wrong; the first: {self.unjudged_reason}")
        return lines


def ask(
    store: Store,
    study: Study,
    *,
    open_engine: OpenEngine | None = None,
    observe: Callable[[Progress], None] = lambda _: None,
    remark: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Samples the traces that the study's run in `store` still lacks, those that failed again, and returns what came of
    every arm.

    A trace is judged and written as it ends, beside the engine, which does not wait for that. Whatever stops the
    work (an interrupt, a kill, a full disk), the traces that are written stay, and asking again goes on with the
    rest; they are the traces that it would have sampled anyway. An arm that is done leaves a row of what it cost.
    One engine samples all arms of one model, if any of them lacks a trace: the study's, or what `open_engine`
    opens, which is closed here. `observe` is called in another thread; `remark` gets what the user should know.

    Raises `StoreError` if the run is another study's, is damaged, is being written by another process, or the disk is
    full; whatever the engine raises.
    """
    check_same(store, study)
    asked, unlike = study.asked, _unlike(store, study)
    if open_engine is None:
        choice = replace(study.engine, concurrency=min(study.engine.concurrency, len(asked)))
        open_engine = partial(sampler.open_engine, choice, remark=remark)
    outcomes: dict[str, Outcome] = {}
    for arms in _by_model(study.arms):
        with ExitStack() as stack:
            engine: Engine | None = None
            for arm in arms:
                # Held from before its traces are counted: a writer beside us would sample the same ones again.
                file = stack.enter_context(TraceFile(file_of(store, arm.label), append=True))
                asking = _Asking(store, study, arm, file, len(outcomes), len(asked), observe)
                lacking = [one for one in asked if one.key not in asking.tally.keys]
                watched: Watched | str = RESUMED
                if lacking:
                    if engine is None:
                        engine = stack.enter_context(closing(_opened(open_engine, arms, asked)))
                    window = asking.sample(engine, lacking)
                    watched = unlike or (window if len(lacking) == len(asked) else RESUMED)
                seed = study.sampling.seed
                store.append(cost_row(store.manifest, arm.environment, arm.source, seed, asking.tally, watched))
                outcomes[arm.label] = asking.outcome()
    return [outcomes[arm.label] for arm in study.arms]


def _by_model(arms: Sequence[Arm]) -> list[list[Arm]]:
    groups: dict[tuple[str, str | None, Path | None], list[Arm]] = {}
    for arm in arms:
        groups.setdefault((arm.source.name, arm.source.digest, arm.source.path), []).append(arm)
    return list(groups.values())


def _unlike(store: Store, study: Study) -> str | None:
    """Why what is sampled now does not cost what it would have when the run began, None where it does."""
    if fingerprint_id(fingerprint()) != store.manifest["fingerprint_id"]:
        return ELSEWHERE
    return OTHERWISE if study.engine.concurrency != store.manifest["engine"]["concurrency"] else None


def _opened(open_engine: OpenEngine, arms: Sequence[Arm], asked: Sequence[Asked]) -> Engine:
    """The engine of arms of one model, warm: first-use costs (threads, allocators, kernels) are no arm's."""
    queries, environment = [query for arm in arms for query in _queries(arm, asked)], arms[0].environment
    engine = open_engine(arms[0].source, [arm.environment for arm in arms], max(map(len, queries)))
    first_chunk, *_ = environment.expected_lengths(len(queries[0]), environment.budget)
    rollout(engine, LongCoT(min(WARM_UP_TOKENS, first_chunk)), queries[:1])
    return engine


class _Asking:
    """One arm while it is asked."""

    def __init__(
        self,
        store: Store,
        study: Study,
        arm: Arm,
        file: TraceFile,
        before: int,
        total: int,
        observe: Callable[[Progress], None],
    ) -> None:
        """`file`: of its traces. `before`: arms that were asked before. `total`: traces that are wanted of this one."""
        self.study, self.arm, self.file, self.before, self.total = study, arm, file, before, total
        self._observe = observe
        self.texts = {q.label: arm.text if q.rules is None else arm.text.ruled(q.rules) for q in study.questions}
        self.tally = Tally()
        for record in records(store, arm.label):
            if record["error"] is None:  # what failed is asked again
                self.tally.add(record)
        self._tell(None)

    def sample(self, engine: Engine, asked: Sequence[Asked]) -> Watched:
        """Samples what is `asked`, and returns what that took."""
        queries = _queries(self.arm, asked)
        by_number = {one.number: one for one in asked}
        writing: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1) as judge:

            def done(trace: Trace) -> None:
                trace.logprobs.clear()  # long traces by the thousand would not fit in memory
                writing.append(judge.submit(self._write, trace, by_number[trace.index]))

            def check() -> None:
                while writing and writing[0].done():
                    writing.popleft().result()

            with Watched(engine, self.study.engine.tensor_parallel) as watched:
                traces = rollout(
                    engine,
                    self.arm.environment,
                    queries,
                    sampling=self.study.sampling,
                    numbers=[one.number for one in asked],
                    concurrency=engine.limits().max_sequences,
                    on_trace=done,
                    on_step=check,
                )
            for future in writing:
                future.result()
        watched.cached = sum(trace.cached for trace in traces)
        return watched

    def outcome(self) -> Outcome:
        tally = self.tally
        judged = tally.unjudged, tally.unjudged_reason
        return Outcome(self.arm.label, len(tally.keys), tally.right, tally.failed, tally.reason, *judged)

    def _write(self, trace: Trace, asked: Asked) -> None:
        arm, questions, text = self.arm, asked.questions, self.texts[asked.questions.label]
        record = trace_record(
            trace,
            asked.problem,
            sample=asked.sample,
            source=arm.source,
            environment=arm.environment,
            sampling=self.study.sampling,
            text=text,
            task=questions.task,
        )
        earned: dict[int, float] = {}
        if trace.error is None:
            known = {record["answer"]: record["score"]}
            budgets = self.study.budgets
            earned = scores(trace.chunks, asked.problem, budgets, text=text, task=questions.task, known=known)
        record |= {
            "arm": arm.label,
            "trained": arm.trained,
            "task_label": questions.label,
            "ended": trace.error is None and _ended(arm.environment, trace),
            "scores": {str(budget): score for budget, score in earned.items()},
        }
        self.file.write(record)
        trace.chunks.clear()
        self.tally.add(record)
        self._tell(record)

    def _tell(self, record: dict[str, Any] | None) -> None:
        tally, arms = self.tally, len(self.study.arms)
        self._observe(
            Progress(self.arm.label, self.before, arms, len(tally.keys), self.total, tally.right, tally.failed, record)
        )


def _ended(environment: Environment, trace: Trace) -> bool:
    """Whether the model ended the trace itself, rather than a budget, or a stop token that only ends chunks."""
    if not trace.chunks or trace.chunks[-1].finish != "stop":
        return False
    turn = environment.next(trace.query, trace.chunks[:-1])
    return turn is None or trace.chunks[-1].response[-1] not in turn.stop


def _queries(arm: Arm, asked: Sequence[Asked]) -> list[list[int]]:
    """The token ids of each question, made once for all its samples."""
    tokens = {question: arm.text.query(question) for question in {one.problem.question for one in asked}}
    return [tokens[one.problem.question] for one in asked]

"""Asks the same problems of several arms, checkpoints in thinking environments, and keeps every trace as it ends."""

from __future__ import annotations

import itertools
import json
import re
import reprlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from scaling.engines.base import Engine
from scaling.errors import StoreError, UsageError
from scaling.measure import sampler
from scaling.measure.cells import OPENAI
from scaling.measure.fingerprint import fingerprint, fingerprint_id
from scaling.measure.sampler import DTYPES, EngineChoice
from scaling.measure.subject import device_kind, has_gpu
from scaling.models import Source
from scaling.results import Store
from scaling.rollout import Sampling, Trace, rollout
from scaling.tasks import Problem, Task
from scaling.text import Text
from scaling.thinking import Environment, LongCoT
from scaling.traces import TraceFile, trace_record
from studies.arm_costs import ELSEWHERE, OTHERWISE, RESUMED, Tally, Watched, cost_row
from studies.trace_frame import TRACES, file_of, frame, records
from studies.trimming import scores

__all__ = ["Arm", "Outcome", "Progress", "Questions", "Study", "ask", "begin", "frame", "records"]

WARM_UP_TOKENS = 8

OpenEngine = Callable[[Source, Sequence[Environment], int], Engine]
"""Opens an engine for a model, long enough for these environments after a query of at most so many tokens."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A checkpoint in an environment. `trained`: the environment that it was trained in, None where in none of ours.

    `text`: how questions become its tokens and its tokens answers; arms of one model may share it.
    """

    label: str
    environment: Environment
    source: Source
    text: Text
    trained: str | None = None


@dataclass(frozen=True, slots=True)
class Questions:
    """Problems of one task. `label` names the task in the study: two may differ in their parameters alone."""

    label: str
    task: Task
    problems: Sequence[Problem]

    def __post_init__(self) -> None:
        if not self.problems:
            raise UsageError(f"task {self.label} has no problems; ask at least one")
        (id, times), *_ = Counter(problem.id for problem in self.problems).most_common(1)
        if times > 1:
            raise UsageError(f"task {self.label} has {times} problems with the id {id!r}; every problem needs its own")

    def record(self) -> dict[str, Any]:
        texts = json.dumps([(problem.id, problem.question, problem.answer) for problem in self.problems])
        digest = sha256(texts.encode()).hexdigest()
        return {**self.task.parameters(), "label": self.label, "asked": len(self.problems), "asked_digest": digest}


class Asked(NamedTuple):
    """One trace that a study wants of every arm. `number` decides its seeds, whenever and where it is sampled."""

    number: int
    questions: Questions
    problem: Problem
    sample: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.questions.label, self.problem.id, self.sample


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that decides the traces of a study.

    Every arm is asked all `questions`, `samples` times each; the n-th sample of a problem has the same seeds in every
    arm, so that what differs comes of the arms. `budgets`: thinking tokens that every trace is also judged at, cut
    off there. `devices` run the model together, where a server does, which cannot be asked how many.
    """

    name: str
    arms: Sequence[Arm]
    questions: Sequence[Questions]
    samples: int
    sampling: Sampling
    budgets: Sequence[int]
    engine: EngineChoice
    devices: int = 1

    def __post_init__(self) -> None:
        """Raises `UsageError` for what cannot be asked, or would be misread."""
        object.__setattr__(self, "budgets", tuple(sorted(set(self.budgets))))
        if not self.arms or not self.questions or not self.budgets:
            raise UsageError("a study needs at least one arm, one task and one budget")
        for kind, labels in (("arms", self.arms), ("tasks", self.questions)):
            (label, times), *_ = Counter(each.label for each in labels).most_common(1)
            if times > 1:
                raise UsageError(f"{times} {kind} are called {label!r}; each needs its own name")
        if self.samples < 1:
            raise UsageError(f"{self.samples} samples a problem; give at least 1")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise UsageError("greedy samples of a problem are all the same; ask for 1, or set a temperature above 0")
        if self.budgets[0] < 1:
            raise UsageError(f"budget {self.budgets[0]} is not positive; give at least 1 thinking token")
        for arm in self.arms:
            if self.budgets[-1] > arm.environment.budget:
                raise UsageError(
                    f"budget {self.budgets[-1]} is more than {arm.label!r} may think, {arm.environment.budget} tokens; "
                    "leave it out, or let it think longer"
                )

    @property
    def asked(self) -> list[Asked]:
        """What every arm is asked: the first sample of all problems, then the second, and so on."""
        places = [(questions, problem) for questions in self.questions for problem in questions.problems]
        wanted = itertools.product(range(self.samples), places)
        return [Asked(number, *place, sample) for number, (sample, place) in enumerate(wanted)]

    def record(self) -> dict[str, Any]:
        """For the manifest, as it reads back from JSON."""
        arms = [
            {
                "label": arm.label,
                "file": f"{TRACES}/{number:02d}-{_slug(arm.label)}.jsonl",
                "environment": arm.environment.name,
                "environment_parameters": arm.environment.parameters(),
                "trained": arm.trained,
                "model": arm.source.record(),
                "text": arm.text.handling.record(),
            }
            for number, arm in enumerate(self.arms, 1)
        ]
        record: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "study": self.name,
                    "arms": arms,
                    "tasks": [questions.record() for questions in self.questions],
                    "samples": self.samples,
                    "sampling": asdict(self.sampling),
                    "budgets": self.budgets,
                    "engine": self._engine(),
                }
            )
        )
        return record

    def _engine(self) -> dict[str, Any]:
        """What samples, with the type in which it computes: of a server, that of the checkpoint is taken for it."""
        choice = self.engine
        stored = self.arms[0].source.config.get("dtype") or self.arms[0].source.config.get("torch_dtype")
        served = stored if stored in DTYPES else "bfloat16"
        dtype = choice.dtype or (served if choice.name == OPENAI else "bfloat16" if has_gpu() else "float32")
        devices = self.devices if choice.name == OPENAI else choice.tensor_parallel
        return {**asdict(choice), "dtype": dtype, "devices": devices}


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
    """What came of an arm: traces in all, right ones (score 1), failed ones, and why the first of those failed."""

    arm: str
    traces: int
    right: int
    failed: int
    reason: str | None

    @property
    def remark(self) -> str | None:
        """A line about an arm that did not go well, None for one that did."""
        if not self.failed:
            return None
        if self.failed == self.traces:
            return f"every trace of {self.arm!r} failed: {self.reason}; it has no accuracy"
        return (
            f"{self.failed} of {self.traces} traces of {self.arm!r} failed and are left out; the first: {self.reason}"
        )


def begin(out: Path | str, study: Study, *, device: str | None = None, **remembered: Any) -> Store:
    """Starts a study's run in a new directory; `remembered` (JSON) joins its manifest, such as the command line.

    `device`: what the model runs on, None for this machine's GPU or CPU, or a server of unknown kind. Raises
    `StoreError` if the directory is taken or cannot be written.
    """
    here = fingerprint()
    device = device or _device(study, here)
    manifest = {
        **remembered,
        **study.record(),
        "device": device,
        "device_kind": device if study.engine.name == OPENAI else device_kind(),
        "model": study.arms[0].source.record(),
        "fingerprint": here,
        "fingerprint_id": fingerprint_id(here),
    }
    return Store.create(out, manifest)


def _device(study: Study, here: Mapping[str, Any]) -> str:
    if study.engine.name == OPENAI:
        return f"server on {study.devices} device{'s' if study.devices > 1 else ''}"
    if has_gpu():
        return str(here["hardware"]["device"])
    return f"{here['hardware']['cpu']}, {here['software']['torch_threads']} threads"


def check_same(store: Store, study: Study) -> None:
    """Raises `StoreError`, naming a difference, unless the run in `store` is of this study: its traces would mix."""
    there, here = _identity(store.manifest), _identity(study.record())
    for path, was, is_ in _differences(there, here):
        raise StoreError(
            f"{store.path} is another study: its {path} is {reprlib.repr(was)}, here it is {reprlib.repr(is_)}; "
            "give another --out"
        )


def ask(
    store: Store,
    study: Study,
    *,
    open_engine: OpenEngine | None = None,
    observe: Callable[[Progress], None] = lambda _: None,
    remark: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Samples the traces that the study's run in `store` still lacks, and returns what came of every arm.

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
                asking = _Asking(store, study, arm, len(outcomes), len(asked), observe)
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
    queries = [query for arm in arms for query in _queries(arm, asked)]
    engine = open_engine(arms[0].source, [arm.environment for arm in arms], max(map(len, queries)))
    rollout(engine, LongCoT(WARM_UP_TOKENS), queries[:1], lengths=[[WARM_UP_TOKENS]])
    return engine


class _Asking:
    """One arm while it is asked."""

    def __init__(
        self, store: Store, study: Study, arm: Arm, before: int, total: int, observe: Callable[[Progress], None]
    ) -> None:
        """`before`: arms that were asked before. `total`: traces that are wanted of this one."""
        self.study, self.arm, self.before, self.total, self._observe = study, arm, before, total, observe
        self.path = file_of(store, arm.label)
        self.tally = Tally()
        for record in records(store, arm.label):
            self.tally.add(record)
        self._tell(None)

    def sample(self, engine: Engine, asked: Sequence[Asked]) -> Watched:
        """Samples what is `asked`, and returns what that took."""
        queries = _queries(self.arm, asked)
        by_number = {one.number: one for one in asked}
        writing: deque[Future[None]] = deque()
        with TraceFile(self.path, append=True) as file, ThreadPoolExecutor(1) as judge:

            def done(trace: Trace) -> None:
                trace.logprobs.clear()  # long traces by the thousand would not fit in memory
                writing.append(judge.submit(self._write, file, trace, by_number[trace.index]))

            def check() -> None:
                while writing and writing[0].done():
                    writing.popleft().result()

            with Watched(engine) as watched:
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
        return Outcome(self.arm.label, len(tally.keys), tally.right, tally.failed, tally.reason)

    def _write(self, file: TraceFile, trace: Trace, asked: Asked) -> None:
        arm, questions = self.arm, asked.questions
        record = trace_record(
            trace,
            asked.problem,
            sample=asked.sample,
            source=arm.source,
            environment=arm.environment,
            sampling=self.study.sampling,
            text=arm.text,
            task=questions.task,
        )
        earned: dict[int, float] = {}
        if trace.error is None:
            known = {record["answer"]: record["score"]}
            earned = scores(
                trace.chunks, asked.problem, self.study.budgets, text=arm.text, task=questions.task, known=known
            )
        record |= {
            "arm": arm.label,
            "trained": arm.trained,
            "task_label": questions.label,
            "ended": trace.error is None and _ended(arm.environment, trace),
            "scores": {str(budget): score for budget, score in earned.items()},
        }
        file.write(record)
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


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:80]


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs of one study have in common: not where the weights came from, nor how many run at once."""
    kept = {key: record.get(key) for key in ("study", "samples", "sampling", "budgets", "tasks")}
    arms = [
        {**arm, "model": {key: arm["model"][key] for key in ("name", "weights", "digest")}}
        for arm in record.get("arms", [])
    ]
    engine = {key: record.get("engine", {}).get(key) for key in ("name", "dtype", "served_model")}
    return {**kept, "arms": arms, "engine": engine}


def _differences(there: Any, here: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, value there, value here) of what differs between two JSON values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            yield from _differences(there.get(key), here.get(key), f"{path}.{key}" if path else key)
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here) and path != "budgets":
        for index, (was, is_) in enumerate(zip(there, here, strict=True)):
            name = was.get("label", index) if isinstance(was, dict) else index
            yield from _differences(was, is_, f"{path}[{name}]")
    elif isinstance(there, list) and isinstance(here, list) and path in ("arms", "tasks"):
        yield f"number of {path}", len(there), len(here)
    elif there != here:
        yield path, there, here

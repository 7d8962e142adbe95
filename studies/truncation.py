"""Thoughts cut short and asked for their answer at once, beside the same thoughts merely cut off.

Budget truncation of *DeepSeek-R1 Thoughtology* (arXiv 2504.07128, §4.2): a stored trace is cut at b thinking tokens, a
cue forces the answer, and the model that wrote the trace writes 16 tokens more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.engines.base import Engine
from scaling.errors import FitError, StoreError, UsageError, unknown
from scaling.measure.sampler import EngineChoice, open_engine
from scaling.models import Source
from scaling.results import Store
from scaling.rollout import Sampling, Trace, rollout
from scaling.tasks import Problem, Task
from scaling.text import THINK_CLOSE, WHOLE_TRACE, Answer, Text, show
from scaling.thinking import Chunk, LongCoT, standing
from scaling.traces import TraceFile, read_traces
from studies.accuracy import average, compare
from studies.trace_frame import file_of, labels, records
from studies.trimming import scores, trim

SCHEMA_VERSION = "1.0"
FOLDER = "truncation"
ANSWER_TOKENS = 16
"""As many as the paper lets the model write."""

SAID = "\n\nThe answer is"
HARMONY_FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
MODES = ("longcot", "delethink")
"""Environments whose chunks are nothing but thinking, so that any token of theirs is a place to cut."""

Key = tuple[str, str, int, int]


@dataclass(frozen=True, slots=True)
class Forcing:
    """Where thoughts are cut, in thinking tokens, and how the answer is forced.

    `cue`: None closes the thinking as the model does it, if it does, and says `The answer is`.
    """

    budgets: Sequence[int]
    cue: str | None = None
    answer_tokens: int = ANSWER_TOKENS

    def __post_init__(self) -> None:
        object.__setattr__(self, "budgets", tuple(sorted(set(self.budgets))))
        if not self.budgets or self.budgets[0] < 1:
            raise UsageError("thoughts are cut at 1 thinking token or more, as in --truncate 64,128")
        if self.answer_tokens < 1:
            raise UsageError(f"{self.answer_tokens} answer tokens leave no answer; the paper has {ANSWER_TOKENS}")
        if self.cue == "":
            raise UsageError("an empty cue forces nothing; give words, as in --answer-cue 'The answer is'")


@dataclass(frozen=True, slots=True)
class _Cut:
    """One trace cut at one budget. `said`: what the answer is sought in before what is forced; its cue comes last.

    `prompt` is None where nothing has to be forced, since the model ended the trace within the budget.
    """

    key: Key
    number: int
    record: Mapping[str, Any]
    prompt: tuple[int, ...] | None
    said: list[tuple[int, ...]]


def cue_of(text: Text, cue: str | None) -> str:
    """The cue, or a model's own if it is None: after `</think>`, in the channel `final`, or plainly."""
    if cue is not None:
        return cue
    handling = text.handling
    if handling.harmony:
        return HARMONY_FINAL + SAID.lstrip()
    return (THINK_CLOSE if handling.thinks else "") + SAID


def truncate(
    store: Store,
    forcing: Forcing,
    sources: Sequence[Source],
    tasks: Mapping[str, Task],
    engine: EngineChoice,
    *,
    observe: Callable[[dict[str, Any]], None] = lambda _: None,
    remark: Callable[[str], None] = lambda _: None,
) -> None:
    """Forces the answers of all traces of the study in `store` that its `truncation/` lacks, at every budget.

    `sources` are the models that wrote the traces, by their weights; `tasks` the study's, by label. A trace that the
    model ended within a budget keeps its own score there; failed traces are left out. A request that fails is recorded
    with its `error`. Every record is written as it ends, so an interrupted call goes on where it was.

    Raises `UsageError` for another model than that of an arm, another environment than LongCoT and Delethink, or a cue
    that the tokenizer cannot write; `StoreError` for records of another cue, or files that cannot be read or written.
    """
    arms = {arm["label"]: arm for arm in store.manifest["arms"]} if labels(store) else {}
    writers = {label: writer(arm, sources) for label, arm in arms.items()}
    for label, arm in arms.items():
        if arm["environment"] not in MODES:
            raise UsageError(f"{label!r} thinks in {arm['environment']}; thoughts are cut in {' and '.join(MODES)}")
        _force(store, label, forcing, writers[label], tasks, engine, observe, remark)


def writer(arm: Mapping[str, Any], sources: Sequence[Source]) -> Source:
    """Which of the models wrote an arm's traces, told by its weights; raises `UsageError` where none did."""
    wrote = arm["model"]
    for source in sources:
        same_kind = source.weights == wrote["weights"] and source.digest == wrote["digest"]
        if same_kind and (source.digest is not None or source.name == wrote["name"]):
            return source
    given = ", ".join(source.name for source in sources) or "none"
    raise UsageError(
        f"the traces of {arm['label']!r} were written by {wrote['name']} with weights "
        f"{(wrote['digest'] or 'served')[:12]}, and no model given has them ({given}); give that one as --model"
    )


def results(store: Store, label: str) -> Iterator[dict[str, Any]]:
    """What `truncate` recorded of an arm, one record a trace and budget; none where it has not been."""
    path = _file(store, label)
    return read_traces(path) if path.exists() else iter(())


def analyse(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each arm and budget: accuracy with the answer forced and merely cut off, and their difference, with intervals.

    `found` are records of `results`. Where a request failed, the trace is left out of both, and counted. Budgets of
    the record hold different cuts of the same traces, so their errors go together. Raises `FitError` where nothing can
    be judged.
    """
    points: list[dict[str, Any]] = []
    for arm, budget in sorted({(one["arm"], one["budget"]) for one in found}, key=lambda pair: (pair[0], pair[1])):
        mine = [one for one in found if (one["arm"], one["budget"]) == (arm, budget)]
        judged = [one for one in mine if one["error"] is None]
        if not judged:
            continue
        forced, trimmed = (_by_problem(judged, name) for name in ("forced", "trimmed"))
        points.append(
            {
                "arm": arm,
                "budget": budget,
                "traces": len(mine),
                "failed": len(mine) - len(judged),
                "cut_share": sum(one["cut"] for one in judged) / len(judged),
                "forced": average(forced).record(),
                "trimmed": average(trimmed).record(),
                **compare(forced, trimmed).record(),
            }
        )
    if not points:
        raise FitError("no thought was cut and judged; see the errors in the run's truncation records")
    return {
        "format": "truncation",
        "schema_version": SCHEMA_VERSION,
        "cues": sorted({one["cue"] for one in found}),
        "answer_tokens": max(one["answer_tokens"] for one in found),
        "points": points,
    }


def _by_problem(judged: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    problems: dict[tuple[str, str], list[float]] = {}
    for one in judged:
        problems.setdefault((one["task_label"], one["problem"]), []).append(one[name])
    return [problems[key] for key in sorted(problems)]


def _file(store: Store, label: str) -> Path:
    return store.path / FOLDER / file_of(store, label).name


def _force(
    store: Store,
    label: str,
    forcing: Forcing,
    source: Source,
    tasks: Mapping[str, Task],
    choice: EngineChoice,
    observe: Callable[[dict[str, Any]], None],
    remark: Callable[[str], None],
) -> None:
    """`truncate` of one arm."""
    asks = _Asks(store, label, forcing, source, tasks)
    with TraceFile(_file(store, label), append=True) as file:
        asks.check_same(results(store, label))
        done = {_key(one, one["budget"]) for one in results(store, label)}

        def keep(cut: _Cut, trace: Trace | None) -> None:
            record = asks.judged(cut, trace)
            file.write(record)
            observe(record)

        cuts = [cut for cut in asks.cuts() if cut.key not in done]
        for cut in cuts:
            if cut.prompt is None:
                keep(cut, None)
        forced = {cut.number: cut for cut in cuts if cut.prompt is not None}
        if not forced:
            return
        prompts = [cut.prompt for cut in forced.values() if cut.prompt is not None]
        environment = LongCoT(forcing.answer_tokens)
        opened: Engine = open_engine(choice, source, [environment], max(map(len, prompts)), remark=remark)
        with closing(opened) as engine:
            rollout(
                engine,
                environment,
                prompts,
                sampling=Sampling(**store.manifest["sampling"]),
                numbers=list(forced),
                concurrency=engine.limits().max_sequences,
                on_trace=lambda trace: keep(forced[trace.index], trace),
            )


class _Asks:
    """How one arm's thoughts are cut, forced and judged."""

    def __init__(self, store: Store, label: str, forcing: Forcing, source: Source, tasks: Mapping[str, Task]) -> None:
        assert source.path is not None
        self.store, self.label, self.forcing, self.tasks = store, label, forcing, tasks
        self.text = Text(source.path)
        self.cue = cue_of(self.text, forcing.cue)
        tokenizer = self.text.tokenizer
        strange = {tokenizer.unk_token_id, tokenizer.eos_token_id} - {None}
        if strange & set(self._encode(self.cue)) and str(tokenizer.eos_token) not in self.cue:
            raise UsageError(
                f"the tokenizer of {source.name} cannot write the cue {show(self.cue)!r}; give words that it has, "
                "as in --answer-cue '#'"
            )

    def _encode(self, words: str) -> tuple[int, ...]:
        return self.text.encode(words)

    def check_same(self, before: Iterator[dict[str, Any]]) -> None:
        """Raises `StoreError` where what is recorded already was forced in another way."""
        mine = (self.cue, self.forcing.answer_tokens)
        for one in before:
            if (one["cue"], one["answer_tokens"]) != mine:
                raise StoreError(
                    f"{_file(self.store, self.label)} was forced by {show(one['cue'])!r} and {one['answer_tokens']} "
                    f"tokens, now by {show(self.cue)!r} and {mine[1]}; keep to that, or move the file away"
                )

    def cuts(self) -> Iterator[_Cut]:
        """Every trace at every budget."""
        for record in records(self.store, self.label):
            if record["error"] is None:
                yield from (self._cut(record, budget) for budget in self.forcing.budgets)

    def _cut(self, record: Mapping[str, Any], budget: int) -> _Cut:
        key, number = _key(record, budget), record["index"] * (1 << 32) + budget
        kept = trim(_chunks(record), budget)
        responses = standing(kept)
        if record["ended"] and budget >= record["thinking_tokens"]:
            return _Cut(key, number, record, None, responses)
        cue = self._encode(self._rest_of_cue(responses))
        return _Cut(key, number, record, kept[-1].prompt + kept[-1].response + cue, [*responses, cue])

    def _rest_of_cue(self, said: Sequence[tuple[int, ...]]) -> str:
        """The cue without what closes the thinking, where the model has closed it itself before the cut."""
        for close in (THINK_CLOSE, HARMONY_FINAL):
            opened = THINK_CLOSE if close == THINK_CLOSE else "<|channel|>final<|message|>"
            if close in self.cue and opened in "".join(self.text.decode(response) for response in said):
                return self.cue.partition(close)[2]
        return self.cue

    def judged(self, cut: _Cut, trace: Trace | None) -> dict[str, Any]:
        """The record of a cut, whose answer was forced in `trace`, or which has its own."""
        record, budget = cut.record, cut.key[3]
        task = self._task(record)
        problem = Problem(**record["problem"])
        text = self.text.ruled(record["text"]["rules"])
        trimmed = record["scores"].get(str(budget))
        if trimmed is None:
            known = {record["answer"]: record["score"]}
            trimmed = scores(_chunks(record), problem, [budget], text=text, task=task, known=known)[budget]
        written = trace.chunks[0].response if trace is not None and trace.error is None else ()
        error = trace.error if trace is not None else None
        answer = self._answer(text, cut, written) if error is None else None
        said = answer.text if answer else None
        return {
            "schema_version": SCHEMA_VERSION,
            "arm": self.label,
            "task_label": record["task_label"],
            "problem": record["problem"]["id"],
            "sample": record["sample"],
            "budget": budget,
            "thinking_tokens": min(budget, record["thinking_tokens"]),
            "cut": cut.prompt is not None,
            "cue": self.cue,
            "answer_tokens": self.forcing.answer_tokens,
            "tokens": list(written),
            "text": self.text.decode(written),
            "answer": said,
            "trimmed": trimmed,
            "forced": task.score(problem, said) if error is None else None,
            "error": error,
        }

    def _answer(self, text: Text, cut: _Cut, written: tuple[int, ...]) -> Answer | None:
        """What was forced, or what a trace that had ended says.

        A box in the thoughts would hide a forced answer that has none, so it is sought from the cue on, wherever rules
        do not read the whole trace.
        """
        whole = text.answer([*cut.said, written])
        if cut.prompt is None or whole is None or whole.rule in WHOLE_TRACE:
            return whole
        handling = text.handling
        closed = HARMONY_FINAL if handling.harmony else THINK_CLOSE if handling.thinks else ""
        return text.answer([self._encode(closed), cut.said[-1], written])

    def _task(self, record: Mapping[str, Any]) -> Task:
        if (label := record["task_label"]) not in self.tasks:
            raise unknown("task", label, self.tasks)
        return self.tasks[label]


def _key(record: Mapping[str, Any], budget: int) -> Key:
    problem = record["problem"]
    return record["task_label"], problem if isinstance(problem, str) else problem["id"], record["sample"], budget


def _chunks(record: Mapping[str, Any]) -> list[Chunk]:
    return [Chunk(tuple(c["prompt"]), tuple(c["response"]), c["finish"]) for c in record["chunks"]]

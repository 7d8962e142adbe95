"""`scaling trace`: let a real model think about real questions, and show how it went."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from scaling.cli.console import FINISHED_WITH_FAILURES, print_json, say, warn
from scaling.cli.options import (
    BaseUrl,
    Concurrency,
    ContextSize,
    Deadline,
    Dtype,
    EngineName,
    Head,
    Iterations,
    KeyVariable,
    Modes,
    ServedModel,
    StateSize,
    TensorParallel,
    ThinkingTokens,
)
from scaling.errors import UsageError, unknown
from scaling.lengths import parse_tokens
from scaling.text import DEFAULT_RULES, show
from scaling.thinking import MODES, Delethink, Environment, LongCoT

EXAMPLES = (
    "scaling trace --model smollm2-135m --mode delethink --task chain_sum:max_terms=2,max_digits=1",
    "scaling trace --model smollm2-135m --task gcd --context-size 128 --state-size 64 --head 16 --out gcd.jsonl",
    "scaling trace --engine vllm --model ./my-checkpoint --task gcd --problems 50 --samples 4 --out gcd.jsonl",
    "scaling trace --engine openai --base-url http://127.0.0.1:8000/v1 --model ./Qwen3-30B-A3B --task gcd",
)
DEFAULT_ITERATIONS = 3


def trace(
    task: Annotated[str, typer.Option(help="A reasoning-gym dataset, e.g. chain_sum or chain_sum:max_terms=2.")],
    model: Annotated[str, typer.Option(help="A fetched model, or the directory of a checkpoint.")] = "smollm2-135m",
    mode: Modes = None,
    context_size: ContextSize = "1k",
    state_size: StateSize = None,
    head: Head = 100,
    iterations: Iterations = None,
    thinking_tokens: ThinkingTokens = None,
    problems: Annotated[int, typer.Option(min=1, help="Problems of the task.")] = 4,
    samples: Annotated[int, typer.Option(min=1, help="Traces a problem.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of sampling; 0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(help="Nucleus of sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of problems and sampling.")] = 0,
    system: Annotated[str | None, typer.Option(help="System prompt. Default: the chat template's own.")] = None,
    instruction: Annotated[str | None, typer.Option(help="Added to every question.")] = None,
    answer: Annotated[
        str, typer.Option(help="Rules that find the answer, in order: boxed, answer-tag, last-number, last-line.")
    ] = ",".join(DEFAULT_RULES),
    engine: EngineName = "local",
    base_url: BaseUrl = None,
    served_model: ServedModel = None,
    deadline: Deadline = 3600.0,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    concurrency: Concurrency = 16,
    tensor_parallel: TensorParallel = 1,
    dtype: Dtype = None,
    out: Annotated[Path | None, typer.Option(help="Write the traces to this new JSONL file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print traces and summary as JSON on stdout.")] = False,
) -> int:
    """Let a real model think about real questions: shows each chunk, what it carried over, the answer and verdict."""
    environments = _environments(mode, context_size, state_size, head, iterations, thinking_tokens)

    from scaling.measure.sampler import EngineChoice, open_engine
    from scaling.rollout import Sampling, Trace, rollout
    from scaling.tasks import load
    from scaling.text import Text
    from scaling.traces import TraceFile, summarise, trace_record

    choice = EngineChoice(engine, dtype, concurrency, base_url, served_model, deadline, key_variable, tensor_parallel)
    source = choice.source(model)
    assert source.path is not None
    text = Text(source.path, system=system, instruction=instruction, rules=[r.strip() for r in answer.split(",")])
    sampling = Sampling(temperature, top_p, seed)
    records: list[dict[str, Any]] = []
    with ExitStack() as stack:
        questions = load(task, seed=seed)
        stack.callback(questions.close)
        asked = [problem for problem in questions.problems(problems) for _ in range(samples)]
        queries = [text.query(problem.question) for problem in asked]
        choice = replace(choice, concurrency=min(concurrency, len(queries)))
        running = open_engine(choice, source, environments, max(map(len, queries)), remark=warn)
        stack.callback(running.close)
        names = " and ".join(environment.name for environment in environments)
        say(f"{source.name}: {len(queries)} traces of {questions.name} in {names}")
        file = stack.enter_context(TraceFile(out)) if out is not None else None
        show_trace = None if json else _Printer(text)
        for environment in environments:

            def done(trace: Trace, environment: Environment = environment) -> None:
                record = trace_record(
                    trace,
                    asked[trace.index],
                    sample=trace.index % samples,
                    source=source,
                    environment=environment,
                    sampling=sampling,
                    text=text,
                    task=questions,
                )
                records.append(record)
                if file is not None:
                    file.write(record)
                if show_trace is not None:
                    show_trace(record)

            try:
                rollout(running, environment, queries, sampling=sampling, on_trace=done)
            except KeyboardInterrupt:
                warn(f"interrupted; {len(records)} traces are {f'saved in {out}' if out else 'shown, none saved'}")
                raise
    summary = summarise(records)
    if json:
        print_json({"summary": summary, "traces": records, "file": out})
    else:
        for line in summary:
            print(_summary_line(line))
        if out is not None:
            say(f"{len(records)} traces in {out}")
    return FINISHED_WITH_FAILURES if any(record["error"] for record in records) else 0


def _environments(
    mode: list[str] | None,
    context_size: str,
    state_size: str | None,
    head: int,
    iterations: int | None,
    thinking_tokens: str | None,
) -> list[Environment]:
    """The environments asked for; LongCoT may think as long as Delethink."""
    if iterations is not None and thinking_tokens is not None:
        raise UsageError("--iterations and --thinking-tokens both set the thinking budget; give one of them")
    context = parse_tokens(context_size)
    state = parse_tokens(state_size) if state_size is not None else context // 2
    modes = dict.fromkeys(mode or MODES)
    for name in modes:
        if name not in MODES:
            raise unknown("mode", name, MODES)
    if thinking_tokens is None:
        delethink = Delethink(context, state, DEFAULT_ITERATIONS if iterations is None else iterations, head)
        longcot = LongCoT(delethink.budget)
    else:
        delethink = Delethink.for_length(parse_tokens(thinking_tokens), context, state, head)
        longcot = LongCoT(parse_tokens(thinking_tokens))
    return [longcot if name == "longcot" else delethink for name in modes]


class _Printer:
    """Prints traces for eyes: model text escaped, every line of it behind a mark that it cannot write itself."""

    def __init__(self, text: Any) -> None:
        from rich.console import Console

        self._text = text
        self._console = Console(highlight=False)

    def __call__(self, record: dict[str, Any]) -> None:
        values = (f"{key} {value}" for key, value in record["environment_parameters"].items())
        title = f"{record['problem']['id']} sample {record['sample']} · {record['environment']} · {', '.join(values)}"
        self._line(title, "bold")
        self._line(f"query · {len(record['query'])} tokens", "cyan")
        self._block("│ ", self._text.decode(record["query"]), "")
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


def _summary_line(summary: dict[str, Any]) -> str:
    line = f"{summary['environment']}: {summary['right']} of {summary['traces']} traces right"
    if summary["interval"] is not None:
        low, high = summary["interval"]
        line += f" ({100 * summary['accuracy']:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
    if summary["failed"]:
        line += f", {summary['failed']} failed"
    return (
        f"{line}; {summary['mean_thinking_tokens']:.0f} thinking tokens and {summary['mean_chunks']:.1f} chunks a trace"
    )

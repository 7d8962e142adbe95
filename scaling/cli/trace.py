"""`scaling trace`: let a real model think about real questions, and show how it went."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.cli.console import FINISHED_WITH_FAILURES, print_json, say, warn
from scaling.cli.environments import (
    ContextSize,
    Cue,
    Extensions,
    Head,
    Iterations,
    Modes,
    StateSize,
    Stop,
    SummarySize,
    ThinkingTokens,
    environments_of,
)
from scaling.cli.options import (
    AnswerRules,
    BaseUrl,
    Concurrency,
    Deadline,
    Dtype,
    EngineName,
    KeyVariable,
    ServedModel,
    TensorParallel,
)
from scaling.cli.trace_view import TracePrinter, show_traces, summary_line
from scaling.errors import UsageError
from scaling.tasks import TASKS, load
from scaling.text import DEFAULT_RULES
from scaling.thinking import Environment

if TYPE_CHECKING:
    from scaling.engines.base import Engine

EXAMPLES = (
    "scaling trace --model smollm2-135m --mode delethink --task chain_sum:max_terms=2,max_digits=1",
    "scaling trace --model smollm2-135m --task gcd --context-size 128 --state-size 64 --head 16 --out gcd.jsonl",
    "scaling trace --engine vllm --model ./my-checkpoint --task gcd --problems 50 --samples 4 --out gcd.jsonl",
    "scaling trace --show gcd.jsonl --only wrong --limit 3",
    "scaling trace --model smollm2-135m --task multiplication:digits=1..2 --context-size 64 --iterations 1",
    "scaling trace --model smollm2-135m --task grid:size=4 --mode delethink --context-size 128",
    "scaling trace --engine openai --base-url http://127.0.0.1:8000/v1 --model ./Qwen3-30B-A3B --task gcd",
)


def trace(
    context: typer.Context,
    task: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(TASKS)}, or a reasoning-gym dataset; with parameters as in grid:size=6."),
    ] = None,
    model: Annotated[str, typer.Option(help="A fetched model, or the directory of a checkpoint.")] = "smollm2-135m",
    mode: Modes = None,
    context_size: ContextSize = "1k",
    state_size: StateSize = None,
    head: Head = 100,
    iterations: Iterations = None,
    thinking_tokens: ThinkingTokens = None,
    summary_size: SummarySize = None,
    extensions: Extensions = None,
    cue: Cue = None,
    stop: Stop = None,
    problems: Annotated[int, typer.Option(min=1, help="Problems of the task.")] = 4,
    samples: Annotated[int, typer.Option(min=1, help="Traces a problem.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of sampling; 0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(help="Nucleus of sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of problems and sampling.")] = 0,
    system: Annotated[str | None, typer.Option(help="System prompt. Default: the chat template's own.")] = None,
    instruction: Annotated[str | None, typer.Option(help="Added to every question.")] = None,
    answer: AnswerRules = None,
    engine: EngineName = "local",
    base_url: BaseUrl = None,
    served_model: ServedModel = None,
    deadline: Deadline = 3600.0,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    concurrency: Concurrency = 16,
    tensor_parallel: TensorParallel = 1,
    dtype: Dtype = None,
    out: Annotated[Path | None, typer.Option(help="Write the traces to this new JSONL file.")] = None,
    show: Annotated[
        Path | None, typer.Option(help="Print the traces of a study's run, or of a file of --out, instead.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="With --show: those that are right, wrong, or failed.")] = None,
    limit: Annotated[int | None, typer.Option(help="With --show: most traces of each arm.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print traces and summary as JSON on stdout.")] = False,
) -> int:
    """Let a real model think about real questions: shows each chunk, what it carried over, the answer and verdict."""
    _check_show(context, show is not None)
    if show is not None:
        show_traces(show, only, limit, json)
        return 0
    if task is None:
        raise UsageError(
            "there is nothing to think about; give --task, as in --task chain_sum, or --show for old traces"
        )
    environments = environments_of(
        mode,
        context_size=context_size,
        state_size=state_size,
        head=head,
        iterations=iterations,
        thinking_tokens=thinking_tokens,
        summary_size=summary_size,
        extensions=extensions,
        cue=cue,
        stop=stop,
    )

    from scaling.cues import worded
    from scaling.measure.sampler import EngineChoice, open_engine
    from scaling.rollout import Sampling, Trace, rollout
    from scaling.text import Text
    from scaling.traces import TraceFile, summarise, trace_record

    choice = EngineChoice(engine, dtype, concurrency, base_url, served_model, deadline, key_variable, tensor_parallel)
    source = choice.source(model)
    assert source.path is not None
    sampling = Sampling(temperature, top_p, seed)
    records: list[dict[str, Any]] = []
    with ExitStack() as stack:
        questions = load(task, seed=seed)
        stack.callback(questions.close)
        chosen = [rule.strip() for rule in answer.split(",")] if answer else questions.rules or DEFAULT_RULES
        text = Text(source.path, system=system, instruction=instruction, rules=chosen)
        environments = [worded(environment, text.encode, cue=cue, stop=stop) for environment in environments]
        asked = [problem for problem in questions.problems(problems) for _ in range(samples)]
        queries = [text.query(problem.question) for problem in asked]
        choice = replace(choice, concurrency=min(concurrency, len(queries)))
        running = open_engine(choice, source, environments, max(map(len, queries)), remark=warn)
        stack.callback(_close, running)
        say(f"{source.name}: {len(queries)} traces of {questions.name} in {' and '.join(e.name for e in environments)}")
        file = stack.enter_context(TraceFile(out)) if out is not None else None
        show_trace = None if json else TracePrinter()
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
            print(summary_line(line))
        if out is not None:
            say(f"{len(records)} traces in {out}")
    return FINISHED_WITH_FAILURES if any(record["error"] for record in records) else 0


def _close(engine: Engine) -> None:
    """Closes it, and tells what text made of its tokens."""
    told = engine.stats()
    engine.close()
    if told.retokenised_tokens:
        warn(f"{told.drifted_tokens} of {told.retokenised_tokens} tokens came back from the server's text as others")


def _check_show(context: typer.Context, shows: bool) -> None:
    """Raises `UsageError` where options of old traces and of new ones meet."""
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        given = source is not None and source.name == "COMMANDLINE"
        if given and name in ("only", "limit") and not shows:
            raise UsageError(f"--{name} chooses among old traces; give --show with it, as in --show runs/first")
        if given and name not in ("show", "only", "limit", "json") and shows:
            option = parameter.opts[0]
            raise UsageError(f"--show prints old traces, and {option} is for new ones; leave one of them out")

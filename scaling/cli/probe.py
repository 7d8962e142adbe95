"""`scaling probe`: whether a model that was never trained in chunks already thinks well in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.cli.console import console, print_json, say, warn
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
from scaling.cli.study import begun, conduct, default_directory, exit_code, opened_tasks, remembered, rules_of, settled
from scaling.errors import UsageError
from scaling.lengths import parse_lengths, parse_tokens
from scaling.thinking import Environment

if TYPE_CHECKING:
    from scaling.planning import Question
    from scaling.results import Store
    from studies.asking import Outcome, Study

EXAMPLES = (
    "scaling probe --task chain_sum:max_terms=2,max_digits=1",
    "scaling probe --task gcd --thinking-tokens 2k --context-size 512 --context-size 1k --samples 16 --out runs/gcd",
    "scaling probe --task gcd --context-size 1k --thinking-tokens 4k --ablation state --ablation context",
    "scaling probe --resume --out runs/gcd",
    "scaling probe --preset r1-distill-1.5b --gpu h100 --dry-run",
    "scaling probe --preset gpt-oss-120b --engine openai --base-url http://127.0.0.1:8000/v1 --model ./gpt-oss-120b",
)


def probe(
    context: typer.Context,
    task: Annotated[
        list[str] | None, typer.Option(help="Questions, e.g. chain_sum or chain_sum:max_terms=2. Repeatable.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="A fetched model, a checkpoint, or a training run, whose newest it is.")
    ] = "smollm2-135m",
    preset: Annotated[
        str | None,
        typer.Option(
            help="What the paper probed, weights aside: r1-distill-1.5b, -7b, -14b, qwen3-30b-a3b-thinking, "
            "gpt-oss-120b. Options given here override it."
        ),
    ] = None,
    thinking_tokens: Annotated[str, typer.Option(help="Thinking budget of every trace.")] = "256",
    context_size: Annotated[
        list[str] | None, typer.Option(help="Delethink's C. Repeatable. Default: a quarter of the thinking tokens.")
    ] = None,
    state_size: Annotated[list[str] | None, typer.Option(help="Delethink's m. Repeatable. Default C/2.")] = None,
    head: Annotated[
        int | None, typer.Option(min=0, help="First tokens that all chunks keep. Default 100, at most (C − m)/4.")
    ] = None,
    ablation: Annotated[
        list[str] | None,
        typer.Option(help="state: m from C/8 to 7C/8 at one C. context: C/4, C/2 and C with m = C/2. Repeatable."),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(help="Budgets that traces are also judged at, as in 512,1k. Default: 1/8, 1/4, 1/2 of them."),
    ] = None,
    problems: Annotated[int, typer.Option(min=1, help="Problems of each task.")] = 20,
    samples: Annotated[int, typer.Option(min=1, help="Traces of each problem and arm.")] = 8,
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
    gpu: Annotated[str | None, typer.Option(help="Plan hours for this GPU: h100, h200, a100, b200, …")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Directory of the run. Default runs/<time>-probe-<model>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the probe in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it will take, and start nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON on stdout.")] = False,
) -> int:
    """Probe whether a model thinks well in chunks it was never trained in: LongCoT against Delethink.

    Asks every arm the same problems, and says what chunked thinking keeps of the accuracy. An interrupted probe goes
    on with --resume.
    """
    store: Store | None = None
    if resume:
        store, options = remembered(context, "probe", out)
    else:
        from studies.probe_presets import preset as by_name

        options = settled(context, by_name(preset).options if preset is not None else None)
    environments = _environments(options)
    plan = _plan(options, environments)
    if dry_run:
        _show_plan(plan, options, json=json, alone=True)
        return 0
    with opened_tasks(
        options["task"] or [], options["seed"], options["problems"], rules_of(options["answer"])
    ) as questions:
        study = _study(options, environments, questions)
        if store is None:
            _show_plan(plan, options)
            store = begun(out or default_directory("probe", options["model"]), study, options)
        say(f"{len(study.arms)} arms × {len(study.asked)} traces; into {store.path}")
        outcomes = conduct(store, study)
    return _finish(store, outcomes, json)


def _environments(options: Mapping[str, Any]) -> dict[str, Environment]:
    from studies.markovian_probe import environments

    tokens = parse_tokens(options["thinking_tokens"])
    contexts = [parse_tokens(size) for size in options["context_size"] or []]
    return environments(
        tokens,
        contexts or [tokens // 4],
        [parse_tokens(size) for size in options["state_size"] or []],
        options["head"],
        options["ablation"] or [],
    )


def _study(options: Mapping[str, Any], environments: Mapping[str, Environment], questions: list[Any]) -> Study:
    from scaling.measure.sampler import EngineChoice
    from scaling.rollout import Sampling
    from scaling.text import Text
    from studies.asking import Arm, Study
    from studies.checkpoints import find
    from studies.markovian_probe import default_budgets

    names = ("dtype", "concurrency", "tensor_parallel", "base_url", "served_model", "deadline", "key_variable")
    choice = EngineChoice(options["engine"], **{name: options[name] for name in names})
    source, _ = model = find(options["model"], choice)
    assert source.path is not None
    text = Text(source.path, system=options["system"], instruction=options["instruction"])
    tokens = parse_tokens(options["thinking_tokens"])
    judged = default_budgets(tokens) if options["budgets"] is None else [*parse_lengths(options["budgets"]), tokens]
    return Study(
        name="probe",
        arms=[Arm(label, environment, source, text, model.mode) for label, environment in environments.items()],
        questions=questions,
        samples=options["samples"],
        sampling=Sampling(options["temperature"], options["top_p"], options["seed"]),
        budgets=judged,
        engine=choice,
    )


def _plan(options: Mapping[str, Any], environments: Mapping[str, Environment]) -> list[dict[str, Any]]:
    from studies.planned import planned

    question: Question | None = None
    if options["gpu"] is not None:
        from scaling.planning import ask

        question = ask(options["model"], options["gpu"], options["gpus"])
    tasks = len(dict.fromkeys(options["task"] or []))
    if not tasks:
        raise UsageError("there is nothing to think about; give --task, as in --task chain_sum")
    return planned(environments, tasks * options["problems"] * options["samples"], question)


def _show_plan(
    plan: list[dict[str, Any]], options: Mapping[str, Any], *, json: bool = False, alone: bool = False
) -> None:
    """On stderr beside the work, on stdout where it is all that was asked for (`alone`)."""
    device = None if options["gpu"] is None else f"{options['gpus']} × {options['gpu']}"
    if json:
        hours = {name: _sum(plan, name) for name in ("gpu_hours", "most_gpu_hours")}
        print_json({"model": options["model"], "gpu": options["gpu"], "gpus": options["gpus"], "arms": plan, **hours})
        return
    from rich.console import Console
    from rich.table import Table

    on = f" on {device}, analytic" if device else ""
    table = Table(title=f"planned: {options['model']}{on}", title_justify="left")
    table.add_column("arm")
    for heading in ("traces", "thinking tokens", "processed", "GPU-hours"):
        table.add_column(heading, justify="right")
    for arm in plan:
        table.add_row(
            arm["arm"],
            f"{arm['traces']:,}",
            *(_span(arm[name], arm[f"most_{name}"]) for name in ("thinking_tokens", "processed_tokens", "gpu_hours")),
        )
    (Console() if alone else console).print(table)
    say("first where a trace thinks a third of its budget on average, then where all think the whole of it")
    if device is None:
        say("GPU-hours are not planned, as no GPU was named; name one, as in --gpu h100")
    else:
        most = _sum(plan, "most_gpu_hours")
        say(f"all arms: {_span(_sum(plan, 'gpu_hours'), most)} GPU-hours")


def _sum(plan: list[dict[str, Any]], name: str) -> float | None:
    return None if plan[0][name] is None else sum(arm[name] for arm in plan)


def _span(value: float | None, most: float | None) -> str:
    if value is None or most is None:
        return "–"
    return f"{_short(value)} to {_short(most)}"


def _short(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _finish(store: Store, outcomes: list[Outcome], json: bool) -> int:
    """Says what came of the probe; returns the exit code."""
    from studies.markovian_probe import analyse
    from studies.trace_frame import frame

    code = exit_code(outcomes)
    if all(outcome.failed == outcome.traces for outcome in outcomes):
        if json:
            print_json({"run": store.path, "outcomes": outcomes, "analysis": None})
        return code
    found = analyse(frame(store), asked=outcomes[0].traces)
    if json:
        print_json({"run": store.path, "outcomes": outcomes, "analysis": found})
        return code
    last = {point["arm"]: point for point in found["accuracy"] if point["budget"] == found["budget"]}
    for arm in found["arms"]:
        if arm["label"] in last:
            point, ended, chunked = last[arm["label"]], arm["ended"], arm["chunked"]
            print(
                f"{arm['label']}: {_percent(point)} % right, {_percent(ended)} % ended by the model, "
                f"{_percent(chunked)} % of several chunks, {arm['mean_thinking_tokens']:,.0f} tokens on average"
            )
    for verdict in found["verdicts"]:
        print(verdict["text"])
        if verdict["unpaired"]:
            warn(f"{verdict['unpaired']} problems have traces in one of the two arms alone, and are not compared")
    print(store.path)
    say(f"next: scaling report {store.path}; scaling trace --show {store.path}")
    return code


def _percent(estimate: Mapping[str, Any]) -> str:
    value, low, high = (f"{100 * estimate[end]:.3g}" for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"

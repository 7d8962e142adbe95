"""`scaling test-time`: what longer thinking brings, far beyond what was trained, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.cli.console import print_json, say
from scaling.cli.environments import Cue, Extensions, Modes, Stop, SummarySize, environments_of
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

if TYPE_CHECKING:
    from scaling.results import Store
    from studies.asking import Outcome, Questions, Study
    from studies.checkpoints import Trained

EXAMPLES = (
    "scaling test-time --task chain_sum:max_terms=2,max_digits=1 --thinking-tokens 512 --context-size 128",
    "scaling test-time --model training/walk-delethink --model training/walk-longcot --task walk:low=16,high=240 "
    "--thinking-tokens 1272",
    "scaling test-time --resume --out runs/far",
    "scaling report runs/far runs/costs             # with what was measured of the same environments as its price",
)
BEYOND = 8
"""Times the trained thinking budget, where nothing else is asked for."""


def test_time(
    context: typer.Context,
    task: Annotated[
        list[str] | None, typer.Option(help="Questions, e.g. walk:low=16,high=240 or chain_sum. Repeatable.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A fetched model, a checkpoint's directory, or a training run, whose newest checkpoint it is. "
            "Repeatable. Default smollm2-135m."
        ),
    ] = None,
    mode: Modes = None,
    context_size: Annotated[
        str | None, typer.Option(help="C. Default: as the first model was trained, else 1k.")
    ] = None,
    state_size: Annotated[
        str | None, typer.Option(help="Delethink's m. Default: as the first model was trained, else C/2.")
    ] = None,
    head: Annotated[
        int | None, typer.Option(min=0, help="First tokens that all chunks keep. Default as trained, else 100.")
    ] = None,
    summary_size: SummarySize = None,
    extensions: Extensions = None,
    cue: Cue = None,
    stop: Stop = None,
    thinking_tokens: Annotated[
        str | None, typer.Option(help=f"Longest thinking budget. Default {BEYOND} times the trained one, else 4k.")
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(help="Budgets that traces are judged at, as in 512,1k. Default: halves of the longest, and C."),
    ] = None,
    problems: Annotated[int, typer.Option(min=1, help="Problems of each task.")] = 32,
    samples: Annotated[int, typer.Option(min=1, help="Traces of each problem and arm.")] = 8,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Of sampling. Default as the first model was trained, else 0.6.")
    ] = None,
    top_p: Annotated[float, typer.Option(help="Nucleus of sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of problems and sampling.")] = 1_000_000,
    system: Annotated[str | None, typer.Option(help="System prompt. Default: the chat template's own.")] = None,
    instruction: Annotated[str | None, typer.Option(help="Added to every question.")] = None,
    answer: AnswerRules = None,
    engine: EngineName = "local",
    base_url: BaseUrl = None,
    served_model: ServedModel = None,
    deadline: Deadline = 3600.0,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    concurrency: Concurrency = 64,
    tensor_parallel: TensorParallel = 1,
    dtype: Dtype = None,
    gpu: Annotated[
        str | None, typer.Option(help="Price traces by the planner on this GPU, where no measured run is reported too.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    price: Annotated[float | None, typer.Option(min=0.0, help="Money for a device-hour, e.g. 2.50.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run. Default runs/<time>-test-time-…")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON on stdout.")] = False,
) -> int:
    """Sample checkpoints far beyond their trained budget: accuracy by budget, trained × sampled, and by price.

    Every trace is sampled once with the longest budget; shorter ones are read by cutting it off. What traces cost is
    reckoned when they are reported: by the laws of measured runs that are reported with them, or by the planner.
    """
    from studies.checkpoints import DEFAULT_MODEL, find

    store: Store | None = None
    if resume:
        store, options = remembered(context, "test-time", out)
    else:
        options = settled(context)
    choice = _choice(options)
    models = [find(name, choice) for name in dict.fromkeys(options["model"] or [DEFAULT_MODEL])]
    options = _as_trained(options, models[0])
    if options["gpu"] is not None:
        from scaling.planning import ask

        ask(gpu=options["gpu"], gpus=options["gpus"], price=options["price"])  # refused now, not after the sampling
    with opened_tasks(
        options["task"] or [], options["seed"], options["problems"], rules_of(options["answer"])
    ) as asked:
        study = _study(options, models, asked)
        if store is None:
            store = begun(out or default_directory("test-time", models[0].source.name), study, options)
        say(f"{len(study.arms)} arms × {len(study.asked)} traces; into {store.path}")
        outcomes = conduct(store, study)
    return _finish(store, outcomes, json)


def _choice(options: Mapping[str, Any]) -> Any:
    from scaling.measure.sampler import EngineChoice

    names = ("dtype", "concurrency", "tensor_parallel", "base_url", "served_model", "deadline", "key_variable")
    return EngineChoice(options["engine"], **{name: options[name] for name in names})


def _as_trained(options: Mapping[str, Any], first: Trained) -> dict[str, Any]:
    """The options, with what was left open settled as the first model was trained."""
    recipe = first.recipe
    if recipe is None:
        size = parse_tokens(options["context_size"] or "1k")
        open_ones = {"context_size": str(size), "state_size": str(size // 2), "head": min(100, size // 8)}
        open_ones |= {"thinking_tokens": "4k", "temperature": 0.6}
    else:
        open_ones = {name: str(getattr(recipe, name)) for name in ("context_size", "state_size")}
        open_ones |= {"head": recipe.head, "temperature": recipe.temperature}
        open_ones |= {"thinking_tokens": str(BEYOND * recipe.thinking_budget)}
    return {**options, **{name: value for name, value in open_ones.items() if options[name] is None}}


def _study(options: Mapping[str, Any], models: list[Trained], questions: list[Questions]) -> Study:
    from scaling.cues import worded
    from scaling.rollout import Sampling
    from scaling.text import Text
    from studies.asking import Arm, Study

    environments = environments_of(
        options["mode"],
        context_size=options["context_size"],
        state_size=options["state_size"],
        head=options["head"],
        iterations=None,
        thinking_tokens=options["thinking_tokens"],
        summary_size=options["summary_size"],
        extensions=options["extensions"],
        cue=options["cue"],
        stop=options["stop"],
    )
    arms = []
    for trained in models:
        assert trained.source.path is not None
        text = Text(trained.source.path, system=options["system"], instruction=options["instruction"])
        for environment in environments:
            spoken = worded(environment, text.encode, cue=options["cue"], stop=options["stop"])
            label = f"{trained.source.name}, in {environment.name}"
            arms.append(Arm(label, spoken, trained.source, text, trained.mode))
    return Study(
        name="test-time",
        arms=arms,
        questions=questions,
        samples=options["samples"],
        sampling=Sampling(options["temperature"], options["top_p"], options["seed"]),
        budgets=_budgets(options),
        engine=_choice(options),
    )


def _budgets(options: Mapping[str, Any]) -> list[int]:
    longest, context = parse_tokens(options["thinking_tokens"]), parse_tokens(options["context_size"])
    if options["budgets"] is not None:
        found = parse_lengths(options["budgets"])
        if max(found) > longest:
            raise UsageError(
                f"budget {max(found)} is more than --thinking-tokens {longest}; leave it out, or think longer"
            )
        return [*found, longest]
    halves = [longest >> power for power in range(6)]
    return [budget for budget in {*halves, context} if 1 <= budget <= longest]


def _finish(store: Store, outcomes: list[Outcome], json: bool) -> int:
    """Says what came of it; returns the exit code."""
    from reports.test_time import sentences
    from scaling.behaviour import priced_record

    if all(outcome.failed == outcome.traces for outcome in outcomes):
        if json:
            print_json({"run": store.path, "outcomes": outcomes, "analysis": None})
        return exit_code(outcomes)
    found = priced_record(store)
    if json:
        print_json({"run": store.path, "outcomes": outcomes, "analysis": found})
    else:
        print(*sentences(found), store.path, sep="\n")
        say(f"next: scaling report {store.path}, with a measured run of the same environments as its price")
    return exit_code(outcomes)

"""`scaling plan`: what a training job will cost in each environment, before a GPU is rented."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from scaling.cli.console import say
from scaling.cli.environments import MODE_HELP, CueTokens, Extensions, SummarySize
from scaling.cli.plan_answers import answer_crossover, answer_optimise, answer_table
from scaling.errors import UsageError
from scaling.lengths import parse_lengths, parse_tokens
from scaling.thinking import DEFAULT_MODES

EXAMPLES = (
    "scaling plan --model r1-distill-qwen-1.5b --gpu h100 --lengths 16k,24k,48k,96k",
    "scaling plan --model qwen3-30b-a3b --gpu h200 --gpus 32 --price 3.50",
    "scaling plan --model r1-distill-qwen-1.5b --gpu h100 --lengths 8600 --budget 24k --json",
    "scaling plan --model r1-distill-qwen-1.5b --gpu h100 --crossover",
    "scaling plan --gpu h100 --mode longcot --mode summary --summary-size 1k --lengths 24k,96k",
    "scaling plan --model r1-distill-qwen-7b --gpu h100 --lengths 96k --optimise --max-context 16k",
)


def plan(
    model: Annotated[
        str | None,
        typer.Option(
            help="Built-in architecture, a config.json or its directory, or a Hub repository owner/name. "
            "Default: r1-distill-qwen-1.5b, or the calibrating run's."
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="h100, h200, a100, b200, mi300x, … Default: the one in this machine, or the calibrating run's."
        ),
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="How many of them. Default 8; 1 of the calibrating run's.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help=MODE_HELP)] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Mean thinking tokens of a trace: 8k..96k, 16k,48k, a..b:step, a..b/n. Default: the mean of recorded "
            "lengths where --distribution is a file of them, else 8k..96k."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Most thinking tokens of a trace. Default: 3 × the mean, within the trained positions."),
    ] = None,
    distribution: Annotated[
        str, typer.Option(help="How lengths spread: fixed, lognormal:CV, or a file of recorded lengths.")
    ] = "lognormal:0.7",
    context_size: Annotated[str, typer.Option(help="C, new tokens of Delethink's first chunk or of a round.")] = "8k",
    state_size: Annotated[
        str | None, typer.Option(help="Delethink's m, last tokens that a chunk keeps. Default C/2.")
    ] = None,
    head: Annotated[int, typer.Option(help="First tokens of chunk 1 that all chunks keep.")] = 100,
    carryover: Annotated[str, typer.Option(help="algorithm1 (the paper's), chunkwise, recipe or untrimmed.")] = (
        "algorithm1"
    ),
    summary_size: SummarySize = None,
    extensions: Extensions = None,
    cue_tokens: CueTokens = None,
    steps: Annotated[int, typer.Option(help="Policy updates of the job.")] = 1000,
    prompts: Annotated[int, typer.Option(help="Prompts a step.")] = 128,
    samples: Annotated[int, typer.Option(help="Traces a prompt.")] = 8,
    prompt_tokens: Annotated[str, typer.Option(help="Tokens of the query.")] = "128",
    passes: Annotated[int, typer.Option(help="Passes of updates over a step's traces.")] = 1,
    tensor_parallel: Annotated[
        int | None, typer.Option(help="GPUs of a replica that generates. Default: what makes the shortest rollouts.")
    ] = None,
    data_parallel: Annotated[
        int | None, typer.Option(help="Replicas, instead of --tensor-parallel: GPUs ÷ replicas make one.")
    ] = None,
    placement: Annotated[
        str, typer.Option(help="colocated, split (some GPUs generate, others train, in turn), or asynchronous.")
    ] = "colocated",
    admission: Annotated[
        str, typer.Option(help="Traces at once: as fit at their mean context (paged) or at the longest (reserved).")
    ] = "paged",
    max_sequences: Annotated[int, typer.Option(help="Most traces at once on a replica.")] = 256,
    memory_fraction: Annotated[float, typer.Option(help="Of a GPU's memory that the engine may use.")] = 0.9,
    prefix_caching: Annotated[
        bool, typer.Option("--prefix-caching", help="The engine keeps Delethink's constant query and head.")
    ] = False,
    weight_dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float8, int8, int4, mxfp4. Default: as published.")
    ] = None,
    activation_dtype: Annotated[
        str | None, typer.Option(help="What generation computes in. Default: bfloat16, or the calibrating run's.")
    ] = None,
    kv_dtype: Annotated[str | None, typer.Option(help="What keys and values are kept in. Default: the same.")] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute/--no-recompute", help="Compute activations again in the backward pass.")
    ] = True,
    price: Annotated[float | None, typer.Option(help="Of a GPU-hour, in your currency.")] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="A measured run: plan with the efficiencies that its rows show.")
    ] = None,
    crossover: Annotated[
        bool, typer.Option("--crossover", help="From which length on LongCoT costs more, in FLOPs, time and total.")
    ] = False,
    optimise: Annotated[
        bool, typer.Option("--optimise", help="The context and state size of least cost, at the last of --lengths.")
    ] = False,
    max_context: Annotated[
        str | None, typer.Option(help="With --optimise: most tokens that one sequence may come to.")
    ] = None,
    min_state: Annotated[str | None, typer.Option(help="With --optimise: least state size.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="With --optimise: draw the grid into this file, .svg or .png.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a list of objects as JSON on stdout.")] = False,
) -> int:
    """Say what a reinforcement learning job will cost by thinking length, without a GPU and without weights.

    Every second is a sum over kernels of the longer of moving their bytes and doing their arithmetic, at shares of the
    datasheet that real software gets; nothing is measured. docs/planning.md derives it.
    """
    from scaling.planning import ask

    tokens = None if lengths is None else parse_lengths(lengths)
    _check_questions(
        {"--crossover": crossover, "--optimise": optimise},
        {"--max-context": max_context, "--min-state": min_state, "--picture": picture},
        tokens is not None,
    )
    question = ask(
        model,
        gpu,
        gpus,
        modes=mode or DEFAULT_MODES,
        budget=budget,
        distribution=distribution,
        context_size=context_size,
        state_size=state_size,
        head=head,
        carryover=carryover,  # type: ignore[arg-type]  # what is unknown is refused where it is used
        summary_size=summary_size,
        extensions=extensions,
        cue_tokens=cue_tokens,
        steps=steps,
        prompts=prompts,
        samples=samples,
        prompt_tokens=prompt_tokens,
        passes=passes,
        tensor_parallel=tensor_parallel,
        data_parallel=data_parallel,
        placement=placement,  # type: ignore[arg-type]
        admission=admission,  # type: ignore[arg-type]
        max_sequences=max_sequences,
        memory_fraction=memory_fraction,
        prefix_caching=prefix_caching,
        weight_dtype=weight_dtype,
        activation_dtype=activation_dtype,
        kv_dtype=kv_dtype,
        recompute=recompute,
        price=price,
        calibrate=calibrate,
    )
    if calibrate is not None and question.calibration is not None:
        from scaling.predict.calibrate import held_out, summary

        for line in (*question.calibration.lines(), summary(held_out(calibrate))):
            say(line)
    if crossover:
        return answer_crossover(question, json)
    if tokens is None:
        tokens = question.default_lengths()
        if question.work.distribution.recorded:
            say(f"the lengths recorded in {distribution} have a mean of {tokens[0]:,} tokens, planned for here")
    if optimise:
        return answer_optimise(question, tokens[-1], max_context, min_state, picture, json)
    return answer_table(question, tokens, json)


def _check_questions(questions: dict[str, bool], of_optimise: dict[str, str | Path | None], lengths: bool) -> None:
    """Raises `UsageError` for options that do not go together, or cannot be meant, before anything is reckoned."""
    if all(questions.values()):
        raise UsageError("crossover and optimise are two questions; ask one of them")
    if questions["--crossover"] and lengths:
        raise UsageError("lengths belong to the table and to --optimise; --crossover looks for its own, leave them out")
    for option, value in of_optimise.items():
        if value is None:
            continue
        if not questions["--optimise"]:
            raise UsageError(f"{option} belongs to --optimise; add it")
        if isinstance(value, str):
            try:
                parse_tokens(value)
            except UsageError as error:
                raise UsageError(f"{option}: {error}") from None
        elif value.suffix not in (".svg", ".png"):
            raise UsageError(f"picture {str(value)!r} ends in neither .svg nor .png; name one, as in grid.svg")
        elif not _writable(value):
            raise UsageError(f"cannot write {value}; name a file in a directory that exists and can be written")


def _writable(file: Path) -> bool:
    try:
        return not file.is_dir() and os.access(file.parent, os.W_OK | os.X_OK)
    except OSError:  # a name that is too long
        return False

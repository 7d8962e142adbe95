"""`scaling run`: measure environments across thinking lengths."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.cli.console import FINISHED_WITH_FAILURES, console, print_json, say, warn
from scaling.cli.environments import MODE_HELP, CueTokens, Extensions, SummarySize
from scaling.errors import UsageError
from scaling.lengths import format_tokens, parse_lengths, parse_tokens

if TYPE_CHECKING:
    from scaling.measure.cells import Cell, RunConfig
    from scaling.measure.plan import PlannedCell
    from scaling.measure.run import Outcome, Prepared
    from scaling.measure.sweep import Progress

EXAMPLES = (
    "scaling run                                                   # the tiny model here, in minutes",
    "scaling run --mode delethink --lengths 8k..96k",
    "scaling run --mode delethink --mode summary --summary-size 128 --lengths 1k..8k",
    "scaling run --model smollm2-135m --lengths 1k..4k --context-size 1k --state-size 512 --dry-run",
    "scaling run --engine simulated --gpu h100 --concurrency 128         # seconds, without a GPU",
    "scaling run --engine openai --base-url http://127.0.0.1:8000/v1 --model gpt-oss-120b --tensor-parallel 2",
    "scaling run --lengths 8k..96k --shard 2/8 --out /shared/run   # one of eight parts",
    "scaling run --resume                                          # go on with the newest run",
)


def run(
    context: typer.Context,
    mode: Annotated[list[str] | None, typer.Option(help=MODE_HELP)] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Thinking tokens a trace: 8k..96k, 1k,2k,4k, a..b:step, a..b/n.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Built-in architecture with random weights, or the directory of a checkpoint. "
            "Default: r1-distill-qwen-1.5b where there is a GPU, tiny where not."
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="local and vllm run the model here; openai samples from the server at --base-url; simulated prices "
            "every step on --gpu from a roofline, and runs no model."
        ),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="The server of --engine openai, e.g. http://127.0.0.1:8000/v1.")
    ] = None,
    served_model: Annotated[
        str | None, typer.Option(help="The server's name for the model. Default: the one that it serves.")
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(help="Devices of the server, which device seconds count. Default: replicas × GPUs of each."),
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds of one request to the server, tries included. Default 3600.")
    ] = None,
    key_variable: Annotated[
        str | None, typer.Option(help="Environment variable of the server's API key. Default OPENAI_API_KEY.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="What the simulated engine simulates: h100, h200, a100, b200, mi300x, …")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16. Default: bfloat16 on a GPU, float32 on a CPU.")
    ] = None,
    context_size: Annotated[
        str | None,
        typer.Option(help="C, new tokens of Delethink's first chunk, or of a round. 8k; 1k for tiny."),
    ] = None,
    state_size: Annotated[
        str | None, typer.Option(help="Delethink's m, last tokens that a chunk keeps. Default C/2.")
    ] = None,
    head: Annotated[int | None, typer.Option(help="First tokens of chunk 1 that all chunks keep. Default 100.")] = None,
    carryover: Annotated[
        str | None, typer.Option(help="algorithm1 (the paper's), chunkwise, recipe or untrimmed.")
    ] = None,
    summary_size: SummarySize = None,
    extensions: Extensions = None,
    cue_tokens: CueTokens = None,
    iterations: Annotated[
        int | None, typer.Option(help="Delethink's I instead of --lengths: one length, the budget C+(I-1)(C-m).")
    ] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="Tokens of the query. Default 64.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Most traces in flight. Default 2; 32 on a GPU.")] = None,
    traces: Annotated[int | None, typer.Option(help="Traces a repeat. Default: as many as --concurrency.")] = None,
    phase: Annotated[
        list[str] | None, typer.Option(help="rollout, logprob, update, sync. Repeatable; rollout by default.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Repeats of every cell. Default 3.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="full samples every token; profile times single steps on a grid and integrates; auto takes full "
            "for the lengths that fit a few minutes and profile for the whole curve where some do not."
        ),
    ] = None,
    kv_memory: Annotated[str | None, typer.Option(help="KV memory, e.g. 2g. Default: what the cells need.")] = None,
    tensor_parallel: Annotated[
        int | None,
        typer.Option(help="GPUs that share each layer: of --engine vllm, or of the server, which has them. Default 1."),
    ] = None,
    data_parallel: Annotated[
        int | None, typer.Option(help="Replicas that the server of --engine openai has of the model. Default 1.")
    ] = None,
    prefix_caching: Annotated[
        bool | None,
        typer.Option("--prefix-caching", help="Let vLLM keep what prompts have in common, such as query and head."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, prompts, sampling and order. Default 0.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run. Default runs/<time>-<model>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --out, or with the newest run.")] = False,
    from_run: Annotated[
        Path | None, typer.Option("--from", help="Measure what this run measured; options given here override it.")
    ] = None,
    launcher: Annotated[
        str,
        typer.Option(help="local has a process for each visible GPU, ray a task for each cell on a Ray cluster."),
    ] = "local",
    shard: Annotated[
        str | None,
        typer.Option(help="Measure one part of n of the run in --out, which all parts share: i/n, as in 2/8."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cells and their expected time.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON on stdout.")] = False,
) -> int:
    """Measure what thinking costs: LongCoT and Delethink across thinking lengths.

    Each repeat is stored as soon as it exists; an interrupted run goes on with --resume.
    """
    given = settings(context.params)
    if resume:
        if given or iterations is not None or from_run is not None or dry_run:
            raise UsageError(
                "--resume goes on with a run as it was begun; it takes --out, --launcher, --shard and --json alone"
            )
        return _launch(None, out, launcher, shard, json)
    from scaling.measure.run import configure, prepare

    config = configure(given, iterations=iterations, like=from_run)
    if dry_run:
        if shard is not None:
            raise UsageError("--dry-run shows the whole run, which its parts share; leave --shard out")
        _show_plan(prepare(config), json)
        return 0
    return _launch(config, out, launcher, shard, json)


def settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options of this command, those that are fields of `RunConfig` and given, as it has them."""
    given = {name: value for name, value in options.items() if name not in NO_SETTINGS and value not in (None, [], ())}
    return {_RENAMED.get(name, name): _READERS.get(name, _as_it_is)(value) for name, value in given.items()}


def _launch(config: RunConfig | None, out: Path | None, launcher: str, shard: str | None, json: bool) -> int:
    """Measures what `config` says, or goes on with a run without it."""
    from scaling.measure.launch import launch
    from scaling.measure.run import default_directory
    from scaling.measure.shards import Shard
    from scaling.results import newest_run

    part = Shard.parse(shard) if shard is not None else None
    if part is not None and out is None:
        raise UsageError("--shard measures a part of a run that others share; say which with --out DIRECTORY")
    target = out or (newest_run() if config is None else default_directory(config))

    def announce(config: RunConfig, device: str, planned: list[PlannedCell]) -> None:
        if part is None:
            _say_what_auto_leaves_out(config, planned)
        say(f"{len(planned)} cells × {config.repeats} repeats on {device}, {_expected(config, planned)}; into {target}")

    def work(observe: Callable[[Progress], None]) -> Outcome:
        command = shlex.join(["scaling", *sys.argv[1:]])
        return launch(
            config, target, launcher=launcher, shard=part, observe=observe, announce=announce, command=command
        )

    again = f"scaling run --resume --out {target}"
    if part is not None:
        again += f" --shard {part}"
    elif launcher != "local":
        again += f" --launcher {launcher}"
    return _finish(target, work, again, json)


def _expected(config: RunConfig, planned: list[PlannedCell]) -> str:
    seconds = [p.seconds for p in planned if p.seconds is not None]
    if len(seconds) < len(planned):
        return "for as long as the server takes, which cannot be foreseen"
    of_its_time = " of its time, in much less of ours" if config.gpu else ""
    return f"about {_duration(config.repeats * sum(seconds))}{of_its_time}"


def _finish(target: Path, work: Callable[[Callable[[Progress], None]], Outcome], again: str, json: bool) -> int:
    """Runs the work under a progress bar and says what came of it; returns the exit code.

    `again` is the command that goes on with it.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} {task.fields[left]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("loading", total=None, rate="", left="")

        def observe(progress: Progress) -> None:
            rate = f"{progress.tokens_per_second:,.0f} tokens/s," if progress.tokens_per_second else ""
            bar.update(
                task,
                description=progress.now,
                total=progress.total,
                completed=progress.stored,
                rate=rate,
                left="" if progress.seconds_left is None else f"{_duration(progress.seconds_left)} left",
            )

        try:
            outcome = work(observe)
        except KeyboardInterrupt:
            bar.stop()
            if target.is_dir():
                warn(f"interrupted; what is measured is saved; go on with: {again}")
            raise
    frame = outcome.store.frame()
    if outcome.failed:
        for row in frame[frame["status"] != "ok"].drop_duplicates("cell_id").to_dict("records"):
            length = format_tokens(int(row["mean_thinking_tokens"]))
            warn(f"{row['environment']} {row['phase']} at {length}: {row['status']}: {row['reason']}")
    for death in outcome.died:
        warn(death)
    if json:
        print_json({"run": target, "rows": len(frame), "total": outcome.total, "failed": outcome.failed})
    else:
        print(target)
    if outcome.died:
        say(f"{len(frame)} of {outcome.total} rows of the run exist; go on with: {again}")
    elif len(frame) < outcome.total:
        say(f"{len(frame)} of {outcome.total} rows of the run exist, {outcome.failed} failed; others are still to come")
    else:
        say(f"{len(frame)} rows, {outcome.failed} failed; next: scaling fit {target}; scaling report {target}")
    return FINISHED_WITH_FAILURES if outcome.failed or outcome.died else 0


def _say_what_auto_leaves_out(config: RunConfig, planned: list[PlannedCell]) -> None:
    lengths = config.lengths
    for phase in config.phases:
        reached = max((p.cell.thinking_tokens for p in planned if p.cell.phase == phase), default=0)
        if phase != "sync" and reached < lengths[-1]:
            span = f"up to {format_tokens(reached)}" if reached else "nowhere"
            warn(f"{phase} is measured {span}, where full rollouts fit the time; --method full measures it everywhere")


def _predicted_bend(prepared: Prepared) -> list[dict[str, Any]]:
    """The curvature share that the roofline predicts of each environment's full rollouts, before any is measured."""
    from scaling.laws import fit_curve

    found: list[dict[str, Any]] = []
    config = prepared.config
    for mode in config.modes:
        cells = [
            (p.cell.thinking_tokens, p.seconds / p.cell.traces)
            for p in prepared.planned
            if p.seconds is not None
            and (p.cell.environment, p.cell.phase, p.cell.method) == (mode, "rollout", "full")
            and _on_the_law(p.cell)
        ]
        if len(cells) > 3:
            tokens, seconds = zip(*cells, strict=True)
            share = fit_curve(tokens, seconds, curve={"environment": mode, "method": "full"}).curvature_share
            found.append({"environment": mode, "thinking_tokens": tokens[-1], "curvature_share": share})
    return found


def _on_the_law(cell: Cell) -> bool:
    """Whether a fit would take the cell's length: a chunked environment's, at a boundary."""
    from scaling.laws import at_boundary

    sizes = dict(cell.parameters)
    chunked = "context_size" in sizes
    return not chunked or bool(at_boundary(cell.thinking_tokens, sizes["context_size"], sizes.get("state_size", 0)))


def _show_plan(prepared: Prepared, json: bool) -> None:
    bend = _predicted_bend(prepared)
    if json:
        cells = [
            {
                "environment": p.cell.environment,
                "thinking_tokens": p.cell.thinking_tokens,
                "phase": p.cell.phase,
                "method": p.cell.method,
                "chunks": len(p.cell.response_lengths),
                "expected_seconds": p.seconds,
            }
            for p in prepared.planned
        ]
        print_json(
            {
                "cells": cells,
                "repeats": prepared.config.repeats,
                "expected_seconds": prepared.expected_seconds,
                "predicted": bend,
                "machine": prepared.machine,
            }
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{prepared.config.model} on {prepared.device}, each cell × {prepared.config.repeats} repeats")
    for heading in ("environment", "phase", "method"):
        table.add_column(heading)
    for heading in ("thinking tokens", "chunks", "expected a repeat"):
        table.add_column(heading, justify="right")
    for p in prepared.planned:
        length, chunks = format_tokens(p.cell.thinking_tokens), len(p.cell.response_lengths)
        expected = "unknown" if p.seconds is None else _duration(p.seconds)
        table.add_row(p.cell.environment, p.cell.phase, p.cell.method, length, f"{chunks}", expected)
    Console().print(table)
    if prepared.expected_seconds is None:
        print("how long the server will take cannot be foreseen")
        return
    machine = "that GPU" if prepared.config.gpu else "this machine"
    print(f"about {_duration(prepared.expected_seconds)} in all, estimated from a roofline of {machine}")
    for found in bend:
        share, length = found["curvature_share"], format_tokens(found["thinking_tokens"])
        print(f"predicted: {share:.0%} of {found['environment']}'s full rollout at {length} is quadratic")


def _bytes(text: str) -> int:
    units = {"k": 2**10, "m": 2**20, "g": 2**30}
    number, unit = (text[:-1], units[text[-1].lower()]) if text[-1:].lower() in units else (text, 1)
    try:
        value = int(float(number) * unit)
    except ValueError:
        value = 0
    if value < 1:
        raise UsageError(f"KV memory {text!r} is not a size; expected bytes such as 512m or 2g")
    return value


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _as_it_is(value: Any) -> Any:
    return value


NO_SETTINGS = ("iterations", "out", "resume", "from_run", "launcher", "shard", "dry_run", "json")
"""Options that are no field of `RunConfig`."""

_RENAMED = {"mode": "modes", "phase": "phases"}
_READERS: dict[str, Callable[[Any], Any]] = {
    "mode": tuple,
    "phase": tuple,
    "lengths": lambda text: tuple(parse_lengths(text)),
    "context_size": parse_tokens,
    "state_size": parse_tokens,
    "summary_size": parse_tokens,
    "kv_memory": _bytes,
}

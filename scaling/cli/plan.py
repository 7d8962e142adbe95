"""`scaling plan`: what a training job will cost in each environment, before a GPU is rented."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.cli.console import FINISHED_WITH_FAILURES, print_json_list, say, warn
from scaling.cli.plan_tables import show_crossovers, show_grid, show_plans
from scaling.errors import UsageError
from scaling.lengths import format_tokens, parse_lengths, parse_tokens
from scaling.thinking import MODES, Environment, for_budget

if TYPE_CHECKING:
    from scaling.predict.plan import Plan
    from scaling.predict.search import Choice
    from scaling.predict.setup import Device, Setup, Work
    from scaling.predict.shape import Shape

EXAMPLES = (
    "scaling plan --model r1-distill-qwen-1.5b --gpu h100 --lengths 16k,24k,48k,96k",
    "scaling plan --model qwen3-30b-a3b --gpu h200 --gpus 32 --price 3.50",
    "scaling plan --model r1-distill-qwen-1.5b --gpu h100 --lengths 8600 --budget 24k --json",
    "scaling plan --model r1-distill-qwen-1.5b --gpu h100 --crossover",
    "scaling plan --model r1-distill-qwen-7b --gpu h100 --lengths 96k --optimise --max-context 16k",
)
METRICS = (
    "rollout_gpu_hours",
    "logprob_gpu_hours",
    "update_gpu_hours",
    "sync_gpu_hours",
    "total_gpu_hours",
    "gpu_months",
    "step_seconds",
    "tokens_per_second_per_gpu",
    "concurrency",
    "bound",
)
"""What a row without a plan has as null."""

CONTEXT_SIZES = tuple(1024 * n for n in (1, 2, 4, 8, 16, 32))


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: a model, where it runs, the job, and the environments."""

    name: str
    shape: Shape
    setup: Setup
    work: Work
    modes: tuple[str, ...]
    context_size: int
    state_size: int
    head: int
    carryover: Any

    def environment(self, mode: str, context_size: int, state_size: int) -> Callable[[int], Environment]:
        return lambda budget: for_budget(
            mode, budget, context_size=context_size, state_size=state_size, head=self.head, carryover=self.carryover
        )

    def plan(self, mode: str, tokens: float) -> Plan:
        return self.chunked_plan(mode, tokens, self.context_size, self.state_size)

    def chunked_plan(self, mode: str, tokens: float, context_size: int, state_size: int) -> Plan:
        from scaling.predict.plan import plan

        return plan(self.shape, self.setup, self.work, self.environment(mode, context_size, state_size), tokens)


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that has no plan, and why."""

    mode: str
    tokens: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {
            "environment": self.mode,
            "thinking_tokens": self.tokens,
            "status": "error",
            "reason": self.reason,
            **dict.fromkeys(METRICS),
        }


def plan(
    model: Annotated[
        str, typer.Option(help="Built-in architecture, a config.json or its directory, or a Hub repository owner/name.")
    ] = "r1-distill-qwen-1.5b",
    gpu: Annotated[
        str | None, typer.Option(help="h100, h200, a100, b200, mi300x, … Default: the one in this machine.")
    ] = None,
    gpus: Annotated[int, typer.Option(help="How many of them.")] = 8,
    mode: Annotated[
        list[str] | None, typer.Option(help="Thinking environment: longcot, delethink. Repeatable; both by default.")
    ] = None,
    lengths: Annotated[
        str, typer.Option(help="Mean thinking tokens of a trace: 8k..96k, 16k,48k, a..b:step, a..b/n.")
    ] = "8k..96k",
    budget: Annotated[
        str | None,
        typer.Option(help="Most thinking tokens of a trace. Default: 3 × the mean, within the trained positions."),
    ] = None,
    distribution: Annotated[
        str, typer.Option(help="How lengths spread: fixed, lognormal:CV, or a file of recorded lengths.")
    ] = "lognormal:0.7",
    context_size: Annotated[str, typer.Option(help="Delethink's C, new tokens of the first chunk.")] = "8k",
    state_size: Annotated[
        str | None, typer.Option(help="Delethink's m, last tokens that a chunk keeps. Default C/2.")
    ] = None,
    head: Annotated[int, typer.Option(help="First tokens of chunk 1 that all chunks keep.")] = 100,
    carryover: Annotated[str, typer.Option(help="algorithm1 (the paper's), chunkwise, recipe or untrimmed.")] = (
        "algorithm1"
    ),
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
    activation_dtype: Annotated[str, typer.Option(help="What generation computes in.")] = "bfloat16",
    kv_dtype: Annotated[str, typer.Option(help="What keys and values are kept in.")] = "bfloat16",
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
    from scaling.predict.distribution import parse
    from scaling.predict.job import Job
    from scaling.predict.roofline import Precision
    from scaling.predict.setup import Setup, Work

    tokens = parse_lengths(lengths)
    _check_questions(crossover, optimise, max_context or min_state or picture, picture)
    name, shape, published = _model(model)
    precision = Precision(weight_dtype or published, activation_dtype, kv_dtype)
    device, remarks = _device(gpu, calibrate, activation_dtype, gpus)
    setup = Setup(
        device=device,
        gpus=gpus,
        tensor_parallel=_tensor_parallel(gpus, tensor_parallel, data_parallel),
        placement=placement,  # type: ignore[arg-type]  # Setup refuses what it does not know
        admission=admission,  # type: ignore[arg-type]
        max_sequences=max_sequences,
        memory_fraction=memory_fraction,
        precision=precision,
        prefix_caching=prefix_caching,
        recompute=recompute,
        price=price,
    )
    work = Work(
        Job(steps, prompts, samples),
        parse(distribution),
        parse_tokens(prompt_tokens),
        passes,
        parse_tokens(budget) if budget else None,
    )
    size = parse_tokens(context_size)
    question = Question(
        name,
        shape,
        setup,
        work,
        modes=tuple(dict.fromkeys(mode or MODES)),
        context_size=size,
        state_size=parse_tokens(state_size) if state_size else size // 2,
        head=head,
        carryover=carryover,
    )
    for each in question.modes:
        question.environment(each, size, question.state_size)(tokens[0])  # what makes no sense is refused at once
    for remark in remarks:
        say(remark)
    if crossover:
        return _crossover(question, json)
    if optimise:
        return _optimise(question, tokens[-1], max_context, min_state, picture, json)
    return _table(question, tokens, json)


def _check_questions(crossover: bool, optimise: bool, constraints: object, picture: Path | None) -> None:
    if crossover and optimise:
        raise UsageError("crossover and optimise are two questions; ask one of them")
    if picture is not None and picture.suffix not in (".svg", ".png"):
        raise UsageError(f"picture {str(picture)!r} ends in neither .svg nor .png; name one, as in grid.svg")
    if constraints and not optimise:
        raise UsageError("max context, min state and picture belong to --optimise; add it")


def _model(model: str) -> tuple[str, Shape, str]:
    """Its name, its shape, and the type that its weights are published in."""
    from scaling.models import config_of
    from scaling.predict.shape import Shape

    name, config = config_of(model)
    method = str((config.get("quantization_config") or {}).get("quant_method"))
    return name, Shape.from_config(config), {"mxfp4": "mxfp4", "fp8": "float8"}.get(method, "bfloat16")


def _device(gpu: str | None, calibrate: Path | None, activations: str, gpus: int) -> tuple[Device, list[str]]:
    """The device to plan for, and what there is to say about it."""
    from scaling.predict import hardware
    from scaling.predict.efficiency import device

    sheet = hardware.gpu(gpu) if gpu else hardware.here()
    return device(sheet, activations, gpus), []


def _tensor_parallel(gpus: int, tensor_parallel: int | None, data_parallel: int | None) -> int | None:
    if data_parallel is None:
        return tensor_parallel
    if data_parallel < 1 or gpus % data_parallel:
        raise UsageError(f"{gpus} GPUs do not divide into {data_parallel} replicas")
    if tensor_parallel not in (None, gpus // data_parallel):
        raise UsageError(
            f"{data_parallel} replicas of {tensor_parallel} GPUs are not {gpus} GPUs; leave one of them out"
        )
    return gpus // data_parallel


def _table(question: Question, lengths: Sequence[int], json: bool) -> int:
    """Every length in every environment. What does not fit is a row that says so, unless nothing fits."""
    rows: list[Plan | Refused] = []
    for tokens in lengths:
        for mode in question.modes:
            try:
                rows.append(question.plan(mode, tokens))
            except UsageError as error:
                rows.append(Refused(mode, tokens, str(error)))
    plans = [row for row in rows if not isinstance(row, Refused)]
    refused = [row for row in rows if isinstance(row, Refused)]
    if not plans:
        raise UsageError(refused[0].reason)
    for remark in beyond_positions(plans):
        warn(remark)
    if json:
        print_json_list(row.to_json() for row in rows)
    else:
        show_plans(question.name, plans)
    for each in refused:
        warn(f"{each.mode} at {format_tokens(each.tokens)}: {each.reason}")
    return FINISHED_WITH_FAILURES if refused else 0


def beyond_positions(plans: Sequence[Plan]) -> list[str]:
    """A remark for every environment whose contexts outgrow the positions that the model was trained for."""
    found: dict[str, Plan] = {}
    for plan in plans:
        if plan.longest_context > plan.shape.max_positions:
            found.setdefault(plan.environment.name, plan)
    return [
        f"{name} reaches contexts of {plan.longest_context:,} tokens at a mean of {plan.thinking_tokens:,.0f}, beyond "
        f"the {plan.shape.max_positions:,} positions that the model was trained for"
        for name, plan in found.items()
    ]


def _crossover(question: Question, json: bool) -> int:
    if set(question.modes) != {"longcot", "delethink"}:
        raise UsageError("a crossover needs both environments; give --mode longcot --mode delethink, or neither")
    from typing import get_args

    from scaling.predict.search import LONGEST, crossover, flops_crossover
    from scaling.predict.shape import FlopsConvention

    longcot, delethink = (
        question.environment(mode, question.context_size, question.state_size) for mode in ("longcot", "delethink")
    )
    found: list[dict[str, Any]] = []
    for convention in get_args(FlopsConvention):
        tokens = flops_crossover(question.shape, convention, longcot, delethink, question.work.prompt_tokens)
        found.append({"measure": "flops", "convention": convention, "thinking_tokens": tokens, "searched_to": LONGEST})
    ladder = parse_lengths("1k..1m")
    plans: dict[tuple[str, int], Plan] = {}

    def planned(mode: str, tokens: int) -> Plan:
        if (mode, tokens) not in plans:
            plans[mode, tokens] = question.plan(mode, tokens)
        return plans[mode, tokens]

    costs: dict[str, Callable[[Plan], float]] = {
        "rollout_seconds": lambda plan: plan.phases["rollout"].total,
        "total_gpu_hours": lambda plan: plan.total_gpu_hours,
    }
    for measure, cost in costs.items():
        tokens, last = crossover(
            lambda n, cost=cost: cost(planned("longcot", n)),  # type: ignore[misc]
            lambda n, cost=cost: cost(planned("delethink", n)),  # type: ignore[misc]
            ladder,
        )
        found.append({"measure": measure, "convention": None, "thinking_tokens": tokens, "searched_to": last})
    if json:
        print_json_list(found)
    else:
        show_crossovers(question.name, found, planned("delethink", ladder[0]))
    return 0


def _optimise(
    question: Question, tokens: int, max_context: str | None, min_state: str | None, picture: Path | None, json: bool
) -> int:
    from scaling.predict.search import best, grid

    choices = grid(
        lambda context_size, state_size: question.chunked_plan("delethink", tokens, context_size, state_size),
        CONTEXT_SIZES,
        largest_context=parse_tokens(max_context) if max_context else None,
        least_state=parse_tokens(min_state) if min_state else None,
    )
    winner = best(choices)
    if json:
        print_json_list({**choice.to_json(), "best": choice.plan is winner} for choice in choices)
    else:
        show_grid(question.name, tokens, choices, winner)
    if picture is not None:
        _draw(choices, f"{question.name}, {format_tokens(tokens)} tokens: total GPU-hours", picture)
    return 0


def _draw(choices: Sequence[Choice], title: str, picture: Path) -> None:
    from reports.grid import grid_drawing
    from scaling.files import appearing

    drawing = grid_drawing(choices, title)
    try:
        with appearing(picture, replace=True) as file:
            file.write_bytes(drawing.png if picture.suffix == ".png" else drawing.svg.encode())
    except OSError as error:
        raise UsageError(f"cannot write {picture}: {error.strerror or error}") from None
    say(f"drawn into {picture}")

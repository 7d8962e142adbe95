"""How `scaling plan` shows its answers to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scaling.labels import LABELLED, environment_label
from scaling.lengths import format_tokens

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from scaling.predict.plan import Plan
    from scaling.predict.search import Choice

CONVENTIONS = {
    "causal": "causal attention",
    "full": "full attention",
    "verl": "full attention, embeddings counted",
}
_PLAIN_WIDTH = 240  # where stdout is no terminal: nothing wraps


def show_plans(model: str, plans: Sequence[Plan], calibrated_with: str | None) -> None:
    """The table of a job by environment and length, and what it assumes."""
    console = _console()
    first = plans[0]
    console.print(_setting(model, first), soft_wrap=True)
    headings = ["rollout", "logprob", "update", "sync", "total GPU-h", "GPU-months", "s a step", "tokens/s a GPU"]
    headings.append("TP × DP" if first.setup.placement == "colocated" else "TP × DP + train")
    headings += ["traces at once", "KV a GPU", "peak a GPU", "bound by", "energy"]
    headings += [] if first.cost is None else ["cost"]
    table = _table(("environment", "mean", "budget"), ["cut there", "chunks", *headings])
    for plan in plans:
        hours = [_hours(plan.gpu_hours(phase)) for phase in ("rollout", "logprob", "update", "sync")]
        bounds = f"{plan.phases['rollout'].bound} / {plan.phases['update'].bound}"
        energy = "–" if plan.energy_kwh is None else f"≤ {_short(plan.energy_kwh * 1000)}Wh"
        table.add_row(
            _label(plan),
            _tokens(plan.thinking_tokens),
            _tokens(plan.budget),
            f"{plan.truncated_share:.0%}",
            f"{plan.chunks:.1f}",
            *hours,
            _hours(plan.total_gpu_hours),
            _hours(plan.gpu_months),
            _hours(plan.step_seconds),
            f"{plan.tokens_per_second_per_gpu:,.0f}",
            f"{plan.tensor_parallel} × {plan.data_parallel}"
            + (f" + {plan.training_gpus}" if plan.setup.placement != "colocated" else ""),
            f"{plan.concurrency:.0f}",
            f"{_short(plan.kv_bytes)}B",
            f"{_short(plan.peak_memory_bytes)}B",
            bounds,
            energy,
            *((f"{plan.cost:,.0f}",) if plan.cost is not None else ()),
        )
    console.print(table)
    console.print(_assumptions(first, calibrated_with), style="dim", soft_wrap=True)


def show_crossovers(model: str, found: Sequence[Mapping[str, Any]], plan: Plan, calibrated_with: str | None) -> None:
    """From which length on LongCoT costs more."""
    console = _console()
    console.print(_setting(model, plan), soft_wrap=True)
    table = _table(("LongCoT costs more in",), ("from thinking tokens",))
    names = {"rollout_seconds": "rollout seconds of a step", "total_gpu_hours": "total GPU-hours"}
    for each in found:
        name = f"FLOPs, {CONVENTIONS[each['convention']]}" if each["measure"] == "flops" else names[each["measure"]]
        tokens = each["thinking_tokens"]
        never = f"nowhere up to {format_tokens(each['searched_to'])}"
        table.add_row(name, never if tokens is None else f"{tokens:,}")
    console.print(table)
    console.print(
        "\nFLOPs of one trace that thinks so long; seconds and hours of the job, at that mean.\n"
        + _assumptions(plan, calibrated_with),
        style="dim",
        soft_wrap=True,
    )


def show_grid(model: str, tokens: int, choices: Sequence[Choice], best: Plan) -> None:
    """Total GPU-hours by context size and state size, the least of them marked."""
    from scaling.predict.search import STATE_SHARES

    console = _console()
    console.print(_setting(model, best), soft_wrap=True)
    table = _table(("context size",), tuple(f"m = {share}" for share in STATE_SHARES))
    for size in dict.fromkeys(choice.context_size for choice in choices):
        cells = {choice.state_size: choice for choice in choices if choice.context_size == size}
        states = (int(share * size) for share in STATE_SHARES.values())
        table.add_row(format_tokens(size), *(_cell(cells.get(state), best) for state in states))
    console.print(table)
    console.print(
        f"\nLeast: {_label(best)}, {best.total_gpu_hours:,.0f} GPU-hours "
        f"at a mean of {format_tokens(tokens)}; the largest context is {best.longest_context:,} tokens. Cost does not "
        "say whether a model still solves its tasks with so little state.",
        soft_wrap=True,
    )


def _cell(choice: Choice | None, best: Plan) -> str:
    if choice is None:
        return "excluded"
    if choice.plan is None:
        return "does not fit" if "would fit" in str(choice.reason) else "makes no sense"
    return f"{choice.plan.total_gpu_hours:,.0f}{' ←' if choice.plan is best else ''}"


def _label(plan: Plan) -> str:
    parameters: Mapping[str, Any] = plan.environment.parameters()
    named = {name: parameters.get(name) for name in LABELLED}
    return environment_label(plan.environment.name, **named)


def _setting(model: str, plan: Plan) -> str:
    setup, job = plan.setup, plan.work.job
    return (
        f"{model} ({_short(plan.shape.parameters)} parameters, {setup.precision.weights}) on {setup.gpus} × "
        f"{setup.device.name}, {setup.placement}: {job.steps:,} steps × "
        f"{job.prompts:,} prompts × {job.samples:,} samples; phases in GPU-hours\n"
    )


def _assumptions(plan: Plan, calibrated_with: str | None) -> str:
    setup = plan.setup
    waiting = "" if setup.placement == "colocated" else " some GPUs wait, so phases do not add up to the total;"
    rates = "nothing was measured" if calibrated_with is None else f"with the rates that {calibrated_with} shows"
    return (
        f"\nAnalytic, {rates}: lengths {plan.work.distribution.text} around the mean, cut at the budget; "
        f"{setup.admission} admission;{waiting} energy at full board power, an upper bound; a month is 730 hours. How "
        "it is reckoned, and how far to trust it: docs/planning.md."
    )


def _tokens(n: float) -> str:
    return format_tokens(round(n)) if round(n) % 512 == 0 else f"{n:,.0f}"


def _hours(n: float) -> str:
    """Hours, months or seconds: whole from 100 on, else two digits or one decimal."""
    return f"{n:,.0f}" if n >= 100 else f"{n:.1f}" if n >= 10 else f"{n:.2g}"


def _short(n: float) -> str:
    """Three digits and a prefix: 7.62G."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g}{prefix}"
    return f"{n:.3g}"


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=_PLAIN_WIDTH)

"""The three answers of `scaling plan`: a table, the crossovers, and the best context and state size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.cli.console import FINISHED_WITH_FAILURES, print_json_list, say, warn
from scaling.cli.plan_tables import show_crossovers, show_grid, show_plans
from scaling.errors import UsageError
from scaling.lengths import format_tokens, parse_lengths, parse_tokens

if TYPE_CHECKING:
    from scaling.planning import Question
    from scaling.predict.plan import Plan
    from scaling.predict.search import Choice
    from scaling.predict.shape import Shape

METRICS = (
    *(f"{phase}_gpu_hours" for phase in ("rollout", "logprob", "update", "sync")),
    "total_gpu_hours",
    "gpu_months",
    "step_seconds",
    "tokens_per_second_per_gpu",
    "concurrency",
    "bound",
)
"""What a row without a plan has as null."""

LARGE_SHARE = 0.1
"""Of traces cut at the default budget: from here on it is said."""

CONTEXT_SIZES = tuple(1024 * n for n in (1, 2, 4, 8, 16, 32))


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that has no plan, and why."""

    mode: str
    tokens: int
    reason: str
    shape: Shape
    kv_dtype: str

    def to_json(self) -> dict[str, Any]:
        return {
            "environment": self.mode,
            "thinking_tokens": self.tokens,
            "status": "error",
            "reason": self.reason,
            "parameters": self.shape.parameters,
            "kv_bytes_per_token": self.shape.kv_bytes_per_token(self.kv_dtype),
            **dict.fromkeys(METRICS),
        }


def answer_table(question: Question, lengths: Sequence[int], json: bool) -> int:
    """Every length in every environment. What does not fit is a row that says so, unless nothing fits."""
    rows: list[Plan | Refused] = []
    for tokens in lengths:
        for mode in question.modes:
            try:
                rows.append(question.plan(mode, tokens))
            except UsageError as error:
                rows.append(Refused(mode, tokens, str(error), question.shape, question.setup.precision.kv))
    plans = [row for row in rows if not isinstance(row, Refused)]
    refused = [row for row in rows if isinstance(row, Refused)]
    if not plans:
        raise UsageError(refused[0].reason)
    for remark in remarks(plans):
        warn(remark)
    if json:
        print_json_list({**question.record(), **row.to_json()} for row in rows)
    else:
        show_plans(question.model, plans, question.record()["calibrated_with"])
    for each in refused:
        warn(f"{each.mode} at {format_tokens(each.tokens)}: {each.reason}")
    return FINISHED_WITH_FAILURES if refused else 0


def remarks(plans: Sequence[Plan]) -> list[str]:
    """What a reader should know of the lengths: contexts that outgrow the positions that the model was trained for,
    default budgets that they cut, and extensions that they do not come to."""
    from scaling.predict.setup import BUDGET_RATIO

    said: dict[str, str] = {}
    for plan in plans:
        positions = f"the {plan.shape.max_positions:,} positions that the model was trained for"
        if plan.longest_context > plan.shape.max_positions:
            said.setdefault(
                plan.environment.name,
                f"{plan.environment.name} reaches contexts of {plan.longest_context:,} tokens at a mean of "
                f"{plan.thinking_tokens:,.0f}, beyond {positions}",
            )
        cut = plan.work.budget is None and plan.thinking_tokens < plan.budget < int(BUDGET_RATIO * plan.thinking_tokens)
        if cut and plan.truncated_share > LARGE_SHARE:
            said.setdefault(
                "budget",
                f"from a mean of {plan.thinking_tokens:,.0f} on, the default budget is cut to {positions}, where "
                f"{plan.truncated_share:.0%} of traces then end: lengths spread less; --budget sets another",
            )
        extensions = int(plan.environment.parameters().get("extensions", 0))
        if plan.chunks < 0.5 + extensions:
            said.setdefault(
                "extensions",
                f"{plan.environment.name} is planned with the model's early ends at equal distances over the budget of "
                f"{plan.budget:,}: of {extensions}, a mean of {plan.thinking_tokens:,.0f} meets {plan.chunks - 1:.1f}; "
                "--budget sets another",
            )
    return list(said.values())


def answer_crossover(question: Question, json: bool) -> int:
    if set(question.modes) != {"longcot", "delethink"}:
        raise UsageError("a crossover needs both environments; give --mode longcot --mode delethink, or neither")
    from typing import get_args

    from scaling.predict.search import LONGEST, crossover, flops_crossover
    from scaling.predict.shape import FlopsConvention

    longcot, delethink = (question.environment(mode) for mode in ("longcot", "delethink"))
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
        print_json_list({**question.record(), **each} for each in found)
    else:
        show_crossovers(question.model, found, planned("delethink", ladder[0]), question.record()["calibrated_with"])
    return 0


def answer_optimise(
    question: Question, tokens: int, max_context: str | None, min_state: str | None, picture: Path | None, json: bool
) -> int:
    from scaling.predict.search import best, grid

    choices = grid(
        lambda context_size, state_size: question.plan("delethink", tokens, context_size, state_size),
        CONTEXT_SIZES,
        largest_context=parse_tokens(max_context) if max_context else None,
        least_state=parse_tokens(min_state) if min_state else None,
    )
    winner = best(choices)
    if json:
        print_json_list({**question.record(), **choice.to_json(), "best": choice.plan is winner} for choice in choices)
    else:
        show_grid(question.model, tokens, choices, winner)
    if picture is not None:
        _draw(choices, f"{question.model}, {format_tokens(tokens)} tokens: total GPU-hours", picture)
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

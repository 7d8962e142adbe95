"""Where two environments cost the same, and which context and state size cost least."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from scaling.errors import UsageError
from scaling.predict.plan import Plan
from scaling.predict.rollouts import limit_chunks
from scaling.predict.shape import FlopsConvention, Shape
from scaling.thinking.base import Environment

STATE_SHARES = {"C/8": 1 / 8, "C/4": 1 / 4, "3C/8": 3 / 8, "C/2": 1 / 2}
"""State sizes to try, of the context size C: a later chunk thinks C − m tokens, so more than half is never carried by
Algorithm 1."""

LONGEST = 1 << 20
"""No crossover is sought beyond 1M thinking tokens."""


def flops_crossover(
    shape: Shape,
    convention: FlopsConvention,
    growing: Callable[[int], Environment],
    chunked: Callable[[int], Environment],
    prompt_tokens: int,
    longest: int = LONGEST,
) -> int | None:
    """The thinking tokens from which on a trace of `growing` costs more FLOPs than one of `chunked`; None if never.

    FLOPs of a forward pass over a trace's chunks, of which training costs a multiple (Fig. C.1 of the paper). A new
    chunk has its whole carryover to encode, so the environments change places several times before the last; found is
    the last. The first token of a chunk is its dearest moment, and the gap there only grows from chunk to chunk.

    Raises `UsageError` where `chunked` has more chunks than are reckoned.
    """

    def dearer(tokens: int) -> bool:
        costs = (
            shape.logprob_flops(e.schedule(prompt_tokens, e.expected_lengths(prompt_tokens, tokens)), convention)
            for e in (growing(tokens), chunked(tokens))
        )
        one, other = costs
        return one > other

    limit_chunks(chunked(longest), longest)
    ends = list(accumulate(chunked(longest).expected_lengths(prompt_tokens, longest)))
    chunk = bisect_left(ends, True, key=lambda end: dearer(end + 1))
    if chunk == len(ends):
        return None
    low, high = (ends[chunk - 1] + 1 if chunk else 1), ends[chunk] + 1
    return low + bisect_left(range(low, high + 1), True, key=dearer)


def crossover(
    growing: Callable[[int], float], chunked: Callable[[int], float], lengths: Sequence[int]
) -> tuple[int | None, int]:
    """(thinking tokens from which on `growing` costs more, the longest length that was tried).

    Costs are compared at `lengths`, shortest first, as far as both have one (`UsageError` ends the search); between
    the last two that disagree the crossover is found by bisection to 1 %. None if it is nowhere, or below the first.
    """
    tried: list[tuple[int, bool]] = []
    for tokens in lengths:
        try:
            tried.append((tokens, growing(tokens) > chunked(tokens)))
        except UsageError:
            if not tried:
                raise
            break
    last = tried[-1][0]
    flips = [(low, high) for (low, before), (high, after) in pairwise(tried) if after and not before]
    if not tried[-1][1] or not flips:
        return None, last
    low, high = flips[-1]
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        if growing(middle) > chunked(middle):
            high = middle
        else:
            low = middle
    return high, last


@dataclass(frozen=True, slots=True)
class Choice:
    """One context and state size on the grid: its plan, or the reason why there is none."""

    context_size: int
    state_size: int
    plan: Plan | None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        sizes = {"context_size": self.context_size, "state_size": self.state_size, "reason": self.reason}
        return sizes | (self.plan.to_json() if self.plan else {"total_gpu_hours": None})


def grid(
    plan_for: Callable[[int, int], Plan],
    context_sizes: Sequence[int],
    *,
    largest_context: int | None = None,
    least_state: int | None = None,
) -> list[Choice]:
    """Plans for every context size of the list with every state of `STATE_SHARES`, those within constraints.

    `largest_context`: most tokens that a sequence may come to, prompt and carryover included. Raises `UsageError`
    where the constraints leave nothing.
    """
    choices: list[Choice] = []
    for context_size in context_sizes:
        for state_size in (int(share * context_size) for share in STATE_SHARES.values()):
            if least_state is not None and state_size < least_state:
                continue
            try:
                plan = plan_for(context_size, state_size)
            except UsageError as error:
                choices.append(Choice(context_size, state_size, None, str(error)))
                continue
            if largest_context is None or plan.longest_context <= largest_context:
                choices.append(Choice(context_size, state_size, plan))
    if not any(choice.plan for choice in choices):
        reasons = [choice.reason for choice in choices if choice.reason]
        raise UsageError(
            reasons[0]
            if reasons
            else "no context and state size satisfies the constraints; allow a larger context or a smaller state"
        )
    return choices


def best(choices: Sequence[Choice]) -> Plan:
    """The plan of least total GPU-hours."""
    return min((c.plan for c in choices if c.plan is not None), key=lambda plan: plan.total_gpu_hours)

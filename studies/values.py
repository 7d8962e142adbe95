"""How good Monte-Carlo values are: their error, the order they give, and the noise of gradients made of them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scaling.errors import UsageError
from scaling.packing import pack, samples_from
from scaling.rollout import joined
from scaling.update import Objective, backward
from trainer import advantages
from trainer.loop import Trainer
from trainer.problems import order
from trainer.ranks import whole
from trainer.values import Each, State, Vine, ends, places

Floats = NDArray[np.float64]

RESAMPLES = 2000
CERTAIN = 3.0
"""Standard errors by which the true values of two candidates have to differ for their order to count."""


@dataclass(frozen=True, slots=True)
class Valued:
    """A state's value by many rollouts with its standard error, and the rewards of others to estimate it from.

    Where a trace has ended, `fresh` is empty and `truth` its reward. `tokens`: of a rollout from here, on average.
    """

    truth: float
    error: float
    fresh: Floats
    tokens: float

    def estimates(self, count: int, rollouts: int) -> Floats:
        """`count` independent estimates by so many rollouts each."""
        if not len(self.fresh):
            return np.full(count, self.truth)
        found: Floats = self.fresh[: count * rollouts].reshape(count, rollouts).mean(1)
        return found


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is measured. `states`: problems, in each of which one state and `candidates` ways on from it are valued.

    `rollouts` from a state stand for its true value, and each number of `estimates` is judged by fresh ones. `groups`:
    of traces, each of another problem, that give a gradient each by every method.
    """

    states: int = 32
    candidates: int = 4
    rollouts: int = 256
    estimates: tuple[int, ...] = (1, 3, 9)
    groups: int = 64

    def __post_init__(self) -> None:
        for name, least in (("states", 2), ("candidates", 2), ("rollouts", 2), ("groups", 3)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} {getattr(self, name)} is too few; give at least {least}")
        if not self.estimates or min(self.estimates) < 1:
            raise UsageError("estimates are made of 1 rollout or more; as in 1,3,9")

    def run(self, trainer: Trainer, on_progress: Callable[[str, int, int], None] | None = None) -> dict[str, Any]:
        """Everything as plain numbers, spreads as intervals of 95 %; on problems that training would ask next.

        `on_progress` gets what is measured, how much of it is done, and of how much.
        """
        told = on_progress or (lambda *_: None)
        recipe = trainer.recipe
        asked = order(len(trainer.questions), recipe.seed, trainer.done.asked, self.states + self.groups)
        trainer.open_engine()
        trees, gradients = [], []
        try:
            for number, index in enumerate(asked[: self.states], 1):
                trees.append(self.tree(trainer, index, number))
                told("states", number, self.states)
            for number, index in enumerate(asked[self.states :], 1):
                gradients.append(self.gradients(trainer, index, self.states + number))
                told("groups", number, self.groups)
        finally:
            trainer.engine.close()
        return {
            "truth": _truth(trees),
            "values": [self.judge(trees, rollouts) for rollouts in self.estimates],
            "gradients": _noise(gradients),
        }

    def tree(self, trainer: Trainer, index: int, number: int) -> list[Valued]:
        """A state on the way of a trace of problem `index`, then the states that `candidates` come to from there."""
        [(trace, _)] = ends(trainer, [State(index)], round=3 * number)
        start = State.at(index, trace.chunks, random.Random(number).choice(places(trainer, trace.chunks)))
        states, rewards = [start], [math.nan]
        for other, reward in ends(trainer, [start] * self.candidates, round=3 * number + 1):
            chunks = joined(start.before, other.chunks)
            later = [place for place in places(trainer, chunks) if place > start.place]
            states.append(State.at(index, chunks, later[0] if later else (len(chunks), 0)))
            rewards.append(math.nan if later else reward)
        each = self.rollouts + max(self.estimates)
        asked = [state for state, reward in zip(states, rewards, strict=True) if math.isnan(reward)]
        found = ends(trainer, [state for state in asked for _ in range(each)], round=3 * number + 2)
        valued = []
        for reward in rewards:
            if not math.isnan(reward):
                valued.append(Valued(reward, 0.0, np.empty(0), 0.0))
                continue
            mine, found = found[:each], found[each:]
            earned = np.array([reward for _, reward in mine])
            truth, fresh = earned[: self.rollouts], earned[self.rollouts :]
            tokens = sum(trace.thinking_tokens for trace, _ in mine) / each
            valued.append(Valued(truth.mean(), truth.std(ddof=1) / math.sqrt(len(truth)), fresh, tokens))
        return valued

    def judge(self, trees: Sequence[Sequence[Valued]], rollouts: int) -> dict[str, Any]:
        """Error and order of estimates by so many rollouts; intervals by the bootstrap over problems.

        The truth's own error makes `mae` too large, about `mae_inflation` times: √(1 + K/N) for values by K rollouts
        against N. A tie orders a pair half rightly.
        """
        count = max(self.estimates) // rollouts
        errors, right = [], []
        for tree in trees:
            open_ = [state for state in tree if len(state.fresh)]
            errors.append([np.abs(s.estimates(count, rollouts) - s.truth).mean() for s in open_])
            pairs = []
            for a, b in combinations(tree[1:], 2):
                gap = a.truth - b.truth
                if abs(gap) > CERTAIN * math.hypot(a.error, b.error):
                    found = np.sign(a.estimates(count, rollouts) - b.estimates(count, rollouts)) * np.sign(gap)
                    pairs.append(float((found + 1).mean() / 2))
            right.append(pairs)
        return {
            "rollouts": rollouts,
            "tokens_per_state": rollouts * float(np.mean([s.tokens for tree in trees for s in tree if len(s.fresh)])),
            **_spread("mae", errors),
            "mae_inflation": math.sqrt(1 + rollouts / self.rollouts),
            **_spread("ranked_rightly", right),
            "pairs": sum(map(len, right)),
        }

    def gradients(self, trainer: Trainer, index: int, number: int) -> dict[tuple[str, int | None], tuple[Tensor, int]]:
        """By each method: the gradient of one group's traces, and the tokens that it took to sample."""
        recipe = trainer.recipe
        sampled = ends(trainer, [State(index)] * recipe.group, round=3 * number)
        traces, rewards = [trace for trace, _ in sampled], [reward for _, reward in sampled]
        thought = sum(trace.thinking_tokens for trace in traces)
        vine, fresh = Vine.of(trainer, [index], traces), max(self.estimates)
        found = ends(trainer, [state for state in vine.states for _ in range(fresh)], round=3 * number + 1)
        methods: dict[tuple[str, int | None], tuple[Tensor, int]] = {}
        if recipe.group > 1:
            for name, compare in (("grpo", advantages.grpo), ("rloo", advantages.rloo)):
                flat: list[list[Each]] = [
                    [a] * len(trace.chunks) for a, trace in zip(compare(rewards), traces, strict=True)
                ]
                methods[name, None] = _gradient(trainer, vine, flat), thought
        for rollouts in self.estimates:
            spent = [found[at : at + rollouts] for at in range(0, len(found), fresh)]
            values = [sum(reward for _, reward in some) / rollouts for some in spent]
            tokens = sum(trace.thinking_tokens for some in spent for trace, _ in some)
            gradient = _gradient(trainer, vine, vine.advantages(rewards, values))
            methods["vineppo", rollouts] = gradient, thought + tokens
        return methods


def _gradient(trainer: Trainer, vine: Vine, each: Sequence[Sequence[Each]]) -> Tensor:
    """On-policy, of one group's loss (Eq. 3), every parameter in one row; nothing of it stays in the policy."""
    recipe, policy = trainer.recipe, trainer.policy
    policy.zero_grad(set_to_none=True)
    samples = [
        sample
        for trace, mine in zip(vine.traces, each, strict=True)
        for sample in samples_from(trace.chunks, trace.logprobs, mine, trace.index)
    ]
    for batch in pack(samples, recipe.token_budget):
        backward(
            policy,
            batch.to(policy.head.device),
            traces=len(vine.traces),
            objective=Objective(importance_cap=None),
            temperature=recipe.temperature,
            checkpoint=recipe.checkpoint_activations,
        )
    row = torch.cat([whole(p.grad).flatten().cpu() for p in policy.parameters() if p.grad is not None])
    policy.zero_grad(set_to_none=True)
    return row


def _truth(trees: Sequence[Sequence[Valued]]) -> dict[str, float]:
    """How many states were valued, the mean and spread of their values, and the error to which each is known."""
    states = [state for tree in trees for state in tree if len(state.fresh)]
    truths = np.array([state.truth for state in states])
    return {
        "states": len(states),
        "mean": float(truths.mean()),
        "standard_deviation": float(truths.std(ddof=1)),
        "standard_error": float(np.mean([state.error for state in states])),
    }


def _spread(name: str, found: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """The mean of all that was found, and its interval by the bootstrap over problems; null where nothing was."""
    sums, counts = np.array([sum(one) for one in found]), np.array([len(one) for one in found])
    if not counts.sum():
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    drawn = np.random.default_rng(0).integers(len(found), size=(RESAMPLES, len(found)))
    n = counts[drawn].sum(1)
    low, high = np.quantile(sums[drawn].sum(1)[n > 0] / n[n > 0], [0.025, 0.975])
    return {name: float(sums.sum() / counts.sum()), f"{name}_low": float(low), f"{name}_high": float(high)}


def _noise(found: Sequence[dict[tuple[str, int | None], tuple[Tensor, int]]]) -> list[dict[str, Any]]:
    """The noise of each method's gradient, g of one group: `variance` = tr Cov g, and `noise` = tr Cov g / |E g|².

    |E g|² is estimated without bias from products of different groups, so it may come out negative: then it drowns
    in noise, and what needs it is null. `tokens_for_signal` = `noise` × tokens a group: what has to be sampled for a
    step whose noise is as large as its signal. Intervals by the jackknife over groups, on the logarithm;
    `tokens_against_rloo` and `variance_against_rloo` are ratios to RLOO's on the same groups; VinePPO's variance
    compares, since both estimate the same E g, while GRPO's is on a scale of its own.
    """
    rloo, nothing = ("rloo", None), np.full(len(found) + 1, np.nan)
    costs: dict[tuple[str, int | None], Floats] = {}
    variances: dict[tuple[str, int | None], Floats] = {}
    rows: list[dict[str, Any]] = []
    for method in found[0]:
        gradients = torch.stack([group[method][0] for group in found]).double()
        tokens = np.array([group[method][1] for group in found], dtype=np.float64)
        gram = (gradients @ gradients.T).numpy()
        own, rest = gram.diagonal(), gram.sum() - 2 * gram.sum(1) + gram.diagonal()
        whole = _moments(gram.trace(), gram.sum(), len(found))
        without = _moments(gram.trace() - own, rest, len(found) - 1)
        variance, signal = (np.append(some, all_) for some, all_ in zip(without, whole, strict=True))
        spent = np.append((tokens.sum() - tokens) / (len(found) - 1), tokens.mean())
        with np.errstate(invalid="ignore", divide="ignore"):
            noise = variance / signal
            variances[method] = np.log(np.where(variance > 0, variance, np.nan))
        noise[~(np.isfinite(noise) & (noise > 0))] = np.nan
        costs[method] = np.log(noise * spent)
        rows.append(
            {
                "advantage": method[0],
                "rollouts": method[1],
                "tokens_per_group": float(tokens.mean()),
                "variance": float(variance[-1]),
                "signal": float(signal[-1]),
                "noise": None if np.isnan(noise[-1]) else float(noise[-1]),
            }
        )
    for method, row in zip(found[0], rows, strict=True):
        row.update(_jackknife("tokens_for_signal", costs[method]))
        row.update(_jackknife("tokens_against_rloo", costs[method] - costs.get(rloo, nothing)))
        row.update(_jackknife("variance_against_rloo", variances[method] - variances.get(rloo, nothing)))
    return rows


def _moments(squares: Any, total: Any, count: int) -> tuple[Any, Any]:
    """tr Cov g and |E g|² without bias, from Σ|g_i|² and |Σ g_i|² of `count` gradients."""
    signal = (total - squares) / (count * (count - 1))
    return squares / count - signal, signal


def _jackknife(name: str, logs: Floats) -> dict[str, float | None]:
    """exp of the last entry, and of its interval by the others, each of which leaves one group out."""
    if not np.isfinite(logs).all():
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    without, whole = logs[:-1], float(logs[-1])
    count = len(without)
    wide = 1.96 * math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    return {name: math.exp(whole), f"{name}_low": math.exp(whole - wide), f"{name}_high": math.exp(whole + wide)}

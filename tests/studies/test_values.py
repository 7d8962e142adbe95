"""The diagnosis of values: its figures against trees and gradients whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from scaling.errors import UsageError
from studies.values import Diagnosis, Valued, _noise
from trainer.loop import Trainer

RNG = np.random.default_rng(0)


def state(value: float, rollouts: int = 256, fresh: int = 9) -> Valued:
    """A state of rewards 0 and 1, valued by sampling."""
    truth = (RNG.random(rollouts) < value).astype(float)
    return Valued(truth.mean(), truth.std(ddof=1) / math.sqrt(rollouts), (RNG.random(fresh) < value).astype(float), 7.0)


def ended(reward: float) -> Valued:
    return Valued(reward, 0.0, np.empty(0), 0.0)


def test_the_error_of_k_rollouts_is_that_of_a_mean_of_k_coins() -> None:
    """At a value of 1/2, E|mean of K − 1/2| is 1/2, 1/4 and 0.137 for K = 1, 3 and 9."""
    diagnosis = Diagnosis(estimates=(1, 3, 9))
    trees = [[state(0.5)] for _ in range(2000)]
    for rollouts, expected in ((1, 0.5), (3, 0.25), (9, 0.1367)):
        row = diagnosis.judge(trees, rollouts)
        assert row["mae"] == pytest.approx(expected, rel=0.06)
        assert row["mae_low"] < row["mae"] < row["mae_high"]
        assert row["tokens_per_state"] == 7 * rollouts
    assert row["mae_inflation"] == pytest.approx(math.sqrt(1 + 9 / 256))


def test_candidates_are_ranked_where_their_true_values_surely_differ() -> None:
    diagnosis = Diagnosis(estimates=(1,))
    sure = [[state(0.5), ended(1.0), ended(0.0), ended(0.0)]]  # two pairs differ, one does not
    assert diagnosis.judge(sure * 2, 1)["ranked_rightly"] == 1.0
    assert diagnosis.judge(sure * 2, 1)["pairs"] == 4
    row = diagnosis.judge([[state(0.5), state(0.5), ended(1.0)] for _ in range(1000)], 1)
    assert row["ranked_rightly"] == pytest.approx(0.75, abs=0.03)  # right, or tied: half right
    assert diagnosis.judge([[state(0.5), ended(0.0), ended(0.0)]], 1)["ranked_rightly"] is None


def found(scale: float, tokens: int, groups: int = 400) -> list[Any]:
    """Gradients of two numbers around (1, 0), by GRPO three times as large; each number of RLOO's has variance 1, of
    VinePPO's `scale`²."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([1.0, 0.0])
    return [
        {
            ("grpo", None): (3 * mean + 3 * torch.randn(2, generator=generator), 100),
            ("rloo", None): (mean + torch.randn(2, generator=generator), 100),
            ("vineppo", 3): (mean + scale * torch.randn(2, generator=generator), tokens),
        }
        for _ in range(groups)
    ]


def test_noise_is_the_variance_over_the_squared_mean() -> None:
    grpo, rloo, vine = _noise(found(0.5, 200))
    assert grpo["tokens_against_rloo_low"] < 1.0 < grpo["tokens_against_rloo_high"]  # whatever its scale
    assert rloo["variance"] == pytest.approx(2.0, rel=0.15)
    assert rloo["signal"] == pytest.approx(1.0, rel=0.15)
    assert rloo["noise"] == pytest.approx(2.0, rel=0.2)
    assert vine["noise"] == pytest.approx(0.5, rel=0.2)
    assert rloo["tokens_for_signal_low"] < 200 < rloo["tokens_for_signal_high"]
    assert vine["tokens_against_rloo_low"] < 0.5 < vine["tokens_against_rloo_high"] < 1.0
    assert vine["variance_against_rloo_low"] < 0.25 < vine["variance_against_rloo_high"] < 0.35
    assert rloo["tokens_against_rloo"] == rloo["variance_against_rloo"] == 1.0


def test_a_gradient_that_drowns_in_noise_has_no_figure() -> None:
    """Two opposite gradients and a third: the products of different ones are negative on average."""
    rows = _noise([{("rloo", None): (torch.tensor([x]), 10)} for x in (1.0, -1.0, 0.1)])
    assert rows[0]["signal"] < 0
    assert rows[0]["noise"] is rows[0]["tokens_for_signal"] is rows[0]["tokens_for_signal_low"] is None


def test_a_policy_is_diagnosed_and_left_as_it_is(start: Callable[..., Trainer]) -> None:
    trainer = start("value_states=step")
    before = trainer.policy.head.detach().clone()
    diagnosis = Diagnosis(states=3, candidates=3, rollouts=16, estimates=(1, 2), groups=4)
    seen: list[tuple[str, int, int]] = []
    told = diagnosis.run(trainer, lambda *progress: seen.append(progress))
    assert diagnosis.run(trainer) == told
    assert (seen[0], seen[-1]) == (("states", 1, 3), ("groups", 4, 4))
    assert 3 <= told["truth"]["states"] <= 12
    assert 0 < told["truth"]["standard_error"] < 0.2
    assert [row["rollouts"] for row in told["values"]] == [1, 2]
    assert [(row["advantage"], row["rollouts"]) for row in told["gradients"]] == [
        ("grpo", None),
        ("rloo", None),
        ("vineppo", 1),
        ("vineppo", 2),
    ]
    plain, _, one, two = (row["tokens_per_group"] for row in told["gradients"])
    assert plain < one < two
    assert all(row["variance"] > 0 for row in told["gradients"])
    assert trainer.policy.head.equal(before)
    assert trainer.policy.head.grad is None


def test_a_policy_in_half_precision_is_diagnosed_too(start: Callable[..., Trainer]) -> None:
    diagnosis = Diagnosis(states=2, candidates=2, rollouts=4, estimates=(1,), groups=4)
    told = diagnosis.run(start("dtype=bfloat16"))  # its parameters and gradients are sharded, over one rank
    assert all(row["variance"] > 0 for row in told["gradients"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"states": 1}, "states 1 is too few"),
        ({"candidates": 1}, "candidates 1 is too few"),
        ({"groups": 2}, "give at least 3"),
        ({"estimates": ()}, "as in 1,3,9"),
        ({"estimates": (0, 3)}, "as in 1,3,9"),
    ],
)
def test_too_little_to_measure_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Diagnosis(**settings)

"""Advantages, against numbers worked by hand."""

from __future__ import annotations

import pytest

from scaling.errors import UsageError
from trainer.advantages import grpo, rloo, vineppo


def test_grpo_is_the_reward_less_the_mean_over_the_samples_deviation() -> None:
    # mean 1/4, squared deviations 9/16 + 3·1/16 = 3/4, over n − 1 = 3: deviation 1/2
    assert grpo([1.0, 0.0, 0.0, 0.0]) == pytest.approx([1.5, -0.5, -0.5, -0.5])


@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0])
def test_a_group_of_equal_rewards_says_nothing(reward: float) -> None:
    assert grpo([reward] * 3) == [0.0] * 3
    assert rloo([reward] * 8) == [0.0] * 8  # exactly: what is not zero is trained on


def test_rloo_is_the_reward_less_the_mean_of_the_others() -> None:
    assert rloo([1.0, 0.0, 0.5]) == pytest.approx([0.75, -0.75, 0.0])


@pytest.mark.parametrize("method", [grpo, rloo])
@pytest.mark.parametrize("rewards", [[], [1.0]])
def test_a_group_needs_someone_to_compare_with(method: object, rewards: list[float]) -> None:
    with pytest.raises(UsageError, match="group=2 or more"):
        method(rewards)  # type: ignore[operator]


def test_vineppo_gives_each_chunk_what_it_changed() -> None:
    """A tree by hand: of four rollouts from the query one is right, after chunk 1 two of four, after chunk 2 all."""
    assert vineppo([0.25, 0.5, 1.0], reward=1.0) == [0.25, 0.5, 0.0]
    assert vineppo([0.25, 0.5, 1.0], reward=0.0) == [0.25, 0.5, -1.0]
    assert vineppo([0.25], reward=1.0) == [0.75]


def test_vineppos_advantages_add_up_to_what_the_trace_brought_beyond_the_expected() -> None:
    assert sum(vineppo([0.3, 0.9, 0.1, 0.4], reward=1.0)) == pytest.approx(1.0 - 0.3)


def test_vineppo_needs_a_value_where_the_first_chunk_starts() -> None:
    with pytest.raises(UsageError, match="without chunks"):
        vineppo([], 1.0)

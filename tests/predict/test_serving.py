"""Traces without training: the rollouts of the planner, for any number of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scaling.errors import UsageError
from scaling.planning import ask
from scaling.predict.plan import plan
from scaling.predict.serving import processed_tokens, serve
from scaling.thinking import Delethink, Environment, LongCoT

QUESTION = ask("r1-distill-qwen-1.5b", "h100", 1, budget=24576, steps=1)
ARMS = (LongCoT(24576), Delethink(8192, 4096, 5, 100))


def hours(environment: Environment, traces: int = 1024, mean: float = 8192, gpus: int = 1) -> float:
    setup = replace(QUESTION.setup, gpus=gpus)
    return serve(QUESTION.shape, setup, environment, 128, QUESTION.work.distribution, mean, traces).gpu_hours


@pytest.mark.parametrize("environment", ARMS, ids=lambda environment: environment.name)
def test_a_step_s_traces_take_what_a_plan_s_rollouts_take(environment: Environment) -> None:
    planned = plan(QUESTION.shape, replace(QUESTION.setup, gpus=1), QUESTION.work, lambda _: environment, 8192)
    assert planned.work.job.traces == 1024
    assert hours(environment) == pytest.approx(planned.gpu_hours("rollout"))


def test_more_traces_take_as_much_each_beyond_those_that_are_reckoned() -> None:
    assert hours(ARMS[1], traces=10240) == pytest.approx(10 * hours(ARMS[1], traces=1024))
    assert hours(ARMS[1], traces=64) > hours(ARMS[1], traces=1024) / 16  # the last one's end is waited for


def test_more_gpus_cost_no_more_than_the_best_of_fewer() -> None:
    assert hours(ARMS[0], gpus=8) <= hours(ARMS[0], gpus=1)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    large = ask("gpt-oss-120b", "a100-40gb", 1)
    with pytest.raises(UsageError, match=r"do not fit on 1 × .*what would fit"):
        serve(large.shape, large.setup, LongCoT(4096), 128, large.work.distribution, 1024, 8)


def test_processed_tokens_are_encoded_and_sampled_ones() -> None:
    assert processed_tokens(LongCoT(1000), 10, 500) == 510
    assert processed_tokens(Delethink(100, 50, 3, 10), 10, 150) == (10 + 100) + (10 + 10 + 50 + 50)

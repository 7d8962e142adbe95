"""The plan of a job: what its parts add up to, and how it answers to what is asked."""

from __future__ import annotations

import json

import pytest

from scaling.errors import UsageError
from scaling.predict.job import Job
from scaling.predict.plan import PHASES
from scaling.predict.roofline import Precision


class TestAddsUp:
    def test_a_step_is_its_phases_one_after_another(self, make_plan) -> None:
        plan = make_plan("delethink", 16384)
        assert plan.step_seconds == pytest.approx(sum(plan.phases[phase].total for phase in PHASES))
        assert plan.total_gpu_hours == pytest.approx(plan.step_seconds * 8 * 1000 / 3600)
        assert plan.total_gpu_hours == pytest.approx(sum(plan.gpu_hours(phase) for phase in PHASES))
        assert plan.gpu_months == pytest.approx(plan.total_gpu_hours / 730)

    def test_a_phase_is_what_rules_it(self, make_plan) -> None:
        for phase in make_plan().phases.values():
            assert phase.total == pytest.approx(sum(phase.by_bound.values()))
            assert all(seconds >= 0 for seconds in phase.by_bound.values())
            assert phase.by_bound[phase.bound] == max(phase.by_bound.values())

    def test_tokens_a_second_are_those_of_the_rollouts(self, make_plan) -> None:
        plan = make_plan("delethink", 8600, budget=24576)
        assert plan.tokens_per_second_per_gpu * plan.phases["rollout"].total * 8 == pytest.approx(1024 * 8600)

    def test_twice_the_steps_cost_twice(self, make_plan) -> None:
        one, two = make_plan(), make_plan(job=Job(steps=2000))
        assert two.total_gpu_hours == pytest.approx(2 * one.total_gpu_hours)

    def test_two_passes_update_twice(self, make_plan) -> None:
        one, two = make_plan(), make_plan(passes=2)
        assert two.phases["update"].total == pytest.approx(2 * one.phases["update"].total)
        assert two.phases["rollout"].total == one.phases["rollout"].total

    def test_without_recompute_an_update_is_three_quarters(self, make_plan) -> None:
        kept, again = (make_plan(recompute=recompute).update_flops for recompute in (False, True))
        assert kept == pytest.approx(3 / 4 * again)

    def test_energy_and_money_follow_the_gpu_hours(self, make_plan) -> None:
        plan = make_plan(price=2.5)
        assert plan.cost == pytest.approx(2.5 * plan.total_gpu_hours)
        assert plan.energy_kwh == pytest.approx(0.7 * plan.total_gpu_hours)  # an H100 SXM draws 700 W at most

    def test_json_holds_every_figure_and_no_infinity(self, make_plan) -> None:
        row = make_plan("delethink").to_json()
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        assert row["parameters"] == 1_777_088_000
        assert row["kv_bytes_per_token"] == 28_672
        assert row["bounds"].keys() == set(PHASES)


class TestLengths:
    def test_the_budget_is_three_times_the_mean_unless_given(self, make_plan) -> None:
        assert make_plan(tokens=8000).budget == 24000
        assert make_plan(tokens=8000, budget=10000).budget == 10000

    def test_but_not_past_the_trained_positions(self, make_plan) -> None:
        assert make_plan(tokens=96 * 1024).budget == 131072 - 128
        assert make_plan("delethink", 200_000).budget == 200_000  # no model was trained for that: all think the mean

    def test_the_mean_is_the_mean_whatever_the_spread(self, make_plan) -> None:
        for lengths in ("fixed", "lognormal:0.3", "lognormal:1.2"):
            assert make_plan(tokens=8000, lengths=lengths).thinking_tokens == pytest.approx(8000)

    def test_a_wider_spread_has_a_longer_tail(self, make_plan) -> None:
        fixed, narrow, wide = (
            make_plan("delethink", 8000, lengths=lengths).phases["rollout"]
            for lengths in ("fixed", "lognormal:0.3", "lognormal:1")
        )
        assert fixed.tail == pytest.approx(0, abs=1e-6)
        assert 0 < narrow.tail < wide.tail
        assert fixed.total < narrow.total < wide.total

    def test_a_mean_above_the_budget_is_refused(self, make_plan) -> None:
        with pytest.raises(UsageError, match="above the budget of 4096"):
            make_plan(tokens=8192, budget=4096)


class TestEnvironments:
    def test_they_are_one_below_the_context_size(self, make_plan) -> None:
        longcot, delethink = (make_plan(mode, 2000, budget=8192) for mode in ("longcot", "delethink"))
        assert delethink.step_seconds == pytest.approx(longcot.step_seconds)

    def test_longcot_bends_and_delethink_does_not(self, make_plan) -> None:
        """Second over first differences, at chunk boundaries."""
        lengths = [8192 + 4096 * chunks for chunks in (4, 8, 12)]

        def bend(mode: str) -> float:
            first, second, third = (make_plan(mode, n, lengths="fixed").total_gpu_hours for n in lengths)
            return ((third - second) - (second - first)) / (second - first)

        assert bend("longcot") > 0.3
        assert abs(bend("delethink")) < 0.001

    def test_delethink_holds_no_more_than_its_context(self, make_plan) -> None:
        plan = make_plan("delethink", 65536)
        assert plan.longest_context == 128 + 100 + 8192
        assert make_plan("longcot", 32768, budget=65536).longest_context == 128 + 65536

    def test_a_prefix_cache_spares_the_constant_query_and_head(self, make_plan) -> None:
        short, long = (
            [
                make_plan("delethink", 32768, prompt_tokens=n, prefix_caching=cached).rollout_flops
                for cached in (False, True)
            ]
            for n in (128, 4096)
        )
        assert short[1] < short[0]
        assert short[0] - short[1] < long[0] - long[1]


class TestPlacement:
    def test_split_gpus_work_in_turn(self, make_plan) -> None:
        plan = make_plan("delethink", 16384, placement="split")
        assert plan.rollout_gpus + plan.training_gpus == 8
        assert plan.total_gpu_hours > sum(plan.gpu_hours(phase) for phase in PHASES)  # some always wait

    def test_asynchronous_ones_at_once_and_without_a_tail(self, make_plan) -> None:
        plan = make_plan("delethink", 16384, placement="asynchronous")
        phases = {name: phase.total for name, phase in plan.phases.items()}
        slower = max(phases["rollout"], phases["logprob"] + phases["update"])
        assert plan.step_seconds == pytest.approx(slower + phases["sync"])
        assert plan.phases["rollout"].tail == pytest.approx(0, abs=1e-9)
        assert plan.step_seconds < make_plan("delethink", 16384).step_seconds

    def test_one_gpu_cannot_be_split(self, make_plan) -> None:
        with pytest.raises(UsageError, match="needs at least 2 GPUs"):
            make_plan(placement="split", gpus=1)

    @pytest.mark.parametrize("placement", ["split", "asynchronous"])
    def test_size_and_division_are_the_best_together(self, make_plan, placement: str) -> None:
        job = {"model": "r1-distill-qwen-7b", "gpus": 16, "placement": placement}
        chosen = make_plan("longcot", 32768, **job)
        for size in (1, 2, 4):
            asked = make_plan("longcot", 32768, tensor_parallel=size, **job)
            assert chosen.step_seconds <= 1.02 * asked.step_seconds


class TestReplicas:
    def test_reserved_admission_takes_fewer_traces_at_once(self, make_plan) -> None:
        paged, reserved = (make_plan(tokens=65536, admission=name) for name in ("paged", "reserved"))
        assert reserved.fitting_traces < paged.fitting_traces
        assert reserved.step_seconds > paged.step_seconds

    def test_smaller_keys_and_values_leave_room_for_more(self, make_plan) -> None:
        half, eighth = (
            make_plan(tokens=65536, precision=Precision("bfloat16", "bfloat16", kv)) for kv in ("bfloat16", "float8")
        )
        assert eighth.fitting_traces == pytest.approx(2 * half.fitting_traces, abs=1)
        assert eighth.phases["rollout"].total < half.phases["rollout"].total

    @pytest.mark.parametrize("tokens", [8192, 98304])
    def test_never_more_than_the_engine_runs_at_once(self, make_plan, tokens: int) -> None:
        for most in (16, 64):
            assert make_plan("longcot", tokens, max_sequences=most).concurrency <= most

    def test_a_replica_that_some_gpus_are_left_over_from_is_no_slower(self, make_plan) -> None:
        eight, nine = (make_plan("delethink", 8192, model="qwen3-32b", gpus=gpus) for gpus in (8, 9))
        assert nine.step_seconds < 1.02 * eight.step_seconds
        assert nine.data_parallel * nine.tensor_parallel <= 9

    def test_a_bigger_model_costs_more(self, make_plan) -> None:
        for mode in ("longcot", "delethink"):
            costs = [
                make_plan(mode, 16384, budget=24576, model=f"qwen2.5-{size}", gpus=64).total_gpu_hours
                for size in ("0.5b", "3b", "7b", "14b", "32b")
            ]
            assert costs == sorted(costs)

    def test_their_size_is_chosen_for_short_rollouts(self, make_plan) -> None:
        chosen = make_plan(model="llama-3.1-70b", gpus=32)
        assert chosen.tensor_parallel > 1
        for size in (2, 4, 8, 16):
            try:
                asked = make_plan(model="llama-3.1-70b", gpus=32, tensor_parallel=size)
            except UsageError:
                continue
            assert chosen.phases["rollout"].total <= 1.02 * asked.phases["rollout"].total

    def test_more_gpus_are_faster_but_not_cheaper(self, make_plan) -> None:
        eight, thirty_two = (make_plan("delethink", 16384, gpus=n) for n in (8, 32))
        assert thirty_two.step_seconds < eight.step_seconds
        assert thirty_two.total_gpu_hours > eight.total_gpu_hours

    @pytest.mark.parametrize(
        "model", ["gpt-oss-20b", "qwen3-30b-a3b", "gemma-3-4b", "deepseek-v3", "smollm3-3b", "mistral-7b"]
    )
    def test_every_family_has_a_plan(self, make_plan, model: str) -> None:
        for mode in ("longcot", "delethink"):
            plan = make_plan(mode, 24576, budget=40000, model=model, on="b200", gpus=128)
            assert all(0 < phase.total < 1e5 for phase in plan.phases.values())
            assert plan.kv_bytes < plan.peak_memory_bytes <= plan.setup.device.memory_bytes


def test_nonsense_is_refused_in_one_line(make_plan) -> None:
    for wrong in (
        {"gpus": 0},
        {"gpus": -8},
        {"max_sequences": 0},
        {"tensor_parallel": 3},
        {"tensor_parallel": -1},
        {"memory_fraction": 0.0},
        {"memory_fraction": 1.5},
        {"memory_fraction": float("nan")},
        {"placement": "nowhere"},
        {"admission": "free"},
        {"price": -1.0},
        {"price": float("nan")},
        {"prompt_tokens": 0},
        {"passes": 0},
        {"budget": 0},
        {"precision": Precision("float3", "bfloat16", "bfloat16")},
    ):
        with pytest.raises(UsageError) as error:
            make_plan(**wrong)
        assert "\n" not in str(error.value)

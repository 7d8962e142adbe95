"""The closed form of a step's rollouts takes the time that stepping every token takes."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scaling.engines.base import Limits
from scaling.engines.simulated import SimulatedEngine
from scaling.predict.distribution import parse
from scaling.predict.efficiency import SERVING
from scaling.predict.hardware import gpu
from scaling.predict.rollouts import Schedule, mean_context, steady, synchronous
from scaling.predict.roofline import Roofline
from scaling.predict.shape import Shape, architecture
from scaling.rollout import rollout
from scaling.thinking import Delethink, LongCoT

QUERY = 64
AMPLE = 10**9
MODELS = ("r1-distill-qwen-1.5b", "gemma-3-4b", "qwen3-30b-a3b", "deepseek-v3")  # dense, windowed, experts, latent


def roofline_of(model):
    return Roofline(Shape.from_config(architecture(model)), SERVING.machine(gpu("h100"), "bfloat16"))


def lengths_of(distribution, mean, traces):
    lengths = parse(distribution).quantiles(mean, 3 * mean, traces)
    return np.random.default_rng(0).permutation(lengths)


def environment_of(mode, longest):
    return LongCoT(longest) if mode == "longcot" else Delethink.for_length(longest, 1024, 512, 100)


def simulate(roofline, environment, lengths, concurrency, kv_tokens=AMPLE, admission="paged", **options):
    """The engine after the traces, and what its `on_step` saw: (tokens, seconds) after every step."""
    engine = SimulatedEngine(roofline, Limits(kv_tokens, concurrency, 10**9), admission=admission, **options)
    seen = []
    rollout(
        engine,
        environment,
        [[index % 97] * QUERY for index in range(len(lengths))],
        lengths=[environment.expected_lengths(QUERY, int(length)) for length in lengths],
        concurrency=concurrency,
        on_step=lambda: seen.append((engine.stats().decode_tokens, engine.now())),
    )
    return engine, np.array(seen)


class TestAgainstStepping:
    """Within 0.1 %: what is left are the steps in which a window fills up."""

    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("mode", ["longcot", "delethink"])
    @pytest.mark.parametrize("distribution", ["fixed", "lognormal:0.7"])
    @pytest.mark.parametrize(("concurrency", "kv_tokens"), [(64, AMPLE), (12, AMPLE), (64, 40_000)])
    def test_a_step_takes_the_same_seconds(self, model, mode, distribution, concurrency, kv_tokens):
        roofline, lengths = roofline_of(model), lengths_of(distribution, 2000, 64)
        environment = environment_of(mode, int(lengths.max()))
        schedule = Schedule.of(environment, QUERY, int(lengths.max()))
        engine, _ = simulate(roofline, environment, lengths, concurrency, kv_tokens)
        found = synchronous(roofline, schedule, lengths, concurrency, kv_tokens)
        assert found.total == pytest.approx(engine.now(), rel=1e-3)
        assert found.concurrency_peak == engine.stats().peak_running
        if mode == "longcot":
            assert (engine.stats().preemptions > 0) == (kv_tokens < AMPLE)

    def test_waves_of_reserved_memory_are_a_concurrency(self):
        roofline, lengths = roofline_of(MODELS[0]), np.full(50, 2000)
        environment = LongCoT(2000)
        kv_tokens = 17 * (QUERY + 2000)
        engine, _ = simulate(roofline, environment, lengths, 50, kv_tokens, admission="reserved")
        found = synchronous(roofline, Schedule.of(environment, QUERY, 2000), lengths, 17)
        assert found.total == pytest.approx(engine.now(), rel=1e-9)
        assert found.concurrency_peak == engine.stats().peak_running == 17

    @given(
        lengths=st.lists(st.integers(1, 400), min_size=1, max_size=12),
        concurrency=st.integers(1, 12),
        room=st.integers(0, 600),
        mode=st.sampled_from(["longcot", "delethink"]),
    )
    @hypothesis_settings(max_examples=60)
    def test_no_workload_parts_them(self, lengths, concurrency, room, mode):
        longest = max(lengths)
        environment = LongCoT(longest) if mode == "longcot" else Delethink.for_length(longest, 128, 64, 10)
        schedule = Schedule.of(environment, QUERY, longest)
        assume(schedule.chunks(np.array(lengths))[2].min() > 1)  # else the engine lets its place idle for a step
        kv_tokens = schedule.longest_context(longest) + room
        engine, _ = simulate(TINY, environment, lengths, concurrency, kv_tokens)
        found = synchronous(TINY, schedule, np.array(lengths), concurrency, kv_tokens)
        assert found.total == pytest.approx(engine.now(), rel=1e-3)

    @pytest.mark.parametrize("query_and_head", [True, False])
    def test_a_prefix_cache_saves_what_the_schedule_says_but_for_parts_of_pages(self, query_and_head):
        lengths = np.full(16, 4000)
        environment = environment_of("delethink", 4000)
        cached = QUERY + environment.head if query_and_head else 0
        engine, _ = simulate(TINY, environment, lengths, 16, prefix_caching=query_and_head)
        found = synchronous(TINY, Schedule.of(environment, QUERY, 4000, cached), lengths, 16)
        assert found.total == pytest.approx(engine.now(), rel=2e-3)

    @pytest.mark.parametrize("model", MODELS[:3])
    @pytest.mark.parametrize(("mode", "kv_tokens"), [("longcot", AMPLE), ("longcot", 30_000), ("delethink", AMPLE)])
    def test_in_the_steady_state_the_rate_is_that_of_the_mean_context(self, model, mode, kv_tokens):
        roofline, lengths = roofline_of(model), lengths_of("lognormal:0.7", 1000, 512)
        environment = environment_of(mode, int(lengths.max()))
        schedule = Schedule.of(environment, QUERY, int(lengths.max()))
        _, seen = simulate(roofline, environment, lengths, 32, kv_tokens)
        first, last = np.searchsorted(seen[:, 0], [0.3 * seen[-1, 0], 0.7 * seen[-1, 0]])
        tokens, seconds = seen[last] - seen[first]
        fits = min(32, int(kv_tokens // mean_context(schedule, lengths)))
        found = steady(roofline, schedule, lengths, fits)
        assert lengths.sum() / found.total == pytest.approx(tokens / seconds, rel=0.05)


TINY = roofline_of("tiny")


class TestWhatMemoryDoes:
    def test_less_of_it_takes_longer_and_none_is_as_much_as_plenty(self):
        lengths = lengths_of("fixed", 4000, 32)
        schedule = Schedule.of(LongCoT(4000), QUERY, 4000)
        rooms = [5_000, 20_000, 60_000, AMPLE]
        taken = [synchronous(TINY, schedule, lengths, 32, room).total for room in rooms]
        assert all(more > less for more, less in itertools.pairwise(taken))
        assert synchronous(TINY, schedule, lengths, 32).total == taken[-1]

    def test_memory_that_only_just_fits_all_disturbs_none(self):
        lengths, schedule = np.full(8, 1000), Schedule.of(LongCoT(1000), QUERY, 1000)
        room = 8 * (QUERY + 999)
        assert synchronous(TINY, schedule, lengths, 8, room).total == pytest.approx(
            synchronous(TINY, schedule, lengths, 8).total, rel=1e-12
        )

    def test_a_preempted_trace_is_encoded_again(self):
        lengths, schedule = np.full(2, 120), Schedule.of(LongCoT(120), 100, 120)
        found = synchronous(TINY, schedule, lengths, 2, 300)
        steps = [(2, 2 * (100 + i)) for i in range(1, 51)]  # until 2 × 150 tokens are held
        steps += [(1, 100 + i) for i in range(51, 120)]  # the first one alone, to its end
        steps += [(1, 100 + i) for i in range(52, 120)]  # the second, whose prefill gave one token more
        expected = sum(float(TINY.decode(*step).total) for step in steps)
        expected += 2 * float(TINY.prefill(100).total) + float(TINY.prefill(151).total)
        assert found.total == pytest.approx(expected, rel=1e-9)


class TestTheParts:
    def test_traces_of_one_token_are_their_prefills(self):
        found = synchronous(TINY, Schedule.of(LongCoT(1), QUERY, 1), np.ones(5, np.int64), 2)
        assert found.total == pytest.approx(5 * float(TINY.prefill(QUERY).total))

    def test_no_traces_take_no_time(self):
        assert synchronous(TINY, Schedule.of(LongCoT(1), QUERY, 1), np.empty(0, np.int64), 2).total == 0

    def test_equal_traces_at_once_leave_no_tail(self):
        found = synchronous(TINY, Schedule.of(LongCoT(500), QUERY, 500), np.full(8, 500), 8)
        assert found.tail == 0
        assert found.concurrency_mean == pytest.approx(8)

    def test_one_long_trace_is_a_tail(self):
        lengths = np.array([5000] + [100] * 31)
        found = synchronous(TINY, Schedule.of(LongCoT(5000), QUERY, 5000), lengths, 32)
        assert found.tail > 0.5 * found.total

    @pytest.mark.parametrize("kv_tokens", [AMPLE, 2_000_000])
    @pytest.mark.parametrize("mode", ["longcot", "delethink"])
    def test_128_traces_of_96k_are_priced_at_once(self, mode, kv_tokens):
        roofline, lengths = roofline_of(MODELS[0]), lengths_of("lognormal:0.7", 32_768, 128)
        longest = int(lengths.max())
        environment = LongCoT(longest) if mode == "longcot" else Delethink.for_length(longest, 8192, 4096, 100)
        schedule = Schedule.of(environment, QUERY, longest)
        taken = []
        for _ in range(5):
            started = time.process_time()
            synchronous(roofline, schedule, lengths, 128, kv_tokens)
            taken.append(time.process_time() - started)
        assert min(taken) < 0.1  # 5 ms where nothing else runs

"""The simulated engine batches as a real one does, on a clock that only priced passes move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.engines.base import Completion, Limits, Request
from scaling.engines.prefixes import PAGE_TOKENS
from scaling.engines.simulated import SimulatedEngine
from scaling.errors import MemoryLimitError, UsageError
from scaling.predict.crowd import WATERMARK
from scaling.predict.efficiency import SERVING
from scaling.predict.hardware import gpu
from scaling.predict.roofline import Roofline
from scaling.predict.shape import Shape, architecture
from scaling.rollout import rollout
from scaling.thinking import BudgetForcing, Delethink, Folding, LongCoT, Summary

ROOFLINE = Roofline(Shape.from_config(architecture("tiny")), SERVING.machine(gpu("h100"), "bfloat16"))
VOCABULARY = ROOFLINE.shape.vocabulary
ENVIRONMENTS = [
    LongCoT(150),
    Delethink(64, 32, 5, 10),
    Summary(64, 16, 3, cue=(1, 2, 4)),
    Folding(64, 16, 3, opening=7, closing=9),
    BudgetForcing(150, 3, cue=(1, 2)),
]
AMPLE = Limits(kv_tokens=100_000, max_sequences=64, max_length=10_000)


def engine_of(limits: Limits = AMPLE, **options: Any) -> SimulatedEngine:
    return SimulatedEngine(ROOFLINE, limits, **{"admission": "paged", **options})


def request(prompt: int, max_tokens: int, *, first: int = 1, **options: Any) -> Request:
    return Request([first] * prompt, max_tokens, **{"ignore_eos": True, **options})


def run(engine: Any, requests: Sequence[Request]) -> list[Completion]:
    """All requests at once, to the end, in order."""
    ids = [engine.submit(request) for request in requests]
    done: dict[int, Completion] = {}
    while len(done) < len(ids):
        done.update({completion.id: completion for completion in engine.step()})
    return [done[id] for id in ids]


MIXED = [request(*sizes) for sizes in [(5, 140), (128, 40), (127, 3), (300, 90), (5, 1), (1, 200), (64, 64)]]


@pytest.fixture(scope="module")
def model():
    from scaling.decoder import Decoder

    return Decoder.from_config(architecture("tiny"), seed=0)


class TestBesideTheEmbeddedEngine:
    """The same requests on a model that is really run: the same tokens, batches, steps and peaks."""

    COUNTERS = (
        "prefill_tokens",
        "decode_tokens",
        "decode_steps",
        "peak_running",
        "peak_kv_tokens",
        "preemptions",
        "running",
        "waiting",
        "kv_tokens",
    )

    def local(self, model, max_sequences):
        from scaling.engines.local import LocalEngine

        return LocalEngine(model, kv_bytes=64 * 2**20, max_sequences=max_sequences, max_length=1000)

    @pytest.mark.parametrize("admission", ["paged", "reserved"])
    @pytest.mark.parametrize("max_sequences", [1, 3, 64])
    def test_requests_take_the_same_steps(self, model, max_sequences, admission):
        simulated = engine_of(Limits(16_384, max_sequences, 1000), admission=admission)
        local = self.local(model, max_sequences)
        pairs = list(zip(run(simulated, MIXED), run(local, MIXED), strict=True))
        for ours, theirs in pairs:
            assert (ours.id, ours.finish, ours.computed, ours.cached) == (
                theirs.id,
                theirs.finish,
                theirs.computed,
                theirs.cached,
            )
            assert len(ours.tokens) == len(ours.logprobs) == len(theirs.tokens)
        for counter in self.COUNTERS:
            assert getattr(simulated.stats(), counter) == getattr(local.stats(), counter), counter

    @pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda e: e.name)
    def test_traces_take_the_same_steps(self, model, environment):
        lengths = [environment.expected_lengths(16, n) for n in (150, 20, 97, 64, 33)]
        queries = [[i] * 16 for i in range(5)]
        engines = engine_of(Limits(16_384, 3, 1000)), self.local(model, 3)
        ours, theirs = (rollout(engine, environment, queries, lengths=lengths) for engine in engines)
        for a, b in zip(ours, theirs, strict=True):
            assert a.response_lengths == b.response_lengths
            assert [len(chunk.prompt) for chunk in a.chunks] == [len(chunk.prompt) for chunk in b.chunks]
            assert (a.computed, a.cached) == (b.computed, b.cached)
            segments = environment.schedule(16, a.response_lengths)
            assert (a.computed, a.cached) == (sum(s.prefill for s in segments), sum(s.reused for s in segments))
        for counter in self.COUNTERS:
            assert getattr(engines[0].stats(), counter) == getattr(engines[1].stats(), counter), counter

    def test_a_small_memory_of_whole_pages_admits_the_same(self, model):
        from scaling.engines.kv import PAGE_TOKENS as PAGE
        from scaling.engines.local import LocalEngine

        requests = [request(100, 2 * PAGE - 99) for _ in range(5)]  # two pages each, to the last token
        token_bytes = model.shape.kv_bytes_per_token("float32")
        local = LocalEngine(model, kv_bytes=5 * PAGE * token_bytes, max_sequences=9, max_length=1000)
        simulated = engine_of(Limits(5 * PAGE, 9, 1000), admission="reserved")
        run(simulated, requests)
        run(local, requests)
        for counter in self.COUNTERS:
            assert getattr(simulated.stats(), counter) == getattr(local.stats(), counter), counter


class TestTheClock:
    def test_a_lonely_request_takes_its_prefill_and_each_of_its_steps(self):
        engine = engine_of()
        [done] = run(engine, [request(100, 50)])
        prefill = float(ROOFLINE.prefill(100).total)
        steps = [float(ROOFLINE.decode(1, 100 + i).total) for i in range(1, 50)]
        assert done.first_token == pytest.approx(prefill, rel=1e-12)
        assert done.last_token == engine.now() == pytest.approx(prefill + sum(steps), rel=1e-12)
        assert engine.stats().prefill_seconds == pytest.approx(prefill, rel=1e-12)
        assert engine.stats().decode_seconds == pytest.approx(sum(steps), rel=1e-12)

    def test_rows_share_steps_at_the_sum_of_their_contexts(self):
        engine = engine_of()
        run(engine, [request(100, 3), request(40, 5)])
        steps = [(2, 101 + 41), (2, 102 + 42), (1, 43), (1, 44)]
        expected = sum(float(ROOFLINE.decode(rows, keys).total) for rows, keys in steps)
        assert engine.stats().decode_seconds == pytest.approx(expected, rel=1e-12)

    def test_one_step_is_one_decode_of_every_row(self):
        engine = engine_of()
        for _ in range(3):
            engine.submit(request(10, 30))
        for step in range(1, 20):
            assert engine.step() == []
            assert engine.stats().decode_tokens == 3 * step

    def test_it_stands_still_while_nothing_runs(self):
        engine = engine_of()
        assert engine.step() == []
        engine.submit(request(5, 5))
        engine.measure([100, 200], [50])
        engine.load_weights([], 1)
        assert engine.now() == 0

    def test_it_is_all_prefills_and_steps(self):
        engine = engine_of(Limits(600, 4, 600))
        run(engine, MIXED)
        stats = engine.stats()
        assert engine.now() == pytest.approx(stats.prefill_seconds + stats.decode_seconds, rel=1e-12)

    def test_two_engines_tell_the_same_time(self):
        def story():
            engine = engine_of(Limits(600, 4, 600))
            return run(engine, MIXED), engine.now(), engine.stats()

        assert story() == story()

    def test_times_of_a_completion_are_in_order(self):
        engine = engine_of(Limits(600, 2, 600))
        for done in run(engine, MIXED):
            assert 0 == done.submitted < done.first_token <= done.last_token <= engine.now()

    def test_measuring_prices_the_step_that_is_asked_for(self):
        step = np.mean([float(ROOFLINE.decode(2, 300 + 2 * i).total) for i in range(4)])
        prefill = 2 * float(ROOFLINE.prefill(70).total)
        assert engine_of().measure([100, 200], warm_up=2, steps=4) == pytest.approx(step)
        assert engine_of().measure([100, 200], [70, 70], steps=4) == pytest.approx(prefill + step)

    def test_measuring_what_memory_does_not_hold_is_refused(self):
        with pytest.raises(MemoryLimitError):
            engine_of().measure([50_000, 50_000], steps=2)


class TestMemory:
    def test_paged_admits_by_the_prompt_and_preempts_the_youngest(self):
        engine = engine_of(Limits(300, 9, 300))
        old, young = engine.submit(request(100, 120)), engine.submit(request(100, 120))
        engine.step()
        assert engine.stats().running == 2
        while engine.stats().preemptions == 0:
            engine.step()
        assert (engine.stats().running, engine.stats().waiting) == (1, 1)
        done = []
        while len(done) < 2:
            done += engine.step()
        assert [c.id for c in done] == [old, young]

    def test_preemption_loses_no_token_and_computes_the_context_again(self):
        requests = [request(100, 120, seed=i) for i in range(2)]
        engine = engine_of(Limits(300, 9, 300))
        first, second = run(engine, requests)
        had = 1 + 50  # of the prefill, and of the steps while both fitted: 2 × (100 + 50) = 300
        assert (first.computed, second.computed) == (100, 100 + 100 + had)
        assert [c.tokens for c in (first, second)] == [c.tokens for c in run(engine_of(), requests)]
        assert engine.stats().prefill_tokens == 300 + had
        assert engine.stats().decode_tokens == 119 + 119 - 1  # the second prefill sampled one of them

    def test_reserved_admits_by_the_longest_and_never_preempts(self):
        engine = engine_of(Limits(300, 9, 300), admission="reserved")
        run(engine, [request(100, 120) for _ in range(3)])
        assert engine.stats().preemptions == 0
        assert engine.stats().peak_running == 1

    def test_a_paged_admission_leaves_the_watermark_free(self):
        engine = engine_of(Limits(10_000, 9, 10_000))
        free = int(WATERMARK * 10_000)
        for prompt in (5000, 5000 - free - 2):  # and a token each for the step to come
            engine.submit(request(prompt, 2))
        engine.submit(request(1, 2))
        engine.step()
        assert engine.stats().peak_running == 2

    def test_a_lonely_request_may_fill_all_of_it(self):
        engine = engine_of(Limits(10_000, 9, 10_001))
        [done] = run(engine, [request(9990, 11)])
        assert len(done.tokens) == 11
        assert engine.stats().peak_kv_tokens == 10_000

    @pytest.mark.parametrize("admission", ["paged", "reserved"])
    def test_what_can_never_fit_is_refused(self, admission):
        engine = engine_of(Limits(200, 9, 150), admission=admission)
        engine.submit(request(100, 50))
        with pytest.raises(MemoryLimitError, match="151 tokens do not fit a sequence"):
            engine.submit(request(100, 51))
        small = engine_of(Limits(149, 9, 1000), admission=admission)
        small.submit(request(100, 50))  # the last token is never fed back
        with pytest.raises(MemoryLimitError, match="151 tokens do not fit a KV memory of 149"):
            small.submit(request(100, 51))

    def test_a_memory_of_nothing_is_refused(self):
        with pytest.raises(MemoryLimitError, match="kv_tokens 0"):
            engine_of(Limits(0, 9, 9))

    def test_peaks_count_anew_when_asked(self):
        engine = engine_of()
        run(engine, [request(50, 10), request(50, 10)])
        assert engine.stats(new_peaks=True).peak_kv_tokens == 2 * 59
        run(engine, [request(5, 10)])
        assert (engine.stats().peak_kv_tokens, engine.stats().peak_running) == (14, 1)

    @given(
        kv_tokens=st.integers(60, 400),
        max_sequences=st.integers(1, 6),
        admission=st.sampled_from(["paged", "reserved"]),
        sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=12),
        aborted=st.sets(st.integers(0, 11), max_size=3),
    )
    def test_no_workload_breaks_memory_or_loses_a_token(self, kv_tokens, max_sequences, admission, sizes, aborted):
        engine = engine_of(Limits(kv_tokens, max_sequences, 100), admission=admission)
        ids = [engine.submit(request(*size, seed=i)) for i, size in enumerate(sizes)]
        done: dict[int, Completion] = {}
        for step in range(10_000):
            if step == 7:
                for id in aborted:
                    engine.abort(id)
            before = engine.now()
            done.update({c.id: c for c in engine.step()})
            stats = engine.stats()
            assert stats.kv_tokens <= stats.peak_kv_tokens <= kv_tokens
            assert stats.running <= stats.peak_running <= max_sequences
            assert engine.now() >= before
            if len(done) == len(ids):
                break
        assert sorted(done) == ids
        for i, (id, (prompt, max_tokens)) in enumerate(zip(ids, sizes, strict=True)):
            if done[id].finish == "abort":
                assert id in aborted
                continue
            assert len(done[id].tokens) == max_tokens
            assert done[id].tokens == run(engine_of(), [request(prompt, max_tokens, seed=i)])[0].tokens
            assert done[id].computed >= prompt
        assert stats.kv_tokens == stats.running == stats.waiting == 0
        assert stats.prefill_tokens == sum(c.computed for c in done.values())
        sampled = sum(len(c.tokens) for c in done.values())
        encoded = sum(c.computed > 0 for c in done.values())
        assert stats.decode_tokens <= sampled - encoded  # a recomputation samples a token as well
        if stats.preemptions == 0:
            assert stats.decode_tokens == sampled - encoded
        if admission == "reserved":
            assert stats.preemptions == 0


class TestPrefixCaching:
    QUERY = 4 * PAGE_TOKENS

    def test_off_nothing_is_cached(self):
        twice = [request(200, 5), request(200, 5)]
        assert [(c.computed, c.cached) for c in run(engine_of(), twice)] == [(200, 0), (200, 0)]

    def test_whole_pages_of_a_prompt_are_encoded_once(self):
        engine = engine_of(prefix_caching=True)
        tokens = 5 * PAGE_TOKENS + 3
        first, second = run(engine, [request(tokens, 5), request(tokens, 5)])
        assert (first.computed, first.cached) == (tokens, 0)
        assert (second.computed, second.cached) == (3, 5 * PAGE_TOKENS)
        assert engine.stats().prefix_hits == 1
        assert engine.stats().prefill_tokens == tokens + 3

    def test_the_last_token_is_always_encoded(self):
        _, second = run(engine_of(prefix_caching=True), [request(2 * PAGE_TOKENS, 5)] * 2)
        assert second.computed == PAGE_TOKENS

    def test_a_cached_prefix_costs_what_the_roofline_says(self):
        engine = engine_of(prefix_caching=True)
        run(engine, [request(100, 1)])
        before = engine.now()
        run(engine, [request(100, 1)])
        assert engine.now() - before == pytest.approx(float(ROOFLINE.prefill(4, 96).total))

    def test_delethink_finds_its_query_and_head_again_and_nothing_else(self):
        head = 2 * PAGE_TOKENS
        environment = Delethink(256, 128, 6, head)
        engine = engine_of(prefix_caching=True)
        [trace] = rollout(
            engine, environment, [[7] * self.QUERY], lengths=[environment.expected_lengths(self.QUERY, 700)]
        )
        assert trace.cached == (len(trace.chunks) - 1) * (self.QUERY + head)

    def test_what_was_preempted_is_encoded_whole(self):
        engine = engine_of(Limits(300, 9, 300), prefix_caching=True)
        _, second = run(engine, [request(100, 120, first=1), request(100, 120, first=2)])
        assert (second.cached, second.computed) == (0, 100 + 100 + 51)


class TestFollowing:
    """The KV of what the last step returned is there for a request that goes on from it."""

    def first(self, engine):
        before = request(40, 10)
        (done,) = run(engine, [before])
        return done, [*before.prompt, *done.tokens[:-1]]

    def test_what_is_new_is_priced_behind_what_is_kept(self):
        engine = engine_of()
        done, held = self.first(engine)
        started = engine.now()
        (second,) = run(engine, [Request([*held, 5, 6], 1, ignore_eos=True, follows=done.id)])
        assert (second.computed, second.cached) == (2, 49)
        assert engine.now() - started == pytest.approx(float(ROOFLINE.prefill(2, 49).total))

    def test_a_step_later_it_is_gone(self):
        engine = engine_of()
        done, held = self.first(engine)
        run(engine, [request(3, 2)])
        (late,) = run(engine, [Request([*held, 5], 1, ignore_eos=True, follows=done.id)])
        assert (late.computed, late.cached) == (50, 0)

    def test_another_prompt_is_encoded_whole(self):
        engine = engine_of()
        done, held = self.first(engine)
        (other,) = run(engine, [Request([2, *held], 1, ignore_eos=True, follows=done.id)])
        assert (other.computed, other.cached) == (50, 0)

    def test_it_goes_before_what_waits(self):
        engine = engine_of(Limits(10_000, 1, 1000))
        done, held = self.first(engine)
        waiting = engine.submit(request(8, 3))
        following = engine.submit(Request([*held, 5], 3, ignore_eos=True, follows=done.id))
        order = []
        while len(order) < 2:
            order += [completion.id for completion in engine.step()]
        assert order == [following, waiting]


class TestResponses:
    def test_they_run_to_max_tokens_and_hold_no_id_that_ends_one(self):
        engine = engine_of(eos=[3, 5])
        [done] = run(engine, [Request([1], max_tokens=3000, stop=(4, 9), seed=VOCABULARY - 2)])
        assert (done.finish, len(done.tokens)) == ("length", 3000)
        assert {3, 4, 5, 9}.isdisjoint(done.tokens)
        assert min(done.tokens) >= 0
        assert max(done.tokens) < VOCABULARY

    def test_the_seed_decides_them(self):
        one, same, other = run(engine_of(), [request(4, 30, seed=s) for s in (1, 1, 2)])
        assert one.tokens == same.tokens != other.tokens

    def test_they_are_certain(self):
        [done] = run(engine_of(), [request(4, 30)])
        assert list(done.logprobs) == [0.0] * 30

    def test_where_every_id_ends_one_there_is_none(self):
        with pytest.raises(UsageError, match="ends a response"):
            engine_of(eos=range(VOCABULARY)).submit(Request([1], max_tokens=3))

    def test_each_says_which_weights_it_began_with(self):
        engine = engine_of()
        [old] = run(engine, [request(4, 3)])
        engine.load_weights([], 7)
        [new] = run(engine, [request(4, 3)])
        assert (old.weights_version, new.weights_version) == (0, 7)


class TestTheContract:
    def test_aborted_requests_complete_with_what_they_have(self):
        engine = engine_of(Limits(1000, 2, 1000))
        kept, running, waiting = [engine.submit(request(20, 50, seed=i)) for i in range(3)]
        for _ in range(4):
            assert engine.step() == []
        engine.abort(running)
        engine.abort(waiting)
        engine.abort(99)
        assert engine.stats().kv_tokens == 24
        ended = {c.id: c for c in engine.step()}
        assert {id: c.finish for id, c in ended.items()} == {running: "abort", waiting: "abort"}
        assert (len(ended[running].tokens), len(ended[waiting].tokens)) == (5, 0)
        done: list[Completion] = []
        while not done:
            done = engine.step()
        assert (done[0].id, len(done[0].tokens)) == (kept, 50)
        assert engine.step() == []

    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            (Request([], max_tokens=1), "prompt is empty"),
            (Request([5, VOCABULARY], max_tokens=1), f"token id {VOCABULARY} is outside the vocabulary"),
            (Request([-1], max_tokens=1), "token id -1"),
            (Request([1], max_tokens=0), "max_tokens 0 is not positive"),
            (Request([1], max_tokens=1, temperature=-1.0), "temperature"),
            (Request([1], max_tokens=1, top_p=0.0), "top_p"),
        ],
    )
    def test_nonsense_is_refused_on_the_way_in(self, request_, message):
        engine = engine_of()
        with pytest.raises(UsageError, match=message):
            engine.submit(request_)
        assert engine.stats().waiting == 0

    def test_an_unknown_admission_is_refused(self):
        with pytest.raises(UsageError, match="did you mean paged"):
            engine_of(admission="page")

    def test_only_an_idle_engine_sleeps_and_a_sleeping_one_takes_nothing(self):
        engine = engine_of()
        id = engine.submit(request(9, 5))
        with pytest.raises(UsageError, match="sleep"):
            engine.sleep()
        engine.abort(id)
        engine.step()
        engine.sleep()
        for use in (lambda: engine.submit(request(9, 5)), engine.step, lambda: engine.abort(0)):
            with pytest.raises(UsageError, match="wake"):
                use()
        engine.wake()
        assert len(run(engine, [request(9, 5)])[0].tokens) == 5

    def test_a_closed_engine_has_dropped_everything(self):
        engine = engine_of(Limits(1000, 1, 1000))
        for _ in range(2):
            engine.submit(request(9, 50))
        engine.step()
        engine.close()
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.kv_tokens) == (0, 0, 0)
        with pytest.raises(UsageError, match="closed"):
            engine.submit(request(9, 5))

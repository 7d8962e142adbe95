"""One driver runs every environment; what the engine processes is what the schedule says."""

import pytest

from scaling.decoder import Decoder
from scaling.engines.local import LocalEngine
from scaling.errors import MemoryLimitError, UsageError
from scaling.rollout import Sampling, joined, rollout
from scaling.thinking import BudgetForcing, Chunk, Delethink, Folding, LongCoT, Summary

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 16,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
ENVIRONMENTS = [
    LongCoT(60),
    Delethink(16, 8, 6, 3),
    Delethink(16, 12, 6, 3),
    Delethink(16, 12, 6, 3, "chunkwise"),
    Delethink(16, 8, 6, 3, "recipe"),
    Delethink(16, 8, 6, 3, "untrimmed"),
    Summary(16, 5, 3, cue=(1, 2, 4)),
    Folding(16, 5, 3, opening=7, closing=9),
    BudgetForcing(40, 2, cue=(1, 2)),
]


def engine(eos=(), kv_tokens=4096, max_sequences=4):
    import torch

    model = Decoder.from_config(CONFIG, dtype=torch.float32, device="cpu", seed=0)
    per_token = model.shape.kv_bytes_per_token("float32")
    return LocalEngine(model, kv_bytes=kv_tokens * per_token, max_sequences=max_sequences, max_length=256, eos=eos)


def queries(count, length=5):
    return [[(7 * i + j) % 16 for j in range(length)] for i in range(count)]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
@pytest.mark.parametrize("eos", [(), (3, 11)], ids=["to the end", "eos in mid-chunk"])
def test_tokens_the_engine_processes_equal_the_schedule_of_the_actual_lengths(environment, eos):
    local = engine(eos)
    traces = rollout(local, environment, queries(7), sampling=Sampling(seed=1), concurrency=3)
    if eos:
        assert any(t.chunks[-1].finish == "stop" and len(t.chunks[-1].response) > 1 for t in traces)
    elif not isinstance(environment, Folding):  # whose steps end where the model writes a marker
        assert all(t.thinking_tokens == environment.budget for t in traces)
    schedules = [environment.schedule(5, t.response_lengths) for t in traces]
    segments = [s for schedule in schedules for s in schedule]
    stats = local.stats()
    assert stats.prefill_tokens == sum(s.prefill for s in segments)
    assert stats.decode_tokens == sum(s.steps for s in segments)
    assert sum(t.computed for t in traces) == stats.prefill_tokens
    assert [t.cached for t in traces] == [sum(s.reused for s in schedule) for schedule in schedules]


def test_each_prompt_is_what_the_environment_asked_for():
    environment = Delethink(16, 8, 4, 3)
    [trace] = rollout(engine(), environment, queries(1))
    first, second, third, fourth = trace.chunks
    head = first.response[:3]
    assert first.prompt == trace.query
    assert second.prompt == trace.query + head + first.response[-8:]
    assert third.prompt == trace.query + head + second.response[-8:]
    assert fourth.prompt == trace.query + head + third.response[-8:]


def test_fixed_lengths_are_kept_even_where_the_model_would_end():
    traces = rollout(engine(eos=(3, 11)), Delethink(16, 8, 3, 3), queries(2), lengths=[[16, 8, 2], [5]])
    assert [t.response_lengths for t in traces] == [[16, 8, 2], [5]]


def test_a_trace_does_not_depend_on_what_runs_beside_it():
    environment = Delethink(16, 8, 4, 3)
    together = rollout(engine(eos=(3,)), environment, queries(6), sampling=Sampling(seed=4), concurrency=4)
    alone = rollout(
        engine(eos=(3,), max_sequences=1), environment, queries(6), sampling=Sampling(seed=4), concurrency=1
    )
    assert [t.chunks for t in together] == [t.chunks for t in alone]


def test_traces_in_flight_never_exceed_the_concurrency():
    local = engine()
    running = []
    rollout(local, LongCoT(9), queries(7), concurrency=2, on_step=lambda: running.append(local.stats().running))
    assert max(running) == 2


def test_finished_traces_are_seen_as_they_end():
    seen = []
    traces = rollout(engine(), LongCoT(4), queries(5), concurrency=2, on_trace=lambda t: seen.append(t.index))
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert [t.index for t in traces] == [0, 1, 2, 3, 4]


def test_an_interrupt_leaves_the_engine_idle_and_usable():
    local = engine()

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout(local, LongCoT(50), queries(3), on_step=interrupt)
    assert (local.stats().running, local.stats().waiting) == (0, 0)
    assert len(rollout(local, LongCoT(5), queries(1))[0].chunks[0].response) == 5


def test_a_trace_that_can_never_fit_ends_the_rollout_with_a_memory_error():
    with pytest.raises(MemoryLimitError):
        rollout(engine(kv_tokens=32), LongCoT(60), queries(1))


def test_a_prefill_that_runs_out_of_memory_leaves_nothing_behind():
    local = engine()
    encode = local._forward.prefill

    def fail(*_):
        raise RuntimeError("out of memory")

    local._forward.prefill = fail
    with pytest.raises(RuntimeError):
        rollout(local, LongCoT(5), queries(2))
    local._forward.prefill = encode
    assert local.stats().kv_tokens == 0
    assert [t.thinking_tokens for t in rollout(local, LongCoT(5), queries(3))] == [5, 5, 5]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
def test_a_trace_goes_on_from_the_middle_of_a_chunk_as_if_it_had_never_stopped(environment):
    greedy = Sampling(temperature=0.0)
    [whole] = rollout(engine(), environment, queries(1), sampling=greedy)
    last = whole.chunks[-1]
    start = [*whole.chunks[:-1], Chunk(last.prompt, last.response[:3], "open")]
    local = engine()
    [rest] = rollout(local, environment, queries(1), sampling=greedy, starts=[start])
    assert rest.response_lengths == [len(last.response) - 3]  # what the turn had left, and new tokens alone
    assert len(rest.logprobs[0]) == len(last.response) - 3
    assert local.stats().prefill_tokens == len(last.prompt) + 3
    assert joined(start, rest.chunks) == whole.chunks


def test_what_follows_an_open_chunk_carries_the_whole_of_it():
    start = [Chunk((1, 2), (3, 4), "open")]
    [rest] = rollout(engine(), Delethink(16, 8, 3, 3), [[1, 2]], starts=[start])
    assert rest.response_lengths == [14, 8, 8]
    assert rest.chunks[1].prompt == (1, 2, 3, 4, *rest.chunks[0].response[:1], *rest.chunks[0].response[-8:])


@pytest.mark.parametrize(
    "start",
    [[Chunk((1, 2), (3,) * 9, "open")], [Chunk((1, 2), (3,), "stop"), Chunk((1, 2), (3,), "open")]],
    ids=["a turn that is full", "a trace that has ended"],
)
def test_an_open_chunk_needs_a_turn_that_has_tokens_left(start):
    with pytest.raises(UsageError, match="leaves nothing to say"):
        rollout(engine(), LongCoT(9), [[1, 2]], starts=[start])

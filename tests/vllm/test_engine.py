"""vLLM behind the engine contract: the same tokens, counts and probabilities as the embedded engine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

from scaling.decoder import Decoder
from scaling.engines.base import Request, Stats
from scaling.engines.local import LocalEngine
from scaling.errors import MemoryLimitError, UsageError
from scaling.packing import pack, samples_from
from scaling.rollout import Sampling, rollout
from scaling.thinking import Delethink, Environment, LongCoT
from scaling.update import logprobs

if TYPE_CHECKING:
    from scaling.engines.vllm import VLLMEngine

pytest.importorskip("vllm", reason="vLLM is not installed here; `nox -s vllm` installs and tests it")

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
}
ENVIRONMENTS = [LongCoT(100), Delethink(48, 24, 5, 4)]


@pytest.fixture(scope="module")
def model() -> Decoder:
    decoder = Decoder.from_config(CONFIG, seed=3)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)  # far from uniform, so that tokens are told apart
    return decoder


@pytest.fixture(scope="module")
def engine(model: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMEngine]:
    from scaling.engines.vllm import VLLMEngine

    path = tmp_path_factory.mktemp("model")
    model.save(path)
    engine = VLLMEngine(path, dtype="float32", max_sequences=4, max_length=2048, kv_bytes=32 << 20)
    yield engine
    engine.close()


def queries(count: int = 6, tokens: int = 20) -> list[list[int]]:
    generator = random.Random(0)
    return [[generator.randrange(512) for _ in range(tokens)] for _ in range(count)]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda e: e.name)
def test_greedy_traces_are_those_of_the_embedded_engine(
    engine: VLLMEngine, model: Decoder, environment: Environment
) -> None:
    local = LocalEngine(model, max_sequences=4, max_length=2048)
    theirs, ours = (rollout(e, environment, queries(), sampling=Sampling(0.0)) for e in (engine, local))
    assert [trace.chunks for trace in theirs] == [trace.chunks for trace in ours]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda e: e.name)
def test_log_probabilities_are_under_the_sampling_distribution(
    engine: VLLMEngine, model: Decoder, environment: Environment
) -> None:
    for trace in rollout(engine, environment, queries(), sampling=Sampling(0.6)):
        (batch,) = pack(samples_from(trace.chunks, trace.logprobs, 1.0, 0), 10**6)
        with torch.no_grad():
            assert (logprobs(model, batch, temperature=0.6) - batch.behaviour).abs().max() < 1e-4


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda e: e.name)
def test_processed_tokens_are_those_of_the_schedule(engine: VLLMEngine, environment: Environment) -> None:
    before = engine.stats(new_peaks=True)
    lengths = environment.expected_lengths(20, 70)
    traces = rollout(engine, environment, queries(), lengths=[lengths] * 6)
    after = engine.stats()
    assert [trace.response_lengths for trace in traces] == [lengths] * 6
    segments = environment.schedule(20, lengths)
    assert after.prefill_tokens - before.prefill_tokens == 6 * sum(s.prefill for s in segments)
    assert after.decode_tokens - before.decode_tokens == 6 * sum(s.steps for s in segments)
    assert after.peak_running == 4
    assert after.prefill_seconds > before.prefill_seconds
    assert after.decode_seconds > before.decode_seconds
    assert (after.running, after.waiting, after.kv_tokens) == (0, 0, 0)


def test_a_sample_depends_on_its_request_alone(engine: VLLMEngine) -> None:
    def sampled(count: int) -> list[tuple[int, ...]]:
        return [t.chunks[0].response for t in rollout(engine, LongCoT(30), queries(count), sampling=Sampling(1.0))]

    assert sampled(1) == sampled(4)[:1]


def test_a_stop_token_ends_a_response_and_is_part_of_it(engine: VLLMEngine) -> None:
    engine.submit(Request(queries()[0], 30, temperature=0.0))
    (whole,) = drained(engine)
    stop = whole.tokens[3]
    first = list(whole.tokens).index(stop)
    engine.submit(Request(queries()[0], 30, temperature=0.0, stop=(stop,)))
    engine.submit(Request(queries()[0], 30, temperature=0.0, stop=(stop,), ignore_eos=True))
    ended, ignored = sorted(drained(engine), key=lambda completion: completion.id)
    assert (ended.finish, list(ended.tokens)) == ("stop", list(whole.tokens)[: first + 1])
    assert (ignored.finish, list(ignored.tokens)) == ("length", list(whole.tokens))


def drained(engine: VLLMEngine) -> list[object]:
    found: list[object] = []
    while engine.stats().running or engine.stats().waiting or not found:
        found += engine.step()
    return found


def test_it_says_where_the_model_is_and_by_what_it_attends(engine: VLLMEngine) -> None:
    assert not engine.apart
    assert engine.attention
    assert all(name.endswith(("ATTN", "INFER")) for name in engine.attention)


def test_steps_are_timed_and_leave_nothing_behind(engine: VLLMEngine) -> None:
    short, long = (min(engine.measure([n] * 4, warm_up=2, steps=6) for _ in range(3)) for n in (64, 1900))
    assert 0 < short < long  # attention over thirty times the context
    assert engine.measure([], [512, 512]) > 0
    assert engine.step() == []
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)
    engine.submit(Request(queries()[0], 5))
    with pytest.raises(UsageError, match="while no request runs"):
        engine.measure([64])
    assert len(drained(engine)) == 1


def test_what_does_not_fit_is_refused(engine: VLLMEngine) -> None:
    with pytest.raises(MemoryLimitError, match="do not fit a sequence of at most 2048"):
        engine.submit(Request([1] * 2000, 100))
    with pytest.raises(MemoryLimitError, match="at once"):
        engine.measure([10**6])
    with pytest.raises(UsageError, match="outside the vocabulary of 512"):
        engine.submit(Request([600], 1))


def test_an_aborted_request_comes_back_as_one(engine: VLLMEngine) -> None:
    id = engine.submit(Request(queries()[0], 1000))
    engine.step()
    engine.abort(id)
    (aborted,) = engine.step()
    assert (aborted.id, aborted.finish) == (id, "abort")
    assert engine.step() == []


def test_requests_aborted_before_they_start_leave_the_clocks_of_the_next_ones_alone(engine: VLLMEngine) -> None:
    """As where a rollout fails while it submits: else all decoding counts as prefill, and a profile times nothing."""

    def aborted() -> Stats:
        for id in [engine.submit(Request(query, 1000)) for query in queries(3)]:
            engine.abort(id)
        assert len(engine.step()) == 3
        return engine.stats()

    before = aborted()
    assert (before.running, before.waiting, before.kv_tokens) == (0, 0, 0)
    engine.submit(Request(queries()[0], 30, ignore_eos=True))
    drained(engine)
    assert engine.stats().decode_seconds > before.decode_seconds
    before = aborted()
    engine.measure([64] * 4, warm_up=2, steps=6)
    assert engine.stats().decode_steps - before.decode_steps == 2 + 6


def test_more_requests_than_there_is_room_for_wait(engine: VLLMEngine) -> None:
    engine.stats(new_peaks=True)
    rollout(engine, LongCoT(8), queries(6), lengths=[[8]] * 6)
    assert engine.stats().peak_waiting == 2


def test_a_response_that_vllm_ended_for_a_reason_of_its_own_is_a_failed_one(engine: VLLMEngine) -> None:
    engine.submit(Request(queries()[0], 3, ignore_eos=True))
    while not (outputs := [output for output in engine._engine.step() if output.finished]):
        pass
    outputs[0].outputs[0].finish_reason = "error"
    failed = engine._finished(outputs[0])
    assert (failed.finish, list(failed.tokens)) == ("error", [])
    assert failed.error == "vLLM ended the response for another reason: error"
    engine._rest_if_idle()


def test_new_weights_are_what_is_sampled_from_then_on(engine: VLLMEngine, model: Decoder) -> None:
    other = Decoder.from_config(CONFIG, seed=4)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    engine.load_weights(other.named_parameters(), version=7)
    try:
        local = LocalEngine(other, max_sequences=4, max_length=2048)
        theirs, ours = (rollout(e, LongCoT(50), queries(), sampling=Sampling(0.0)) for e in (engine, local))
        assert [trace.chunks for trace in theirs] == [trace.chunks for trace in ours]
        engine.submit(Request(queries()[0], 2))
        assert drained(engine)[0].weights_version == 7  # type: ignore[attr-defined]
    finally:
        engine.load_weights(model.named_parameters(), version=0)

"""How long the inner loops take: `pytest --benchmark-only`."""

from __future__ import annotations

import random

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from scaling.decoder import Decoder
from scaling.predict.shape import architecture
from scaling.thinking import Chunk, Delethink, Environment, LongCoT
from scaling.update import Batch, Sample, logprobs, pack, samples_from, update_step

PAPER_96K = Delethink(context_size=8192, state_size=4096, iterations=23, head=100)
QUERY = tuple(range(64))
VERY_SMALL = architecture("tiny") | {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
VERY_SMALL |= {"num_key_value_heads": 2}


def trace_samples(environment: Environment, thinking_tokens: int) -> list[Sample]:
    """A trace of exactly so many random thinking tokens, as `next` would have built it."""
    rng = random.Random(0)
    chunks: list[Chunk] = []
    for length in environment.expected_lengths(len(QUERY), thinking_tokens):
        turn = environment.next(QUERY, chunks)
        assert turn is not None
        chunks.append(Chunk(turn.prompt, tuple(rng.randrange(1024) for _ in range(length)), "length"))
    return samples_from(chunks, [[-7.0] * len(chunk.response) for chunk in chunks], 1.0, trace=0)


def test_schedule_of_a_96k_trace(benchmark: BenchmarkFixture) -> None:
    lengths = PAPER_96K.expected_lengths(len(QUERY), PAPER_96K.budget)
    assert len(benchmark(PAPER_96K.schedule, len(QUERY), lengths)) == 23


def test_packing_a_step_of_128_prompts_by_8_traces(benchmark: BenchmarkFixture) -> None:
    """The paper's step at 24K: 1024 traces of up to 5 chunks; lengths spread, tokens few, as only counting is timed."""
    rng = random.Random(0)
    samples = [
        Sample((0,) * rng.randrange(16, 64), (0,) * (size := rng.randrange(1, 64)), 1.0, (0.0,) * size, trace, 320)
        for trace in range(1024)
        for _ in range(rng.randrange(1, 6))
    ]
    batches = benchmark(pack, samples, 256)
    assert sum(len(batch.samples) for batch in batches) == len(samples)


@pytest.mark.parametrize(
    ("environment", "token_budget"),
    [
        (LongCoT(4096), 8192),
        (Delethink.for_length(4096, 1024, 512, 100), 8192),
        (Delethink.for_length(4096, 1024, 512, 100), 2048),
    ],
    ids=["longcot", "delethink-packed", "delethink-chunk-by-chunk"],
)
def test_update_of_4k_thinking_tokens(benchmark: BenchmarkFixture, environment: Environment, token_budget: int) -> None:
    model = Decoder.from_config(VERY_SMALL)
    batches = pack(trace_samples(environment, 4096), token_budget)
    metrics = benchmark(update_step, model, torch.optim.SGD(model.parameters(), lr=0.0), batches)
    assert metrics["response_tokens"] == 4096


def test_log_probabilities_over_a_large_vocabulary(benchmark: BenchmarkFixture) -> None:
    model = Decoder.from_config(VERY_SMALL | {"vocab_size": 151_936})
    batch = Batch.of(trace_samples(LongCoT(1024), 1024))
    with torch.no_grad():
        assert benchmark(logprobs, model, batch).shape == (1024,)

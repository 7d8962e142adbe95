"""How long the inner loops take: `pytest --benchmark-only`.

`extra_info` holds what is the same on every machine: the work that a benchmark does, and what that takes in tokens.
`scaling check` compares it exactly. It is read off what was timed, or off one more call of it: what a test knows
beforehand would stay as it is whatever the code does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import scaling
from scaling.decoder import Decoder
from scaling.engines.base import Limits, Request
from scaling.engines.local import LocalEngine
from scaling.engines.simulated import SimulatedEngine
from scaling.laws import fit_curve
from scaling.packing import Batch, Sample, pack, samples_from
from scaling.predict.efficiency import SERVING
from scaling.predict.hardware import gpu
from scaling.predict.roofline import Roofline
from scaling.predict.shape import Shape, architecture
from scaling.rollout import rollout
from scaling.thinking import Chunk, Delethink, Environment, LongCoT
from scaling.update import logprobs, update_step

PAPER_96K = Delethink(context_size=8192, state_size=4096, iterations=23, head=100)
QUERY = tuple(range(64))
VERY_SMALL = architecture("tiny") | {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
VERY_SMALL |= {"num_key_value_heads": 2}


class Counted:
    """A policy that counts the tokens put through its layers, and the positions put through its head."""

    def __init__(self, model: Decoder) -> None:
        self.model, self.tokens, self.scored = model, 0, 0

    def hidden(self, tokens: torch.Tensor, lengths: Sequence[int], checkpoint: bool = False) -> torch.Tensor:
        self.tokens += len(tokens)
        return self.model.hidden(tokens, lengths, checkpoint)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.scored += len(hidden)
        return self.model.logits(hidden)


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
    segments = benchmark(PAPER_96K.schedule, len(QUERY), lengths)
    benchmark.extra_info.update(chunks=len(segments), prefill_computed_tokens=sum(s.prefill for s in segments))
    assert len(segments) == 23


@pytest.mark.parametrize("mode", ["longcot", "delethink"])
def test_planning_the_papers_job_at_96k(benchmark: BenchmarkFixture, mode: str) -> None:
    """From the names of a model and a GPU to hours and dollars."""
    options = {"model": "r1-distill-qwen-1.5b", "gpu": "h100", "gpus": 8, "modes": mode, "budget": 98304}
    (plan,) = benchmark(scaling.plan, "24k", **options)
    benchmark.extra_info["planned_step_seconds"] = plan.step_seconds
    assert plan.step_seconds > 0


def test_fitting_a_law_with_its_intervals(benchmark: BenchmarkFixture) -> None:
    """Eight lengths by three repeats of a bent curve with 2 % noise: every law, and the bootstrap of the one taken."""
    tokens = np.repeat(np.array([8, 12, 16, 24, 32, 48, 64, 96]) * 1024.0, 3)
    noise = np.random.default_rng(0).normal(1, 0.02, len(tokens))
    seconds = (1 + 5e-4 * tokens + 1e-8 * tokens**2) * noise
    fit = benchmark(fit_curve, tokens, seconds, curve={"environment": "longcot", "method": "full"})
    draws = sum(len(estimate.draws) for estimate in fit.estimates.values())
    benchmark.extra_info.update(rows=len(fit.tokens), draws=draws)
    assert fit.curvature_interval.low < fit.curvature_share < fit.curvature_interval.high


@pytest.mark.parametrize(("rows", "context"), [(1, 512), (8, 512), (8, 2048)], ids=str)
def test_decode_step_of_the_tiny_model(benchmark: BenchmarkFixture, rows: int, context: int) -> None:
    """One token for each of `rows` sequences at contexts from `context` on, 60 steps."""
    warm, steps = 10, 60
    model = Decoder.from_config(architecture("tiny"), dtype=torch.float32, seed=0)
    length = context + warm + steps + 2
    engine = LocalEngine(model, kv_bytes=rows * (length + 64) * 4096, max_sequences=rows, max_length=length)
    try:
        for row in range(rows):
            prompt = [(row + position) % 1024 for position in range(context)]
            engine.submit(Request(prompt=prompt, max_tokens=length - context, ignore_eos=True))
        engine.step()
        before = engine.stats()
        benchmark.pedantic(engine.step, rounds=steps, warmup_rounds=warm)
        after = engine.stats()
    finally:
        engine.close()
    decoded = after.decode_tokens - before.decode_tokens
    benchmark.extra_info.update(
        decode_tokens=decoded,
        decode_steps=after.decode_steps - before.decode_steps,
        prefill_computed_tokens=after.prefill_tokens - before.prefill_tokens,
        kv_bytes_per_token=model.shape.kv_bytes_per_token("float32"),
    )
    assert decoded == rows * (steps + warm)


def test_chunk_boundaries_of_64_traces(benchmark: BenchmarkFixture) -> None:
    """The driver from the end of a chunk to the request of the next one: 64 traces of 31 chunks of 4 tokens and more,
    on an engine that only keeps the clock."""
    environment = Delethink(context_size=8, state_size=4, iterations=31, head=2)
    roofline = Roofline(Shape.from_config(architecture("tiny")), SERVING.machine(gpu("h100"), "bfloat16"))
    queries = [[trace] * 8 for trace in range(64)]
    lengths = [environment.expected_lengths(8, environment.budget)] * len(queries)

    def run() -> tuple[int, SimulatedEngine]:
        engine = SimulatedEngine(roofline, Limits(64 * 128, 64, 128), admission="paged")
        return sum(len(trace.chunks) for trace in rollout(engine, environment, queries, lengths=lengths)), engine

    chunks, engine = benchmark(run)
    counts = engine.stats()
    benchmark.extra_info.update(
        chunks=chunks,
        decode_tokens=counts.decode_tokens,
        decode_steps=counts.decode_steps,
        prefill_computed_tokens=counts.prefill_tokens,
    )
    assert chunks == 64 * 31


def test_packing_a_step_of_128_prompts_by_8_traces(benchmark: BenchmarkFixture) -> None:
    """The paper's step at 24K: 1024 traces of up to 5 chunks; lengths spread, tokens few, as only counting is timed."""
    rng = random.Random(0)
    samples = [
        Sample((0,) * rng.randrange(16, 64), (0,) * (size := rng.randrange(1, 64)), 1.0, (0.0,) * size, trace, 320)
        for trace in range(1024)
        for _ in range(rng.randrange(1, 6))
    ]
    batches = benchmark(pack, samples, 256)
    packed = sum(len(batch.samples) for batch in batches)
    benchmark.extra_info.update(chunks=packed, batches=len(batches))
    assert packed == len(samples)


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
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    metrics = benchmark(update_step, model, optimizer, batches)
    update_step(counted := Counted(model), optimizer, batches)
    benchmark.extra_info.update(batches=len(batches), processed_tokens=counted.tokens, scored_tokens=counted.scored)
    assert metrics["response_tokens"] == 4096


def test_log_probabilities_over_a_large_vocabulary(benchmark: BenchmarkFixture) -> None:
    model = Decoder.from_config(VERY_SMALL | {"vocab_size": 151_936})
    batch = Batch.of(trace_samples(LongCoT(1024), 1024))
    with torch.no_grad():
        found = benchmark(logprobs, model, batch)
        logprobs(counted := Counted(model), batch)
    benchmark.extra_info.update(processed_tokens=counted.tokens, scored_tokens=counted.scored)
    assert found.shape == (1024,)

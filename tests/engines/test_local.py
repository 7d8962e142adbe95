"""The embedded engine samples what its model says, batches without mixing requests, and keeps to its memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from scaling.decoder import Decoder
from scaling.engines.base import Completion, Request
from scaling.engines.forward import Forward
from scaling.engines.kv import PAGE_TOKENS, Context, PagedKV, Plan
from scaling.engines.local import LocalEngine
from scaling.errors import CheckpointError, MemoryLimitError, UsageError
from scaling.predict.shape import architecture

VOCABULARY = 101
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": False, "head_dim": 24},
}


def model_of(family: str = "qwen3", dtype: torch.dtype = torch.float32) -> Decoder:
    config = {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        **FAMILIES[family],
    }
    model = Decoder.from_config(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def engine_of(model: Decoder | None = None, **options: Any) -> LocalEngine:
    return LocalEngine(model or model_of(), **{"kv_bytes": 16 * 2**20, **options})


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def run(engine: LocalEngine, requests: Sequence[Request]) -> list[Completion]:
    """All requests at once, to the end, in order."""
    ids = [engine.submit(request) for request in requests]
    done: dict[int, Completion] = {}
    while len(done) < len(ids):
        done.update({completion.id: completion for completion in engine.step()})
    return [done[id] for id in ids]


def reference_logits(model: Decoder, request: Request, completion: Completion) -> torch.Tensor:
    """The model's own logits before each response token."""
    sequence = torch.tensor([*request.prompt, *completion.tokens])
    with torch.no_grad():
        return model.logits(model.hidden(sequence, [len(sequence)]))[len(request.prompt) - 1 : -1].float()


MIXED = [
    Request(prompt(5, 1), max_tokens=140, temperature=1.0, seed=11),
    Request(prompt(PAGE_TOKENS, 2), max_tokens=40, temperature=0.6, top_p=0.8, seed=12),
    Request(prompt(PAGE_TOKENS - 1, 3), max_tokens=3, temperature=0.0),
    Request(prompt(300, 4), max_tokens=90, temperature=1.0, top_p=0.5, seed=13),
    Request(prompt(5, 5), max_tokens=1, temperature=1.3, seed=14),
    Request(prompt(1, 6), max_tokens=200, temperature=0.0),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_agrees_with_transformers_until_a_near_tie(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    model.save(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    requests = [Request(prompt(n, n), max_tokens=60, temperature=0.0) for n in (3, 130, 41)]
    for request, completion in zip(requests, run(engine_of(model), requests), strict=True):
        start = torch.tensor([list(request.prompt)])
        settings = {"max_new_tokens": 60, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        theirs = reference.generate(start, attention_mask=torch.ones_like(start), **settings)[0, start.shape[1] :]
        top = reference_logits(model, request, completion).topk(2).values
        near_ties = (top[:, 0] - top[:, 1] < 1e-3).nonzero()
        certain = int(near_ties[0]) if len(near_ties) else 60
        assert completion.tokens[:certain] == theirs.tolist()[:certain]
        assert certain >= 10


def test_logprobs_are_those_of_the_sampling_distribution() -> None:
    model = model_of()
    for request, completion in zip(MIXED, run(engine_of(model), MIXED), strict=True):
        if request.temperature == 0:
            assert completion.logprobs == [0.0] * len(completion.tokens)
            continue
        chances = torch.softmax(reference_logits(model, request, completion) / request.temperature, -1)
        for chance, token, logprob in zip(chances, completion.tokens, completion.logprobs, strict=True):
            likelier = chance[chance > chance[token]].sum().item()
            assert likelier < request.top_p + 1e-4  # else the nucleus would not hold it
            ordered = chance.sort(descending=True).values
            kept = ordered[ordered.cumsum(0) - ordered < request.top_p].sum().item()
            expected = torch.log(chance[token] / kept).item()
            assert logprob == pytest.approx(expected, abs=2e-3 if request.top_p == 1 else 0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_decoding_errs_no_more_than_transformers(family: str, tmp_path: Path) -> None:
    """Teacher-forced, token by token through KV memory, against float32."""
    model_of(family).save(tmp_path)
    forward = Forward(Decoder.load(tmp_path, dtype=torch.bfloat16))
    text, known = prompt(330, 9), 250
    kv = PagedKV(forward.shape, 3, torch.bfloat16, torch.device("cpu"))
    context = Context()
    kv.grow(context, known)
    with torch.inference_mode():
        steps = [forward.prefill([text[:known]], [context], kv)]
        for token in text[known:]:
            kv.grow(context, 1)
            steps.append(forward.decode([token], kv, Plan(kv, [context])))
        reference = {
            dtype: AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)(torch.tensor([text])).logits[0].float()
            for dtype in (torch.float32, torch.bfloat16)
        }
    exact = torch.log_softmax(reference[torch.float32][known - 1 :], -1)

    def error(logits: torch.Tensor) -> float:
        return (torch.log_softmax(logits.float(), -1) - exact).square().mean().sqrt().item()

    assert error(torch.cat(steps)) <= error(reference[torch.bfloat16][known - 1 :])


def test_samples_follow_the_distribution() -> None:
    model = model_of()
    requests = [Request([7, 8, 9], max_tokens=1, temperature=0.5, seed=seed) for seed in range(3000)]
    completions = run(engine_of(model, max_sequences=500), requests)
    counts = torch.bincount(torch.tensor([c.tokens[0] for c in completions]), minlength=VOCABULARY)
    expected = 3000 * torch.softmax(reference_logits(model, requests[0], completions[0])[0] / 0.5, -1)
    common = expected > 5
    chi_squared = ((counts - expected)[common].square() / expected[common]).sum().item()
    degrees = int(common.sum())
    assert degrees > 5
    assert chi_squared < degrees + 5 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    model = model_of(dtype=dtype)
    together = run(engine_of(model), MIXED)
    alone = [run(engine_of(model), [request])[0] for request in MIXED]
    for request, a, b in zip(MIXED, together, alone, strict=True):
        agreed = next((i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=True)) if x != y), len(a.tokens))
        if dtype == torch.float32:
            assert agreed == len(a.tokens), request
        else:  # rounding differs with the batch's size, and one other token changes all that follow
            assert agreed >= min(3, len(a.tokens)), request


def test_the_seed_decides_the_sample() -> None:
    request = Request(prompt(9), max_tokens=30, seed=1)
    one, same, other = run(engine_of(), [request, request, replace(request, seed=2)])
    assert one.tokens == same.tokens
    assert one.tokens != other.tokens


def test_end_of_sequence_and_stop_ids_end_a_response() -> None:
    free = run(engine_of(), [Request(prompt(9), max_tokens=30, temperature=0.0)])[0]
    end = free.tokens[12]
    first = free.tokens.index(end)
    request = Request(prompt(9), max_tokens=30, temperature=0.0)
    by_eos = run(engine_of(eos=[end]), [request])[0]
    by_stop = run(engine_of(), [replace(request, stop=(end,))])[0]
    ignored = run(engine_of(eos=[end]), [replace(request, ignore_eos=True, stop=(end,))])[0]
    for ended in (by_eos, by_stop):
        assert ended.finish == "stop"
        assert ended.tokens == free.tokens[: first + 1]
    assert (ignored.finish, ignored.tokens) == ("length", free.tokens)


def test_counters_are_the_tokens_processed_when_responses_end_early() -> None:
    engine = engine_of(eos=[3, 50, 77])
    completions = run(engine, MIXED)
    assert {c.finish for c in completions} == {"stop", "length"}
    stats = engine.stats()
    assert stats.prefill_tokens == sum(c.computed for c in completions) == sum(len(r.prompt) for r in MIXED)
    assert stats.decode_tokens == sum(len(c.tokens) - 1 for c in completions)
    assert (stats.running, stats.waiting, stats.kv_tokens, stats.preemptions) == (0, 0, 0, 0)
    assert stats.prefill_seconds > 0
    assert stats.decode_seconds > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_keys_and_values_take_the_bytes_that_the_shape_counts(family: str, dtype: torch.dtype) -> None:
    """Allocated: every page's tokens. Touched: those of the prompt, and of each token that was fed back."""
    model = model_of(family, dtype)
    a_token = model.shape.kv_bytes_per_token(str(dtype).removeprefix("torch."))
    engine = engine_of(model)
    assert engine._batch is not None
    kv = engine._batch.kv
    data = kv.data
    assert data.nbytes == a_token * kv.pages * PAGE_TOKENS
    engine.submit(Request(prompt(200), max_tokens=51, ignore_eos=True))
    while not engine.step():
        pass
    places = data.permute(2, 4, 0, 1, 3, 5).reshape(kv.pages * PAGE_TOKENS, -1)
    touched = places[places.any(dim=1)]
    assert touched.nbytes == a_token * (200 + 50)


def test_a_small_memory_queues_first_come_first_served_and_changes_no_sample() -> None:
    requests = [Request(prompt(100, i), max_tokens=60 + 40 * (i % 3), seed=i) for i in range(7)]
    expected = [c.tokens for c in run(engine_of(), requests)]
    model = model_of()
    token_bytes = model.shape.kv_bytes_per_token("float32")
    engine = engine_of(model, kv_bytes=5 * PAGE_TOKENS * token_bytes)
    assert engine.limits().kv_tokens == 5 * PAGE_TOKENS
    for request in requests:
        engine.submit(request)
    completions: list[Completion] = []
    while len(completions) < len(requests):
        completions += engine.step()
        assert engine.stats().kv_tokens <= engine.limits().kv_tokens
    by_id = sorted(completions, key=lambda c: c.id)
    assert [c.tokens for c in by_id] == expected
    assert [c.first_token for c in by_id] == sorted(c.first_token for c in by_id)
    assert engine.stats().peak_running == 2  # two pages each
    assert engine.stats().peak_kv_tokens <= engine.limits().kv_tokens


def follower(first: Completion, request: Request, said: Sequence[int], **options: Any) -> Request:
    """A request that goes on from another's context, its last token apart, with what is `said`."""
    return Request([*request.prompt, *first.tokens[:-1], *said], follows=first.id, **options)


@pytest.mark.parametrize("length", [5, PAGE_TOKENS - 4, 2 * PAGE_TOKENS])
def test_a_request_that_follows_another_encodes_what_is_new_and_samples_the_same(length: int) -> None:
    engine, before = engine_of(), Request(prompt(length), max_tokens=9, temperature=0.0)
    beside = Request(prompt(40, 1), max_tokens=60, seed=1)  # runs on all the while
    engine.submit(beside)
    first_id = engine.submit(before)
    while not (done := engine.step()):
        pass
    (first,) = done
    assert first.id == first_id
    request = follower(first, before, prompt(7, 2), max_tokens=30, temperature=0.0)
    (second,) = run(engine, [request])
    (alone,) = run(engine_of(), [replace(request, follows=None)])
    assert (second.computed, second.cached) == (7, length + 8)
    assert (alone.computed, alone.cached) == (length + 15, 0)
    assert second.tokens == alone.tokens
    assert np.allclose(second.logprobs, alone.logprobs, atol=1e-4)
    assert engine.stats().prefill_tokens == length + 7 + 40


def test_several_that_follow_go_on_together_beside_fresh_ones() -> None:
    before = [Request(prompt(20 + i, i), max_tokens=6, temperature=0.0) for i in range(3)]
    engine = engine_of()
    firsts = run(engine, before)
    requests = [follower(f, b, (3, 5), max_tokens=20, temperature=0.0) for f, b in zip(firsts, before, strict=True)]
    requests.insert(1, Request(prompt(50, 9), max_tokens=20, temperature=0.0))
    ours = run(engine, requests)
    theirs = run(engine_of(), [replace(request, follows=None) for request in requests])
    assert [c.tokens for c in ours] == [c.tokens for c in theirs]
    assert [c.cached for c in ours] == [25, 0, 26, 27]


def test_only_what_the_last_step_returned_can_be_followed() -> None:
    engine, before = engine_of(), Request(prompt(20), max_tokens=6)
    (first,) = run(engine, [before])
    run(engine, [Request(prompt(5), max_tokens=2)])
    (late,) = run(engine, [follower(first, before, (3,), max_tokens=2)])
    assert (late.computed, late.cached) == (26, 0)


def test_a_prompt_that_is_another_after_all_is_encoded_whole() -> None:
    engine, before = engine_of(), Request(prompt(20), max_tokens=6)
    (first,) = run(engine, [before])
    (other,) = run(engine, [Request([*prompt(20, 1), *first.tokens], max_tokens=2, follows=first.id)])
    assert (other.computed, other.cached) == (26, 0)


def test_kept_context_gives_way_where_memory_is_short_and_nothing_leaks() -> None:
    model = model_of()
    engine = engine_of(model, kv_bytes=2 * PAGE_TOKENS * model.shape.kv_bytes_per_token("float32"))
    before = [Request(prompt(20, i), max_tokens=6, temperature=0.0) for i in range(2)]
    firsts = run(engine, before)  # a page each
    requests = [follower(f, b, (3,), max_tokens=110, temperature=0.0) for f, b in zip(firsts, before, strict=True)]
    ours = run(engine, requests)  # two pages each: one at a time
    assert sorted(c.cached for c in ours) == [0, 25]
    theirs = run(engine_of(), [replace(request, follows=None) for request in requests])
    assert [c.tokens for c in ours] == [c.tokens for c in theirs]
    assert len(run(engine, [Request(prompt(200), max_tokens=50)])[0].tokens) == 50  # all of memory, again


def test_max_sequences_bounds_the_batch() -> None:
    engine = engine_of(max_sequences=3)
    run(engine, [Request(prompt(4), max_tokens=5, seed=i) for i in range(8)])
    assert engine.stats().peak_running == 3


def test_aborted_requests_complete_with_what_they_have() -> None:
    engine = engine_of(max_sequences=2)
    requests = [Request(prompt(20, i), max_tokens=50, seed=i) for i in range(3)]
    expected = run(engine_of(), requests)[0]
    kept, running, waiting = [engine.submit(request) for request in requests]
    for _ in range(4):
        assert engine.step() == []
    engine.abort(running)
    engine.abort(waiting)
    engine.abort(99)
    ended = {c.id: c for c in engine.step()}
    assert {id: c.finish for id, c in ended.items()} == {running: "abort", waiting: "abort"}
    assert len(ended[running].tokens) == 5
    assert ended[waiting].tokens == []
    done: list[Completion] = []
    while not done:
        done = engine.step()
    assert (done[0].id, done[0].tokens) == (kept, expected.tokens)
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
def test_nonsense_is_refused_on_the_way_in(request_: Request, message: str) -> None:
    engine = engine_of()
    with pytest.raises(UsageError, match=message):
        engine.submit(request_)
    assert engine.stats().waiting == 0


def test_what_can_never_fit_is_refused() -> None:
    model = model_of()
    engine = engine_of(model, kv_bytes=2 * PAGE_TOKENS * model.shape.kv_bytes_per_token("float32"), max_length=1000)
    engine.submit(Request(prompt(100), max_tokens=2 * PAGE_TOKENS - 99))  # the last token is never fed back
    for too_much in (2 * PAGE_TOKENS - 98, 901):
        with pytest.raises(MemoryLimitError):
            engine.submit(Request(prompt(100), max_tokens=too_much))
    with pytest.raises(MemoryLimitError):
        engine.measure([2**40])
    with pytest.raises(MemoryLimitError):
        engine_of(model, kv_bytes=2**60)


def test_new_weights_change_what_is_sampled() -> None:
    old, new = model_of(), model_of("qwen3")
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(0.05)
    request = Request(prompt(9), max_tokens=20, temperature=0.0)
    engine = engine_of(old)
    before = run(engine, [request])[0]
    engine.load_weights(((name, p.detach()) for name, p in new.named_parameters()), version=7)
    after = run(engine, [request])[0]
    assert after.tokens == run(engine_of(new), [request])[0].tokens != before.tokens
    assert (before.weights_version, after.weights_version) == (0, 7)
    with pytest.raises(CheckpointError, match="nonsense"):
        engine.load_weights([("nonsense", torch.ones(1))], version=8)


def test_the_model_is_shared_and_still_saves(tmp_path: Path) -> None:
    model = model_of()
    engine = engine_of(model)
    request = Request(prompt(9), max_tokens=20, temperature=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)  # as an optimizer would
    model.save(tmp_path)
    assert run(engine, [request])[0].tokens == run(engine_of(Decoder.load(tmp_path)), [request])[0].tokens


def test_a_sleeping_engine_holds_no_memory_and_wakes() -> None:
    engine = engine_of()
    request = Request(prompt(9), max_tokens=5, seed=3)
    expected = run(engine, [request])[0].tokens
    id = engine.submit(request)
    with pytest.raises(UsageError, match="sleep"):
        engine.sleep()
    engine.abort(id)
    engine.step()
    engine.sleep()
    with pytest.raises(UsageError, match="wake"):
        engine.submit(request)
    engine.wake()
    assert run(engine, [request])[0].tokens == expected


def test_measuring_does_not_disturb_running_requests() -> None:
    expected = [c.tokens for c in run(engine_of(), MIXED)]
    engine = engine_of()
    ids = [engine.submit(request) for request in MIXED]
    done: dict[int, Completion] = {}
    while len(done) < len(ids):
        done.update({c.id: c for c in engine.step()})
        if len(done) < 3:
            assert engine.measure([1, 200, PAGE_TOKENS, PAGE_TOKENS + 1], prefill=[7, 7, 150]) > 0
    assert [done[id].tokens for id in ids] == expected
    assert engine.stats().decode_tokens == sum(len(tokens) - 1 for tokens in expected)


def test_a_measured_step_costs_what_a_real_one_costs() -> None:
    engine = LocalEngine(Decoder.from_config(architecture("tiny")), kv_bytes=2**28)
    for seed in range(4):
        engine.submit(Request([1] * 4000, max_tokens=40, seed=seed))
    engine.step()
    real, measured = [], []
    while engine.stats().running:
        started = time.perf_counter()
        engine.step()
        real.append(time.perf_counter() - started)
        measured.append(engine.measure([4020] * 4))
    assert len(real) > 30
    assert 0.5 < statistics.median(measured) / statistics.median(real) < 2.0

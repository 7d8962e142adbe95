"""The packed, sliced, chunked policy-gradient step against the plain thing it stands for."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scaling.decoder import Decoder
from scaling.errors import ScalingError, UsageError
from scaling.packing import Batch, Sample, pack, samples_from
from scaling.predict.shape import architecture
from scaling.thinking import Chunk, Delethink, Environment, LongCoT
from scaling.update import Objective, logprobs, logprobs_and_entropy, policy_loss, update_step

VOCABULARY = 23
TINY_SLICE = 3 * 4 * 8 * VOCABULARY
"""Bytes that admit three positions at once in float64, so that every batch takes many ragged slices."""


class Plain(nn.Module):
    """One attention layer with explicit masks, the two methods of the contract and nothing clever."""

    def __init__(self, vocabulary: int = VOCABULARY, hidden: int = 8, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocabulary, hidden, dtype=dtype)
        self.place = nn.Embedding(128, hidden, dtype=dtype)
        self.qkv = nn.Linear(hidden, 3 * hidden, dtype=dtype)
        self.head = nn.Linear(hidden, vocabulary, bias=False, dtype=dtype)

    def hidden(self, tokens: Tensor, lengths: Sequence[int], checkpoint: bool = False) -> Tensor:
        outputs = []
        for part in tokens.split(list(lengths)):
            x = self.embed(part) + self.place.weight[: len(part)]
            q, k, v = self.qkv(x).chunk(3, -1)
            future = torch.ones(len(part), len(part), dtype=torch.bool).triu(1)
            weights = (q @ k.T / math.sqrt(q.shape[-1])).masked_fill(future, -math.inf).softmax(-1)
            outputs.append(x + weights @ v)
        return torch.cat(outputs)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


def decoder() -> Decoder:
    """The real thing, small: grouped queries, biases and a tied head."""
    small = {
        "model_type": "qwen2",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
    }
    model = Decoder.from_config(small, dtype=torch.float64, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)  # away from the uniform distribution
    return model


def think(environment: Environment, query: Sequence[int], lengths: Sequence[int], rng: random.Random) -> list[Chunk]:
    """A trace of random tokens that ends as the given response lengths say."""
    chunks: list[Chunk] = []
    for length in lengths:
        turn = environment.next(query, chunks)
        assert turn is not None
        response = tuple(rng.randrange(VOCABULARY) for _ in range(length))
        chunks.append(Chunk(turn.prompt, response, "length" if length == turn.max_tokens else "stop"))
    return chunks


DELETHINK = Delethink(context_size=10, state_size=4, iterations=4, head=2)


def group(rng: random.Random) -> list[list[Chunk]]:
    """Four traces: stopped early, stopped in mid-chunk, cut off by the iteration cap, one token long."""
    return [
        think(DELETHINK, [1, 2, 3], [7], rng),
        think(DELETHINK, [1, 2, 3], [10, 6, 2], rng),
        think(DELETHINK, [1, 2, 3, 4, 5], [10, 6, 6, 6], rng),
        think(LongCoT(40), [1], [1], rng),
    ]


def longcot_group(rng: random.Random) -> list[list[Chunk]]:
    """Three traces of one chunk, the last cut off by its budget."""
    return [think(LongCoT(40), [1, 2, 3], [length], rng) for length in (5, 17, 40)]


def training_samples(traces: Sequence[Sequence[Chunk]], rng: random.Random) -> list[Sample]:
    """Traces with one advantage each, but the second with one a token."""
    advantages: list[float | list[tuple[float, ...]]] = [-1.0, 1.3, 0.4, -0.2]
    if len(traces) > 1:
        advantages[1] = [tuple(rng.uniform(-2, 2) for _ in chunk.response) for chunk in traces[1]]
    return [
        sample
        for index, chunks in enumerate(traces)
        for sample in samples_from(
            chunks,
            [[rng.uniform(-4, -2) for _ in chunk.response] for chunk in chunks],
            advantages[index],
            trace=index,
        )
    ]


def plain_loss(
    model: Plain | Decoder, batches: Sequence[Batch], traces: int, objective: Objective, temperature: float
) -> Tensor:
    """Eq. 3 written out: chunk by chunk, token by token, all logits at once."""
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        at = 0
        for sample in batch.samples:
            ids = torch.tensor(sample.prompt + sample.response)
            every = (model.logits(model.hidden(ids, [len(ids)])) / temperature).log_softmax(-1)
            for t, token in enumerate(sample.response):
                now = every[len(sample.prompt) + t - 1, token]
                old = now.detach() if batch.old is None else batch.old[at]
                ratio = torch.exp(now - old)
                low, high = 1 - objective.clip_low, 1 + objective.clip_high
                advantage = sample.advantages[t]
                term = torch.min(ratio * advantage, ratio.clamp(low, high) * advantage)
                if objective.importance_cap is not None:
                    term = term * torch.exp(old - sample.behaviour[t]).clamp(max=objective.importance_cap)
                if objective.kl:
                    assert batch.reference is not None
                    gap = batch.reference[at] - now
                    term = term - objective.kl * (torch.exp(gap) - gap - 1)
                total = total - term / sample.thinking_tokens / traces
                at += 1
    return total


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def disturbed(model: Plain | Decoder, batch: Batch, seed: int) -> Tensor:
    """Log-probabilities of a policy some way off, so that ratios fall inside and outside the clip range."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return logprobs(model, batch) + 0.3 * torch.randn(len(batch.targets), dtype=torch.float64)


@pytest.mark.parametrize("make", [Plain, decoder], ids=["plain", "decoder"])
@pytest.mark.parametrize("traces", [group, longcot_group], ids=["delethink", "longcot"])
@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    ("objective", "off_policy", "temperature"),
    [
        (Objective(importance_cap=None), False, 1.0),
        (Objective(importance_cap=None), True, 1.0),
        (Objective(), True, 0.6),
        (Objective(kl=0.05), True, 1.0),
    ],
    ids=["on-policy", "clipped", "importance", "kl"],
)
def test_the_gradient_is_that_of_the_plain_unpacked_loss(
    make: Callable[[], Plain | Decoder],
    traces: Callable[[random.Random], list[list[Chunk]]],
    checkpoint: bool,
    objective: Objective,
    off_policy: bool,
    temperature: float,
) -> None:
    model, rng = make(), random.Random(0)
    thought = traces(rng)
    batches = pack(training_samples(thought, rng), token_budget=24)
    assert len(batches) > 1
    if off_policy:
        batches = [replace(b, old=disturbed(model, b, 1), reference=disturbed(model, b, 2)) for b in batches]

    metrics = update_step(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        batches,
        objective=objective,
        temperature=temperature,
        max_grad_norm=math.inf,
        slice_bytes=TINY_SLICE,
        checkpoint=checkpoint,
    )
    found = gradients(model)
    model.zero_grad()
    expected_loss = plain_loss(model, batches, len(thought), objective, temperature)
    expected_loss.backward()
    expected = gradients(model)

    assert metrics["loss"] == pytest.approx(expected_loss.item(), rel=1e-9, abs=1e-12)
    assert metrics["grad_norm"] == pytest.approx(float(expected.norm()), rel=1e-9)
    assert float((found - expected).norm() / expected.norm()) < 1e-9
    if off_policy:
        assert 0 < metrics["clip_fraction"] < 1
    if objective.importance_cap is not None:
        assert 0 < metrics["importance_capped_fraction"] < 1


def test_how_chunks_fall_into_micro_batches_does_not_change_the_step() -> None:
    rng = random.Random(3)
    samples = training_samples(group(rng), rng)

    def stepped(token_budget: int) -> tuple[dict[str, float], Tensor]:
        model = decoder()
        metrics = update_step(model, torch.optim.SGD(model.parameters(), lr=0.1), pack(samples, token_budget))
        return metrics, torch.cat([p.detach().flatten() for p in model.parameters()])

    one, alone = stepped(10_000), stepped(1)
    assert torch.allclose(one[1], alone[1], rtol=1e-12, atol=1e-14)
    assert one[0] == pytest.approx(alone[0])


def test_a_trace_counts_the_same_however_long_it_thinks() -> None:
    """On-policy every term is its advantage, so a trace's loss is −A whatever ℓ(τ) and its number of chunks."""
    rng = random.Random(0)
    thought = group(rng)
    samples = [s for i, c in enumerate(thought) for s in samples_from(c, [[0.0] * len(x.response) for x in c], 1.5, i)]
    model = Plain()
    loss = update_step(
        model, torch.optim.SGD(model.parameters(), lr=0.0), pack(samples, 24), objective=Objective(importance_cap=None)
    )["loss"]
    assert loss == pytest.approx(-1.5)


def test_a_trace_of_one_token_is_one_action() -> None:
    model = Plain()
    (batch,) = pack(samples_from([Chunk((1, 2), (3,), "stop")], [[-1.0]], 1.0, trace=0), 8)
    assert batch.tokens.tolist() == [1, 2]
    assert batch.positions.tolist() == [1]
    expected = model.logits(model.hidden(torch.tensor([1, 2]), [2]))[1].log_softmax(-1)[3]
    assert logprobs(model, batch).tolist() == pytest.approx([expected.item()])


def test_a_batch_moves_as_a_whole() -> None:
    batch = Batch.of(samples_from([Chunk((1, 2), (3,), "stop")], [[-1.0]], 1.0, trace=0))
    moved = replace(batch, old=batch.behaviour).to("meta")
    fields = [getattr(moved, name) for name in Batch.__dataclass_fields__]
    assert [field.device.type for field in fields if isinstance(field, Tensor)] == ["meta"] * 7
    assert moved.reference is None
    assert moved.samples == batch.samples


def test_a_blank_batch_leaves_no_trace_in_gradient_or_metrics() -> None:
    """Not even of the KL term, whose gradient does not depend on advantages."""
    rng = random.Random(0)
    (batch,) = pack(training_samples(group(rng), rng), 10_000)
    model = decoder()
    batch = replace(batch, old=disturbed(model, batch, 1), reference=disturbed(model, batch, 2))

    def stepped(batches: Sequence[Batch]) -> tuple[dict[str, float], Tensor]:
        model.zero_grad()
        sgd = torch.optim.SGD(model.parameters(), lr=0.0)
        metrics = update_step(model, sgd, batches, traces=4, objective=Objective(kl=0.1), max_grad_norm=math.inf)
        return metrics, gradients(model)

    alone, beside_blank = stepped([batch]), stepped([batch, batch.blank()])
    assert torch.equal(alone[1], beside_blank[1])
    assert alone[0] == beside_blank[0]


def test_prompt_and_carryover_are_inputs_and_never_actions() -> None:
    """Through the head a gradient reaches the hidden states that predict a response token, and no other."""
    model, rng = Plain(), random.Random(0)
    samples = training_samples([think(DELETHINK, [1, 2, 3], [10, 6, 2], rng)], rng)
    (batch,) = pack(samples, 1000)
    hidden = model.hidden(batch.tokens, batch.lengths).detach().requires_grad_()

    class Head:
        """The same head on hidden states that are leaves."""

        logits = model.logits

        def hidden(self, *_: object) -> Tensor:
            return hidden

    logprobs(Head(), batch).sum().backward()
    assert hidden.grad is not None
    touched = hidden.grad.abs().sum(-1) > 0
    expected = [index >= len(sample.prompt) - 1 for sample in batch.samples for index in range(sample.input_tokens)]
    assert touched.tolist() == expected
    assert sum(expected) == 18 == samples[0].thinking_tokens


def test_entropy_and_log_probabilities_are_those_of_the_sampling_temperature() -> None:
    model, rng = Plain(), random.Random(0)
    (batch,) = pack(training_samples(group(rng), rng), 1000)
    hidden = model.hidden(batch.tokens, batch.lengths)[batch.positions]
    distribution = torch.distributions.Categorical(logits=model.logits(hidden) / 0.6)
    scored, entropy = logprobs_and_entropy(model, batch, temperature=0.6, slice_bytes=TINY_SLICE)
    assert torch.allclose(scored, distribution.log_prob(batch.targets), rtol=1e-12)
    assert torch.allclose(entropy, distribution.entropy(), rtol=1e-12)
    assert not entropy.requires_grad


class Largest(TorchDispatchMode):
    """Remembers the most elements that any tensor had which an operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.numel())
        return made


def test_logits_of_all_tokens_never_exist_at_once() -> None:
    tokens, vocabulary = 4096, 32_768
    model = Plain(vocabulary, hidden=4, dtype=torch.float32)
    model.place = nn.Embedding(tokens, 4)
    model.hidden = lambda ids, *_: model.embed(ids)  # type: ignore[method-assign]  # attention would hide the head
    rng = random.Random(0)
    response = tuple(rng.randrange(vocabulary) for _ in range(tokens))
    batch = Batch.of([Sample((1,), response, 1.0, (0.0,) * tokens, 0, tokens)])
    budget = 32 << 20
    with Largest() as seen:
        logprobs(model, batch, slice_bytes=budget).sum().backward()
    assert vocabulary < seen.elements <= budget // 16
    assert seen.elements * 50 < tokens * vocabulary


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_log_probabilities_are_float32_at_least(dtype: torch.dtype) -> None:
    model = Decoder.from_config(architecture("tiny"), dtype=dtype)
    rng = random.Random(0)
    batches = pack(training_samples(group(rng), rng), 64)
    scored = logprobs(model, batches[0])
    assert scored.dtype == torch.float32
    with torch.no_grad():
        logits = model.logits(model.hidden(batches[0].tokens, batches[0].lengths)[batches[0].positions])
    expected = logits.double().log_softmax(-1).gather(-1, batches[0].targets[:, None])[:, 0]
    assert torch.allclose(scored.double(), expected, rtol=1e-6)
    metrics = update_step(model, torch.optim.SGD(model.parameters(), lr=0.1), batches)
    assert math.isfinite(metrics["loss"])
    assert all(parameter.dtype == dtype for parameter in model.parameters())


def test_float32_weights_train_under_bfloat16_autocast() -> None:
    """Gradients stay float32 and close to those of float32 throughout."""
    rng = random.Random(0)
    batches = pack(training_samples(group(rng), rng), 64)
    found = []
    for enabled in (False, True):
        model = Decoder.from_config(architecture("tiny"))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            update_step(model, torch.optim.SGD(model.parameters(), lr=0.0), batches, slice_bytes=1 << 16)
        found.append(gradients(model))
    assert found[1].dtype == torch.float32
    assert 0 < float((found[0] - found[1]).norm() / found[0].norm()) < 0.02


def test_the_clip_is_wider_above_and_stops_the_gradient() -> None:
    ratio = torch.tensor([0.7, 0.79, 0.81, 1.25, 1.27, 1.27, 0.7], dtype=torch.float64)
    advantage = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    scored = ratio.log().requires_grad_()
    old, tokens = torch.zeros_like(ratio), torch.ones_like(ratio)
    loss, sums = policy_loss(scored, old, advantage, tokens, traces=1, objective=Objective(importance_cap=None))
    loss.backward()
    assert scored.grad is not None
    assert (scored.grad != 0).tolist() == [False, False, True, True, False, True, True]
    assert loss.item() == pytest.approx(-(-0.8 - 0.8 - 0.81 + 1.25 + 1.26 - 1.27 + 0.7))
    assert float(sums["clip_fraction"]) == 3


def test_the_divergences_are_those_of_the_policy_that_sampled() -> None:
    """Each token of a small vocabulary, weighed as often as it is sampled: the means are the divergences."""
    old, new, reference = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.1, 0.6, 0.3]], dtype=torch.float64).log()

    def mean(name: str, now: Tensor, sampler: Tensor) -> float:
        ones = torch.ones(1, dtype=torch.float64)
        objective = Objective(importance_cap=None, kl=1.0)
        found = [
            policy_loss(now[i : i + 1], old[i : i + 1], ones, ones, traces=1, objective=objective, reference=r)[1][name]
            for i, r in enumerate(reference.split(1))
        ]
        return float((torch.stack(found) * sampler.exp()).sum())

    assert mean("policy_kl", new, old) == pytest.approx(float((old.exp() * (old - new)).sum()))
    assert mean("reference_kl", new, new) == pytest.approx(float((new.exp() * (new - reference)).sum()))


def test_the_gradient_norm_is_clipped() -> None:
    rng = random.Random(0)
    samples = [replace(sample, advantage=1e3) for sample in training_samples(group(rng), rng)]
    model = Plain()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    metrics = update_step(model, torch.optim.SGD(model.parameters(), lr=1.0), pack(samples, 64))
    moved = torch.cat([(p - q).flatten() for p, q in zip(model.parameters(), before, strict=True)])
    assert metrics["grad_norm"] > 1
    assert float(moved.detach().norm()) == pytest.approx(1.0, rel=1e-4)


def test_sampling_verifying_and_stepping_learns_a_two_token_answer() -> None:
    """The whole loop on-policy, small: 32 samples a step, reward for the answer (3, 5), group advantages."""
    model, question, answer = Plain(), (1, 2), (3, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def sampled() -> tuple[Chunk, list[float]]:
        context, chosen = list(question), []
        for _ in answer:
            every = model.logits(model.hidden(torch.tensor(context), [len(context)]))[-1].log_softmax(-1)
            token = int(torch.multinomial(every.exp(), 1))
            context.append(token)
            chosen.append(float(every[token]))
        return Chunk(question, tuple(context[2:]), "stop"), chosen

    torch.manual_seed(0)
    shares = []
    for _ in range(40):
        with torch.no_grad():
            tries = [sampled() for _ in range(32)]
        rewards = [sum(a == b for a, b in zip(chunk.response, answer, strict=True)) / 2 for chunk, _ in tries]
        mean = sum(rewards) / len(rewards)
        samples = [s for i, (c, p) in enumerate(tries) for s in samples_from([c], [p], rewards[i] - mean, trace=i)]
        metrics = update_step(model, optimizer, pack(samples, 24))
        assert metrics["importance_weight"] == pytest.approx(1.0)
        shares.append(mean)
    assert shares[0] < 0.2
    assert shares[-1] > 0.9


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone() -> None:
    model, rng = Plain(), random.Random(0)
    batches = pack([replace(s, advantage=math.nan) for s in training_samples(group(rng), rng)], 64)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ScalingError, match="gradient norm is nan"):
        update_step(model, torch.optim.SGD(model.parameters(), lr=1.0), batches)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


CHUNK = Chunk((1,), (2, 3), "stop")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: logprobs(Plain(), pack(samples_from([CHUNK], [[0.0] * 2], 1.0, 0), 9)[0], temperature=0), "greedy"),
        (lambda: policy_loss(*[torch.ones(2)] * 4, traces=1), "needs behaviour log-probabilities"),
        (
            lambda: policy_loss(*[torch.ones(2)] * 4, traces=1, objective=Objective(importance_cap=None, kl=0.1)),
            "needs reference log-probabilities",
        ),
        (lambda: update_step(Plain(), torch.optim.SGD([torch.ones(1)]), []), "no micro-batches"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()

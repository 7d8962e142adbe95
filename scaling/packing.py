"""Chunks as training examples: one sample each, packed into micro-batches of about equally many tokens."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scaling.errors import UsageError
from scaling.thinking import Chunk


@dataclass(frozen=True, slots=True)
class Sample:
    """One chunk as a training example; raises `UsageError` if its parts do not fit together.

    `advantage`: of the whole response, or one a token of it. `behaviour`: natural log-probability of each response
    token under the distribution it was sampled from.
    `trace` says which chunks belong together; `thinking_tokens` is ℓ(τ), the response tokens of *all* its chunks.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    advantage: float | tuple[float, ...]
    behaviour: tuple[float, ...]
    trace: int
    thinking_tokens: int

    def __post_init__(self) -> None:
        if not self.prompt or not self.response:
            raise UsageError(
                f"a sample needs a prompt and a response, got {len(self.prompt)} and {len(self.response)} tokens"
            )
        if len(self.behaviour) != len(self.response):
            raise UsageError(f"{len(self.behaviour)} behaviour log-probabilities for {len(self.response)} tokens")
        if len(self.advantages) != len(self.response):
            raise UsageError(f"{len(self.advantages)} advantages for {len(self.response)} tokens")
        if self.thinking_tokens < len(self.response):
            raise UsageError(f"a trace of {self.thinking_tokens} thinking tokens cannot hold {len(self.response)}")

    @property
    def advantages(self) -> Sequence[float]:
        """One a response token."""
        return self.advantage if isinstance(self.advantage, tuple) else [self.advantage] * len(self.response)

    @property
    def input_tokens(self) -> int:
        """Tokens fed to the model: the last response token is predicted but never an input."""
        return len(self.prompt) + len(self.response) - 1


def samples_from(
    chunks: Sequence[Chunk],
    behaviour: Sequence[Sequence[float]],
    advantages: Sequence[float | tuple[float, ...]] | float,
    trace: int,
) -> list[Sample]:
    """The samples of one trace, in order; `behaviour[c][t]` belongs to `chunks[c].response[t]`.

    One advantage for the whole trace (GRPO, RLOO), or for each chunk one or a tuple with one a token (VinePPO).
    Chunks without a response hold no action and give no sample. Raises `UsageError` where the counts differ.
    """
    each = list(advantages) if isinstance(advantages, Sequence) else [advantages] * len(chunks)
    if not len(chunks) == len(behaviour) == len(each):
        given = f"{len(behaviour)} lists of log-probabilities and {len(each)} advantages"
        raise UsageError(f"a trace of {len(chunks)} chunks got {given}")
    thinking = sum(len(chunk.response) for chunk in chunks)
    return [
        Sample(chunk.prompt, chunk.response, advantage, tuple(logprobs), trace, thinking)
        for chunk, logprobs, advantage in zip(chunks, behaviour, each, strict=True)
        if chunk.response
    ]


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch: T input tokens of several samples one after another, R response tokens to be scored.

    `tokens` [T]; `lengths`: input tokens of each sample; `positions` [R]: where in T each response token is
    predicted; `targets` [R]: the response tokens. `advantages`, `thinking_tokens`, `behaviour` [R] repeat what the
    samples say, in float64. `old` and `reference` [R] are log-probabilities of the policy before this round of
    updates and of the KL term's fixed policy, as `logprobs` gives them for this batch, where there are such.
    `counted` is false of a `blank`.
    """

    samples: tuple[Sample, ...]
    tokens: Tensor
    lengths: list[int]
    positions: Tensor
    targets: Tensor
    advantages: Tensor
    thinking_tokens: Tensor
    behaviour: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None
    counted: bool = True

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Batch:
        lengths = [sample.input_tokens for sample in samples]
        responses = torch.tensor([len(sample.response) for sample in samples])
        # A response token is predicted where the token before it is the input: the last R_i inputs of its sample.
        predicted = [torch.arange(len(sample.prompt) - 1, sample.input_tokens) for sample in samples]
        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)

        def each(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64).repeat_interleave(responses)

        return cls(
            samples=tuple(samples),
            tokens=torch.tensor([id for sample in samples for id in (*sample.prompt, *sample.response[:-1])]),
            lengths=lengths,
            positions=torch.cat(predicted) + starts.repeat_interleave(responses),
            targets=torch.tensor([id for sample in samples for id in sample.response]),
            advantages=torch.tensor([a for sample in samples for a in sample.advantages], dtype=torch.float64),
            thinking_tokens=each([sample.thinking_tokens for sample in samples]),
            behaviour=torch.tensor([p for sample in samples for p in sample.behaviour], dtype=torch.float64),
        )

    def blank(self) -> Batch:
        """The same work without effect: every term of the loss is zero, and no metric counts it.

        Ranks that share sharded parameters have to take equally many micro-batches; whoever lacks one takes this.
        """
        endless = torch.full_like(self.thinking_tokens, math.inf)
        return replace(self, thinking_tokens=endless, counted=False)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields |= {name: value.to(device) for name, value in fields.items() if isinstance(value, Tensor)}
        return Batch(**fields)


def pack(samples: Sequence[Sample], token_budget: int) -> list[Batch]:
    """Micro-batches of at most `token_budget` input tokens; a sample longer than that goes alone.

    Longest first, each into the fullest batch that still has room (best-fit decreasing, at most 11/9 of the fewest
    possible batches). Samples of one length end up as neighbours, which attention takes in one call.
    """
    if token_budget < 1:
        raise UsageError(f"token budget {token_budget} is not positive; give at least 1 token a micro-batch")
    bins: list[list[Sample]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    for sample in sorted(samples, key=lambda sample: -sample.input_tokens):
        fullest = bisect_left(rooms, (sample.input_tokens, 0))
        if fullest < len(rooms):
            room, chosen = rooms.pop(fullest)
        else:
            room, chosen = token_budget, len(bins)
            bins.append([])
        bins[chosen].append(sample)
        insort(rooms, (room - sample.input_tokens, chosen))
    return [Batch.of(members) for members in bins]

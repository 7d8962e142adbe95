"""Sampling a batch of next tokens, each a function of its own request alone, with their log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scaling.engines.base import Request
from scaling.errors import ScalingError


class Sampler:
    """How the rows of a batch sample; built once for each composition of the batch.

    `positions` are the response tokens that each row has already: together with the request's seed they
    select the random number, so a sample does not depend on what else is in the batch.
    """

    def __init__(self, requests: Sequence[Request], positions: Sequence[int], device: torch.device) -> None:
        self.greedy = all(r.temperature == 0 for r in requests)
        self.plain = all(r.temperature == 1 for r in requests)
        self.sharp = [i for i, r in enumerate(requests) if r.top_p < 1 and r.temperature > 0]
        if self.greedy:
            return
        self.temperatures = torch.tensor([[r.temperature or 1.0] for r in requests], dtype=torch.float32, device=device)
        self.top_p = torch.tensor([[requests[i].top_p] for i in self.sharp], dtype=torch.float32, device=device)
        self.argmax = torch.tensor([r.temperature == 0 for r in requests], device=device)
        self.any_argmax = any(r.temperature == 0 for r in requests)
        self.seeds = torch.tensor([_signed(r.seed) for r in requests], device=device)
        self.positions = torch.tensor(list(positions), device=device)
        self._weights: Tensor | None = None  # kept between steps: fresh pages of this size cost more than filling them

    def sample(self, logits: Tensor) -> tuple[list[int], list[float]]:
        """Token ids and log-probabilities of one step from `logits` [rows, vocabulary].

        Raises `ScalingError` if a row has logits that are not finite.
        """
        if self.greedy:
            return logits.argmax(-1).tolist(), [0.0] * len(logits)
        scaled = logits.float() if self.plain else logits / self.temperatures
        if self.sharp:
            scaled[self.sharp] = nucleus(scaled[self.sharp], self.top_p)
        scaled -= scaled.amax(-1, keepdim=True)
        # Inverse transform: a uniform number picks from the cumulative weights. Of 23 bits, its product stays
        # below the last entry, so that a token of probability zero is never picked.
        if self._weights is None:
            self._weights = torch.empty_like(scaled)
        cumulative = torch.exp(scaled, out=self._weights).cumsum_(-1)
        total = cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, uniforms(self.seeds, self.positions)[:, None] * total, right=True)
        tokens.clamp_(max=logits.shape[-1] - 1)  # where weights are not numbers, nothing was found
        if self.any_argmax:
            tokens[:, 0] = torch.where(self.argmax, logits.argmax(-1), tokens[:, 0])
        chosen = scaled.gather(1, tokens) - total.log()
        if self.any_argmax:
            chosen[:, 0].masked_fill_(self.argmax, 0.0)
        self.positions += 1
        logprobs: list[float] = chosen[:, 0].tolist()
        if math.isnan(sum(logprobs)):
            raise ScalingError("the model's logits are not finite, so nothing can be sampled; check its weights")
        return tokens[:, 0].tolist(), logprobs


def nucleus(logits: Tensor, top_p: Tensor) -> Tensor:
    """Logits with all but the fewest most likely tokens whose probability reaches `top_p` [rows, 1] at −∞."""
    ordered, order = logits.sort(-1, descending=True)
    probabilities = torch.softmax(ordered, -1)
    before = probabilities.cumsum(-1) - probabilities
    return torch.empty_like(logits).scatter_(-1, order, ordered.masked_fill_(before >= top_p, -torch.inf))


def uniforms(seeds: Tensor, counters: Tensor) -> Tensor:
    """Float32 numbers in [0, 1), a hash of (seed, counter): SplitMix64 (Steele, Lea & Flood 2014), top 23 bits."""
    x = seeds * _signed(0x9E3779B97F4A7C15) ^ _mix(counters + _signed(0x9E3779B97F4A7C15))
    return (_mix(x) >> 41 & 0x7FFFFF).float() * 2**-23


def _mix(x: Tensor) -> Tensor:
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _signed(0xBF58476D1CE4E5B9)  # the masks make the shifts logical
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _signed(0x94D049BB133111EB)
    return x ^ (x >> 31 & (1 << 33) - 1)


def _signed(value: int) -> int:
    """The low 64 bits of an integer as torch's int64 holds them."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value

"""The chunked policy-gradient step: log-probabilities in slices, the loss, one optimizer step.

The benchmarks measure it, the trainer uses it. The loss is Eq. 3 of *The Markovian Thinker* (arXiv 2510.06557): the
chunks of a trace are separate sequences, their prompts (carryover included) are inputs and never actions, and the
terms of all chunks are divided by the thinking tokens of the whole trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint as recompute

from scaling.errors import ScalingError, UsageError
from scaling.packing import Batch

SLICE_BYTES = 256 << 20
"""Most memory that the logits of one slice may take, with everything computed from them."""


class Policy(Protocol):
    """What is trained: `scaling.decoder.Decoder`, or any module with its two training-side methods."""

    def hidden(self, tokens: Tensor, lengths: Sequence[int], checkpoint: bool = False) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


def logprobs(
    model: Policy,
    batch: Batch,
    *,
    temperature: float = 1.0,
    slice_bytes: int = SLICE_BYTES,
    checkpoint: bool = False,
) -> Tensor:
    """Natural log-probabilities [R] of the batch's response tokens, in float32 at least.

    Only positions that predict a response token go through the LM head, as many at once as `slice_bytes` admits;
    the backward pass computes each of several slices again, so [tokens × vocabulary] never exists. `checkpoint` does
    the same for the activations of the model's layers. `temperature` is the one the response was sampled with.
    """
    return _score(model, batch, temperature, slice_bytes, checkpoint, entropy=False)[0]


def logprobs_and_entropy(
    model: Policy,
    batch: Batch,
    *,
    temperature: float = 1.0,
    slice_bytes: int = SLICE_BYTES,
    checkpoint: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `logprobs`, with the entropy [R] in nats of each next-token distribution, which carries no gradient."""
    return _score(model, batch, temperature, slice_bytes, checkpoint, entropy=True)


def _score(
    model: Policy, batch: Batch, temperature: float, slice_bytes: int, checkpoint: bool, entropy: bool
) -> tuple[Tensor, Tensor]:
    if temperature <= 0:
        raise UsageError(f"temperature {temperature} is not positive: greedy tokens have no log-probability to train")
    hidden = model.hidden(batch.tokens, batch.lengths, checkpoint)[batch.positions]
    rows = _slice_tokens(model, hidden, slice_bytes)
    if len(hidden) <= rows:  # the only slice there is: to keep it takes no more memory than to make it again
        return _score_slice(model, hidden, batch.targets, temperature, entropy)
    scored = [
        recompute(
            _score_slice, model, part, targets, temperature, entropy, use_reentrant=False, preserve_rng_state=False
        )
        for part, targets in zip(torch.split(hidden, rows), torch.split(batch.targets, rows), strict=True)
    ]
    return torch.cat([one for one, _ in scored]), torch.cat([other for _, other in scored])


def _slice_tokens(model: Policy, hidden: Tensor, slice_bytes: int) -> int:
    """How many positions' logits fit `slice_bytes`.

    At the peak, in the backward pass, there are up to four [slice, vocabulary] tensors in the dtype of the softmax.
    """
    vocabulary = model.logits(hidden[:0]).shape[-1]
    width = torch.promote_types(hidden.dtype, torch.float32).itemsize
    return max(1, slice_bytes // (4 * width * vocabulary))


def _score_slice(
    model: Policy, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor]:
    logits = model.logits(hidden)
    precise = torch.promote_types(logits.dtype, torch.float32)
    if temperature != 1.0:
        logits = logits.to(precise) / temperature
    every = F.log_softmax(logits, -1, dtype=precise)
    chosen = every.gather(-1, targets[:, None])[:, 0]
    if not entropy:
        return chosen, chosen.new_empty(0)
    with torch.no_grad():
        return chosen, torch.special.entr(every.exp()).sum(-1)


@dataclass(frozen=True, slots=True)
class Objective:
    """The paper's settings: ratio clipped to [1 − `clip_low`, 1 + `clip_high`], importance weights cut at a cap, no KL.

    `importance_cap`: truncated importance sampling between the engine that sampled and the policy in the trainer
    (None: no correction). `kl` weighs the k3 estimate of the divergence from the reference policy.
    """

    clip_low: float = 0.20
    clip_high: float = 0.26
    importance_cap: float | None = 2.0
    kl: float = 0.0


def policy_loss(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    thinking_tokens: Tensor,
    *,
    traces: float,
    objective: Objective = Objective(),
    behaviour: Tensor | None = None,
    reference: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 3 of arXiv 2510.06557 as a loss to minimise, and sums over tokens that describe it.

    With ratio ρ = exp(`logprobs` − `old`), all tensors [R], the loss is

        −1/`traces` · Σ_t w_t · min(ρ_t A_t, clip(ρ_t, 1−low, 1+high) A_t) / ℓ(τ_t)

    where w_t = min(exp(`old` − `behaviour`), cap). Losses of micro-batches add up to the loss of the step, wherever
    the chunks of a trace lie. The k3 term (Schulman 2020), kl · (r − 1 − ln r) with r = π_reference/π, is normalised
    alike. `policy_kl` is the k3 estimate of KL(old ‖ policy), unbiased on tokens that the old policy sampled.
    Raises `UsageError` if log-probabilities that the objective needs are not given.
    """
    if objective.importance_cap is not None and behaviour is None:
        raise UsageError("importance sampling needs behaviour log-probabilities; or set importance_cap to None")
    if objective.kl and reference is None:
        raise UsageError(f"a KL weight of {objective.kl} needs reference log-probabilities; or set kl to 0")
    old = old.detach()
    ratio = (logprobs - old).exp()
    plain = ratio * advantages
    clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high) * advantages
    terms = torch.minimum(plain, clipped)
    sums = {"clip_fraction": (clipped < plain).sum(), "policy_kl": _k3(logprobs.detach() - old).sum()}
    if objective.importance_cap is not None and behaviour is not None:
        weight = (old - behaviour).exp()
        terms = terms * weight.clamp(max=objective.importance_cap)
        sums["importance_weight"] = weight.sum()
        sums["importance_capped_fraction"] = (weight > objective.importance_cap).sum()
    if objective.kl and reference is not None:
        divergence = _k3(reference - logprobs)
        terms = terms - objective.kl * divergence
        sums["reference_kl"] = divergence.detach().sum()
    return -(terms / thinking_tokens).sum() / traces, sums


def _k3(log_ratio: Tensor) -> Tensor:
    return log_ratio.expm1() - log_ratio


Observer = Callable[[Batch, Tensor, Tensor], None]
"""Sees a micro-batch, the log-probabilities [R] that an update starts from, and the entropies [R] as `_and_entropy`."""


def backward(
    model: Policy,
    batch: Batch,
    *,
    traces: float,
    objective: Objective = Objective(),
    temperature: float = 1.0,
    slice_bytes: int = SLICE_BYTES,
    checkpoint: bool = True,
    observe: Observer | None = None,
) -> dict[str, Tensor]:
    """Adds one micro-batch's share of the gradient; returns its `loss` and the sums of `policy_loss`, on the device.

    A batch without `old` is on-policy: its own log-probabilities stand for them, and every ratio is 1.
    """
    scored, entropy = _score(model, batch, temperature, slice_bytes, checkpoint, entropy=observe is not None)
    if observe is not None:
        observe(batch, scored.detach(), entropy)
    loss, sums = policy_loss(
        scored,
        scored.detach() if batch.old is None else batch.old,
        batch.advantages,
        batch.thinking_tokens,
        traces=traces,
        objective=objective,
        behaviour=batch.behaviour,
        reference=batch.reference,
    )
    loss.backward()  # type: ignore[no-untyped-call]
    return {"loss": loss.detach(), **sums}


def update_step(
    model: Policy,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    *,
    traces: int | None = None,
    objective: Objective = Objective(),
    temperature: float = 1.0,
    max_grad_norm: float = 1.0,
    slice_bytes: int = SLICE_BYTES,
    checkpoint: bool = True,
    beside: Callable[[], Tensor] | None = None,
    observe: Observer | None = None,
    ranks: dist.ProcessGroup | None = None,
) -> dict[str, float]:
    """One optimizer step on all micro-batches together, gradient norm clipped; what it did, as plain numbers.

    `traces` is what the loss is a mean over: the traces found in `batches`, unless some were left out (those of zero
    advantage need no pass) or lie on other ranks. Fractions, weights and divergences are means over response tokens,
    all before the step. `beside` gives another loss whose gradient joins the step, such as a supervised term; it is
    reported as `beside_loss`. Raises `ScalingError`, weights untouched, if the gradient is not finite.

    `ranks` share the step: each brings other micro-batches, equally many (`Batch.blank` fills up), of parameters that
    FSDP2 shards over them; `traces` must be given, all numbers are of all ranks together, and `beside` is the same
    on each.
    """
    if not batches:
        raise UsageError("no micro-batches to train on")
    world = 1 if ranks is None else ranks.size()
    if traces is None:
        traces = len({sample.trace for batch in batches for sample in batch.samples})
    optimizer.zero_grad(set_to_none=True)
    shares = [
        backward(
            model,
            batch,
            traces=traces / world,  # FSDP2 takes the mean of the ranks' gradients, and their sum is wanted
            objective=objective,
            temperature=temperature,
            slice_bytes=slice_bytes,
            checkpoint=checkpoint,
            observe=observe,
        )
        for batch in batches
    ]
    other = None if beside is None else beside()
    if other is not None:
        other.backward()  # type: ignore[no-untyped-call]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(_whole(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)))
    if not math.isfinite(norm):
        optimizer.zero_grad(set_to_none=True)
        raise ScalingError(f"the gradient norm is {norm}; weights are untouched. A lower learning rate may help")
    optimizer.step()
    counted = [(batch, share) for batch, share in zip(batches, shares, strict=True) if batch.counted]
    totals = {name: sum(float(share[name]) for _, share in counted) for name in shares[0]}
    totals["loss"] /= world
    totals["response_tokens"] = sum(len(batch.targets) for batch, _ in counted)
    totals["input_tokens"] = sum(len(batch.tokens) for batch, _ in counted)
    if ranks is not None:
        summed = torch.tensor(list(totals.values()), dtype=torch.float64)
        dist.all_reduce(summed, group=ranks)
        totals = dict(zip(totals, summed.tolist(), strict=True))
    response = totals.pop("response_tokens")
    return {
        "loss": totals.pop("loss"),
        **({} if other is None else {"beside_loss": float(other.detach())}),
        "grad_norm": norm,
        "traces": traces,
        "response_tokens": response,
        "input_tokens": totals.pop("input_tokens"),
        **{name: total / response for name, total in totals.items()},
    }


def _whole(tensor: Tensor) -> Tensor:
    """What is spread over ranks, on each of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

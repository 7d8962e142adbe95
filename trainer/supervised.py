"""Learning from demonstrations: the warm start before RL, and the replay term that keeps a format alive during it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from scaling.decoder import Decoder
from scaling.errors import ScalingError, UsageError
from scaling.tasks.walk import demonstrations
from trainer.recipe import Recipe

LONGEST_SHOWN = 24
"""Most steps of a walk that is demonstrated to its end."""

Example = tuple[Sequence[int], Sequence[bool]]
"""Token ids, and which of them the model is to learn to write; each sees those before it, so never the first."""


def batches(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """The examples, `size` at a time; a rest too small for a batch is left out."""
    source = iter(examples)
    while len(batch := list(itertools.islice(source, size))) == size:
        yield batch


def replay_loss(decoder: Decoder, batch: Sequence[Example]) -> Tensor:
    """Mean cross-entropy in nats, in float32 at least, over the tokens of the batch that are to be learned.

    Sequences are packed, not padded, and those of one length are neighbours, which attention takes in one call.
    Raises `UsageError` if nothing is to be learned.
    """
    ordered = sorted(batch, key=lambda example: len(example[0]))
    device = decoder.head.device
    inputs = torch.tensor([id for tokens, _ in ordered for id in tokens[:-1]], device=device)
    targets = torch.tensor([id for tokens, _ in ordered for id in tokens[1:]], device=device)
    learned = torch.tensor([yes for _, mask in ordered for yes in mask[1:]], dtype=torch.bool, device=device)
    if not learned.any():
        raise UsageError("a batch of demonstrations without any token to learn")
    logits = decoder.logits(decoder.hidden(inputs, [len(tokens) - 1 for tokens, _ in ordered])[learned])
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets[learned])


def warm_start(
    decoder: Decoder,
    batches: Iterable[Sequence[Example]],
    steps: int,
    lr: float,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Trains on `steps` batches: AdamW, gradient norm at most 1, the rate rising over the first 5 % of steps and then
    falling in a line to a tenth of `lr`. `on_step` gets the steps done and the loss before the last of them.

    Raises `ScalingError`, weights as they were before that step, if a loss is not finite, and `UsageError` if there
    are fewer batches than steps.
    """
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    rise = max(1, round(0.05 * steps))
    done = 0
    for done, batch in enumerate(itertools.islice(batches, steps), start=1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(done / rise, 1 - 0.9 * (done - rise) / max(steps - rise, 1))
        loss = replay_loss(decoder, batch)
        if not math.isfinite(value := float(loss.detach())):
            raise ScalingError(f"the loss of warm-start step {done} is {value}; a lower learning rate may help")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        if on_step is not None:
            on_step(done, value)
    if done < steps:
        raise UsageError(f"{steps} warm-start steps, but demonstrations for only {done}")


def teach(policy: Decoder, recipe: Recipe, on_step: Callable[[int, float], None] | None = None) -> None:
    """The warm start of a recipe, on walks: short ones for the first third of its steps, then longer ones."""
    short = recipe.warm_steps // 3
    for steps, longest, start in ((short, 6, 0), (recipe.warm_steps - short, LONGEST_SHOWN, short)):
        if steps:
            shown = demonstrations(
                _teacher(recipe), recipe.environment.budget, longest, start=start * recipe.warm_examples
            )
            warm_start(policy, batches(shown, recipe.warm_examples), steps, recipe.warm_learning_rate, on_step)


def replayed(recipe: Recipe, update: int) -> list[Example]:
    """Demonstrations of a recipe's format, without its answers, for one update of a run."""
    start = update * recipe.replay_examples
    shown = demonstrations(_teacher(recipe) + 1, recipe.environment.budget, LONGEST_SHOWN, states=False, start=start)
    return next(batches(shown, recipe.replay_examples))


def _teacher(recipe: Recipe) -> int:
    return 1_000_003 * (recipe.seed + 1)

"""Learning from demonstrations: what is learned, how it is averaged, and what stops it."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
import torch.nn.functional as F

from scaling.decoder import Decoder
from scaling.errors import ScalingError, UsageError
from scaling.tasks.walk import CONFIG, demonstrations
from trainer.supervised import batches, replay_loss, warm_start

TINY = CONFIG | {"hidden_size": 16, "head_dim": 8, "num_attention_heads": 2, "num_key_value_heads": 2}


def some(count: int, **settings: bool) -> list[tuple[list[int], list[bool]]]:
    return [(tokens, learned) for tokens, learned in islice(demonstrations(0, 40, 8, **settings), count)]


def weights(decoder: Decoder) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in decoder.parameters()]


def test_the_loss_is_the_mean_over_all_learned_tokens_of_the_batch() -> None:
    decoder = Decoder.from_config(TINY, dtype=torch.float64)
    plain = []
    for tokens, learned in some(12, states=False):
        logits = decoder.logits(decoder.hidden(torch.tensor(tokens), [len(tokens)]))
        plain += [F.cross_entropy(logits[t - 1], torch.tensor(tokens[t])) for t in range(len(tokens)) if learned[t]]
    expected = torch.stack(plain).mean()
    loss = replay_loss(decoder, some(12, states=False))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for got, wanted in zip(
        torch.autograd.grad(loss, list(decoder.parameters())),
        torch.autograd.grad(expected, list(decoder.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-15)


def test_half_precision_is_averaged_in_float32() -> None:
    decoder = Decoder.from_config(TINY, dtype=torch.bfloat16)
    assert replay_loss(decoder, some(4)).dtype == torch.float32


def test_examples_make_batches_in_order_and_a_rest_is_left_out() -> None:
    assert list(batches(some(7), 3)) == [some(7)[:3], some(7)[3:6]]


def test_a_warm_start_learns_and_tells_each_step() -> None:
    decoder = Decoder.from_config(TINY)
    told: list[tuple[int, float]] = []
    warm_start(decoder, batches(demonstrations(0, 40, 8), 16), 30, 1e-2, lambda step, loss: told.append((step, loss)))
    assert [step for step, _ in told] == list(range(1, 31))
    losses = [loss for _, loss in told]
    assert losses[0] == pytest.approx(3.69, abs=0.02)  # ln 40: all tokens alike
    assert max(losses[-5:]) < 2.6  # of digits, states and marks, it knows by now which stands where


def test_a_warm_start_is_repeatable() -> None:
    twins = [Decoder.from_config(TINY), Decoder.from_config(TINY)]
    for decoder in twins:
        warm_start(decoder, batches(demonstrations(0, 40, 8), 4), 3, 1e-2)
    assert all(map(torch.equal, weights(twins[0]), weights(twins[1])))


def test_too_few_demonstrations_are_said() -> None:
    with pytest.raises(UsageError, match="5 warm-start steps, but demonstrations for only 2"):
        warm_start(Decoder.from_config(TINY), batches(some(8), 4), 5, 1e-3)


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(UsageError, match="without any token to learn"):
        replay_loss(Decoder.from_config(TINY), [([0, 2, 3], [False] * 3)])


def test_a_loss_that_is_not_finite_stops_it_before_the_weights_change() -> None:
    decoder = Decoder.from_config(TINY)
    torch.nn.init.constant_(decoder.model.norm.weight, float("nan"))
    before = weights(decoder)
    with pytest.raises(ScalingError, match="loss of warm-start step 1 is nan"):
        warm_start(decoder, batches(some(8), 4), 2, 1e-3)
    for one, other in zip(before, weights(decoder), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)

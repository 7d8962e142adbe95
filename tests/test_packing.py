"""Chunks as training examples: whole, once, in as few micro-batches as they fit; what does not match is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.errors import UsageError
from scaling.packing import Sample, pack, samples_from
from scaling.thinking import Chunk

CHUNK = Chunk((1,), (2, 3), "stop")


@given(
    shapes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=40),
    budget=st.integers(1, 60),
)
def test_packing_keeps_every_chunk_whole_and_once(shapes: list[tuple[int, int]], budget: int) -> None:
    samples = [
        Sample(tuple(range(p)), tuple(range(100, 100 + r)), float(i), (0.0,) * r, i, r)
        for i, (p, r) in enumerate(shapes)
    ]
    batches = pack(samples, budget)
    assert Counter(s.trace for b in batches for s in b.samples) == Counter(range(len(samples)))
    for batch in batches:
        assert len(batch.tokens) <= budget or len(batch.samples) == 1
        assert [len(part) for part in batch.tokens.split(batch.lengths)] == [s.input_tokens for s in batch.samples]
        predicted: list[int] = []
        previous: list[int] = []
        for sample, part in zip(batch.samples, batch.tokens.split(batch.lengths), strict=True):
            assert tuple(part.tolist()) == (sample.prompt + sample.response)[:-1]
            previous += (sample.prompt[-1:] + sample.response)[:-1]
            predicted += sample.response
        assert batch.tokens[batch.positions].tolist() == previous
        assert batch.targets.tolist() == predicted
    smallest = sorted(len(batch.tokens) for batch in batches)[:2]
    assert len(smallest) < 2 or sum(smallest) > budget, "two micro-batches would have fitted into one"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: samples_from([CHUNK], [], 1.0, 0), "1 chunks got 0 lists of log-probabilities and 1 advantages"),
        (lambda: samples_from([CHUNK], [[0.0] * 2], [1.0, 2.0], 0), "1 lists of log-probabilities and 2 advantages"),
        (lambda: samples_from([CHUNK], [[0.0]], 1.0, 0), "1 behaviour log-probabilities for 2 tokens"),
        (lambda: samples_from([CHUNK], [[0.0] * 2], [(1.0,)], 0), "1 advantages for 2 tokens"),
        (lambda: Sample((), (1,), 1.0, (0.0,), 0, 1), "needs a prompt and a response, got 0 and 1 tokens"),
        (lambda: Sample((1,), (2, 3), 1.0, (0.0, 0.0), 0, 1), "1 thinking tokens cannot hold 2"),
        (lambda: pack([], 0), "token budget 0 is not positive"),
    ],
)
def test_what_does_not_fit_together_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()

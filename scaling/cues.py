"""The words that some environments say to a model, as a tokenizer spells them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from scaling.errors import UsageError
from scaling.text import THINK_CLOSE, show
from scaling.thinking import BudgetForcing, Environment, Folding, Summary

SUM_UP = "\n\nBefore I go on, a short summary of what I know so far, from which alone I can finish:\n"
"""Asks for a summary where no other cue is given."""
WAIT = "Wait"
"""Makes a model go on: s1's (arXiv 2501.19393)."""
STEP = ("<step>", "</step>")
"""Open and close the summary of a step, in the spirit of Accordion-Thinking's (arXiv 2602.03249) special tokens."""

Encode = Callable[[str], Sequence[int]]


def worded(environment: Environment, encode: Encode, *, cue: str | None = None, stop: str | None = None) -> Environment:
    """The environment with the token ids of its words, which `encode` gives, in place of ids that stand for any; one
    that says nothing stays as it is.

    `cue`: what asks for a summary, or makes a model go on; a fold's opening marker. `stop`: what ends a summary beside
    the model's end of sequence, or thinking (`</think>`, unless given); a fold's closing marker. Ends and markers are
    single tokens: raises `UsageError` where one is several, except for `</think>` of a model that has none.
    """
    if isinstance(environment, Folding):
        opening, closing = (_single(word or own, encode) for word, own in zip((cue, stop), STEP, strict=True))
        return replace(environment, opening=opening, closing=closing)
    if isinstance(environment, Summary | BudgetForcing):
        words = cue if cue is not None else SUM_UP if isinstance(environment, Summary) else WAIT
        ends: tuple[int, ...] = (_single(stop, encode),) if stop is not None else ()
        if stop is None and isinstance(environment, BudgetForcing):
            ends = _think_close(encode)
        return replace(environment, cue=tuple(encode(words)), stop=ends)
    return environment


def _think_close(encode: Encode) -> tuple[int, ...]:
    """The token that ends a model's thinking; empty for a model that has no such token."""
    try:
        ids = tuple(encode(THINK_CLOSE))
    except UsageError:  # an alphabet without these characters
        return ()
    return ids if len(ids) == 1 else ()


def _single(word: str, encode: Encode) -> int:
    ids = encode(word)
    if len(ids) != 1:
        raise UsageError(
            f"marker {show(word)!r} is {len(ids)} tokens of this model's tokenizer, and a marker is one; name one that "
            "it has, as in --cue '<step>' --stop '</step>'"
        )
    return ids[0]

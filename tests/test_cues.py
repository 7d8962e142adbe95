"""The words of an environment, as a tokenizer spells them."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaling.cues import SUM_UP, WAIT, worded
from scaling.errors import UsageError
from scaling.tasks.walk import Walk
from scaling.text import Text
from scaling.thinking import BudgetForcing, Delethink, Folding, LongCoT, Summary

SUMMARY, FORCED, FOLDED = Summary(64, 16, 3), BudgetForcing(40, 2), Folding(64, 16, 3)


@pytest.fixture(scope="module")
def text(chat_model: Path) -> Text:
    """Of a model whose every character is a token, and that has two special ones."""
    return Text(chat_model)


@pytest.mark.parametrize("environment", [LongCoT(9), Delethink(16, 8, 2, 3)])
def test_an_environment_that_says_nothing_stays_as_it_is(text: Text, environment: LongCoT | Delethink) -> None:
    assert worded(environment, text.encode, cue="Wait") is environment


def test_a_cue_becomes_its_tokens_and_nothing_is_added(text: Text) -> None:
    made = worded(SUMMARY, text.encode, cue="Sum up:")
    assert isinstance(made, Summary)
    assert text.decode(made.cue) == "Sum up:"
    assert (made.context_size, made.summary_size, made.iterations, made.stop) == (64, 16, 3, ())


def test_each_has_words_of_its_own(text: Text) -> None:
    summary, forced = worded(SUMMARY, text.encode), worded(FORCED, text.encode)
    assert isinstance(summary, Summary)
    assert isinstance(forced, BudgetForcing)
    assert (text.decode(summary.cue), text.decode(forced.cue)) == (SUM_UP, WAIT)


def test_thinking_ends_at_its_tag_where_that_is_one_token(text: Text) -> None:
    def encode(said: str) -> tuple[int, ...]:
        return (7,) if said == "</think>" else text.encode(said)

    assert worded(FORCED, text.encode).stop == ()  # type: ignore[attr-defined]
    assert worded(FORCED, encode).stop == (7,)  # type: ignore[attr-defined]
    assert worded(FORCED, Walk.tokenizer.encode, cue=",").stop == ()  # type: ignore[attr-defined]
    assert worded(FORCED, text.encode, stop="#").stop == text.encode("#")  # type: ignore[attr-defined]


def test_markers_of_a_fold_are_single_tokens(text: Text) -> None:
    made = worded(FOLDED, text.encode, cue="<|start|>", stop="#")
    assert isinstance(made, Folding)
    assert (text.decode([made.opening]), text.decode([made.closing])) == ("<|start|>", "#")
    with pytest.raises(UsageError, match=r"marker '<step>' is 6 tokens .* name one that it has, as in --cue"):
        worded(FOLDED, text.encode)


def test_a_marker_is_shown_without_what_steers_a_terminal(text: Text) -> None:
    with pytest.raises(UsageError, match=r"marker '\\\\x1b\[2J' is 4 tokens") as refused:
        worded(SUMMARY, text.encode, stop="\x1b[2J")
    assert "\x1b" not in str(refused.value)


def test_words_that_an_alphabet_lacks_are_refused() -> None:
    with pytest.raises(UsageError, match="is none of the walk's"):
        worded(SUMMARY, Walk.tokenizer.encode)

"""Thinking environments, one file each: how past thoughts become the next prompt, and what that costs."""

from collections.abc import Mapping, Sequence
from typing import Any

from scaling.errors import UsageError, unknown
from scaling.thinking.base import Chunk, Environment, Finish, Segment, Turn, standing, token_ids
from scaling.thinking.budget_forcing import BudgetForcing
from scaling.thinking.delethink import Carryover, Delethink
from scaling.thinking.folding import Folding
from scaling.thinking.longcot import LongCoT
from scaling.thinking.summary import CUE_TOKENS, Summary

ENVIRONMENTS: dict[str, type[Any]] = {each.name: each for each in (LongCoT, Delethink, Summary, BudgetForcing, Folding)}
"""By the name that `--mode` takes."""

MODES = tuple(ENVIRONMENTS)

DEFAULT_MODES = ("longcot", "delethink")
"""What is compared where no mode is named."""

OWN_OPTIONS = {
    "summary_size": ("summary", "folding"),
    "extensions": ("budget-forcing",),
    "cue_tokens": ("summary", "budget-forcing"),
    "cue": ("summary", "budget-forcing", "folding"),
    "stop": ("summary", "budget-forcing", "folding"),
}
"""What belongs to some modes alone, and is refused without them."""


def check_options(modes: Sequence[str], given: Mapping[str, Any]) -> None:
    """Raises `UsageError` for an unknown mode, and for an option among `given`, None apart, that goes with none."""
    for mode in modes:
        if mode not in MODES:
            raise unknown("mode", str(mode), MODES)
    for option, owners in OWN_OPTIONS.items():
        if given.get(option) is not None and not set(owners) & set(modes):
            flag = "--" + option.replace("_", "-")
            raise UsageError(f"{flag} goes with --mode {' or '.join(owners)}; add that mode, or leave it out")


def for_budget(
    mode: str,
    thinking_tokens: int,
    *,
    context_size: int,
    state_size: int,
    head: int,
    carryover: Carryover,
    summary_size: int | None = None,
    extensions: int | None = None,
    cue_tokens: int | None = None,
) -> Environment:
    """The environment of `mode` in which a trace can think so many tokens; raises `UsageError`.

    None is the environment's own default. Cues are of `cue_tokens` ids that stand for any: what a trace costs is
    known, what it would say is not. `scaling.cues.worded` puts a tokenizer's ids in their place.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if mode == "longcot":
        return LongCoT(thinking_tokens)
    if mode == "delethink":
        return Delethink.for_length(thinking_tokens, context_size, state_size, head, carryover)
    if mode == "folding":
        return Folding.for_length(thinking_tokens, context_size, summary_size)
    if cue_tokens is not None and cue_tokens < 1:
        raise UsageError(f"a cue of {cue_tokens} tokens says nothing; give at least 1")
    if mode == "budget-forcing":
        return BudgetForcing(thinking_tokens, 1 if extensions is None else extensions, (0,) * (cue_tokens or 1))
    sized = Summary.for_length(thinking_tokens, context_size, summary_size)
    return Summary(sized.context_size, sized.summary_size, sized.iterations, (0,) * (cue_tokens or CUE_TOKENS))


def rebuilt(name: str, parameters: Mapping[str, int | str]) -> Environment:
    """The environment that `parameters` record."""
    values: dict[str, Any] = {
        key: token_ids(str(value)) if key in ("cue", "stop") else value for key, value in parameters.items()
    }
    made: Environment = ENVIRONMENTS[name](**values)
    return made


__all__ = [
    "DEFAULT_MODES",
    "MODES",
    "OWN_OPTIONS",
    "BudgetForcing",
    "Carryover",
    "Chunk",
    "Delethink",
    "Environment",
    "Finish",
    "Folding",
    "LongCoT",
    "Segment",
    "Summary",
    "Turn",
    "check_options",
    "for_budget",
    "rebuilt",
    "standing",
]

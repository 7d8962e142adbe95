"""Thinking environments, one file each: how past thoughts become the next prompt, and what that costs."""

from scaling.errors import unknown
from scaling.thinking.base import Chunk, Environment, Finish, Segment, Turn
from scaling.thinking.delethink import Carryover, Delethink
from scaling.thinking.longcot import LongCoT

MODES = ("longcot", "delethink")
"""The environments by the names that `--mode` takes."""


def for_budget(
    mode: str, thinking_tokens: int, *, context_size: int, state_size: int, head: int, carryover: Carryover
) -> Environment:
    """The environment of `mode` in which a trace can think so many tokens; raises `UsageError`."""
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if mode == "longcot":
        return LongCoT(thinking_tokens)
    return Delethink.for_length(thinking_tokens, context_size, state_size, head, carryover)


__all__ = [
    "MODES",
    "Carryover",
    "Chunk",
    "Delethink",
    "Environment",
    "Finish",
    "LongCoT",
    "Segment",
    "Turn",
    "for_budget",
]

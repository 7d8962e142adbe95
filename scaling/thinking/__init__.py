"""Thinking environments, one file each: how past thoughts become the next prompt, and what that costs."""

from scaling.thinking.base import Chunk, Environment, Finish, Segment, Turn
from scaling.thinking.delethink import Carryover, Delethink
from scaling.thinking.longcot import LongCoT

MODES = ("longcot", "delethink")
"""The environments by the names that `--mode` takes."""

__all__ = ["MODES", "Carryover", "Chunk", "Delethink", "Environment", "Finish", "LongCoT", "Segment", "Turn"]

"""Thinking environments, one file each: how past thoughts become the next prompt, and what that costs."""

from scaling.thinking.base import Chunk, Environment, Finish, Segment, Turn
from scaling.thinking.delethink import Carryover, Delethink
from scaling.thinking.longcot import LongCoT

__all__ = ["Carryover", "Chunk", "Delethink", "Environment", "Finish", "LongCoT", "Segment", "Turn"]

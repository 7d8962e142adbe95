"""Every error `scaling` raises on purpose, as one tree.

`ScalingError`
  ├─ `UsageError`        the request makes no sense: exit 2
  ├─ `StoreError`        a results directory cannot be read or written: exit 2
  ├─ `CheckpointError`   a checkpoint cannot be loaded: exit 2
  ├─ `MemoryLimitError`  a measurement does not fit in memory: becomes an `oom` row
  └─ `FitError`          the rows do not determine what was asked: exit 2

A message is one line that says what was wrong, what was expected and, where it helps, an example.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ScalingError(Exception):
    """Base of the tree; the command line prints it as one line and exits with `exit_code`."""

    exit_code = 2


class UsageError(ScalingError):
    """A value that cannot be used, with what was expected instead."""


class StoreError(ScalingError):
    """A results directory that is not ours, is newer, damaged, or cannot be written."""


class CheckpointError(ScalingError):
    """A checkpoint of an unsupported architecture, or with missing or misshapen tensors."""


class MemoryLimitError(ScalingError):
    """A measurement needs more memory than the engine may use."""


class FitError(ScalingError):
    """Too few or unsuitable rows for the law or statistic that was asked for."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a `name` that is not among the `known` ones of its `kind`, with near names."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return UsageError(f"unknown {kind} {name!r}; {hint}")


def first_line(error: BaseException) -> str:
    """The first line that an error says, or its kind where it says nothing: for messages of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: ours, Python's, or torch's on CPU or CUDA."""
    text = str(error)
    return isinstance(error, MemoryLimitError | MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )

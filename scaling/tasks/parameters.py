"""The parameters of a task's spec, `name:key=value,…`, taken one by one; a key that nobody took is unknown."""

from __future__ import annotations

import re
from collections.abc import Mapping

from scaling.errors import UsageError, unknown


class Parameters:
    """What was given to the task `name`. Every method raises `UsageError` in one line for a value it cannot use."""

    def __init__(self, name: str, given: Mapping[str, str]) -> None:
        self.name = name
        self._given = dict(given)
        self._known: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._given

    def text(self, key: str, default: str | None = None) -> str | None:
        self._known.append(key)
        return self._given.pop(key, default)

    def number(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number within `low` to `high`."""
        levels = self.levels(key, str(default), low, high)
        if len(levels) > 1:
            raise self._wrong(key, f"{levels[0]}..{levels[-1]}", f"one number, as in {key}={default}")
        return levels[0]

    def levels(self, key: str, default: str, low: int, high: int) -> range:
        """`4` or `1..8`, within `low` to `high`: the difficulties that problems have in turn."""
        text = self.text(key, default) or default
        found = re.fullmatch(r"([0-9]{1,9})(?:\.\.([0-9]{1,9}))?", text)
        levels = range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)
        if not levels or levels[0] < low or levels[-1] > high:
            raise self._wrong(key, text, f"{low} to {high}, as in {key}={default}")
        return levels

    def share(self, key: str, default: float) -> float:
        """A number above 0 and at most 1."""
        text = self.text(key, str(default)) or ""
        if not re.fullmatch(r"[0-9]?\.?[0-9]{1,9}", text) or not 0 < float(text) <= 1:
            raise self._wrong(key, text, f"a share above 0 and up to 1, as in {key}={default}")
        return float(text)

    def done(self) -> None:
        """Raises `UsageError` for what was given and never taken."""
        for key in self._given:
            raise unknown(f"parameter of {self.name}", key, self._known)

    def _wrong(self, key: str, text: str, expected: str) -> UsageError:
        return UsageError(f"parameter {key} of {self.name} is {text!r}; expected {expected}")

"""The process behind `studies.stages`: matches the rules of others, which may never come to an end."""

from __future__ import annotations

import re
from typing import Any

from scaling.tasks.worker import serve


class _Matcher:
    def __init__(self) -> None:
        self.rules: list[list[re.Pattern[str]]] = []

    def setup(self) -> dict[str, Any]:
        return {}

    def compile(self, rules: list[list[str]]) -> dict[str, Any]:
        for patterns in rules:
            compiled = []
            for pattern in patterns:
                try:
                    compiled.append(re.compile(pattern, re.IGNORECASE))
                except Exception as error:  # of syntax, memory, depth, or size
                    return {"refused": pattern, "why": str(error) or type(error).__name__}
            self.rules.append(compiled)
        return {}

    def match(self, openings: list[str]) -> dict[str, Any]:
        """Of each opening, the numbers of the rules of which a pattern matches where it begins."""
        return {
            "found": [
                [number for number, rule in enumerate(self.rules) if any(pattern.match(each) for pattern in rule)]
                for each in openings
            ]
        }


if __name__ == "__main__":
    matcher = _Matcher()
    serve({"setup": matcher.setup, "compile": matcher.compile, "match": matcher.match})

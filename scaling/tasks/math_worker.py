"""The process behind `Rows` judged by math-verify: whether two answers are the same mathematics."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from scaling.tasks.worker import score, serve


def main() -> None:
    serve({"setup": _setup, "score": _score})


def _setup() -> dict[str, Any]:
    import math_verify  # noqa: F401 - so that its second of loading is no answer's

    logging.disable()  # it warns that its timeouts are off: ours also stop what no signal can
    return {}


def _score(expected: str, answer: str) -> dict[str, Any]:
    from math_verify import verify

    return score(lambda: verify(list(_parsed(expected)), list(_parse(answer)), timeout_seconds=None))


def _parse(text: str) -> tuple[Any, ...]:
    from math_verify import parse

    # In a box the whole text is one answer. Between dollar signs "1$ $2$ $3" would be three, of which one may be right.
    return tuple(parse(rf"\boxed{{{text}}}", parsing_timeout=None))


_parsed = lru_cache(maxsize=1024)(_parse)  # a group's traces are judged by one expected answer


if __name__ == "__main__":
    main()

"""What a completions server sends, read strictly: streams of events, whole answers, and what is wrong with them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from scaling.errors import first_line

MOST_BYTES = 1 << 28
"""Of one answer; a server that sends more is broken."""

DRAIN_SECONDS = 1.0
_RETRIED = {408, 409, 425, 429}


class Refused(Exception):
    """A request that is given up; `status` is the HTTP status that decided it, where one did."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class Retry(Refused):
    """A try that failed, where another may not; `after` seconds, if the server said."""

    def __init__(self, reason: str, status: int | None = None, after: float | None = None) -> None:
        super().__init__(reason, status)
        self.after = after


@dataclass(slots=True)
class Reply:
    """What has come of a response so far; `first_token` and `last_token` are `time.perf_counter` seconds.

    `tokens`: ids, where the server gives them. `logprobs`: natural, of each token; `likeliest`: of the likeliest one.
    `prompt_tokens`, `completion_tokens`, `cached`: as the server counted them.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    likeliest: list[float] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached: int | None = None
    first_token: float = 0.0
    last_token: float = 0.0

    def clear(self) -> None:
        """Forgets everything: another try starts afresh, so that nothing is doubled."""
        self.__init__()  # type: ignore[misc]

    def take(self, event: Mapping[str, Any]) -> None:
        """Adds one event of a stream, or a whole answer; raises `Retry` for what no such server should send."""
        if error := event.get("error"):
            said = error if isinstance(error, Mapping) else {"message": error}
            code = said.get("code")
            status = code if isinstance(code, int) else None
            raise failure_of(status, f"the server failed: {said.get('message')}")
        try:
            if (usage := event.get("usage")) is not None:
                self._count(usage)
            for choice in event.get("choices") or ():
                self._choice(choice)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise Retry(f"an answer that makes no sense: {type(error).__name__}: {first_line(error)}") from None

    def _count(self, usage: Mapping[str, Any]) -> None:
        self.prompt_tokens = _whole(usage["prompt_tokens"])
        self.completion_tokens = None if (said := usage.get("completion_tokens")) is None else _whole(said)
        if (cached := (usage.get("prompt_tokens_details") or {}).get("cached_tokens")) is not None:
            self.cached = _whole(cached)

    def _choice(self, choice: Mapping[str, Any]) -> None:
        if choice.get("index", 0) != 0:
            raise ValueError("more than one choice")
        text, ids, said = choice.get("text") or "", choice.get("token_ids"), choice.get("logprobs")
        named, logprobs, likeliest = _logprobs(said) if said else ([], [], [])
        if not isinstance(text, str):
            raise TypeError("text that is none")
        tokens = [_whole(id) for id in ids] if ids is not None else named
        if text or tokens:
            self.last_token = time.perf_counter()
            self.first_token = self.first_token or self.last_token
        self.text.append(text)
        self.tokens += tokens
        self.logprobs += logprobs
        self.likeliest += likeliest
        if (finish := choice.get("finish_reason")) is not None:
            self.finish = str(finish)


def _logprobs(said: Mapping[str, Any]) -> tuple[list[int], list[float], list[float]]:
    """(token ids if it names them, log-probabilities, those of the likeliest tokens), in the forms that servers use."""
    if "content" in said:  # llama.cpp
        entries = said["content"] or []
        ids = [_whole(entry["id"]) for entry in entries if "id" in entry]
        tops = [max((t["logprob"] for t in e.get("top_logprobs") or [e]), default=0.0) for e in entries]
        return ids, [float(entry["logprob"]) for entry in entries], [float(top) for top in tops]
    names = said.get("tokens") or []
    prefix = "token_id:"
    ids = [int(name.removeprefix(prefix)) for name in names] if all(n.startswith(prefix) for n in names) else []
    values = [float("nan") if value is None else float(value) for value in said.get("token_logprobs") or []]
    tops = [max(top.values()) if top else float("nan") for top in said.get("top_logprobs") or []]
    return ids, values, [float(top) for top in tops]


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("a count or token id that is none")
    return value


def failure_of(status: int | None, reason: str, after: float | None = None) -> Refused:
    """The failure of an HTTP status: one that may pass, or one that stays."""
    if status is None or status in _RETRIED or status >= 500:
        return Retry(reason, status, after)
    return Refused(reason, status)


async def pieces_of(response: Any) -> AsyncIterator[bytes]:
    """The body, at most `MOST_BYTES` of it."""
    received = 0
    async for piece in response.aiter_bytes():
        received += len(piece)
        if received > MOST_BYTES:
            raise Refused(f"an answer of more than {MOST_BYTES >> 20} MiB")
        yield piece


async def events_of(response: Any) -> AsyncIterator[Mapping[str, Any]]:
    """The JSON objects of a stream of server-sent events; a line ends at a line feed only, whatever its text holds."""
    kept: list[bytes] = []
    pieces = pieces_of(response)
    async for piece in pieces:
        *lines, rest = piece.split(b"\n")
        for line in lines:
            kept.append(line)
            whole, kept = b"".join(kept).strip(), []
            if not whole.startswith(b"data:"):
                continue  # blank, a comment, or a field that says nothing of the text
            if (data := whole.removeprefix(b"data:").strip()) == b"[DONE]":
                with suppress(Exception):  # what comes after the end harms nobody
                    async with asyncio.timeout(DRAIN_SECONDS):  # read out, the connection can be used again
                        async for _ in pieces:
                            pass
                return
            yield parsed(data)
        kept.append(rest)


def parsed(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise Retry(f"an answer that is not JSON: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise Retry(f"an answer that is JSON but no object: {type(found).__name__}")
    return found

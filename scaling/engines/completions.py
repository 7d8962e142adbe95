"""The wire of an OpenAI-compatible completions server: requests tried until it answers, streams read strictly."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from scaling.engines.replies import Refused, Reply, Retry, events_of, failure_of, parsed, pieces_of
from scaling.errors import UsageError, first_line, unknown
from scaling.text import show

CONNECT_SECONDS = 5.0
KEEP_SECONDS = 2.0  # that an idle connection is kept: servers hang up after 5
LONGEST_WAIT_SECONDS = 30.0  # between two tries, unless the server asks for more
# Who says which version it is, where: vLLM, llama.cpp, TGI, SGLang.
_VERSIONS = (("/version", "version"), ("/props", "build_info"), ("/info", "version"), ("/get_server_info", "version"))


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server was found to understand, by asking it.

    `token_prompts`: it takes prompts as token ids. `extras`: it takes fields beside OpenAI's own, which fix the length
    of a response and keep its own sampling defaults out. `response_ids`: where the token ids of a response come from,
    `text` if they do not and its text is tokenised again. `logprobs`: of the distribution that tokens are sampled from
    (`processed`), of the model's own (`raw`), `unknown` which, or None: none. `tells_cached`: it counts the prompt
    tokens that it took from a prefix cache.
    """

    token_prompts: bool
    extras: bool
    response_ids: Literal["token_ids", "logprobs", "text"] = "text"
    logprobs: Literal["processed", "raw", "unknown"] | None = None
    tells_cached: bool = False

    @property
    def by_text(self) -> bool:
        """Whether prompts or responses go as text, so that some tokens come back as others."""
        return not self.token_prompts or self.response_ids == "text"


@dataclass(slots=True)
class Server:
    """A server at `base_url`, to which one event loop talks.

    `deadline`: seconds of a request in all, tries and waits included; `patience`: seconds of silence that end one
    try; `tries` at most, after growing pauses that start at about `backoff` seconds, spread by half. `retries` counts
    the tries that were not the first.
    """

    base_url: str
    key: str | None = field(default=None, repr=False)
    deadline: float = 3600.0
    patience: float = 600.0
    tries: int = 6
    backoff: float = 0.5
    retries: int = 0
    _tls: Any = None
    _clients: list[Any] = field(default_factory=list)
    _idle: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base_url = checked_url(self.base_url)
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise UsageError("the API key holds characters that no HTTP header can; expected printable ASCII")
        self._tls = _httpx().create_ssl_context()

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        """A client with a connection of its own: one pool of many costs milliseconds a request."""
        httpx = _httpx()
        if not self._idle:
            headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
            timeout = httpx.Timeout(self.patience, connect=CONNECT_SECONDS)
            limits = httpx.Limits(max_connections=1, keepalive_expiry=KEEP_SECONDS)
            self._idle.append(httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits, verify=self._tls))
            self._clients.append(self._idle[-1])
        client = self._idle.pop()
        try:
            yield client
        finally:
            self._idle.append(client)

    async def describe(self, model: str | None) -> dict[str, Any]:
        """Which of its models to ask for, and what the server says of itself.

        Raises `UsageError` in one line where nothing answers, the key is refused, or it is not clear which model.
        """
        try:
            listed = await self._get(f"{self.base_url}/models")
        except Refused as error:
            if error.status in (401, 403):
                raise UsageError(
                    f"{self.base_url} wants another API key: {error}; put it into the environment"
                ) from None
            if error.status != 404 or model is None:
                raise UsageError(f"no completions server at {self.base_url}: {error}") from None
            listed = {}
        found = listed.get("data")
        entries = (
            {str(e["id"]): e for e in found if isinstance(e, dict) and "id" in e} if isinstance(found, list) else {}
        )
        if model is None:
            if len(entries) != 1:
                raise UsageError(f"{self.base_url} serves {len(entries)} models; say which, as in --served-model NAME")
            [model] = entries
        elif entries and model not in entries:
            raise unknown("served model", model, entries)
        entry = entries.get(model, {})
        length, root = entry.get("max_model_len"), _word(entry.get("root"))
        return {
            "base_url": self.base_url,
            "model": model,
            "server": _word(entry.get("owned_by")),
            "version": await self._version(),
            "root": None if root is None else root.rpartition("/")[2] if root.startswith("/") else root,
            "max_length": length if isinstance(length, int) and length > 0 else None,
        }

    async def complete(
        self,
        body: Mapping[str, Any],
        reply: Reply,
        check: Callable[[Reply], None],
        *,
        tries: int | None = None,
        deadline: float | None = None,
    ) -> Reply:
        """Fills `reply` with the answer to a request, after as many tries as it takes; `check` may refuse it.

        Raises `Refused` with the reason in one line, which never holds the key.
        """
        tries, deadline = tries or self.tries, deadline or self.deadline
        last = ""
        clock = asyncio.get_running_loop().time
        end = clock() + deadline
        try:
            async with asyncio.timeout_at(end):
                for attempt in range(1, tries + 1):
                    reply.clear()
                    try:
                        await self._once(body, reply)
                        check(reply)
                        return reply
                    except Retry as failure:
                        last = str(failure)
                        growing = min(self.backoff * 2 ** (attempt - 1), LONGEST_WAIT_SECONDS)
                        wait = growing * random.uniform(0.5, 1.5) + (failure.after or 0.0)
                        if attempt == tries or clock() + wait > end:
                            raise Refused(f"{last}; given up after {attempt} tries", failure.status) from None
                    self.retries += 1
                    await asyncio.sleep(wait)
        except TimeoutError:
            why = f"; the try before: {last}" if last else ""
            raise Refused(f"no answer within the deadline of {deadline:g} s{why}") from None
        raise AssertionError("the last try returns or raises")

    async def _once(self, body: Mapping[str, Any], reply: Reply) -> None:
        httpx = _httpx()
        try:
            async with (
                self._connection() as client,
                client.stream("POST", f"{self.base_url}/completions", json=body) as response,
            ):
                if response.status_code != 200:
                    raise await self._refusal(response)
                if response.headers.get("content-type", "").startswith("text/event-stream"):
                    async for event in events_of(response):
                        reply.take(event)
                else:
                    reply.take(parsed(b"".join([piece async for piece in pieces_of(response)])))
        except httpx.TimeoutException as error:
            raise Retry(f"silence for too long ({type(error).__name__})") from None
        except (httpx.RequestError, httpx.StreamError) as error:
            raise Retry(self._safe(f"the connection failed: {first_line(error)}")) from None
        except Refused as failure:
            failure.args = (self._safe(str(failure)),)
            raise
        if reply.finish is None:
            raise Retry("the answer broke off")

    async def _refusal(self, response: Any) -> Refused:
        """What an HTTP status other than 200 means, in the server's words if it has some."""
        status = int(response.status_code)
        said = b""
        async for piece in pieces_of(response):
            said += piece
            if len(said) > 1 << 16:
                break
        message: Any = said.decode("utf-8", "replace")
        try:
            answer = json.loads(message)
            error = answer.get("error", answer) if isinstance(answer, dict) else answer
            message = error.get("message", error) if isinstance(error, dict) else error
        except (ValueError, RecursionError):
            pass
        return failure_of(status, f"HTTP {status}: {message}", _retry_after(response.headers.get("retry-after")))

    async def _get(self, url: str) -> dict[str, Any]:
        httpx = _httpx()
        try:
            async with (
                self._connection() as client,
                client.stream("GET", url, timeout=httpx.Timeout(10.0, connect=CONNECT_SECONDS)) as response,
            ):
                if response.status_code != 200:
                    raise await self._refusal(response)
                return parsed(b"".join([piece async for piece in pieces_of(response)]))
        except Refused as failure:
            failure.args = (self._safe(str(failure)),)
            raise
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise Refused(self._safe(first_line(error))) from None

    async def _version(self) -> str | None:
        parts = urlsplit(self.base_url)
        for path, name in _VERSIONS:
            try:
                found = await self._get(urlunsplit((parts.scheme, parts.netloc, path, "", "")))
            except Refused:
                continue
            if (word := _word(found.get(name))) is not None:
                return word
        return None

    def _safe(self, text: str) -> str:
        """One printable line of bounded length, without the key."""
        if self.key:
            text = text.replace(self.key, "***")
        return show(" ".join(text.split()))[:300]


def _retry_after(said: str | None) -> float | None:
    """Seconds to wait, from a number of them or a date."""
    if said is None:
        return None
    try:
        return seconds if (seconds := float(said)) >= 0 else None
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def _word(value: Any) -> str | None:
    return show(" ".join(value.split()))[:100] if isinstance(value, str) and value else None


def key_from(variable: str) -> str | None:
    """The API key in the environment; None where there is none, as most servers of one's own need none."""
    return os.environ.get(variable) or None


def checked_url(base_url: str) -> str:
    """The address of the API, `/v1` added where no path is given; raises `UsageError` for what is none.

    It is recorded with every run, so it must hold no password.
    """
    expected = "expected one such as http://127.0.0.1:8000/v1"
    try:
        parts = urlsplit(base_url.strip())
        _ = parts.port
    except ValueError:
        raise UsageError(f"base URL {show(base_url)!r} is none; {expected}") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UsageError(f"a base URL holds no user, password or query: it is recorded with the run; {expected}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"base URL {show(base_url)!r} is none; {expected}")
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") or "/v1", "", ""))


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise UsageError("engine 'openai' needs httpx; install it: pip install 'thinking-cost[openai]'") from None
    return httpx

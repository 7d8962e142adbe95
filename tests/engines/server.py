"""A completions server on loopback whose tokens are known, and which misbehaves as it is told to."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

VOCABULARY = 258


def response_to(prompt: Sequence[int], count: int, seed: int = 0) -> list[int]:
    """What the server answers: a function of the request alone, and never one of the first three ids."""
    start = sum((i + 1) * token for i, token in enumerate(prompt)) + seed
    return [3 + (start + 7 * i) % (VOCABULARY - 3) for i in range(count)]


class CompletionsServer:
    """`fault(body, attempt)` names what goes wrong with a request, None for nothing; `attempt` counts those that were
    equal, from 0 on.

    `tokens`: it takes and gives token ids; otherwise text, by `decode` and `encode`. `extras`: it knows more than
    OpenAI's own fields; otherwise it refuses them. `names_ids`: it knows `return_token_ids`. `begins`: tokens that it
    puts before a text. `answered` counts answers that were sent to the end, by body.
    """

    def __init__(
        self,
        *,
        fault: Callable[[dict[str, Any], int], str | None] = lambda _body, _attempt: None,
        tokens: bool = True,
        extras: bool = True,
        names_ids: bool = True,
        begins: int = 0,
        decode: Callable[[list[int]], str] = lambda ids: "x" * len(ids),
        encode: Callable[[str], list[int]] = lambda text: [120] * len(text),
        models: Sequence[str] = ("served-tiny",),
        key: str | None = None,
        processed: bool = True,
        max_length: int = 1 << 20,
    ) -> None:
        self.fault, self.tokens, self.extras, self.models, self.key = fault, tokens, extras, models, key
        self.names_ids, self.begins = names_ids, begins
        self.decode, self.encode, self.processed, self.max_length = decode, encode, processed, max_length
        self.bodies: list[dict[str, Any]] = []
        self.attempts: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.flying = self.most_flying = 0

    def __enter__(self) -> CompletionsServer:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        start = asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.listening = asyncio.run_coroutine_threadsafe(start, self.loop).result()
        self.url = f"http://127.0.0.1:{self.listening.sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _stop(self) -> None:
        self.listening.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split()
                headers = {}
                while (header := await reader.readline()) not in (b"\r\n", b""):
                    name, _, value = header.decode("latin-1").partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
                    said = f"wrong key {headers.get('authorization')}"
                    self._json(writer, {"error": {"message": said}}, "401 Unauthorized")
                elif method == "GET":
                    self._about(writer, path)
                elif not await self._complete(writer, json.loads(body)):
                    break
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _about(self, writer: asyncio.StreamWriter, path: str) -> None:
        if path == "/v1/models":
            data = [{"id": m, "owned_by": "vllm", "root": m, "max_model_len": self.max_length} for m in self.models]
            self._json(writer, {"object": "list", "data": data})
        elif path == "/version":
            self._json(writer, {"version": "0.0.test"})
        else:
            self._json(writer, {"error": "no such page"}, "404 Not Found")

    def _json(self, writer: asyncio.StreamWriter, found: Any, status: str = "200 OK", extra: str = "") -> None:
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n{extra}\r\n"
        writer.write(head.encode() + data)

    async def _complete(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
        """Answers one request; False if the connection must be closed."""
        name = json.dumps([body["prompt"], body["max_tokens"], body["seed"]])
        attempt, self.attempts[name] = self.attempts[name], self.attempts[name] + 1
        self.bodies.append(body)
        self.flying += 1
        self.most_flying = max(self.most_flying, self.flying)
        try:
            return await self._answer(writer, body, self.fault(body, attempt), name)
        finally:
            self.flying -= 1

    async def _answer(  # noqa: PLR0912
        self, writer: asyncio.StreamWriter, body: dict[str, Any], fault: str | None, name: str
    ) -> bool:
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault and fault[0].isdigit():
            status, _, after = fault.partition(" after ")
            extra = f"retry-after: {after}\r\n" if after else ""
            self._json(writer, {"error": {"message": f"told to say {status}"}}, f"{status} Trouble", extra)
            return True
        if (not self.tokens and not isinstance(body["prompt"], str)) or (not self.extras and "ignore_eos" in body):
            self._json(writer, {"error": {"message": "unknown field or kind of prompt"}}, "422 Unprocessable")
            return True
        if fault == "html":
            self._json(writer, b"<html>a proxy's page</html>")
            return True
        prompt = self.encode(body["prompt"]) if isinstance(body["prompt"], str) else body["prompt"]
        ids = response_to(prompt, body["max_tokens"], body["seed"])
        finish = "length"
        if fault in ("short", "stop", "capped"):
            ids, finish = ids[: len(ids) // 2], "length" if fault == "capped" else "stop"
        if fault == "long":
            ids = [*ids, 5]
        if fault == "foreign":
            ids[-1] = VOCABULARY
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        middle = len(ids) // 2
        for at, part in ((0, ids[:middle]), (middle, ids[middle:])):
            last = at == middle
            if last and fault == "truncated":
                self._chunk(writer, b"data: [DONE]\n\n")
                break
            if last and fault == "cut":
                await writer.drain()
                writer.transport.abort()
                return False
            if last and fault == "garbage":
                self._chunk(writer, b'data: {"choices": [{"index": 0, "text": "\xff\xfe\n\n')
                continue
            if last and fault == "nonsense":
                self._chunk(writer, b'data: {"choices": [{"index": 0, "text": "", "token_ids": ["one", null]}]}\n\n')
                continue
            if last and fault == "stream error":
                self._chunk(writer, b'data: {"error": {"message": "out of memory", "code": 500}}\n\n')
                continue
            event = self._event(body, part, finish if last else None, fault)
            if fault == "drip":
                for byte in range(0, len(event), 40):
                    self._chunk(writer, event[byte : byte + 40])
                    await asyncio.sleep(0.1)
            else:
                self._chunk(writer, event)
        put = self.begins if isinstance(body["prompt"], str) else 0
        usage = {"prompt_tokens": put + len(prompt), "completion_tokens": len(ids)}
        self._chunk(writer, f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
        writer.write(b"0\r\n\r\n")
        self.answered[name] += 1
        return True

    def _event(self, body: dict[str, Any], ids: list[int], finish: str | None, fault: str | None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "text": self.decode(ids), "finish_reason": finish}
        if fault == "hostile":
            choice["text"] = "\x1b[2J\u2028\u0085\x0b\x00\ud800" + "\u202e" * 100_000
        if self.tokens and self.names_ids and body.get("return_token_ids"):
            choice["token_ids"] = ids
        if body.get("logprobs") and self.tokens:
            value = -1.5 * (1 if body["temperature"] == 1 or not self.processed else body["temperature"])
            names = [f"token_id:{id}" for id in ids]
            top = [{name: value} for name in names]
            choice["logprobs"] = {"tokens": names, "token_logprobs": [value] * len(ids), "top_logprobs": top}
        raw = json.dumps({"choices": [choice]}, ensure_ascii=fault != "hostile")
        return b"data: " + raw.encode("utf-8", "surrogatepass") + b"\n\n"

    @staticmethod
    def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

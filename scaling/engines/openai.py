"""The engine of a server elsewhere: any that speaks OpenAI's completions API, such as vLLM, SGLang, llama.cpp, TGI."""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from scaling.engines.base import Completion, FinishReason, Limits, Request, Stats
from scaling.engines.completions import Dialect, Server
from scaling.engines.replies import Refused, Reply
from scaling.errors import MemoryLimitError, UsageError, first_line

if TYPE_CHECKING:
    from torch import Tensor

EVENT_TOKENS = 16  # of a stream, after its first: an event a token would keep server and client busy
STEP_SECONDS = 0.2  # that a step waits at most, so that its driver can tell how far it is
GREETING_SECONDS = 120.0  # a server's first request may compile kernels

T = TypeVar("T")


@dataclass(slots=True)
class _Flight:
    """A request on its way; `prompt` is what is sent."""

    id: int
    request: Request
    submitted: float
    reply: Reply


class OpenAIEngine:
    """Samples from a completions server at `base_url`, at most `max_sequences` requests in flight.

    `model` is the server's name for it, needed where it serves several. `vocabulary` and `eos` are the model's;
    `tokenizer` (a Hugging Face one) is needed where the server takes or gives text alone. `key` goes into a header and
    nowhere else. Log-probabilities are asked for only with `logprobs`, as they cost the server time; they are NaN
    where the server does not give those of the sampling distribution. `deadline`, `patience`, `tries`, `backoff`: as
    `Server` has them. What fits in the server's memory it does not tell: `limits` are those of its model's length.

    `served` says which server and model answered, `dialect` how; `stats().retries` counts requests that were sent
    again, `drifted_tokens` of `retokenised_tokens` those that text brought back as others. Raises `UsageError` in one
    line where nothing answers that could be used.
    """

    name = "openai"

    def __init__(
        self,
        base_url: str,
        *,
        vocabulary: int,
        model: str | None = None,
        key: str | None = None,
        eos: Sequence[int] = (),
        tokenizer: Any = None,
        max_sequences: int = 64,
        max_length: int | None = None,
        logprobs: bool = False,
        deadline: float = 3600.0,
        patience: float = 600.0,
        tries: int = 6,
        backoff: float = 0.5,
    ) -> None:
        self.eos, self.vocabulary = tuple(eos), vocabulary
        self._tokenizer, self._logprobs = tokenizer, logprobs
        self._server = Server(base_url, key, deadline, patience, tries, backoff)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai", daemon=True)
        self._thread.start()
        self._flying: dict[int, tuple[_Flight, asyncio.Task[Completion]]] = {}
        self._ended: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        self._pending: set[int] = set()
        self._next_id = 0
        self._totals = Stats()
        self._peak = 0
        self._closed = False
        try:
            self.served = self._call(self._server.describe(model))
            self.dialect = self._call(self._detect())
        except BaseException:
            self.close()
            raise
        length = min(n for n in (max_length, self.served["max_length"], 1 << 40) if n is not None)
        self._limits = Limits(max_sequences * length, max_sequences, length)
        self._seats = asyncio.Semaphore(max_sequences)

    def submit(self, request: Request) -> int:
        """Sends a request on its way.

        Raises `UsageError` if it makes no sense for this model, `MemoryLimitError` if the server takes none so long.
        """
        if self._closed:
            raise UsageError("the engine is closed")
        request.check(self.vocabulary)
        if request.stop and not request.ignore_eos and not self.dialect.extras:
            raise UsageError(
                f"{self._server.base_url} takes no token ids that end a response, and this environment has some beside "
                "the model's own; take a server that knows stop_token_ids, such as vLLM"
            )
        if (total := len(request.prompt) + request.max_tokens) > self._limits.max_length:
            raise MemoryLimitError(f"{total} tokens do not fit a sequence of at most {self._limits.max_length}")
        flight = _Flight(self._next_id, request, self.now(), Reply())
        self._next_id += 1
        self._pending.add(flight.id)
        self._peak = max(self._peak, min(len(self._pending), self._limits.max_sequences))
        self._loop.call_soon_threadsafe(self._start, flight)
        return flight.id

    def abort(self, id: int) -> None:
        """Ends a request early, hanging up on the server; an unknown or finished one is left alone."""
        if not self._closed:
            self._call(self._cancel([id]))

    def step(self) -> list[Completion]:
        """What has ended since the last step; waits for the first one, but not for longer than `STEP_SECONDS`."""
        done: list[Completion] = []
        while self._pending:
            try:
                completion = self._ended.get(timeout=0 if done else STEP_SECONDS)
            except queue.Empty:
                break
            self._pending.discard(completion.id)
            done.append(completion)
        return done

    def limits(self) -> Limits:
        return self._limits

    def stats(self, *, new_peaks: bool = False) -> Stats:
        """Requests in flight, and tokens that came back: of the server's own steps, memory and queue it knows nothing,
        and they are zero."""
        flights = [flight for flight, _ in list(self._flying.values())]
        running = min(len(flights), self._limits.max_sequences)
        peak = self._peak
        if new_peaks:
            self._peak = len(self._pending)
        return replace(
            self._totals,
            running=running,
            waiting=len(flights) - running,
            peak_running=peak,
            decode_tokens=self._totals.decode_tokens + sum(max(len(f.reply.tokens) - 1, 0) for f in flights),
            retries=self._server.retries,
        )

    def now(self) -> float:
        return time.perf_counter()

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        raise UsageError("a server keeps the weights that it was started with; train with an engine in this process")

    def sleep(self) -> None:
        raise UsageError("a server keeps its memory; the openai engine cannot sleep")

    def wake(self) -> None:
        """Nothing to do: it never sleeps."""

    def close(self) -> None:
        """Hangs up on all requests and ends the thread that talks to the server."""
        if self._closed:
            return
        self._closed = True
        self._call(self._cancel(list(self._flying)))
        self._call(self._server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pending.clear()

    def record(self) -> dict[str, Any]:
        """Which server answered and how, for the record; no secrets."""
        return {**self.served, "dialect": asdict(self.dialect)}

    # What follows runs on the loop's thread, `_call` apart.

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _start(self, flight: _Flight) -> None:
        task = self._loop.create_task(self._serve(flight))
        self._flying[flight.id] = flight, task
        task.add_done_callback(lambda task: self._end(flight, task))

    def _end(self, flight: _Flight, task: asyncio.Task[Completion]) -> None:
        """Hands a request back, whatever became of it, exactly once."""
        del self._flying[flight.id]
        if task.cancelled():
            completion = self._completion(flight, "abort")
        elif error := task.exception():
            reason = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {first_line(error)}"
            completion = self._completion(flight, "error", reason)
        else:
            completion = task.result()
        if completion.finish in ("stop", "length"):
            by_text = self.dialect.response_ids == "text"  # then the server's count is of what it really sampled
            sampled = (flight.reply.completion_tokens if by_text else None) or len(completion.tokens)
            self._totals = replace(
                self._totals,
                prefill_tokens=self._totals.prefill_tokens + completion.computed,
                prefix_hits=self._totals.prefix_hits + completion.cached,
                decode_tokens=self._totals.decode_tokens + max(sampled - 1, 0),
            )
        self._ended.put(completion)

    async def _cancel(self, ids: Iterable[int]) -> None:
        tasks = [self._flying[id][1] for id in ids if id in self._flying]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _serve(self, flight: _Flight) -> Completion:
        request = flight.request
        async with self._seats:
            prompt, encoded = self._prompt(request.prompt)
            body = self._body(request, prompt, self.dialect)
            await self._server.complete(body, flight.reply, lambda reply: self._check(request, reply))
        if (read := flight.reply.prompt_tokens) is not None and isinstance(prompt, str):
            self._drift(0, abs(read - encoded))  # what the server put in, such as a first token that we did not send
        finish: FinishReason = "length" if flight.reply.finish == "length" else "stop"
        return self._completion(flight, finish)

    def _check(self, request: Request, reply: Reply) -> None:
        """Raises `Refused` where the server did not do what it was asked: lengths are never silently other ones."""
        if reply.finish not in ("stop", "length"):
            raise Refused(f"the server ended the response with {str(reply.finish)[:40]!r}")
        text = self.dialect.response_ids == "text"
        count = reply.completion_tokens if text else len(reply.tokens)
        if count is None:
            count = request.max_tokens if reply.finish == "length" else 0
        if count > request.max_tokens:
            raise Refused(f"the server sent {count} tokens where at most {request.max_tokens} were asked for")
        if request.ignore_eos and count < request.max_tokens:
            raise Refused(
                f"the server stopped after {count} of {request.max_tokens} tokens although told to ignore the end; "
                "fixed lengths need one that knows ignore_eos"
            )
        if reply.finish == "length" and count < request.max_tokens:
            raise Refused(
                f"the server cut the response at {count} of {request.max_tokens} tokens: a limit of its own is lower"
            )
        ends = set() if request.ignore_eos else {*self.eos, *request.stop}
        if not text and (passed := ends.intersection(reply.tokens[:-1])):
            raise Refused(f"the server went on behind token {min(passed)}, which was to end the response")
        if not text and (bad := [token for token in reply.tokens if token >= self.vocabulary]):
            raise Refused(f"token id {bad[0]} is outside the vocabulary of {self.vocabulary}: is it the same model?")
        if not text and not reply.tokens:
            raise Refused("the server sent no token ids")

    def _completion(self, flight: _Flight, finish: FinishReason, error: str | None = None) -> Completion:
        request, reply = flight.request, flight.reply
        kept = finish != "error"
        tokens = list(reply.tokens) if kept else []
        if kept and self.dialect.response_ids == "text":
            tokens = self._encode("".join(reply.text))
            if finish == "stop" and self.eos:
                tokens.append(self.eos[0])  # the end itself has no text
            if finish != "abort":
                self._drift(len(tokens), abs(len(tokens) - (reply.completion_tokens or len(tokens))))
        cached = min(reply.cached or 0, len(request.prompt))
        return Completion(
            id=flight.id,
            tokens=tokens,
            logprobs=self._sampled_logprobs(request, reply, len(tokens)),
            finish=finish,
            computed=len(request.prompt) - cached if kept and tokens else 0,
            cached=cached if kept and tokens else 0,
            submitted=flight.submitted,
            first_token=reply.first_token,
            last_token=reply.last_token or self.now(),
            error=error,
        )

    def _sampled_logprobs(self, request: Request, reply: Reply, count: int) -> list[float]:
        if request.temperature == 0:
            return [0.0] * count
        plain = request.temperature == 1 and request.top_p == 1  # nothing was processed
        known = self.dialect.logprobs == "processed" or (plain and self.dialect.logprobs is not None)
        if self._logprobs and known and len(reply.logprobs) == count:
            return list(reply.logprobs)
        return [math.nan] * count

    def _prompt(self, tokens: Sequence[int]) -> tuple[list[int] | str, int]:
        """A prompt as the server takes it, and of how many tokens; what becomes of it on the way is counted."""
        if self.dialect.token_prompts:
            return list(tokens), len(tokens)
        text = self._decode(tokens)
        back = self._encode(text)
        self._drift(len(tokens), len(tokens) - sum((Counter(tokens) & Counter(back)).values()))
        return text, len(back)

    def _drift(self, tokens: int, drifted: int) -> None:
        self._totals = replace(
            self._totals,
            retokenised_tokens=self._totals.retokenised_tokens + tokens,
            drifted_tokens=self._totals.drifted_tokens + drifted,
        )

    def _decode(self, tokens: Sequence[int]) -> str:
        decode = self._tokenizer.decode
        return str(decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _encode(self, text: str) -> list[int]:
        whole = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # lone surrogates are no text
        return [int(id) for id in self._tokenizer(whole, add_special_tokens=False)["input_ids"]]

    def _body(self, request: Request, prompt: list[int] | str, dialect: Dialect) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.served["model"],
            "prompt": prompt,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed % 2**31,  # some servers keep it in 32 bits
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.top_p < 1 or dialect.extras:
            body["top_p"] = request.top_p
        if self._logprobs or dialect.response_ids == "logprobs":
            body["logprobs"] = 1
        if dialect.extras:
            body |= {  # a model's own sampling defaults, which servers put in where nothing is said, change the samples
                "top_k": -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "ignore_eos": request.ignore_eos,
                "stop_token_ids": [] if request.ignore_eos else sorted({*self.eos, *request.stop}),
                "skip_special_tokens": False,
                "add_special_tokens": False,
                "return_token_ids": True,
                "return_tokens_as_token_ids": True,
                "stream_interval": EVENT_TOKENS,
            }
        return body

    async def _detect(self) -> Dialect:
        """Asks for two tokens in every form, the best first, until one is understood."""
        tokens = [(self.vocabulary // 2 + i) % self.vocabulary for i in range(4)]
        request = Request(tokens, max_tokens=2, ignore_eos=True)
        said: list[str] = []
        for token_prompts in (True, False):
            if not token_prompts and self._tokenizer is None:
                break
            for extras in (True, False):
                for response_ids in ("text", "logprobs"):
                    dialect = Dialect(token_prompts, extras, response_ids)
                    try:
                        reply = await self._ask(request, dialect)
                    except Refused as error:
                        if error.status is None or error.status in (401, 403, 404):
                            raise UsageError(f"{self._server.base_url} does not complete: {error}") from None
                        said.append(str(error))
                        continue
                    if token_prompts and reply.prompt_tokens not in (None, len(tokens)):
                        said.append(f"{len(tokens)} token ids were taken for {reply.prompt_tokens}")
                    elif reply.tokens:
                        kind: Any = "logprobs" if response_ids == "logprobs" else "token_ids"
                        found = replace(dialect, response_ids=kind, tells_cached=reply.cached is not None)
                        return await self._with_logprobs(found, request)
                    elif response_ids == "logprobs" and self._tokenizer is not None:
                        return replace(dialect, response_ids="text", tells_cached=reply.cached is not None)
                    else:
                        said.append("responses came without token ids")
        hint = "" if self._tokenizer else "; through text it needs the model's tokenizer: give its directory as --model"
        raise UsageError(f"{self._server.base_url} cannot be used: {said[0]}{hint}")

    async def _with_logprobs(self, dialect: Dialect, request: Request) -> Dialect:
        """Finds out what the server's log-probabilities are of: only processed ones change with the temperature."""
        if not self._logprobs:
            return dialect
        likeliest = []
        for temperature in (1.0, 0.5):
            reply = await self._ask(replace(request, max_tokens=1, temperature=temperature), dialect)
            if not reply.logprobs:
                return dialect
            likeliest += reply.likeliest[:1]
        if len(likeliest) < 2 or likeliest[0] > -0.05:  # too certain to grow by much
            return replace(dialect, logprobs="unknown")
        return replace(dialect, logprobs="processed" if likeliest[1] > likeliest[0] + 0.01 else "raw")

    async def _ask(self, request: Request, dialect: Dialect) -> Reply:
        prompt = list(request.prompt) if dialect.token_prompts else self._decode(request.prompt)
        body = self._body(request, prompt, dialect)
        return await self._server.complete(body, Reply(), lambda _: None, tries=3, deadline=GREETING_SECONDS)

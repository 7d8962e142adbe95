"""The embedded engine: continuous batching of a `Decoder` over paged KV memory, on CPU or CUDA."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

import psutil
import torch
from torch import Tensor

from scaling.decoder import Decoder
from scaling.engines.base import Completion, FinishReason, Limits, Request, Stats
from scaling.engines.batch import Batch, Row, passes, synthetic
from scaling.engines.forward import Forward
from scaling.engines.kv import PAGE_TOKENS, PagedKV, pages_of
from scaling.errors import MemoryLimitError, UsageError, ran_out_of_memory

_FREE_MEMORY_SHARE = 0.4  # of free memory goes to KV unless told: prefill activations and `measure` need some too


class LocalEngine:
    """Samples a `Decoder` in this process.

    `kv_bytes` is the KV budget (a share of free memory, unless given); it is preallocated, and a request is admitted,
    first come first served, once what all running ones may come to need leaves room for its prompt and `max_tokens`.
    So nothing is ever preempted. KV that a request left is there in the next step for one that follows it, and no
    longer. `max_length` bounds prompt plus response (the model's own maximum, unless given);
    `eos` are the ids that end a response.

    The model's parameters are shared, not copied: projections are fused by turning the model's own parameters into
    views of the fused matrices, so in-place changes (`load_weights`, an optimizer) reach the samples at once.
    Replacing parameters (`model.to`, `load_state_dict(assign=True)`) breaks that: build a new engine then.
    """

    name = "local"

    def __init__(
        self,
        model: Decoder,
        *,
        kv_bytes: int | None = None,
        max_sequences: int = 64,
        max_length: int | None = None,
        eos: Sequence[int] = (),
    ) -> None:
        self.model = model
        self.eos = tuple(eos)
        self.vocabulary = model.shape.vocabulary
        self._forward = Forward(model)
        self._dtype = model.head.dtype
        self._token_bytes = model.shape.kv_bytes_per_token(str(self._dtype).removeprefix("torch."))
        self._limits = _limits(
            kv_bytes, self._token_bytes, max_sequences, max_length or model.shape.max_positions, self._forward.device
        )
        self._batch: Batch | None = Batch(self._forward, self._memory(self._limits.kv_tokens // PAGE_TOKENS))
        self._scratch: PagedKV | None = None
        self._waiting: deque[Row] = deque()
        self._ended: list[Completion] = []
        self._next_id = 0
        self._version = 0
        self._counts = dict.fromkeys(("prefill_tokens", "decode_tokens", "decode_steps"), 0)
        self._seconds = dict.fromkeys(("prefill_seconds", "decode_seconds"), 0.0)

    def submit(self, request: Request) -> int:
        """Queues a request.

        Raises `UsageError` if it makes no sense for this model, `MemoryLimitError` if it could never fit.
        """
        self._awake()
        request.check(self.vocabulary)
        ends = frozenset() if request.ignore_eos else frozenset((*self.eos, *request.stop))
        row = Row(self._next_id, request, ends, self.now())
        limits = self._limits
        total = len(request.prompt) + request.max_tokens
        if total > limits.max_length:
            raise MemoryLimitError(f"{total} tokens do not fit a sequence of at most {limits.max_length}")
        if row.reserved * PAGE_TOKENS > limits.kv_tokens:
            raise MemoryLimitError(f"{total} tokens do not fit a KV memory of {limits.kv_tokens} tokens")
        self._next_id += 1
        (self._waiting.append if request.follows is None else self._waiting.appendleft)(row)
        return row.id

    def abort(self, id: int) -> None:
        """Ends a request early; an unknown or finished one is left alone."""
        running = self._awake().rows
        for row in (*running, *self._waiting):
            if row.id == id:
                if row in running:
                    self._awake().remove([row])
                else:
                    self._waiting.remove(row)
                self._ended.append(self._completion(row, "abort"))
                return

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """Admits and encodes what fits, then decodes one token for every running row; what finished, by id."""
        batch = self._awake()
        done: list[tuple[Row, FinishReason]] = []
        admitted = self._admit()
        for group in passes(admitted):
            started = self.now()
            done += batch.prefill(group)
            ended = self.now()
            for row in group:
                row.first_token = ended
            self._counts["prefill_tokens"] += sum(row.new for row in group)
            self._seconds["prefill_seconds"] += ended - started
        if batch.rows:
            started = self.now()
            self._counts["decode_tokens"] += len(batch.rows)
            self._counts["decode_steps"] += 1
            done += batch.decode()
            self._seconds["decode_seconds"] += self.now() - started
        completions = self._ended + [self._completion(row, reason) for row, reason in done]
        self._ended = []
        return sorted(completions, key=lambda completion: completion.id)

    @torch.inference_mode()
    def measure(
        self, contexts: Sequence[int], prefill: Sequence[int] = (), *, warm_up: int = 0, steps: int = 1
    ) -> float:
        """Seconds of encoding prompts of lengths `prefill` and of a decode step at `contexts`, on synthetic KV.

        Runs the code that `step` runs, on KV memory of its own that the first call allocates: running requests are
        not touched. Raises `MemoryLimitError` if that memory is not free; the engine's own limits do not bound it.
        """
        try:
            return self._measure([max(n - warm_up, 1) for n in contexts], prefill, warm_up, steps)
        except RuntimeError as error:  # torch's out-of-memory errors, on CPU and CUDA
            if not ran_out_of_memory(error):
                raise
            raise MemoryLimitError(f"{len(contexts)} rows, {len(prefill)} prompts: {error}") from None

    def _measure(self, contexts: Sequence[int], prefill: Sequence[int], warm_up: int, steps: int) -> float:
        pages = sum(pages_of(n + warm_up + steps) for n in contexts) + sum(map(pages_of, prefill))
        if self._scratch is None or self._scratch.pages < pages:
            self._scratch = None
            self._scratch = self._memory(pages)
            self._scratch.data.copy_(
                torch.randn(self._scratch.data.shape[3:], dtype=self._dtype, device=self._forward.device)
            )
        seconds = 0.0
        self._scratch.release(set(self._scratch.owners))
        if prefill:
            batch = Batch(self._forward, self._scratch)
            prompts = [synthetic(index, length) for index, length in enumerate(prefill)]
            started = self._synchronised()
            for group in passes(prompts):
                batch.prefill(group)
            seconds += self._synchronised() - started
            self._scratch.release(set(self._scratch.owners))
        if contexts:
            batch = Batch(self._forward, self._scratch)
            for index, length in enumerate(contexts):
                row = synthetic(index, 1)
                row.tokens = [0]
                self._scratch.grow(row.context, length)
                if length > 1:
                    self._scratch.places([row.context], [length - 1])
                batch.rows.append(row)
            batch.prepare()
            for _ in range(warm_up):
                batch.decode()
            started = self._synchronised()
            for _ in range(steps):
                batch.decode()
            seconds += (self._synchronised() - started) / steps
        return seconds

    def _synchronised(self) -> float:
        """Now, once the device has done what it was given."""
        if self._forward.device.type == "cuda":
            torch.cuda.synchronize(self._forward.device)
        return self.now()

    def limits(self) -> Limits:
        return self._limits

    def stats(self, *, new_peaks: bool = False) -> Stats:
        batch = self._batch
        rows = batch.rows if batch else []
        peak_rows, peak_tokens = (batch.peak_rows, batch.peak_tokens) if batch else (0, 0)
        if batch and new_peaks:
            batch.peak_rows, batch.peak_tokens = len(rows), 0
        return Stats(
            running=len(rows),
            waiting=len(self._waiting),
            kv_tokens=sum(row.context.length for row in rows),
            peak_kv_tokens=peak_tokens,
            peak_running=peak_rows,
            prefill_tokens=self._counts["prefill_tokens"],
            decode_tokens=self._counts["decode_tokens"],
            decode_steps=self._counts["decode_steps"],
            prefill_seconds=self._seconds["prefill_seconds"],
            decode_seconds=self._seconds["decode_seconds"],
        )

    def now(self) -> float:
        return time.perf_counter()

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copies tensors, under Hugging Face names, into the model in place; KV in memory is kept as it is."""
        self.model.copy_weights(iter(tensors))
        self._version = version

    def sleep(self) -> None:
        """Gives KV memory back until `wake`; raises `UsageError` unless idle."""
        if self._waiting or (self._batch and self._batch.rows):
            raise UsageError("the engine can sleep only when no request runs or waits")
        self._batch = self._scratch = None

    def wake(self) -> None:
        if self._batch is None:
            self._batch = Batch(self._forward, self._memory(self._limits.kv_tokens // PAGE_TOKENS))

    def close(self) -> None:
        """Drops all requests and gives KV memory back."""
        self._waiting.clear()
        self._batch = self._scratch = None

    def _memory(self, pages: int) -> PagedKV:
        tokens = pages * PAGE_TOKENS
        needed, free = tokens * self._token_bytes, _free_bytes(self._forward.device)
        if needed > free:  # a CPU would promise the memory and kill the process later
            raise MemoryLimitError(f"{tokens} KV tokens need {needed} bytes, and {free} are free")
        try:
            return PagedKV(self.model.shape, pages, self._dtype, self._forward.device)
        except RuntimeError as error:  # torch's out-of-memory errors, on CPU and CUDA
            raise MemoryLimitError(f"no memory for {tokens} KV tokens: {error}") from None

    def _awake(self) -> Batch:
        if self._batch is None:
            raise UsageError("the engine sleeps or is closed; wake it first")
        return self._batch

    def _admit(self) -> list[Row]:
        """Takes from the front of the queue what fits beside the running rows; of KV that ended rows left, what these
        go on from is kept, and all other given back."""
        batch = self._awake()
        rows = batch.rows
        free = self._limits.kv_tokens // PAGE_TOKENS - sum(row.reserved for row in rows)
        seats = self._limits.max_sequences - len(rows)
        admitted: list[Row] = []
        while self._waiting and len(admitted) < seats and self._waiting[0].reserved <= free:
            row = self._waiting.popleft()
            row.weights_version = self._version
            free -= row.reserved
            admitted.append(row)
            before = batch.ended.get(-1 if row.request.follows is None else row.request.follows)
            if before is not None and row.continues(before):
                row.cached = before.context.length
        batch.forget(but={row.request.follows for row in admitted if row.request.follows is not None and row.cached})
        return admitted

    def _completion(self, row: Row, reason: FinishReason) -> Completion:
        return Completion(
            id=row.id,
            tokens=row.tokens,
            logprobs=row.logprobs,
            finish=reason,
            computed=row.new if row.tokens else 0,
            cached=row.cached if row.tokens else 0,
            submitted=row.submitted,
            first_token=row.first_token,
            last_token=self.now(),
            weights_version=row.weights_version,
        )


def _limits(kv_bytes: int | None, token_bytes: int, sequences: int, length: int, device: torch.device) -> Limits:
    if sequences < 1:
        raise UsageError(f"max_sequences {sequences} is not positive")
    free = _free_bytes(device)
    if kv_bytes is None:
        kv_bytes = min(int(_FREE_MEMORY_SHARE * free), sequences * pages_of(length) * PAGE_TOKENS * token_bytes)
    elif kv_bytes > free:
        raise MemoryLimitError(f"{kv_bytes} bytes of KV memory do not fit the {free} that are free")
    pages = kv_bytes // (token_bytes * PAGE_TOKENS)
    if pages < 1:
        raise MemoryLimitError(f"{kv_bytes} bytes of KV memory hold no page of {token_bytes * PAGE_TOKENS} bytes")
    return Limits(kv_tokens=pages * PAGE_TOKENS, max_sequences=sequences, max_length=length)


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    torch.cuda.empty_cache()  # what was freed is torch's until then, and would count as used
    return int(torch.cuda.mem_get_info(device)[0])

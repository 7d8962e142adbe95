"""The local engine's requests on their way, and the batch in which they decode together over one KV memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from scaling.engines.base import FinishReason, Request
from scaling.engines.forward import Forward
from scaling.engines.kv import Context, PagedKV, Plan, pages_of
from scaling.engines.sampling import Sampler

PREFILL_TOKENS = 16384
"""Prompts admitted together are encoded in passes of about so many tokens."""


@dataclass(slots=True, eq=False)
class Row:
    """A request on its way; `cached` tokens of its prompt are in KV memory already."""

    id: int
    request: Request
    ends: frozenset[int]
    submitted: float
    context: Context = field(default_factory=Context)
    cached: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    first_token: float = 0.0
    weights_version: int = 0

    @property
    def reserved(self) -> int:
        """Pages that the request may come to need: its last token is never fed back."""
        return pages_of(len(self.request.prompt) + self.request.max_tokens - 1)

    @property
    def new(self) -> int:
        """Prompt tokens to encode."""
        return len(self.request.prompt) - self.cached

    def continues(self, ended: Row) -> bool:
        """Whether the prompt is all that an ended row's KV holds, and more."""
        held, prompt = [*ended.request.prompt, *ended.tokens[:-1]], self.request.prompt
        return len(prompt) > len(held) and list(prompt[: len(held)]) == held

    def take(self, token: int, logprob: float) -> FinishReason | None:
        """Adds a sampled token; the reason if it was the last."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.ends:
            return "stop"
        return "length" if len(self.tokens) >= self.request.max_tokens else None


class Batch:
    """Rows that decode together over one KV memory.

    The KV of `ended` rows stays until `forget`, for requests that follow theirs.
    """

    def __init__(self, forward: Forward, kv: PagedKV) -> None:
        self.forward = forward
        self.kv = kv
        self.rows: list[Row] = []
        self.ended: dict[int, Row] = {}
        self.peak_rows = self.peak_tokens = 0
        self._plan: Plan | None = None
        self._sampler: Sampler | None = None

    def prefill(self, rows: Sequence[Row]) -> list[tuple[Row, FinishReason]]:
        """Encodes what is new of the rows' prompts and samples their first tokens; rows that are not done join."""
        prompts = [row.request.prompt[row.cached :] for row in rows]
        try:
            for row in rows:
                if row.cached and row.request.follows is not None:
                    row.context = self.ended.pop(row.request.follows).context
            for row, prompt in zip(rows, prompts, strict=True):
                self.kv.grow(row.context, len(prompt))
            logits = self.forward.prefill(prompts, [row.context for row in rows], self.kv)
        except BaseException:  # out of memory, say: the pages must not outlive their rows
            self.kv.release(row.context for row in rows)
            raise
        self.rows.extend(rows)
        self._plan = self._sampler = None
        return self._sample(Sampler([row.request for row in rows], [0] * len(rows), logits.device), rows, logits)

    def prepare(self) -> tuple[Plan, Sampler]:
        """Makes room for one token a row; the plan and the sampler of the next step."""
        grown = [self.kv.grow(row.context, 1) for row in self.rows]
        if self._plan is None or any(grown):
            self._plan = Plan(self.kv, [row.context for row in self.rows])
        if self._sampler is None:
            sampled = [len(row.tokens) for row in self.rows]
            self._sampler = Sampler([row.request for row in self.rows], sampled, self.forward.device)
        return self._plan, self._sampler

    def decode(self) -> list[tuple[Row, FinishReason]]:
        """One token for every row; those that are done leave."""
        plan, sampler = self.prepare()
        logits = self.forward.decode([row.tokens[-1] for row in self.rows], self.kv, plan)
        return self._sample(sampler, self.rows, logits)

    def remove(self, rows: Sequence[Row]) -> None:
        """Takes rows out and gives their pages back."""
        self._leave(rows)
        self.kv.release(row.context for row in rows)

    def forget(self, *, but: Collection[int] = ()) -> None:
        """Gives back the pages of ended rows `but` those of these ids."""
        gone = [row for row in self.ended.values() if row.id not in but]
        if gone:
            self.kv.release(row.context for row in gone)
            self.ended = {id: row for id, row in self.ended.items() if id in but}
            self._plan = None

    def _leave(self, rows: Sequence[Row]) -> None:
        gone = {row.id for row in rows}
        self.rows = [row for row in self.rows if row.id not in gone]
        self._plan = self._sampler = None

    def _sample(self, sampler: Sampler, rows: Sequence[Row], logits: Tensor) -> list[tuple[Row, FinishReason]]:
        self.peak_rows = max(self.peak_rows, len(self.rows))
        self.peak_tokens = max(self.peak_tokens, sum(row.context.length for row in self.rows))
        tokens, logprobs = sampler.sample(logits)
        done = [
            (row, reason)
            for row, token, logprob in zip(rows, tokens, logprobs, strict=True)
            if (reason := row.take(token, logprob)) is not None
        ]
        if done:
            self._leave([row for row, _ in done])
            self.ended |= {row.id: row for row, _ in done}
        return done


def passes(rows: Sequence[Row]) -> list[list[Row]]:
    """Splits rows into prefill passes of about `PREFILL_TOKENS`: prompts of equal length next to each other, behind
    them those of which KV memory holds a part."""
    found: list[list[Row]] = []
    room = 0
    for row in sorted(rows, key=lambda row: (row.cached > 0, row.new)):
        length = row.new
        if length > room:
            found.append([])
            room = PREFILL_TOKENS
        found[-1].append(row)
        room -= length
    return found


def synthetic(seed: int, length: int) -> Row:
    """A row that never ends, for measuring."""
    return Row(seed, Request([0] * length, max_tokens=2**62, ignore_eos=True, seed=seed), frozenset(), 0.0)

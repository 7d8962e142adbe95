"""KV memory in pages, and attention of one new token a row over it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from scaling.predict.shape import Shape

PAGE_TOKENS = 128

Places = tuple[Tensor, Tensor]
"""Pages and offsets in them, one a token."""


class Context:
    """One sequence's tokens in KV memory: `length` of them, in `pages`."""

    __slots__ = ("length", "pages")

    def __init__(self) -> None:
        self.length = 0
        self.pages: list[int] = []


class PagedKV:
    """Preallocated keys and values of many contexts of different lengths.

    The pages in use are always the first `used` ones: a context that leaves hands its holes to the last pages. So
    a decode step attends over one dense block, whatever the lengths, and nothing is padded beyond a page.
    """

    def __init__(self, shape: Shape, pages: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.pages = pages
        # Zeros, because what is masked must still be finite.
        size = (shape.layers, 2, pages, shape.kv_heads, PAGE_TOKENS, shape.head_dim)
        self.data = torch.zeros(size, dtype=dtype, device=device)
        self.mask = torch.full((pages, PAGE_TOKENS), -torch.inf, dtype=dtype, device=device)
        self.owners: list[Context] = []

    @property
    def used(self) -> int:
        return len(self.owners)

    def grow(self, context: Context, tokens: int) -> bool:
        """Makes room for `tokens` more; True if that took pages."""
        need = pages_of(context.length + tokens) - len(context.pages)
        if need > 0:
            if self.used + need > self.pages:
                raise RuntimeError("KV pages ran out: reservations were not kept")
            context.pages.extend(range(self.used, self.used + need))
            self.owners.extend([context] * need)
        return need > 0

    def release(self, contexts: Iterable[Context]) -> None:
        """Gives pages back and moves the last ones in use into the holes."""
        gone = {page for context in contexts for page in context.pages}
        kept = self.used - len(gone)
        holes = sorted(page for page in gone if page < kept)
        movers = [page for page in range(kept, self.used) if page not in gone]
        for hole, mover in zip(holes, movers, strict=True):
            self.data[:, :, hole] = self.data[:, :, mover]
            self.mask[hole] = self.mask[mover]
            owner = self.owners[hole] = self.owners[mover]
            owner.pages[owner.pages.index(mover)] = hole
        del self.owners[kept:]
        self.mask[kept : kept + len(gone)] = -torch.inf

    def places(self, contexts: Sequence[Context], counts: Sequence[int]) -> Places:
        """Where the next `counts[i]` tokens of each context go, packed; they count as held from now on."""
        pages: list[Tensor] = []
        offsets: list[Tensor] = []
        for context, count in zip(contexts, counts, strict=True):
            at = torch.arange(context.length, context.length + count)
            pages.append(torch.tensor(context.pages)[at // PAGE_TOKENS])
            offsets.append(at % PAGE_TOKENS)
            context.length += count
        places = torch.cat(pages).to(self.data.device), torch.cat(offsets).to(self.data.device)
        self.mask[places] = 0.0
        return places

    def write(self, layer: int, places: Places, k: Tensor, v: Tensor) -> None:
        """Stores k and v [T, KV heads, D] of packed tokens."""
        self.data[layer, 0].transpose(1, 2)[places] = k
        self.data[layer, 1].transpose(1, 2)[places] = v


class Plan:
    """How one decode step attends: made when rows or pages change, valid for all steps until then."""

    def __init__(self, kv: PagedKV, contexts: Sequence[Context]) -> None:
        self.kv = kv
        device = kv.data.device
        row = {id(context): index for index, context in enumerate(contexts)}
        self.rows = torch.tensor([row[id(owner)] for owner in kv.owners], device=device)
        self.one_page = len(contexts) == kv.used
        longest = max(len(context.pages) for context in contexts)
        padded = [context.pages + [kv.used] * (longest - len(context.pages)) for context in contexts]
        self.table = torch.tensor(padded, device=device)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """Attention of one query a row, q [rows, heads, D], over its context → [rows, heads·D].

        Each page is attended by itself, then a row's pages are weighted by their log-sum-exp (Flash-Decoding).
        """
        kv, shape = self.kv, self.kv.shape
        rows = len(q)
        keys, values = kv.data[layer, :, : kv.used]
        queries = q.reshape(rows, shape.kv_heads, -1, shape.head_dim)[self.rows]
        mask = kv.mask[: kv.used, None, None].expand(-1, 1, queries.shape[2], -1)
        out, lse = page_attention(queries, keys, values, mask)
        if self.one_page:
            return torch.empty_like(q).index_copy_(0, self.rows, out.reshape(rows, -1, shape.head_dim)).flatten(1)
        lse = torch.cat((lse, lse.new_full((1, *lse.shape[1:]), -torch.inf)))
        weights = torch.softmax(lse[self.table], 1)[..., None]  # [rows, pages, KV heads, group, 1]
        picked = torch.cat((out, out.new_zeros((1, *out.shape[1:]))))[self.table]
        return (picked * weights).sum(1).to(q.dtype).reshape(rows, -1)


def page_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of q [pages, KV heads, group, D] over k, v [pages, KV heads, page, D], and its log-sum-exp."""
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=mask)
        return out, lse
    scores = torch.matmul(q, k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5 + mask
    lse = torch.logsumexp(scores, -1)
    return torch.matmul((scores - lse[..., None]).exp().to(v.dtype), v), lse


def pages_of(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE_TOKENS)

"""The decoder's forward pass as sampling needs it: fused projections, KV memory, logits of the last token only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.decoder import Decoder, Layer, causal_attention
from scaling.engines.kv import Context, PagedKV, Plan
from scaling.linear import linear
from scaling.rope import rotate

_MLP_TOKENS = 4096  # a long prompt goes through the MLP in slices of so many tokens, which bounds its activations


class _FusedLayer:
    """A layer with its query, key and value weights as one matrix, and its gate and up weights as another.

    The layer's own parameters become views of those matrices: nothing is held twice, and whoever changes a parameter
    in place (an optimizer, `load_weights`) changes what is sampled.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv, self.qkv_bias = _fuse([attention.q_proj, attention.k_proj, attention.v_proj])
        self.gate_up, self.gate_up_bias = _fuse([mlp.gate_proj, mlp.up_proj])


class Forward:
    """Runs a decoder whose parameters it shares."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.shape = model.shape
        self.layers = [_FusedLayer(cast(Layer, layer)) for layer in model.model.layers]
        self.device = model.head.device
        self.cos, self.sin = model.rope.table(torch.arange(256, device=self.device))

    def prefill(self, prompts: Sequence[Sequence[int]], contexts: Sequence[Context], kv: PagedKV) -> Tensor:
        """Encodes prompts behind what their contexts hold; logits [prompts, vocabulary] behind their last tokens.

        Empty contexts come first.
        """
        lengths = [len(prompt) for prompt in prompts]
        tokens = torch.tensor([token for prompt in prompts for token in prompt], device=self.device)
        held = [context.length for context in contexts]
        positions = torch.cat([torch.arange(h, h + n, device=self.device) for h, n in zip(held, lengths, strict=True)])
        places = kv.places(contexts, lengths)
        fresh = sum(h == 0 for h in held)
        start = sum(lengths[:fresh])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kv.write(layer, places, k, v)
            pieces = [causal_attention(q[:start], k[:start], v[:start], lengths[:fresh])] if fresh else []
            queries = torch.split(q[start:], lengths[fresh:])
            pieces += [_attend_past(q, *kv.read(layer, c)) for q, c in zip(queries, contexts[fresh:], strict=True)]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

        last = torch.tensor(lengths, device=self.device).cumsum(0) - 1
        longest = max(h + n for h, n in zip(held, lengths, strict=True))
        return self._run(tokens, positions, longest, attend, last)

    def decode(self, tokens: Sequence[int], kv: PagedKV, plan: Plan) -> Tensor:
        """Feeds one token a row behind its context; logits [rows, vocabulary]."""
        places = plan.place()

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kv.write(layer, places, k, v)
            return plan.attend(layer, q)

        logits = self._run(torch.tensor(tokens, device=self.device), plan.positions, plan.longest, attend)
        plan.advance()
        return logits

    def _run(
        self,
        tokens: Tensor,
        positions: Tensor,
        longest: int,
        attend: Callable[[int, Tensor, Tensor, Tensor], Tensor],
        last: Tensor | None = None,
    ) -> Tensor:
        shape, body = self.shape, self.model.model
        if longest > len(self.cos):
            self.cos, self.sin = self.model.rope.table(torch.arange(2 * longest, device=self.device))
        cos, sin = self.cos[positions], self.sin[positions]
        heads, turned = shape.heads, shape.heads + shape.kv_heads
        x = body.embed_tokens.weight[tokens]
        for index, fused in enumerate(self.layers):
            layer = fused.layer
            qkv = linear(layer.input_layernorm(x), fused.qkv, fused.qkv_bias).view(len(x), -1, shape.head_dim)
            qk = qkv[:, :turned]
            if shape.qk_norm:
                attention = layer.self_attn
                qk = torch.cat((attention.q_norm(qk[:, :heads]), attention.k_norm(qk[:, heads:])), 1)
            qk = rotate(qk, cos, sin)
            attended = attend(index, qk[:, :heads], qk[:, heads:], qkv[:, turned:])
            x = x + linear(attended, layer.self_attn.o_proj.weight, layer.self_attn.o_proj.bias)
            x = x + self._mlp(fused, layer.post_attention_layernorm(x))
        if last is not None:
            x = x[last]
        return linear(body.norm(x), self.model.head)

    def _mlp(self, fused: _FusedLayer, x: Tensor) -> Tensor:
        if len(x) > _MLP_TOKENS:
            return torch.cat([self._mlp(fused, part) for part in torch.split(x, _MLP_TOKENS)])
        gate, up = linear(x, fused.gate_up, fused.gate_up_bias).chunk(2, -1)
        down = fused.layer.mlp.down_proj
        return linear(F.silu(gate) * up, down.weight, down.bias)


def _attend_past(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of a context's last tokens, q [T, heads, D], over all of it, k and v [KV heads, N, D] →
    [T, heads·D]."""
    new, total = len(q), k.shape[1]
    queries = q.view(new, len(k), -1, q.shape[-1]).permute(1, 2, 0, 3)
    shape = (-1, queries.shape[1], -1, -1)
    mask = torch.ones(new, total, dtype=torch.bool, device=q.device).tril(total - new)
    out = F.scaled_dot_product_attention(queries, k[:, None].expand(shape), v[:, None].expand(shape), attn_mask=mask)
    return out.permute(2, 0, 1, 3).reshape(new, -1)


def _fuse(parts: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """The parts' weights and biases, each as one tensor that the parts' own parameters become views of."""

    def share(parameters: Sequence[Tensor]) -> Tensor:
        whole = torch.cat([parameter.detach() for parameter in parameters])
        for parameter, view in zip(parameters, torch.split(whole, [len(p) for p in parameters]), strict=True):
            parameter.data = view
        return whole

    return share([p.weight for p in parts]), share([p.bias for p in parts]) if parts[0].bias is not None else None

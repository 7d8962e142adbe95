"""The compact decoder-only transformer, under Hugging Face parameter names: the local engine samples it, the
trainer trains it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from scaling.errors import CheckpointError
from scaling.files import appearing
from scaling.linear import Linear, linear
from scaling.models import read_json
from scaling.predict.shape import Shape
from scaling.rope import Rope, rotate

_RUNNABLE = ("llama", "qwen2", "qwen3")


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention over packed sequences; query heads share KV heads in groups."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = Linear(shape.hidden, shape.query_width, bias=shape.qkv_bias)
        self.k_proj = Linear(shape.hidden, shape.kv_width, bias=shape.qkv_bias)
        self.v_proj = Linear(shape.hidden, shape.kv_width, bias=shape.qkv_bias)
        self.o_proj = Linear(shape.query_width, shape.hidden, bias=shape.output_bias)
        if shape.qk_norm:
            self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps)
            self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: Sequence[int]) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (-1, self.shape.head_dim))
        k = self.k_proj(x).unflatten(-1, (-1, self.shape.head_dim))
        v = self.v_proj(x).unflatten(-1, (-1, self.shape.head_dim))
        if self.shape.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        attended: Tensor = self.o_proj(causal_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, lengths))
        return attended


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.hidden, shape.intermediate, bias=shape.mlp_bias)
        self.up_proj = Linear(shape.hidden, shape.intermediate, bias=shape.mlp_bias)
        self.down_proj = Linear(shape.intermediate, shape.hidden, bias=shape.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: Sequence[int]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, lengths)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class Body(nn.Module):
    """Everything below the head: the `model.` of parameter names."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)


class Decoder(nn.Module):
    """A dense Llama, Qwen2 or Qwen3. `config` is its Hugging Face config, `shape` the sizes read from it.

    Build one with `from_config` or `load`; raises `CheckpointError` for an unsupported architecture.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.shape = Shape.from_config(config)
        _require_runnable(config, self.shape)
        self.rope = Rope(config, self.shape)
        self.model = Body(self.shape)
        if not self.shape.tied:
            self.lm_head = Linear(self.shape.hidden, self.shape.vocabulary, bias=False)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> Decoder:
        """Random weights: matrices normal with standard deviation 0.02, norms one, biases zero."""
        decoder = cls._empty(config, dtype, device)
        generator = torch.Generator(device).manual_seed(seed)
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 0.02, generator=generator)
                else:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        return decoder

    @classmethod
    def load(
        cls, path: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Decoder:
        """Reads a Hugging Face directory: `config.json` and one or several safetensors files.

        Raises `CheckpointError` naming the first tensor that is missing, unexpected or misshapen.
        """
        path = Path(path)
        decoder = cls._empty(read_json(path / "config.json"), dtype, device)
        decoder.copy_weights(_stored_tensors(path), complete=True)
        return decoder

    @classmethod
    def _empty(cls, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str) -> Decoder:
        with torch.device("meta"):
            decoder = cls(config)
        # Angles are few and must be exact: made on the CPU whatever holds the weights.
        decoder.rope = Rope(config, decoder.shape)
        return decoder.to(dtype).to_empty(device=device)

    @torch.no_grad()
    def copy_weights(self, tensors: Iterator[tuple[str, Tensor]], complete: bool = False) -> None:
        """Copies named tensors into the parameters, in place; with `complete`, every parameter must be among them.

        Raises `CheckpointError` naming the first tensor that is unexpected, misshapen or missing.
        """
        parameters = dict(self.named_parameters())
        missing = dict.fromkeys(parameters)
        for name, tensor in tensors:
            if name.endswith("rotary_emb.inv_freq") or (self.shape.tied and name == "lm_head.weight"):
                continue
            if name not in parameters:
                raise CheckpointError(f"unexpected tensor {name!r}: a {self.shape.family} of this config has none")
            if tensor.shape != parameters[name].shape:
                raise CheckpointError(
                    f"tensor {name!r} has shape {list(tensor.shape)}, expected {list(parameters[name].shape)}"
                )
            parameters[name].copy_(tensor)
            missing.pop(name, None)
        if complete and missing:
            raise CheckpointError(f"tensor {next(iter(missing))!r} is missing ({len(missing)} in all)")

    def save(self, path: Path | str, weights: Iterable[tuple[str, Tensor]] | None = None) -> None:
        """Writes a Hugging Face directory, each file whole or not at all.

        `weights` by name instead of the parameters, where these are spread over processes.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        dtype = str(self.model.norm.weight.dtype).removeprefix("torch.")
        config = {**self.config, "dtype": dtype}
        config.pop("torch_dtype", None)
        tensors = {n: t.detach().cpu().contiguous() for n, t in (weights or self.named_parameters())}
        with appearing(path / "model.safetensors", replace=True) as pending:
            save_file(tensors, pending, metadata={"format": "pt"})
        with appearing(path / "config.json", replace=True) as pending:
            pending.write_text(json.dumps(config, indent=2) + "\n")

    def hidden(self, tokens: Tensor, lengths: Sequence[int], checkpoint: bool = False) -> Tensor:
        """Final hidden states [T, hidden], normalised, of packed sequences.

        `tokens` [T] holds sequences of the given `lengths` one after another; positions restart at 0 in each and
        attention is causal inside each. `checkpoint` recomputes a layer's activations in the backward pass.
        """
        if sum(lengths) != len(tokens):
            raise ValueError(f"lengths add up to {sum(lengths)}, but there are {len(tokens)} tokens")
        positions = torch.cat([torch.arange(n, device=tokens.device) for n in lengths])
        cos, sin = self.rope.table(positions)
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = (
                recompute(layer, x, cos, sin, lengths, use_reentrant=False)
                if checkpoint
                else layer(x, cos, sin, lengths)
            )
        normalised: Tensor = self.model.norm(x)
        return normalised

    @property
    def head(self) -> Tensor:
        """The LM head's weight [vocabulary, hidden]: the embedding's own where tied."""
        weight: Tensor = self.model.embed_tokens.weight if self.shape.tied else self.lm_head.weight
        return weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., vocabulary] of hidden states [..., hidden]."""
        return linear(hidden, self.head)


def _require_runnable(config: Mapping[str, Any], shape: Shape) -> None:
    """Raises `CheckpointError` for what can be priced but not run here."""
    runs = f"the embedded engine runs dense {', '.join(_RUNNABLE)} with full attention and silu"
    if shape.family not in _RUNNABLE:
        raise CheckpointError(f"cannot run architecture {shape.family!r}; {runs}")
    if any(kind.window is not None for kind in shape.kinds):
        raise CheckpointError(f"cannot run sliding-window attention; {runs}")
    if config.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"cannot run activation {config['hidden_act']!r}; {runs}")


def causal_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Causal attention inside each packed sequence: q [T, heads, D], k and v [T, KV heads, D] → [T, heads·D].

    Neighbours of equal length go through one call. KV heads are the batch of that call and a group's query heads
    share them as a stride-0 view, which spares the copies that grouped-query attention makes otherwise.
    """
    kv_heads, width = k.shape[1:]
    pieces = []
    start = 0
    for count, length in _runs(lengths):
        stop = start + count * length

        def heads_first(x: Tensor, span: slice = slice(start, stop), size: int = length) -> Tensor:
            """[T, heads, D] → [sequences · KV heads, heads a KV head, length, D]."""
            return x[span].view(-1, size, kv_heads, x.shape[1] // kv_heads, width).permute(0, 2, 3, 1, 4).flatten(0, 1)

        queries = heads_first(q)
        keys = heads_first(k).expand(-1, queries.shape[1], -1, -1)
        values = heads_first(v).expand(-1, queries.shape[1], -1, -1)
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        out = out.view(count, kv_heads, -1, length, width).permute(0, 3, 1, 2, 4)
        pieces.append(out.reshape(stop - start, -1))
        start = stop
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _runs(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(how many, length) of neighbours of equal length."""
    at = 0
    while at < len(lengths):
        end = at
        while end < len(lengths) and lengths[end] == lengths[at]:
            end += 1
        yield end - at, lengths[at]
        at = end


def _stored_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a directory's safetensors files, one at a time."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"no *.safetensors in {path}; other weight formats are not read")
    for file in files:
        try:
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - not a dict
                    yield name, stored.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from None

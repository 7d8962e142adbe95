"""One way to open an engine that answers real questions: here, by vLLM, or on a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaling.errors import UsageError, unknown
from scaling.measure.served import connect, served_source
from scaling.measure.subject import torch_device
from scaling.models import Source, end_tokens, resolve
from scaling.predict.shape import Shape
from scaling.thinking import Environment

if TYPE_CHECKING:
    from scaling.engines.base import Engine

ENGINES = ("local", "vllm", "openai")
DTYPES = ("float32", "bfloat16")
DEADLINE_SECONDS, KEY_VARIABLE = 3600.0, "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What runs the model: `local`, `vllm`, both in this process, or `openai`, the server at `base_url`.

    `dtype`: float32 or bfloat16; None is bfloat16 on a GPU and float32 on a CPU. `concurrency`: most sequences at
    once. `tensor_parallel`: GPUs that share each layer, of vllm. The rest is of a server: its own name for the model
    (None: the one that it serves), seconds of one request with its tries, and the environment variable of its API key.
    Raises `UsageError` for what does not go together.
    """

    name: str = "local"
    dtype: str | None = None
    concurrency: int = 16
    base_url: str | None = None
    served_model: str | None = None
    deadline: float = DEADLINE_SECONDS
    key_variable: str = KEY_VARIABLE
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise unknown("engine", self.name, ENGINES)
        if (self.base_url is None) == (self.name == "openai") or (self.served_model and self.base_url is None):
            raise UsageError("--engine openai and --base-url go together, as in --base-url http://127.0.0.1:8000/v1")
        if self.dtype not in (None, *DTYPES):
            raise unknown("dtype", str(self.dtype), DTYPES)
        if self.dtype is not None and self.base_url is not None:
            raise UsageError("a server decides itself in which type it computes; leave --dtype out")
        if self.base_url is None and (self.deadline, self.key_variable) != (DEADLINE_SECONDS, KEY_VARIABLE):
            raise UsageError("--deadline and --key-variable are a server's; they go with --engine openai")
        if self.concurrency < 1:
            raise UsageError(f"concurrency {self.concurrency} is not positive; as in --concurrency 16")
        if self.tensor_parallel < 1 or (self.tensor_parallel > 1 and self.name != "vllm"):
            raise UsageError("--tensor-parallel is a number of GPUs and goes with --engine vllm alone")

    def source(self, model: str) -> Source:
        """The model that this engine runs, whose tokenizer is here; the weights too, unless a server has them.

        Raises `UsageError` or `CheckpointError`.
        """
        found = resolve(model, weights=True) if self.base_url is None else served_source(model)
        if found.path is None:
            raise UsageError(f"questions need the tokenizer of {model!r}; give the directory that holds it as --model")
        return found


def longest_context(environments: Sequence[Environment], longest_query: int) -> int:
    """Most tokens that one prompt and its response come to in any of the environments."""
    segments = [s for e in environments for s in e.schedule(longest_query, e.expected_lengths(longest_query, e.budget))]
    return max(s.prompt + s.decode for s in segments)


def open_engine(
    choice: EngineChoice,
    source: Source,
    environments: Sequence[Environment],
    longest_query: int,
    *,
    remark: Callable[[str], None] = lambda _: None,
) -> Engine:
    """An engine on the model of `choice.source`, which ends responses as the checkpoint does.

    Where it runs here, its KV memory holds `concurrency` contexts of the longest that the environments come to with
    queries of up to `longest_query` tokens, if there is so much memory. `remark` gets what the user should know of the
    answers, such as contexts beyond the positions that the model was trained on, or that a server speaks text alone.
    Close it after use.

    Raises `UsageError` where vLLM is not installed, no server answers, or it takes no contexts so long.
    """
    longest = longest_context(environments, longest_query)
    shape = Shape.from_config(source.config)
    if longest > shape.max_positions:
        remark(f"contexts may reach {longest} tokens; {source.name} was trained on at most {shape.max_positions}")
    if choice.base_url is not None:
        return _served(choice, choice.base_url, source, longest, remark)
    assert source.path is not None
    device, eos = torch_device(), end_tokens(source.path)
    dtype = choice.dtype or ("float32" if device == "cpu" else "bfloat16")
    if choice.name == "vllm":
        from scaling.engines.vllm import VLLMEngine
        from scaling.measure.vllm import kv_bytes

        return VLLMEngine(
            source.path,
            dtype=dtype,
            max_sequences=choice.concurrency,
            max_length=longest,
            kv_bytes=kv_bytes(shape, dtype, choice.concurrency, longest, devices=choice.tensor_parallel),
            eos=eos,
            tensor_parallel=choice.tensor_parallel,
        )
    import torch

    from scaling.decoder import Decoder
    from scaling.engines.local import LocalEngine

    decoder = Decoder.load(source.path, dtype=getattr(torch, dtype), device=device)
    return LocalEngine(decoder, max_sequences=choice.concurrency, max_length=longest, eos=eos)


def _served(choice: EngineChoice, base_url: str, source: Source, longest: int, remark: Callable[[str], None]) -> Engine:
    engine = connect(
        base_url,
        source,
        model=choice.served_model,
        key_variable=choice.key_variable,
        concurrency=choice.concurrency,
        deadline=choice.deadline,
    )
    if longest > (most := engine.limits().max_length):
        engine.close()
        raise UsageError(
            f"contexts may reach {longest} tokens, and {engine.served['model']} is served up to {most}; think shorter"
        )
    if engine.dialect.by_text:
        remark(
            "the server speaks text: what it says and what is carried over is tokenised again, and some comes back "
            "as other tokens"
        )
    return engine

"""What a run measures: its configuration, and the cells that it spans."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from scaling.errors import UsageError, unknown
from scaling.results import Method, Phase
from scaling.thinking import DEFAULT_MODES, Carryover, Environment, Segment, for_budget, rebuilt

SIMULATED = "simulated"
VLLM = "vllm"
OPENAI = "openai"
ENGINES = ("local", VLLM, OPENAI, SIMULATED)
DEADLINE_SECONDS = 3600.0
KEY_VARIABLE = "OPENAI_API_KEY"
MethodChoice = Literal["auto", "full", "profile"]


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides what a run measures; the manifest keeps it, and `--from` reads it back.

    `lengths`: thinking tokens of a trace. `concurrency`: traces in flight at most. `kv_memory`: bytes of KV memory,
    None for what the cells need. `tiny`'s context size defaults to 1024, so that a laptop reaches many chunks. `gpu`:
    the one to simulate, with engine `simulated` alone. `tensor_parallel` GPUs share each layer and `prefix_caching`
    keeps what prompts have in common, with engine `vllm` alone.

    With engine `openai` alone: `base_url` of the server, its name for the model (None where it has one), the `devices`
    that it runs on, in `data_parallel` replicas of `tensor_parallel`, which nobody can ask it, the `deadline` of a
    request in seconds, and the environment variable that holds the API key. The key itself is no part of a
    configuration.

    Where None, `summary_size`, `extensions` and `cue_tokens` are the defaults of the environments that have them.
    """

    model: str
    lengths: tuple[int, ...]
    modes: tuple[str, ...] = DEFAULT_MODES
    engine: str = "local"
    dtype: str = "float32"
    context_size: int = 8192
    state_size: int = 4096
    head: int = 100
    carryover: Carryover = "algorithm1"
    prompt_tokens: int = 64
    concurrency: int = 2
    traces: int = 2
    phases: tuple[Phase, ...] = ("rollout",)
    repeats: int = 3
    method: MethodChoice = "auto"
    kv_memory: int | None = None
    seed: int = 0
    gpu: str | None = None
    tensor_parallel: int = 1
    data_parallel: int = 1
    prefix_caching: bool = False
    base_url: str | None = None
    served_model: str | None = None
    devices: int = 1
    deadline: float = DEADLINE_SECONDS
    key_variable: str = KEY_VARIABLE
    summary_size: int | None = None
    extensions: int | None = None
    cue_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("lengths", "modes", "phases"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        object.__setattr__(self, "lengths", tuple(sorted(self.lengths)))
        for name in (
            "prompt_tokens",
            "concurrency",
            "traces",
            "repeats",
            "tensor_parallel",
            "data_parallel",
            "devices",
        ):
            value = getattr(self, name)
            if value < 1:
                raise UsageError(f"{name.replace('_', ' ')} {value} is not positive; give at least 1")
        for phase in self.phases:
            if phase not in get_args(Phase):
                raise unknown("phase", phase, get_args(Phase))
        if self.method not in get_args(MethodChoice):
            raise unknown("method", self.method, get_args(MethodChoice))
        if self.dtype not in ("float32", "bfloat16"):
            raise unknown("dtype", self.dtype, ("float32", "bfloat16"))
        if not self.lengths or not self.modes or not self.phases:
            raise UsageError("a run needs at least one length, one mode and one phase")
        for mode in self.modes:
            self.environment(mode, self.lengths[0])
        self._check_engine()

    def _check_engine(self) -> None:
        """Raises `UsageError` for what the engine does not do."""
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES)
        if self.engine == SIMULATED and self.gpu is None:
            raise UsageError("the simulated engine needs to know what it simulates; give --gpu, as in --gpu h100")
        if self.engine != SIMULATED and self.gpu is not None:
            raise UsageError(
                f"--gpu {self.gpu} goes with --engine simulated; engine {self.engine!r} runs on this machine"
            )
        if self.engine != VLLM and self.prefix_caching:
            raise UsageError("prefix caching is vLLM's; give --engine vllm with it")
        if self.engine not in (VLLM, OPENAI) and max(self.tensor_parallel, self.data_parallel) > 1:
            raise UsageError("only vLLM and servers run a model on several devices; give --engine vllm or openai")
        if self.engine == VLLM and self.data_parallel > 1:
            raise UsageError(
                "vLLM in this process is one replica; leave --data-parallel out, and each GPU has one of its own by "
                f"--launcher local, or start `vllm serve --data-parallel-size {self.data_parallel}` and measure that "
                "with --engine openai"
            )
        if self.prefix_caching and self.method != "full":
            raise UsageError("single steps do not show what a prefix cache spares; give --method full with it")
        if self.engine == VLLM and (training := set(self.phases) & {"logprob", "update"}):
            raise UsageError(f"vLLM trains nothing, so has no phase {min(training)}; measure that with --engine local")
        self._check_served()

    def _check_served(self) -> None:
        """Raises `UsageError` for what a server cannot do, and for what goes with a server alone."""
        if self.engine != OPENAI:
            if self.base_url is not None or self.served_model is not None or self.devices > 1:
                raise UsageError("--base-url, --served-model and --devices go with --engine openai")
            if (self.deadline, self.key_variable) != (DEADLINE_SECONDS, KEY_VARIABLE):
                raise UsageError("--deadline and --key-variable go with --engine openai; nothing here has either")
            return
        if self.base_url is None:
            raise UsageError(
                "the openai engine needs a server; give --base-url, as in --base-url http://127.0.0.1:8000/v1"
            )
        if self.method == "profile":
            raise UsageError("single steps of a server cannot be timed; leave --method profile out")
        if self.phases != ("rollout",):
            raise UsageError("a server runs rollouts alone; measure other phases with --engine local")
        if self.kv_memory is not None:
            raise UsageError("a server has the KV memory that it was started with; leave --kv-memory out")
        placed = self.tensor_parallel * self.data_parallel
        if self.devices == 1:
            object.__setattr__(self, "devices", placed)
        if self.devices % placed:
            raise UsageError(
                f"{self.devices} devices are not {self.data_parallel} replicas of {self.tensor_parallel}; give "
                f"--devices {placed}, or leave it out"
            )
        if not self.deadline > 0:
            raise UsageError(f"deadline {self.deadline:g} is not positive; give seconds, such as 3600")

    def environment(self, mode: str, thinking_tokens: int) -> Environment:
        """The environment of `mode` in which a trace can think so many tokens."""
        return for_budget(
            mode,
            thinking_tokens,
            context_size=self.context_size,
            state_size=self.state_size,
            head=self.head,
            carryover=self.carryover,
            summary_size=self.summary_size,
            extensions=self.extensions,
            cue_tokens=self.cue_tokens,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunConfig:
        known = {f.name for f in fields(cls)}
        kept: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known}
        return cls(**kept)


_ADDED = {"tensor_parallel": 1, "data_parallel": 1, "prefix_caching": False}
"""Fields that came later: at these values, which nothing else was possible before, a cell keeps its old id."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement's full canonical configuration; `id` is its hash, so equal cells are one cell anywhere."""

    model: str
    weights: str
    engine: str
    device: str
    weight_dtype: str
    activation_dtype: str
    kv_dtype: str
    environment: str
    parameters: tuple[tuple[str, int | str], ...]
    prompt_tokens: int
    thinking_tokens: int
    phase: Phase
    concurrency: int
    traces: int
    method: Method
    kv_memory: int | None = None
    tensor_parallel: int = 1
    data_parallel: int = 1
    prefix_caching: bool = False

    @property
    def id(self) -> str:
        told = {name: value for name, value in asdict(self).items() if name not in _ADDED or value != _ADDED[name]}
        canonical = json.dumps(told, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def rebuild_environment(self) -> Environment:
        return rebuilt(self.environment, dict(self.parameters))

    @property
    def response_lengths(self) -> list[int]:
        """Of each of its traces: they all think exactly `thinking_tokens`."""
        return self.rebuild_environment().expected_lengths(self.prompt_tokens, self.thinking_tokens)

    @property
    def segments(self) -> list[Segment]:
        """What one of its traces costs."""
        return self.rebuild_environment().schedule(self.prompt_tokens, self.response_lengths)

    @property
    def peak_context(self) -> int:
        """Most tokens that one of its sequences holds."""
        return max(s.prompt + s.decode for s in self.segments)

    def to_json(self) -> dict[str, Any]:
        return {"cell_id": self.id, **asdict(self), "parameters": dict(self.parameters)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        known = {f.name for f in fields(cls)}
        kept: dict[str, Any] = {k: v for k, v in data.items() if k in known}
        return cls(**{**kept, "parameters": tuple(data["parameters"].items())})


def cells_for(
    config: RunConfig, method: Method, lengths: Sequence[int], phases: Sequence[Phase], *, weights: str, device: str
) -> list[Cell]:
    """The cells of `phases` at `lengths`, environments side by side.

    Weight transfer does not depend on thinking: `sync` is one cell, at the first length and mode.
    """
    cells: list[Cell] = []
    for phase in phases:
        places = [(length, mode) for length in lengths for mode in config.modes]
        for length, mode in places[:1] if phase == "sync" else places:
            cells.append(
                Cell(
                    model=config.model,
                    weights=weights,
                    engine=config.engine,
                    device=device,
                    weight_dtype=config.dtype,
                    activation_dtype=config.dtype,
                    kv_dtype=config.dtype,
                    environment=mode,
                    parameters=tuple(config.environment(mode, length).parameters().items()),
                    prompt_tokens=config.prompt_tokens,
                    thinking_tokens=length,
                    phase=phase,
                    concurrency=config.concurrency,
                    traces=config.traces,
                    method=method,
                    kv_memory=config.kv_memory,
                    tensor_parallel=config.tensor_parallel,
                    data_parallel=config.data_parallel,
                    prefix_caching=config.prefix_caching,
                )
            )
    return cells

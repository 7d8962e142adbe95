"""A recipe: the whole configuration of a training run, typed, frozen, and overridden by `key=value`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from scaling.errors import UsageError, first_line, unknown
from scaling.thinking import MODES, BudgetForcing, Carryover, Delethink, Environment, Folding, LongCoT, Summary
from scaling.update import Objective

Advantage = Literal["grpo", "rloo", "vineppo"]
Dtype = Literal["float32", "bfloat16"]
EngineName = Literal["local", "vllm"]
ValueStates = Literal["chunk", "step"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a run. Defaults are the paper's training setting (2510.06557, §5), seed and sizes apart.

    `task`: `walk:16-32` (counters from…to), `gym:NAME:parameters`, `jsonl:FILE` or `math:FILE or data set of the Hub`;
    `problems` of it are asked in a new order each epoch. `model`: `walk` for its own small one, a fetched model, or a
    directory. A step asks `queries` questions `group` times and makes `minibatches` updates, one pass over the data.

    `mode` delethink reads `context_size`, `state_size`, `iterations`, `head`; summary and folding `context_size`,
    `summary_size` (C/8 unless set), `iterations`; longcot `thinking_budget`, and budget-forcing `extensions` too. `cue`
    and `stop` are the words of the three (`scaling.cues.worded`), each one's own unless set.
    `value_rollouts`: of vineppo, at each of the `value_states`: where a chunk starts, or there and after every
    `steps_per_value`-th step that ends inside it. `kl` weighs the divergence from the policy before the first
    step; `replay` weighs a supervised term on a task's demonstrations, which `warm_steps` of the same start with.
    `token_budget`: input tokens of a micro-batch. `checkpoint_activations`: compute them again in the backward pass.
    `dtype`: of sampling and arithmetic; weights and optimizer keep float32. `engine`: what samples the policy.
    """

    name: str
    task: str
    model: str
    mode: str = "delethink"
    context_size: int = 8192
    state_size: int = 4096
    iterations: int = 5
    head: int = 100
    carryover: Carryover = "algorithm1"
    thinking_budget: int = 24576
    summary_size: int | None = None
    extensions: int = 1
    cue: str | None = None
    stop: str | None = None
    problems: int = 10_000
    instruction: str | None = None
    steps: int = 1000
    queries: int = 128
    group: int = 8
    minibatches: int = 2
    concurrency: int = 256
    temperature: float = 0.6
    advantage: Advantage = "grpo"
    value_rollouts: int = 9
    value_states: ValueStates = "chunk"
    steps_per_value: int = 1
    learning_rate: float = 1e-6
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    clip_low: float = 0.20
    clip_high: float = 0.26
    importance_cap: float | None = 2.0
    kl: float = 0.0
    replay: float = 0.0
    replay_examples: int = 16
    warm_steps: int = 0
    warm_examples: int = 64
    warm_learning_rate: float = 3e-3
    token_budget: int = 32768
    checkpoint_activations: bool = True
    dtype: Dtype = "float32"
    engine: EngineName = "local"
    save_every: int = 50
    keep_checkpoints: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in _NAMES.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        for names, fits, said in _RANGES:
            for name in names:
                if not fits(getattr(self, name)):
                    raise UsageError(f"{name} {getattr(self, name)} {said.format(name)}")
        if self.group < 2 and self.advantage != "vineppo":
            raise UsageError(
                f"{self.advantage} compares the traces of a query, so group {self.group} is too small; as in group=8"
            )
        if self.minibatches > self.queries:
            raise UsageError(
                f"{self.queries} queries do not divide into {self.minibatches} minibatches of whole groups"
            )
        _ = self.environment

    @property
    def environment(self) -> Environment:
        """The environment; the words of one that has any are still to be put into a tokenizer's ids."""
        if self.mode == "longcot":
            return LongCoT(self.thinking_budget)
        if self.mode == "budget-forcing":
            return BudgetForcing(self.thinking_budget, self.extensions)
        if self.mode == "delethink":
            return Delethink(self.context_size, self.state_size, self.iterations, self.head, self.carryover)
        rounds = Summary if self.mode == "summary" else Folding
        sized = rounds.for_length(self.context_size, self.context_size, self.summary_size)
        return replace(sized, iterations=self.iterations)

    @property
    def objective(self) -> Objective:
        return Objective(self.clip_low, self.clip_high, self.importance_cap, self.kl)

    def override(self, settings: Iterable[str]) -> Recipe:
        """The recipe with each `key=value` of `settings`; raises `UsageError` naming near keys, or the type wanted."""
        changes: dict[str, Any] = {}
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals:
                raise UsageError(f"setting {setting!r} is not key=value; as in steps=10")
            if key == "name" or key not in _TYPES:
                raise unknown("recipe key", key, [known for known in _TYPES if known != "name"])
            changes[key] = _parse(key, text)
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` gave; raises `UsageError` for what is none, or has keys not known here."""
        if not isinstance(stored, Mapping):
            raise UsageError(f"the stored recipe is no object of keys and values, but {stored!r:.40}")
        for key, value in stored.items():
            if key not in _TYPES:
                raise unknown("recipe key", key, _TYPES)
            if not _fits(key, value):
                raise UsageError(f"the stored recipe is damaged: its {key} is {value!r:.40}")
        try:
            return cls(**stored)
        except TypeError as error:  # a key that is not there
            raise UsageError(f"the stored recipe is damaged: {first_line(error)}") from None


_TYPES = get_type_hints(Recipe)
_NAMES: dict[str, tuple[str, ...]] = {
    "mode": MODES,
    "advantage": get_args(Advantage),
    "dtype": get_args(Dtype),
    "engine": get_args(EngineName),
    "value_states": get_args(ValueStates),
}
_COUNTS = (
    *("problems", "steps", "queries", "group", "minibatches", "concurrency", "value_rollouts", "token_budget"),
    *("steps_per_value", "save_every", "keep_checkpoints", "replay_examples", "warm_examples"),
)
_RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (_COUNTS, lambda count: count >= 1, "is not positive; give at least 1, as in {}=1"),
    (
        ("weight_decay", "clip_high", "kl", "replay", "warm_steps"),
        lambda weight: 0 <= weight < math.inf,
        "is negative or not finite; 0 leaves it out",
    ),
    (
        ("temperature", "learning_rate", "warm_learning_rate", "max_grad_norm"),
        lambda number: 0 < number < math.inf,
        "is not a positive number",
    ),
    (("beta1", "beta2", "clip_low"), lambda share: 0 <= share < 1, "is not at least 0 and below 1"),
    (
        ("importance_cap",),
        lambda cap: cap is None or 0 < cap < math.inf,
        "is not a positive number; {}=none leaves it out",
    ),
    (("seed",), lambda seed: abs(seed) < 1 << 32, "is not between -2**32 and 2**32"),
)


def _fits(key: str, value: Any) -> bool:
    """Whether a value that was stored is of the key's type."""
    hint = _TYPES[key]
    kinds = (str,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))


def _parse(key: str, text: str) -> Any:
    """`text` as a value of the key's type."""
    hint = _TYPES[key]
    if get_origin(hint) is Literal:
        return text  # the recipe itself knows the names
    kinds = get_args(hint) or (hint,)
    if NoneType in kinds and text.lower() == "none":
        return None
    kind = next(kind for kind in kinds if kind is not NoneType)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{key}={text} is neither true nor false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        expected = {"int": "a whole number", "float": "a number"}[kind.__name__]
        raise UsageError(f"{key}={text} is not {expected}") from None

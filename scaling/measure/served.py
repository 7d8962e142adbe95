"""What a run measures on where a server elsewhere runs the model: any that speaks OpenAI's completions API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from scaling.engines.base import Stats
from scaling.errors import UsageError
from scaling.measure.cells import Cell, RunConfig, cells_for
from scaling.measure.full import Measurement
from scaling.measure.plan import PlannedCell
from scaling.measure.subject import Subject
from scaling.models import Source, config_of, end_tokens, model_dir
from scaling.predict.shape import Shape, catalogue

if TYPE_CHECKING:
    from scaling.engines.openai import OpenAIEngine

SERVED = "served: not seen from here"
"""Why rows of a server have neither memory nor energy."""


def served_source(model: str) -> Source:
    """The architecture of a model whose weights a server has; its directory here, where there is one, has a tokenizer.

    Raises `UsageError` for an unknown model.
    """
    name, config = config_of(model)
    path = model_dir(model) if model in catalogue() else Path(model).expanduser()
    return Source(name, config, path if path.is_dir() else None, "served")


def served_by(config: RunConfig) -> dict[str, Any]:
    """Which model the server of a run gives, and what it says of itself; `UsageError` in one line where none answers.

    Samples nothing.
    """
    import asyncio

    from scaling.engines.completions import Server, key_from

    async def ask() -> dict[str, Any]:
        server = Server(config.base_url or "", key_from(config.key_variable))
        try:
            return await server.describe(config.served_model)
        finally:
            await server.close()

    return asyncio.run(ask())


def served_device(config: RunConfig, found: dict[str, Any]) -> str:
    """What cells call the device: the serving program, its version, and on how many devices it is said to run."""
    program = " ".join(filter(None, (found["server"] or "server", found["version"])))
    return f"{program} on {config.devices} device{'s' if config.devices > 1 else ''}"


def plan_served(
    config: RunConfig, shape: Shape, source: Source, found: dict[str, Any], *, device: str
) -> list[PlannedCell]:
    """The cells of a run, every one in full; how long they will take cannot be known.

    Raises `UsageError` where the server takes no sequences so long.
    """
    made = cells_for(config, "full", config.lengths, config.phases, weights=source.weights, device=device)
    longest = max(cell.peak_context for cell in made)
    most = min(found["max_length"] or shape.max_positions, shape.max_positions)
    if longest > most:
        raise UsageError(
            f"these cells reach a context of {longest} tokens, and {found['model']} is served up to {most}; "
            "shorten --lengths or --context-size"
        )
    return [PlannedCell(cell, None) for cell in made]


def connect(
    base_url: str,
    source: Source,
    *,
    model: str | None,
    key_variable: str,
    concurrency: int,
    deadline: float,
) -> OpenAIEngine:
    """An engine on the server of a model; the key is read from the environment here, and kept nowhere else."""
    from scaling.engines.completions import key_from
    from scaling.engines.openai import OpenAIEngine
    from scaling.text import load_tokenizer

    named = source.path is not None and any(source.path.glob("tokenizer*"))
    return OpenAIEngine(
        base_url,
        vocabulary=Shape.from_config(source.config).vocabulary,
        model=model,
        key=key_from(key_variable),
        eos=end_tokens(source.path) if source.path is not None else (),
        tokenizer=load_tokenizer(source.path) if named and source.path is not None else None,
        max_sequences=concurrency,
        deadline=deadline,
    )


def build_served(config: RunConfig, source: Source) -> Subject:
    """An engine on the server; training phases and single steps are none of its business."""
    engine = connect(
        config.base_url or "",
        source,
        model=config.served_model,
        key_variable=config.key_variable,
        concurrency=config.concurrency,
        deadline=config.deadline,
    )
    return Subject(
        Shape.from_config(source.config),
        "cpu",
        engine,
        _NoSteps(),
        engine.limits(),
        _train,
        devices=config.devices,
        served=engine.record(),
    )


def seen_from_here(found: Measurement, served: Mapping[str, Any] | None, before: Stats, after: Stats) -> Measurement:
    """A measurement without what a client cannot know, and with what went wrong between `before` and `after`.

    `served`: the engine's own record of the server.
    """
    assert served is not None
    dialect = served["dialect"]
    by_text = not dialect["token_prompts"] or dialect["response_ids"] == "text"
    return replace(
        found,
        concurrency_mean=None,
        preemptions=None,
        prefill_seconds=None,
        decode_seconds=None,
        peak_kv_tokens=None,
        prefill_cached_tokens=found.prefill_cached_tokens if dialect["tells_cached"] else None,
        retried=after.retries - before.retries,
        drifted_tokens=after.drifted_tokens - before.drifted_tokens if by_text else None,
    )


class _NoSteps:
    def measure(
        self, contexts: Sequence[int], prefill: Sequence[int] = (), *, warm_up: int = 0, steps: int = 1
    ) -> NoReturn:
        raise UsageError("single steps of a server cannot be timed")


def _train(_cell: Cell, _seed: int) -> NoReturn:
    raise UsageError("a server trains nothing")

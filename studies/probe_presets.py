"""What the paper probed, as options of `scaling probe`, and what it found there, to be read beside new figures.

Source: *The Markovian Thinker*, arXiv 2510.06557v3. What is ours in a preset, because no source gives it, is named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scaling.errors import unknown

PAPER = "The Markovian Thinker, arXiv 2510.06557v3"

BOXED = "Reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True, slots=True)
class Preset:
    """`options`: of the command, by parameter. `ours`: which of them no source gives. `published`: claims to compare
    with, each with its `source`."""

    options: dict[str, Any]
    ours: tuple[str, ...] = ()
    published: tuple[dict[str, str], ...] = field(default=())


def _math(model: str, *, thinking_tokens: str, context_size: list[str], problems: int, samples: int) -> dict[str, Any]:
    """Options of a probe on a contest's problems, sampled as in the paper: temperature 0.6, top-p 1."""
    return {
        "model": model,
        "task": ["aime24"],
        "thinking_tokens": thinking_tokens,
        "context_size": context_size,
        "state_size": None,
        "head": 100,
        "problems": problems,
        "samples": samples,
        "temperature": 0.6,
        "top_p": 1.0,
        "instruction": BOXED,
    }


COLLAPSE = {"claim": "the share of traces that the model ends collapses at C=2k", "source": f"{PAPER}, §7"}
WIDE = "the state ablation at C=8k has m = 1k to 7k, the context ablation C = 2k, 4k, 8k with m = C/2"

PRESETS = {
    "r1-distill-1.5b": Preset(
        _math("r1-distill-qwen-1.5b", thinking_tokens="32k", context_size=["8k"], problems=30, samples=256),
        ours=("thinking tokens 32k",),
        published=(
            {
                "claim": "AIME24: 29.3 % LongCoT, 37.2 % Delethink, 24.6 % with budget forcing",
                "source": f"{PAPER}, App. G",
            },
            COLLAPSE,
            {"claim": WIDE, "source": f"{PAPER}, §7"},
        ),
    ),
    "r1-distill-7b": Preset(
        _math("r1-distill-qwen-7b", thinking_tokens="32k", context_size=["8k"], problems=30, samples=256),
        ours=("thinking tokens 32k",),
    ),
    "r1-distill-14b": Preset(
        _math("r1-distill-qwen-14b", thinking_tokens="32k", context_size=["8k"], problems=30, samples=256),
        ours=("thinking tokens 32k",),
    ),
    "qwen3-30b-a3b-thinking": Preset(
        _math("qwen3-30b-a3b", thinking_tokens="64k", context_size=["8k", "16k"], problems=30, samples=64),
        ours=("thinking tokens 64k", "64 samples"),
        published=({"claim": "Delethink with C=16k nearly coincides with LongCoT", "source": f"{PAPER}, §7"},),
    ),
    "gpt-oss-120b": Preset(
        _math("gpt-oss-120b", thinking_tokens="64k", context_size=["8k", "16k"], problems=30, samples=64),
        ours=("thinking tokens 64k", "64 samples"),
        published=({"claim": "Delethink with C=16k recovers most of LongCoT's accuracy", "source": f"{PAPER}, §7"},),
    ),
}


def preset(name: str) -> Preset:
    """Raises `UsageError` for an unknown name."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]

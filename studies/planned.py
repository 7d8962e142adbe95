"""What a study will take before it starts: traces, tokens, and where a GPU is named, its hours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scaling.predict.serving import processed_tokens, serve
from scaling.predict.setup import BUDGET_RATIO
from scaling.thinking import Environment

if TYPE_CHECKING:
    from scaling.planning import Question

PROMPT_TOKENS = 128
"""Of a question, before any is read."""


def planned(environments: Mapping[str, Environment], traces: int, question: Question | None) -> list[dict[str, Any]]:
    """One record an arm: tokens and GPU-hours where traces think a third of their budget on average, as the planner
    assumes of budgets everywhere, and, as `most_…`, where every one thinks all of it.

    `processed_tokens`: encoded and sampled ones, all traces together. Hours are analytic, and None without a question,
    which names model and GPU (`scaling.planning.ask`). Raises `UsageError` where the model does not fit them.
    """
    found = []
    for label, environment in environments.items():
        mean = max(1, environment.budget // BUDGET_RATIO)
        record: dict[str, Any] = {"arm": label, "traces": traces, "mean_thinking_tokens": mean}
        for prefix, tokens in (("", mean), ("most_", environment.budget)):
            record[f"{prefix}thinking_tokens"] = traces * tokens
            record[f"{prefix}processed_tokens"] = traces * processed_tokens(environment, PROMPT_TOKENS, tokens)
            record[f"{prefix}gpu_hours"] = None
            if question is not None:
                served = serve(
                    question.shape,
                    question.setup,
                    environment,
                    PROMPT_TOKENS,
                    question.work.distribution,
                    tokens,
                    traces,
                )
                record[f"{prefix}gpu_hours"] = served.gpu_hours
                record["tensor_parallel"] = served.tensor_parallel
        found.append(record)
    return found

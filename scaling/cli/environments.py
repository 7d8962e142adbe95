"""Options of thinking environments that several commands share, and the environments that they name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from scaling.errors import UsageError
from scaling.lengths import parse_tokens
from scaling.thinking import DEFAULT_MODES, MODES, OWN_OPTIONS, Delethink, Environment, check_options, for_budget

MODE_HELP = f"Thinking environment: {', '.join(MODES)}. Repeatable; {' and '.join(DEFAULT_MODES)} by default."

Modes = Annotated[list[str] | None, typer.Option("--mode", help=MODE_HELP)]
ContextSize = Annotated[str, typer.Option(help="C, new tokens of Delethink's first chunk or of a round.")]
StateSize = Annotated[str | None, typer.Option(help="Delethink's m, last tokens kept. Default C/2.")]
Head = Annotated[int, typer.Option(help="First tokens of chunk 1 that all chunks keep.")]
Iterations = Annotated[int | None, typer.Option(help="Delethink's I, most chunks; or rounds. Default 3.")]
ThinkingTokens = Annotated[
    str | None, typer.Option(help="Thinking budget of a trace instead of --iterations, e.g. 2k.")
]

SummarySize = Annotated[
    str | None, typer.Option(help="s, most tokens of a summary, of modes summary and folding. Default C/8.")
]
Extensions = Annotated[
    int | None, typer.Option(help="N, how often mode budget-forcing makes the model go on. Default 1.")
]
CueTokens = Annotated[
    int | None, typer.Option(help="Tokens of the cue. Default 32 of mode summary, 1 of mode budget-forcing.")
]
Cue = Annotated[
    str | None,
    typer.Option(
        help="What asks for a summary (mode summary) or makes the model go on (budget-forcing, 'Wait' by default); "
        "folding's opening marker, '<step>' by default."
    ),
]
Stop = Annotated[
    str | None,
    typer.Option(
        help="One token that ends a summary (mode summary) or thinking (budget-forcing, '</think>' by default); "
        "folding's closing marker, '</step>' by default."
    ),
]

DEFAULT_ITERATIONS = 3


def environments_of(
    modes: Sequence[str] | None,
    *,
    context_size: str,
    state_size: str | None,
    head: int,
    iterations: int | None,
    thinking_tokens: str | None,
    summary_size: str | None = None,
    extensions: int | None = None,
    cue: str | None = None,
    stop: str | None = None,
) -> list[Environment]:
    """The environments asked for, all with room for what Delethink may think in its iterations; for so many rounds
    where one with rounds is asked for and Delethink is not. Raises `UsageError` for what makes no sense together.

    Their cues are still to be `scaling.cues.worded`.
    """
    if iterations is not None and thinking_tokens is not None:
        raise UsageError("--iterations and --thinking-tokens both set the thinking budget; give one of them")
    named = tuple(dict.fromkeys(modes or DEFAULT_MODES))
    check_options(named, {"summary_size": summary_size, "extensions": extensions, "cue": cue, "stop": stop})
    if (cue is not None or stop is not None) and len(set(named) & set(OWN_OPTIONS["cue"])) > 1:
        raise UsageError("--cue and --stop are the words of one environment; name one of these modes at a time")
    context = parse_tokens(context_size)
    state = parse_tokens(state_size) if state_size is not None else context // 2
    rounds = DEFAULT_ITERATIONS if iterations is None else iterations
    if thinking_tokens is not None:
        budget = parse_tokens(thinking_tokens)
    elif "delethink" not in named and {"summary", "folding"} & set(named):
        budget = rounds * context
    else:
        budget = Delethink(context, state, rounds, head).budget
    return [
        for_budget(
            name,
            budget,
            context_size=context,
            state_size=state,
            head=head,
            carryover="algorithm1",
            summary_size=parse_tokens(summary_size) if summary_size is not None else None,
            extensions=extensions,
        )
        for name in named
    ]

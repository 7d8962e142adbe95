"""`scaling thoughts`: what traces look like, of any study or file of traces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.cli.console import print_json, warn
from scaling.cli.options import (
    BaseUrl,
    Concurrency,
    Deadline,
    Dtype,
    EngineName,
    KeyVariable,
    ServedModel,
    TensorParallel,
)
from scaling.errors import UsageError
from scaling.lengths import parse_lengths

if TYPE_CHECKING:
    from scaling.measure.sampler import EngineChoice
    from studies.truncation import Forcing

EXAMPLES = (
    "scaling thoughts runs/far",
    "scaling thoughts gcd.jsonl --json                     # of scaling trace --out gcd.jsonl",
    "scaling thoughts runs/far --truncate 64,128,256       # cut there, and forced to answer",
    "scaling thoughts runs/far --stages rules.json         # labelled by rules of your own",
    "scaling report runs/far --stages rules.json           # with figures, in the study's report",
)


def thoughts(
    places: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN_OR_FILE…", help="Runs of probe or test-time, or files of scaling trace --out."),
    ] = None,
    truncate: Annotated[
        str | None, typer.Option(help="Cut traces at these thinking tokens and force their answers, as in 64,128.")
    ] = None,
    answer_cue: Annotated[
        str | None, typer.Option(help="What forces an answer. Default: as the model closes its thinking.")
    ] = None,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens that a forced answer may take.")] = 16,
    model: Annotated[
        list[str] | None,
        typer.Option(help="With --truncate: where the models that wrote the traces are now. Repeatable."),
    ] = None,
    stages: Annotated[
        Path | None, typer.Option(help="JSON file of rules that tell the stages of a thought by their cue words.")
    ] = None,
    engine: EngineName = "local",
    base_url: BaseUrl = None,
    served_model: ServedModel = None,
    deadline: Deadline = 3600.0,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    concurrency: Concurrency = 64,
    tensor_parallel: TensorParallel = 1,
    dtype: Dtype = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False,
) -> None:
    """Tell how long right and wrong traces are, which lengths do best, and how much traces repeat themselves.

    Chunked arms also: whether chunk boundaries cause repetition. With --truncate, what answers forced early are worth;
    with --stages, how long the stages and cycles of thoughts are. After DeepSeek-R1 Thoughtology.
    """
    from scaling.measure.sampler import EngineChoice

    if not places:
        raise UsageError("no traces given; name a run or a file of them, as in runs/far or gcd.jsonl")
    choice = EngineChoice(engine, dtype, concurrency, base_url, served_model, deadline, key_variable, tensor_parallel)
    forcing = None
    if truncate is not None:
        from studies.truncation import Forcing

        forcing = Forcing(tuple(parse_lengths(truncate)), answer_cue, answer_tokens)
    found = {str(place): _told(place, forcing, model or [], choice, stages) for place in dict.fromkeys(places)}
    if json:
        print_json({"thoughts": [{"of": place, **records} for place, records in found.items()]})
        return
    for place, records in found.items():
        for sentence in _sentences(records):
            print(f"{place}: {sentence}" if len(found) > 1 else sentence)


def _told(
    place: Path, forcing: Forcing | None, models: list[str], choice: EngineChoice, stages: Path | None
) -> dict[str, Any]:
    """Everything asked of one run or file, by kind."""
    from scaling.behaviour import staged, thoughts_of, unfinished
    from scaling.cli.cutting import truncated
    from scaling.results import Store

    records = {"thoughts": thoughts_of(place)}
    if (forcing is not None or stages is not None) and place.is_file():
        raise UsageError(f"{place} is a file; --truncate and --stages take a run of `scaling probe` or `test-time`")
    if not place.is_file() and (lacking := unfinished(Store.open(place))):
        warn(f"{place}: {lacking}")
    if forcing is not None:
        records["truncation"] = truncated(Store.open(place), forcing, models, choice)
    if stages is not None:
        records["stages"] = staged(Store.open(place), stages)
    return records


def _sentences(records: dict[str, Any]) -> list[str]:
    from reports import stages, thoughts, truncation

    told = {"thoughts": thoughts.sentences, "truncation": truncation.sentences, "stages": stages.sentences}
    return [sentence for kind, record in records.items() for sentence in told[kind](record)]

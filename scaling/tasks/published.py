"""Published sets of problems by name: AIME, HMMT, MATH-500, GSM8K, GPQA-Diamond, from the Hub or a file of the same."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from scaling.errors import UsageError, first_line
from scaling.tasks.parameters import Parameters
from scaling.tasks.rows import PLAIN, Asked, DataSetError, Layout, Rows, Verifier, first

CORRECT, WRONG = "Correct Answer", tuple(f"Incorrect Answer {n}" for n in (1, 2, 3))


class Published(NamedTuple):
    """Where a set is on the Hub, how it is judged, and a row of it."""

    source: str
    verifier: Verifier
    example: str


PUBLISHED = {
    "aime24": Published("HuggingFaceH4/aime_2024:train", "math", '{"problem": "…", "answer": "204"}'),
    "aime25": Published("MathArena/aime_2025:train", "math", '{"problem": "…", "answer": 70}'),
    "hmmt25": Published("MathArena/hmmt_feb_2025:train", "math", '{"problem": "…", "answer": "103"}'),
    "math500": Published("HuggingFaceH4/MATH-500:test", "math", '{"problem": "…", "answer": "\\\\pi", "level": 2}'),
    "gsm8k": Published("openai/gsm8k:main:test", "math", '{"question": "…", "answer": "… #### 72"}'),
    "gpqa-diamond": Published(
        "Idavidrein/gpqa:gpqa_diamond:train",
        "letter",
        json.dumps(dict.fromkeys(["Question", CORRECT, *WRONG], "…"), ensure_ascii=False),
    ),
}
"""Their columns hold more; these are read."""


def make(parameters: Parameters, seed: int) -> Rows:
    """The set that is named; `path`: a file with its columns, where the Hub is not to be asked."""
    name = parameters.name
    chosen = PUBLISHED[name]
    path = parameters.text("path")
    parameters.done()  # before the Hub is asked
    layouts = {
        "gsm8k": PLAIN._replace(read=worked),
        "gpqa-diamond": Layout(("Question", CORRECT, *WRONG), partial(choices, seed=seed), ""),
    }
    layout = layouts.get(name, PLAIN)._replace(example=chosen.example)
    try:
        return Rows(path or chosen.source, chosen.verifier, name=name, layout=layout)
    except DataSetError as error:
        if path is not None:
            raise
        reason = first_line(error).partition("; expected")[0]
        raise UsageError(
            f"{reason}; give a local .jsonl or .parquet file of rows such as {chosen.example}, as in "
            f"{name}:path={name}.jsonl"
        ) from None


def worked(row: Mapping[str, Any]) -> Asked:
    """GSM8K's answer is a solution whose last line is `#### 1,234`."""
    asked = PLAIN.read(row)
    _, marked, answer = asked.answer.rpartition("####")
    return asked._replace(answer=answer.strip().replace(",", "") if marked else "")


def choices(row: Mapping[str, Any], seed: int) -> Asked:
    """The question with its four choices, in an order that the seed and the question decide; the answer's letter."""
    question, right = first(row, ("Question",)), first(row, (CORRECT,))
    wrong = [first(row, (column,)) for column in WRONG]
    if not question or not right or not all(wrong):
        return Asked(question, "")
    order = [right, *wrong]
    random.Random(f"choices/{seed}/{question}").shuffle(order)
    listed = [f"{letter}) {choice}" for letter, choice in zip("ABCD", order, strict=True)]
    ask = r"Which choice is right? Put its letter alone within \boxed{}."
    return Asked("\n".join([question, "", *listed, "", ask]), "ABCD"[order.index(right)])

"""The process behind `scaling.tasks.reasoning_gym`: makes problems and judges answers, one JSON line at a time."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import signal
import sys
import types
import typing
from typing import Any

MEMORY_BYTES = 4 << 30


def main() -> None:
    """Answers requests from stdin on what was stdout: anything else that prints there would break the protocol."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout = sys.stderr
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    dataset: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "setup":
            dataset, reply = _setup(request["name"], request["seed"], request["size"], request["parameters"])
        elif request["do"] == "parameters":
            fields = dataclasses.asdict(dataset.config)
            reply = {"parameters": {k: v for k, v in fields.items() if k not in ("seed", "size")}}
        elif request["do"] == "problem":
            entry = dataset[request["index"]]
            reply = {key: entry[key] for key in ("question", "answer", "metadata")}
            reply["answer"] = str(reply["answer"])
        else:
            # Should nobody be left to kill a verifier that hangs, the kernel does, even inside C code.
            signal.setitimer(signal.ITIMER_REAL, 2 * request["seconds"])
            reply = _score(dataset, request["index"], request["answer"])
            signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps(reply, default=str, skipkeys=True) + "\n")
        replies.flush()


def _setup(name: str, seed: int, size: int, given: dict[str, str]) -> tuple[Any, dict[str, Any]]:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        return None, {"usage": "task", "name": name, "known": sorted(DATASETS)}
    config = DATASETS[name][1]
    types_of = typing.get_type_hints(config)
    known = [field.name for field in dataclasses.fields(config) if field.name not in ("seed", "size")]
    parameters = {}
    for key, text in given.items():
        if key not in known:
            return None, {"usage": f"parameter of {name}", "name": key, "known": known}
        try:
            parameters[key] = _convert(text, types_of[key])
        except ValueError:
            return None, {"usage": f"parameter {key} of {name} is {text!r}; expected {types_of[key]}"}
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size, **parameters), {}
    except Exception as error:
        return None, {"usage": f"{name} refuses {given}: {str(error) or type(error).__name__}"}


def _convert(text: str, kind: Any) -> Any:
    """`text` as a value of the type that the dataset declares for it; raises `ValueError`."""
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if bool in options:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ValueError(text)
    for option in (int, float, str):
        if option in options:
            return option(text)
    return json.loads(text)


def _score(dataset: Any, index: int, answer: str) -> dict[str, Any]:
    try:
        score = float(dataset.score_answer(answer, dataset[index]))
    except BaseException as error:  # whatever a text makes a verifier do
        return {"score": 0.0, "error": f"{type(error).__name__}: {error}"[:200]}
    if math.isnan(score):
        return {"score": 0.0, "error": "the verifier's score is not a number"}
    return {"score": min(max(score, 0.0), 1.0), "error": None}


if __name__ == "__main__":
    main()

"""The process behind `scaling.tasks.reasoning_gym`: makes problems and judges answers."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

from scaling.errors import unknown
from scaling.tasks.worker import score, serve


class _Gym:
    """The dataset that `setup` made, and what is asked of it."""

    def __init__(self) -> None:
        self.dataset: Any = None

    def setup(self, name: str, seed: int, size: int, parameters: dict[str, str], beside: list[str]) -> dict[str, Any]:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

        if name not in DATASETS:
            said = str(unknown("task", name, [*beside, *DATASETS]))
            if "did you mean" in said and beside:
                said += f" There are {', '.join(beside)}, and {len(DATASETS)} of reasoning-gym"
            return {"usage": said}
        config = DATASETS[name][1]
        types_of = typing.get_type_hints(config)
        known = [field.name for field in dataclasses.fields(config) if field.name not in ("seed", "size")]
        converted = {}
        for key, text in parameters.items():
            if key not in known:
                return {"usage": f"parameter of {name}", "name": key, "known": known}
            try:
                converted[key] = _convert(text, types_of[key])
            except ValueError:
                return {"usage": f"parameter {key} of {name} is {text!r}; expected {types_of[key]}"}
        try:
            self.dataset = reasoning_gym.create_dataset(name, seed=seed, size=size, **converted)
        except Exception as error:
            return {"usage": f"{name} refuses {parameters}: {str(error) or type(error).__name__}"}
        return {}

    def parameters(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self.dataset.config)
        return {"parameters": {k: v for k, v in fields.items() if k not in ("seed", "size")}}

    def problem(self, index: int) -> dict[str, Any]:
        entry = self.dataset[index]
        return {"question": entry["question"], "answer": str(entry["answer"]), "metadata": entry["metadata"]}

    def score(self, index: int, answer: str) -> dict[str, Any]:
        return score(lambda: self.dataset.score_answer(answer, self.dataset[index]))


def main() -> None:
    gym = _Gym()
    serve({"setup": gym.setup, "parameters": gym.parameters, "problem": gym.problem, "score": gym.score})


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


if __name__ == "__main__":
    main()

"""What a study asks, everything that decides its traces, and the run that remembers it."""

from __future__ import annotations

import itertools
import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from scaling.errors import StoreError, UsageError
from scaling.measure.cells import OPENAI
from scaling.measure.fingerprint import fingerprint, fingerprint_id
from scaling.measure.sampler import DTYPES, EngineChoice
from scaling.measure.subject import device_kind, has_gpu
from scaling.models import Source
from scaling.results import Store
from scaling.rollout import Sampling
from scaling.tasks import Problem, Task
from scaling.text import Text
from scaling.thinking import Environment
from studies.trace_frame import TRACES


@dataclass(frozen=True, slots=True)
class Arm:
    """A checkpoint in an environment. `trained`: the environment that it was trained in, None where in none of ours.

    `text`: how questions become its tokens and its tokens answers; arms of one model may share it.
    """

    label: str
    environment: Environment
    source: Source
    text: Text
    trained: str | None = None


@dataclass(frozen=True, slots=True)
class Questions:
    """Problems of one task. `label` names the task in the study: two may differ in their parameters alone.

    `rules`: how answers to them are found in a text, None as every arm's `text` does.
    """

    label: str
    task: Task
    problems: Sequence[Problem]
    rules: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.problems:
            raise UsageError(f"task {self.label} has no problems; ask at least one")
        (id, times), *_ = Counter(problem.id for problem in self.problems).most_common(1)
        if times > 1:
            raise UsageError(f"task {self.label} has {times} problems with the id {id!r}; every problem needs its own")

    def record(self) -> dict[str, Any]:
        texts = json.dumps([(problem.id, problem.question, problem.answer) for problem in self.problems])
        digest = sha256(texts.encode()).hexdigest()
        told = {"label": self.label, "asked": len(self.problems), "asked_digest": digest, "rules": self.rules}
        return {**self.task.parameters(), **told}


class Asked(NamedTuple):
    """One trace that a study wants of every arm. `number` decides its seeds, whenever and where it is sampled."""

    number: int
    questions: Questions
    problem: Problem
    sample: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.questions.label, self.problem.id, self.sample


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that decides the traces of a study.

    Every arm is asked all `questions`, `samples` times each; the n-th sample of a problem has the same seeds in every
    arm, so that what differs comes of the arms. `budgets`: thinking tokens that every trace is also judged at, cut
    off there. `devices` run the model together, where a server does, which cannot be asked how many.
    """

    name: str
    arms: Sequence[Arm]
    questions: Sequence[Questions]
    samples: int
    sampling: Sampling
    budgets: Sequence[int]
    engine: EngineChoice
    devices: int = 1

    def __post_init__(self) -> None:
        """Raises `UsageError` for what cannot be asked, or would be misread."""
        object.__setattr__(self, "budgets", tuple(sorted(set(self.budgets))))
        if not self.arms or not self.questions or not self.budgets:
            raise UsageError("a study needs at least one arm, one task and one budget")
        for kind, labels in (("arms", self.arms), ("tasks", self.questions)):
            (label, times), *_ = Counter(each.label for each in labels).most_common(1)
            if times > 1:
                raise UsageError(f"{times} {kind} are called {label!r}; each needs its own name")
        if self.samples < 1:
            raise UsageError(f"{self.samples} samples a problem; give at least 1")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise UsageError("greedy samples of a problem are all the same; ask for 1, or set a temperature above 0")
        if self.budgets[0] < 1:
            raise UsageError(f"budget {self.budgets[0]} is not positive; give at least 1 thinking token")
        for arm in self.arms:
            if self.budgets[-1] > arm.environment.budget:
                raise UsageError(
                    f"budget {self.budgets[-1]} is more than {arm.label!r} may think, {arm.environment.budget} tokens; "
                    "leave it out, or let it think longer"
                )

    @property
    def asked(self) -> list[Asked]:
        """What every arm is asked: the first sample of all problems, then the second, and so on."""
        places = [(questions, problem) for questions in self.questions for problem in questions.problems]
        wanted = itertools.product(range(self.samples), places)
        return [Asked(number, *place, sample) for number, (sample, place) in enumerate(wanted)]

    def record(self) -> dict[str, Any]:
        """For the manifest, as it reads back from JSON."""
        arms = [
            {
                "label": arm.label,
                "file": f"{TRACES}/{number:02d}-{_slug(arm.label)}.jsonl",
                "environment": arm.environment.name,
                "environment_parameters": arm.environment.parameters(),
                "trained": arm.trained,
                "model": arm.source.record(),
                "text": arm.text.handling.record(),
            }
            for number, arm in enumerate(self.arms, 1)
        ]
        record: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "study": self.name,
                    "arms": arms,
                    "tasks": [questions.record() for questions in self.questions],
                    "samples": self.samples,
                    "sampling": asdict(self.sampling),
                    "budgets": self.budgets,
                    "engine": self._engine(),
                }
            )
        )
        return record

    def _engine(self) -> dict[str, Any]:
        """What samples, with the type in which it computes: of a server, that of the checkpoint is taken for it."""
        choice = self.engine
        stored = self.arms[0].source.config.get("dtype") or self.arms[0].source.config.get("torch_dtype")
        served = stored if stored in DTYPES else "bfloat16"
        dtype = choice.dtype or (served if choice.name == OPENAI else "bfloat16" if has_gpu() else "float32")
        devices = self.devices if choice.name == OPENAI else choice.tensor_parallel
        return {**asdict(choice), "dtype": dtype, "devices": devices}


def begin(out: Path | str, study: Study, *, device: str | None = None, **remembered: Any) -> Store:
    """Starts a study's run in a new directory; `remembered` (JSON) joins its manifest, such as the command line.

    `device`: what the model runs on, None for this machine's GPU or CPU, or a server of unknown kind. Raises
    `StoreError` if the directory is taken or cannot be written.
    """
    here = fingerprint()
    device = device or _device(study, here)
    manifest = {
        **remembered,
        **study.record(),
        "device": device,
        "device_kind": device if study.engine.name == OPENAI else device_kind(),
        "model": study.arms[0].source.record(),
        "fingerprint": here,
        "fingerprint_id": fingerprint_id(here),
    }
    return Store.create(out, manifest)


def _device(study: Study, here: Mapping[str, Any]) -> str:
    if study.engine.name == OPENAI:
        return f"server on {study.devices} device{'s' if study.devices > 1 else ''}"
    if has_gpu():
        return str(here["hardware"]["device"])
    return f"{here['hardware']['cpu']}, {here['software']['torch_threads']} threads"


def check_same(store: Store, study: Study) -> None:
    """Raises `StoreError`, naming a difference, unless the run in `store` is of this study: its traces would mix."""
    there, here = _identity(store.manifest), _identity(study.record())
    for path, was, is_ in _differences(there, here):
        raise StoreError(
            f"{store.path} is another study: its {path} is {reprlib.repr(was)}, here it is {reprlib.repr(is_)}; "
            "give another --out"
        )


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:80]


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs of one study have in common: not where the weights came from, nor how many run at once."""
    kept = {key: record.get(key) for key in ("study", "samples", "sampling", "budgets", "tasks")}
    arms = [
        {**arm, "model": {key: arm["model"][key] for key in ("name", "weights", "digest")}}
        for arm in record.get("arms", [])
    ]
    engine = {key: record.get("engine", {}).get(key) for key in ("name", "dtype", "served_model")}
    return {**kept, "arms": arms, "engine": engine}


def _differences(there: Any, here: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, value there, value here) of what differs between two JSON values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            yield from _differences(there.get(key), here.get(key), f"{path}.{key}" if path else key)
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here) and path != "budgets":
        for index, (was, is_) in enumerate(zip(there, here, strict=True)):
            name = was.get("label", index) if isinstance(was, dict) else index
            yield from _differences(was, is_, f"{path}[{name}]")
    elif isinstance(there, list) and isinstance(here, list) and path in ("arms", "tasks"):
        yield f"number of {path}", len(there), len(here)
    elif there != here:
        yield path, there, here

"""A study small enough for tests: half-taught walkers in two environments; also run as a program that may be killed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from scaling.measure.sampler import EngineChoice
from scaling.models import resolve
from scaling.results import Store
from scaling.rollout import Sampling
from scaling.tasks.walk import Walk
from scaling.text import Text
from scaling.thinking import Delethink, LongCoT
from studies.asking import Arm, Progress, Questions, Study, ask, begin, records

ENGINE = EngineChoice(dtype="float32", concurrency=4)


def walkers(model: Path, **changes: Any) -> Study:
    """Four walks, two samples of each, in LongCoT and in Delethink."""
    source = resolve(str(model), weights=True)
    text = Text(model, rules=("last-line",))
    walk = Walk(4, 0, 0, 2)
    study = Study(
        name="probe",
        arms=(
            Arm("longcot", LongCoT(24), source, text),
            Arm("delethink C=8 m=4", Delethink(8, 4, 5, 2), source, text, trained="delethink"),
        ),
        questions=(Questions("walk", walk, walk.problems(4)),),
        samples=2,
        sampling=Sampling(1.0, seed=3),
        budgets=(4, 8, 24),
        engine=ENGINE,
    )
    return replace(study, **changes)


def asked_whole(out: Path, study: Study) -> Store:
    """The run of a study that nothing interrupted."""
    store = begin(out, study)
    ask(store, study)
    return store


def traces(store: Store) -> dict[tuple[str, int], dict[str, Any]]:
    """Every trace by its arm and number, without the seconds that it took."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for arm in store.manifest["arms"]:
        for record in records(store, arm["label"]):
            key = arm["label"], record["index"]
            assert key not in found
            found[key] = {name: value for name, value in record.items() if name != "seconds"}
    return found


def _tell(progress: Progress) -> None:
    if progress.record is not None:
        print(progress.arm, progress.done, flush=True)


if __name__ == "__main__":
    study = walkers(Path(sys.argv[1]), samples=int(sys.argv[3]))
    out = Path(sys.argv[2])
    try:
        ask(Store.open(out) if out.exists() else begin(out, study), study, observe=_tell)
    except KeyboardInterrupt:
        sys.exit(130)

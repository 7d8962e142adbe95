"""Training runs as studies see them: which checkpoint a name means, where it was trained, and how training went."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from scaling.errors import CheckpointError
from scaling.measure.sampler import EngineChoice
from scaling.models import Source, read_json
from scaling.results.store import MANIFEST
from trainer import metrics
from trainer.checkpoint import FOLDER, STATE, checkpoints, newest, recipe_of
from trainer.recipe import Recipe

DEFAULT_MODEL = "smollm2-135m"


class Trained(NamedTuple):
    """A model to ask. `recipe`: by which it was trained here, None where it was not, or not by a single step yet."""

    source: Source
    recipe: Recipe | None

    @property
    def mode(self) -> str | None:
        return None if self.recipe is None else self.recipe.mode


def find(model: str, engine: EngineChoice) -> Trained:
    """The model that `model` names: as everywhere, or a training run, whose newest checkpoint it then is.

    A checkpoint of a training run is called by its run and step, since steps of several runs have equal names. Raises
    `UsageError` or `CheckpointError`.
    """
    path = Path(model).expanduser()
    if (path / FOLDER).is_dir():
        if not checkpoints(path):
            raise CheckpointError(f"{model} is a training run without a checkpoint yet; train it first")
        path = newest(path)
        model = str(path)
    source = engine.source(model)
    if path.parent.name != FOLDER:
        return Trained(source, None)
    run = path.resolve().parents[1]
    named = replace(source, name=f"{run.name}/{path.name}")
    state = path / "trainer" / STATE
    if not state.is_file() or not read_json(state).get("step"):
        return Trained(named, None)
    return Trained(named, recipe_of(path, Recipe.from_json(read_json(run / MANIFEST)["recipe"])))


def steps_of(run: Path) -> list[dict[str, Any]]:
    """What the trainer wrote of each step of a run, in order; raises `StoreError` for a damaged file."""
    return metrics.read(run)

"""Which checkpoint a name means, and where it was trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from scaling.errors import CheckpointError, UsageError
from scaling.measure.sampler import EngineChoice
from studies.checkpoints import find
from trainer.recipes import walk

HERE = EngineChoice()


@pytest.fixture
def run(tmp_path: Path, chat_model: Path) -> Path:
    """A training run of three checkpoints: the warm start and two steps in Delethink."""
    recipe = replace(walk.delethink(), seed=3)
    for step in (0, 10, 20):
        there = tmp_path / "walk-3" / "checkpoints" / f"step-{step:06d}"
        there.mkdir(parents=True)
        for file in chat_model.iterdir():
            (there / file.name).write_bytes(file.read_bytes())
        (there / "trainer").mkdir()
        state = {"schema_version": "1.0", "step": step, "asked": step, "recipe": recipe.to_json()}
        (there / "trainer" / "trainer.json").write_text(json.dumps(state))
    (tmp_path / "walk-3" / "manifest.json").write_text(json.dumps({"recipe": replace(recipe, seed=2).to_json()}))
    return tmp_path / "walk-3"


def test_a_training_run_is_its_newest_checkpoint_called_by_run_and_step(run: Path):
    found = find(str(run), HERE)
    assert found.source.name == "walk-3/step-000020"
    assert found.source.path == run / "checkpoints" / "step-000020"
    assert (found.mode, found.recipe and found.recipe.seed) == ("delethink", 3)


def test_a_warm_start_was_trained_in_no_environment(run: Path):
    assert find(str(run / "checkpoints" / "step-000000"), HERE).mode is None
    assert find(str(run / "checkpoints" / "step-000010"), HERE).mode == "delethink"


def test_a_checkpoint_without_a_recipe_was_trained_as_its_run_began(run: Path):
    state = run / "checkpoints" / "step-000020" / "trainer" / "trainer.json"
    state.write_text(json.dumps({"schema_version": "1.0", "step": 20, "asked": 20}))
    found = find(str(run), HERE)
    assert (found.mode, found.recipe and found.recipe.seed) == ("delethink", 2)


def test_any_other_model_is_found_as_everywhere(chat_model: Path):
    found = find(str(chat_model), HERE)
    assert (found.source.path, found.mode) == (chat_model, None)
    with pytest.raises(UsageError, match="no directory"):
        find("./nowhere", HERE)


def test_a_run_without_checkpoints_is_refused(tmp_path: Path):
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="without a checkpoint yet"):
        find(str(tmp_path / "begun"), HERE)

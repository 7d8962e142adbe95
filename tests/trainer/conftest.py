"""A policy that half knows short walks, and runs that go on from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scaling.decoder import Decoder
from scaling.tasks.walk import CONFIG, demonstrations
from trainer.loop import Trainer
from trainer.recipe import Recipe
from trainer.recipes import recipe
from trainer.supervised import batches, warm_start


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "taught"
    policy = Decoder.from_config(CONFIG, seed=0)
    shown = demonstrations(0, 48, 2, windows=0.0, slips=0.1)
    warm_start(policy, batches(shown, 32), 150, 5e-3)
    policy.save(path)
    return path


@pytest.fixture
def small(taught: Path) -> Recipe:
    """Walks of no step to two, in chunks so short that most need several."""
    sizes = ["task=walk:0-2", "problems=64", "context_size=8", "state_size=4", "thinking_budget=24", "warm_steps=0"]
    return recipe("walk-delethink-cpu").override(
        [*sizes, f"model={taught}", "steps=2", "queries=4", "group=6", "save_every=1", "replay_examples=4"]
    )


@pytest.fixture
def start(tmp_path: Path, small: Recipe) -> Iterator[Callable[..., Trainer]]:
    """`start(setting, …, recipe=…, out=…)`: a run that is set up but not trained."""
    with ExitStack() as stack:

        def make(*settings: str, recipe: Recipe = small, out: Path = tmp_path / "run") -> Trainer:
            trainer = Trainer.start(recipe.override(settings), out)
            stack.callback(trainer.close)
            return trainer

        yield make

"""The recipes in words as they are, but for their sizes: on a tiny checkpoint and local problems, by real judges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling.results import Store
from scaling.text import extract
from trainer.loop import Trainer
from trainer.metrics import read
from trainer.recipes import RECIPES, recipe

MATH = [name for name in RECIPES if name.startswith("math-")]
GYM = [name for name in RECIPES if name.startswith("gym-")]
SMALL = (
    *("context_size=32", "state_size=16", "head=4", "iterations=3", "thinking_budget=64"),
    *("problems=6", "queries=2", "group=2", "steps=1", "temperature=1.0"),
)


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """Rows with the columns of OpenMathReasoning, answers as people write them."""
    rows = [{"problem": rf"What is ${i}/2$?", "expected_answer": rf"\frac{{{i}}}{{2}}"} for i in range(1, 7)]
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", MATH)
def test_a_math_recipe_trains_on_local_problems(
    start: Callable[..., Trainer], chat_model: Path, problems: Path, name: str
) -> None:
    trainer = start(*SMALL, f"model={chat_model}", f"task=math:{problems}", "kl=0.1", recipe=recipe(name))
    saved = trainer.train()
    (line,) = read(trainer.run)
    assert (line["chunks"] > 1) == (trainer.recipe.mode == "delethink")
    assert line["reference_kl"][0] == pytest.approx(0.0, abs=1e-6)
    assert (saved / "tokenizer.json").exists()
    assert Store.open(trainer.run).manifest["task"]["verifier"] == "math"


@pytest.mark.parametrize("name", GYM)
def test_a_gym_recipe_trains(start: Callable[..., Trainer], chat_model: Path, name: str) -> None:
    trainer = start(*SMALL, f"model={chat_model}", "kl=0.1", recipe=recipe(name))
    trainer.train()
    (line,) = read(trainer.run)
    assert (line["chunks"] > 1) == (trainer.recipe.mode == "delethink")
    assert Store.open(trainer.run).manifest["task"]["task"] == "chain_sum"


@pytest.mark.parametrize(("said", "reward"), [(r"0.5", 1.0), (r"\dfrac{2}{4}", 1.0), (r"\frac{1}{3}", 0.0)])
def test_a_boxed_answer_that_is_the_same_number_is_rewarded(
    start: Callable[..., Trainer], chat_model: Path, problems: Path, said: str, reward: float
) -> None:
    trainer = start(*SMALL, f"model={chat_model}", f"task=math:{problems}", recipe=recipe(MATH[0]))
    text = rf"Half of one is \boxed{{{said}}}."
    assert extract(text) is not None
    ids = trainer.questions.text.tokenizer(text)["input_ids"]  # type: ignore[attr-defined]
    assert trainer.questions.reward(0, [ids[:7], ids[7:]]) == reward

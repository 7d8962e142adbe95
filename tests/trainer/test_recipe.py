"""A recipe: overridden by text, refused where it makes no sense, the same after a round trip."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scaling.errors import UsageError
from scaling.thinking import Delethink, LongCoT
from trainer.recipe import Recipe

BASE = Recipe("base", task="walk:16-32", model="walk")


def test_settings_are_read_by_the_type_of_their_key() -> None:
    recipe = BASE.override(
        ["steps=7", "learning_rate=3e-4", "importance_cap=none", "checkpoint_activations=false", "mode=longcot"]
    )
    assert (recipe.steps, recipe.learning_rate, recipe.importance_cap) == (7, 3e-4, None)
    assert recipe.checkpoint_activations is False
    assert recipe.environment == LongCoT(24576)
    assert BASE.environment == Delethink(8192, 4096, 5, 100)


def test_it_survives_json() -> None:
    assert Recipe.from_json(json.loads(json.dumps(BASE.to_json()))) == BASE


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("stpes=7", "did you mean steps"),
        ("steps", "not key=value"),
        ("steps=many", "steps=many is not a whole number"),
        ("kl=some", "kl=some is not a number"),
        ("checkpoint_activations=maybe", "neither true nor false"),
        ("steps=0", "steps 0 is not positive"),
        ("kl=-1", "kl -1.0 is negative"),
        ("learning_rate=nan", "learning_rate nan is not a positive number"),
        ("temperature=0", "temperature 0.0 is not a positive number"),
        ("warm_learning_rate=nan", "warm_learning_rate nan is not a positive number"),
        ("beta1=1.5", "beta1 1.5 is not at least 0 and below 1"),
        ("beta2=nan", "beta2 nan is not at least 0 and below 1"),
        ("clip_low=2", "clip_low 2.0 is not at least 0 and below 1"),
        ("importance_cap=0", "importance_cap 0.0 is not a positive number; importance_cap=none"),
        ("importance_cap=nan", "importance_cap nan is not a positive number"),
        (f"seed={10**25}", "is not between"),
        ("group=1", "group 1 is too small; as in group=8"),
        ("mode=longcat", "did you mean longcot"),
        ("engine=vlm", "did you mean vllm"),
        ("advantage=grop", "did you mean grpo"),
        ("carryover=none", "unknown carryover"),
        ("state_size=8192", "must be below context size"),
        ("minibatches=500", "minibatches of whole groups"),
        ("name=other", "unknown recipe key 'name'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(setting: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        BASE.override([setting])
    assert "\n" not in str(error.value)


def test_vineppo_has_its_own_baseline_and_takes_a_group_of_one() -> None:
    assert BASE.override(["advantage=vineppo", "group=1"]).group == 1


def test_a_whole_number_that_was_stored_is_a_number_too() -> None:
    assert Recipe.from_json({**BASE.to_json(), "temperature": 1, "importance_cap": None}).temperature == 1.0


def test_a_stored_recipe_with_a_key_of_another_version_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown recipe key 'warmth'"):
        Recipe.from_json({**BASE.to_json(), "warmth": 1})


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (None, "no object of keys and values, but None"),
        ({**BASE.to_json(), "steps": "many"}, "the stored recipe is damaged: its steps is 'many'"),
        ({**BASE.to_json(), "queries": 2.5}, "damaged: its queries is 2.5"),
        ({**BASE.to_json(), "mode": []}, r"damaged: its mode is \[\]"),
        ({**BASE.to_json(), "temperature": None}, "damaged: its temperature is None"),
        ({key: value for key, value in BASE.to_json().items() if key != "model"}, "damaged: .*'model'"),
    ],
)
def test_a_stored_recipe_that_is_damaged_is_one_line(stored: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        Recipe.from_json(stored)
    assert "\n" not in str(error.value)

"""Recipes by name: small functions, each of which returns one configuration."""

from __future__ import annotations

from collections.abc import Callable

from scaling.errors import unknown
from trainer.recipe import Recipe
from trainer.recipes import gym, math, walk

RECIPES: dict[str, Callable[[], Recipe]] = {
    make().name: make
    for make in (
        walk.delethink,
        walk.longcot,
        math.delethink_24k,
        math.longcot_24k,
        math.delethink_96k,
        gym.delethink,
        gym.longcot,
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of that name; raises `UsageError` with near names."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]()

"""A small model of words on reasoning-gym's sums: the path of the big recipes at a size that a workstation trains."""

from __future__ import annotations

from dataclasses import replace

from trainer.recipe import Recipe


def delethink() -> Recipe:
    """SmolLM2-135M in chunks of 128 tokens that keep 64."""
    return Recipe(
        name="gym-smollm2-delethink",
        task="gym:chain_sum:max_terms=2,max_digits=1",
        model="smollm2-135m",
        problems=1000,
        context_size=128,
        state_size=64,
        iterations=3,
        head=16,
        thinking_budget=256,
        steps=50,
        queries=8,
        concurrency=64,
        temperature=1.0,
        learning_rate=1e-5,
        token_budget=4096,
        save_every=10,
    )


def longcot() -> Recipe:
    """The same in one context of the same budget."""
    return replace(delethink(), name="gym-smollm2-longcot", mode="longcot")

"""The keyed permutation walk on two cores: a warm start from demonstrations, then RL, in minutes."""

from __future__ import annotations

from dataclasses import replace

from trainer.recipe import Recipe


def delethink() -> Recipe:
    """Chunks of 48 tokens that keep 24, so a walk of 32 steps takes five of them."""
    return Recipe(
        name="walk-delethink-cpu",
        task="walk:16-32",
        model="walk",
        context_size=48,
        state_size=24,
        iterations=5,
        head=0,
        thinking_budget=144,
        steps=100,
        queries=16,
        group=8,
        concurrency=128,
        temperature=1.0,
        learning_rate=4e-4,
        beta2=0.95,
        clip_high=0.28,
        replay=1.0,
        warm_steps=700,
        token_budget=8192,
        checkpoint_activations=False,
        save_every=20,
    )


def longcot() -> Recipe:
    """The same with one growing context of the same budget."""
    return replace(delethink(), name="walk-longcot-cpu", mode="longcot")

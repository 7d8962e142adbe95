"""The paper's settings (2510.06557, §5): R1-Distill-Qwen-1.5B on DeepScaleR at 24K, and on to 96K on OpenMath."""

from __future__ import annotations

from dataclasses import replace

from trainer.recipe import Recipe

INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."


def delethink_24k() -> Recipe:
    """C = 8192, m = 4096, I = 5, head 100; 1000 steps of 128 × 8 traces."""
    return Recipe(
        name="math-r1-distill-1.5b-delethink-24k",
        task="math:agentica-org/DeepScaleR-Preview-Dataset",
        model="r1-distill-qwen-1.5b",
        problems=40_000,
        instruction=INSTRUCTION,
        dtype="bfloat16",
    )


def longcot_24k() -> Recipe:
    """The same job in one context of 24K."""
    return replace(delethink_24k(), name="math-r1-distill-1.5b-longcot-24k", mode="longcot")


def delethink_96k() -> Recipe:
    """150 steps more at I = 23; `model` is the directory of the 24K run's last checkpoint."""
    return replace(
        delethink_24k(),
        name="math-r1-distill-1.5b-delethink-96k",
        task="math:nvidia/OpenMathReasoning",
        iterations=23,
        thinking_budget=98_304,
        steps=150,
    )

"""`scaling values`: how good VinePPO's values and gradients are at a checkpoint of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scaling.cli.console import print_json, say
from scaling.errors import UsageError

EXAMPLES = (
    "scaling values training/walk",
    "scaling values training/walk value_states=step --estimates 1,3",
    "scaling values training/walk/checkpoints/step-000100 --states 8 --rollouts 64 --groups 16 --json",
)


def values(
    run: Annotated[
        Path, typer.Argument(help="A training run, whose newest checkpoint is taken, or a checkpoint of it.")
    ],
    settings: Annotated[list[str] | None, typer.Argument(help="Changes of its recipe, e.g. value_states=step.")] = None,
    states: Annotated[int, typer.Option(help="Problems in which a state and ways on from it are valued.")] = 32,
    candidates: Annotated[int, typer.Option(help="Ways on from each state, to be ranked.")] = 4,
    rollouts: Annotated[int, typer.Option(help="Rollouts that stand for a state's true value.")] = 256,
    estimates: Annotated[str, typer.Option(help="Numbers of rollouts to judge, e.g. 1,3,9.")] = "1,3,9",
    groups: Annotated[int, typer.Option(help="Groups of traces whose gradients are compared.")] = 64,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False,
) -> None:
    """Judge Monte-Carlo values: their error, the order they give, and what gradients made of them cost in tokens.

    The run is left as it is. Intervals are of 95 %.
    """
    try:
        counts = tuple(sorted({int(part) for part in estimates.split(",")}))
    except ValueError:
        raise UsageError(f"estimates {estimates!r} are not numbers of rollouts; as in 1,3,9") from None

    from studies.values import Diagnosis
    from trainer.checkpoint import FOLDER
    from trainer.loop import Trainer

    diagnosis = Diagnosis(states, candidates, rollouts, counts, groups)
    checkpoint = run if run.parent.name == FOLDER else None
    trainer = Trainer.resume(run if checkpoint is None else run.parents[1], settings or [], checkpoint)
    recipe, step = trainer.recipe, trainer.done.step
    say(f"{recipe.name}: values at step {step}, states where a {recipe.value_states} starts")
    try:
        found = diagnosis.run(trainer, _say_progress)
    finally:
        trainer.close()
    if json:
        print_json({"run": run, "step": step, "recipe": recipe.to_json(), "diagnosis": diagnosis, **found})
    else:
        _show(found)


def _say_progress(what: str, done: int, total: int) -> None:
    if done % 8 == 0 or done == total:
        say(f"{what} {done}/{total}")


def _show(found: dict[str, Any]) -> None:
    truth = found["truth"]
    print(
        f"{truth['states']} states of value {truth['mean']:.2f} ± {truth['standard_deviation']:.2f} (standard "
        f"deviation), each known to {truth['standard_error']:.3f} (standard error)"
    )
    print(f"{'rollouts':>8}  {'error':<21}  {'ranked rightly':<21}  {'pairs':>5}  tokens a state")
    for row in found["values"]:
        cells = f"{_interval(row, 'mae', '.3f'):<21}  {_interval(row, 'ranked_rightly', '.2f'):<21}"
        print(f"{row['rollouts']:>8}  {cells}  {row['pairs']:>5}  {row['tokens_per_state']:,.0f}")
    print(
        f"{'advantage':<11}  {'tokens a group':>14}  {'noise':>6}  {'variance against rloo':<21}  "
        f"{'tokens for a signal':<27}  tokens against rloo"
    )
    for row in found["gradients"]:
        name = row["advantage"] + (f" K={row['rollouts']}" if row["rollouts"] else "")
        noise = "-" if row["noise"] is None else f"{row['noise']:.1f}"
        variance = _interval(row, "variance_against_rloo", ".2f") if row["advantage"] != "grpo" else "-"
        cells = f"{_interval(row, 'tokens_for_signal', ',.0f'):<27}  {_interval(row, 'tokens_against_rloo', '.2f')}"
        print(f"{name:<11}  {row['tokens_per_group']:>14,.0f}  {noise:>6}  {variance:<21}  {cells}")


def _interval(row: dict[str, Any], name: str, form: str) -> str:
    if row[name] is None:
        return "-"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:{form}} ({low:{form}} to {high:{form}})"

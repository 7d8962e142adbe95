"""`scaling train`: reinforcement learning by a recipe, in any thinking environment."""

from __future__ import annotations

import shlex
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.cli.console import print_json, print_json_list, say, warn
from scaling.cli.train_view import TrainView
from scaling.errors import ScalingError, UsageError

if TYPE_CHECKING:
    from trainer.recipe import Recipe

EXAMPLES = (
    "scaling train --list",
    "scaling train walk-delethink-cpu seed=1 --out training/walk",
    "scaling train --show math-r1-distill-1.5b-delethink-24k --gpu h100-sxm --gpus 8 --length 8k",
    "scaling train --resume training/walk steps=200",
)

SHOWN = ("rollout", "logprob", "update")
"""The phases that take time here: weights are handed over in place."""

NO_MODEL = (
    "{} goes on from a checkpoint and has no model of its own; give the directory of one, as in "
    "model=training/24k/checkpoints/step-001000"
)


def train(
    recipe: Annotated[str | None, typer.Argument(help="What to train; --list names them.")] = None,
    settings: Annotated[list[str] | None, typer.Argument(help="Changes, e.g. steps=10 learning_rate=1e-5.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the recipes.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Show the whole configuration and its planned cost.")] = False,
    gpu: Annotated[str | None, typer.Option(help="With --show: plan for this GPU. Default: this machine's.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="With --show: how many.")] = 1,
    length: Annotated[
        str | None,
        typer.Option(help="With --show: mean thinking tokens of a trace, as in 8k. Default: a third of the budget."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run. Default training/<time>-<recipe>.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this directory.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON on stdout.")] = False,
) -> None:
    """Train a model to think: sample groups of traces, verify, compare, update on every chunk.

    The run's directory holds checkpoints in Hugging Face format, metrics.jsonl, and the seconds of every phase as rows.
    """
    if list_:
        return _list(json)
    if resume is not None:
        if out is not None or show:
            raise UsageError("resume goes on in the run's own directory; leave --out and --show away")
        return _train(None, resume, [*([recipe] if recipe else []), *(settings or [])], json)
    if recipe is None:
        raise UsageError("no recipe given; `scaling train --list` names them")

    from trainer.recipes import recipe as by_name

    chosen = by_name(recipe).override(settings or [])
    if show:
        return _show(chosen, gpu, gpus, length, json)
    if gpu is not None:
        raise UsageError("gpu belongs to --show; training takes the GPU of this machine where there is one")
    if length is not None:
        raise UsageError("length belongs to --show; training thinks as long as the model does, within its budget")
    if not chosen.model:
        raise UsageError(NO_MODEL.format(chosen.name))
    return _train(chosen, out or Path("training") / f"{time.strftime('%Y%m%d-%H%M%S')}-{chosen.name}", [], json)


def _list(json: bool) -> None:
    from trainer.recipes import RECIPES

    found = [(name, " ".join((make.__doc__ or "").split())) for name, make in RECIPES.items()]
    if json:
        return print_json_list([{"recipe": name, "description": text} for name, text in found])
    width = max(len(name) for name, _ in found)
    for name, text in found:
        print(f"{name:{width}}  {text}")
    return None


def _show(recipe: Recipe, gpu: str | None, gpus: int, length: str | None, json: bool) -> None:
    try:
        planned, why_not = _plan(recipe, gpu, gpus, length), None
    except ScalingError as error:
        planned, why_not = None, str(error)
    if json:
        return print_json({"recipe": recipe.to_json(), "plan": planned, "plan_reason": why_not})
    for key, value in recipe.to_json().items():
        print(f"{key}={'none' if value is None else value}")
    if planned is None:
        print(f"planned cost: unknown: {why_not}")
        return None
    seconds = ", ".join(f"{phase} {planned[f'{phase}_seconds']:.1f} s" for phase in SHOWN)
    print(f"planned: {planned['step_seconds']:.1f} s a step ({seconds}), {planned['total_gpu_hours']:,.1f} GPU-hours")
    mean = f"{planned['thinking_tokens']:,.0f} thinking tokens"
    why = ", a third of the budget (--length gives another)" if length is None else ""
    beside = "; the rollouts of vineppo's values come on top" if recipe.advantage == "vineppo" else ""
    print(f"at a mean of {mean}{why}, in {recipe.dtype}; nothing of it was measured{beside}")
    if not recipe.kl:
        scored = f"{recipe.minibatches - 1} of {recipe.minibatches} minibatches"
        print(f"logprob is planned for all traces; this trainer computes it apart for {scored}")
    return None


def _plan(recipe: Recipe, gpu: str | None, gpus: int, length: str | None) -> dict[str, Any]:
    """The analytic plan of the recipe's job, at a mean of a third of its budget unless another is given.

    A third is what the planner assumes of budgets everywhere; the training states are float32 in any dtype.
    """
    from scaling.lengths import parse_tokens
    from scaling.planning import ask
    from scaling.predict.setup import BUDGET_RATIO

    tokens = None if length is None else parse_tokens(length)
    if recipe.model == "walk":
        raise UsageError("a model as small as the walk's is bound by dispatch, which the planner does not know")
    if not recipe.model:
        raise UsageError(NO_MODEL.format(recipe.name))
    budget = recipe.environment.budget
    question = ask(
        recipe.model,
        gpu,
        gpus,
        modes=(recipe.mode,),
        budget=budget,
        context_size=recipe.context_size,
        state_size=recipe.state_size,
        head=recipe.head,
        carryover=recipe.carryover,
        summary_size=recipe.summary_size if recipe.mode in ("summary", "folding") else None,
        extensions=recipe.extensions if recipe.mode == "budget-forcing" else None,
        steps=recipe.steps,
        prompts=recipe.queries,
        samples=recipe.group,
        max_sequences=recipe.concurrency,
        weight_dtype=recipe.dtype,
        activation_dtype=recipe.dtype,
        recompute=recipe.checkpoint_activations,
    )
    return question.plan(recipe.mode, budget / BUDGET_RATIO if tokens is None else tokens).to_json()


def _train(recipe: Recipe | None, run: Path, changes: list[str], json: bool) -> None:
    from trainer.loop import Trainer

    lines: list[dict[str, Any]] = []
    with ExitStack() as stack:
        if recipe is None:
            trainer = Trainer.resume(run, changes)
            chosen, done = trainer.recipe, trainer.done.step
            heading = f"{chosen.name}: going on after step {done} of {chosen.steps} in {run}"
            view = stack.enter_context(closing(TrainView(chosen, heading)))
        else:
            heading = f"{recipe.name}: {recipe.steps} steps in {run}"
            view = stack.enter_context(closing(TrainView(recipe, heading)))
            trainer = Trainer.start(recipe, run, view.warm)
        stack.callback(trainer.close)

        def on_step(line: dict[str, Any]) -> None:
            lines.append(line)
            view.step(line)

        try:
            checkpoint = trainer.train(on_step)
        except KeyboardInterrupt:
            view.close()
            from trainer.checkpoint import newest

            command = shlex.join(["scaling", "train", "--resume", str(trainer.run), *changes])
            kept = f"{newest(trainer.run).name} is what is kept"
            warn(f"interrupted after step {trainer.done.step}, {kept}; go on with: {command}")
            raise
    if not trainer.ranks.lead:
        return
    if not lines:
        say(f"step {trainer.done.step} was the last already; for more, as in: --resume {run} steps=1000")
    if json:
        print_json({"run": trainer.run, "checkpoint": checkpoint, "recipe": trainer.recipe.to_json(), "steps": lines})
    else:
        print(checkpoint)

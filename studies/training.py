"""Does training in an environment teach to think beyond the budget that was trained, on the keyed permutation walk?

Each seed has a warm start, from which every policy of that seed is trained with the same budget; then warm starts and
policies are sampled on other walks in both environments, with budgets up to nine times as long. Two controls ask
whether what LongCoT does there is its positions' doing: a warm start whose demonstrations reach the longest budget,
from which both environments are trained again, and rotary angles scaled down to the trained range.

Everything lives in one folder and what is there is not done again: runs of the trainer, which go on from their last
checkpoint, and one file for each evaluation.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import beta

from reports.drawing import LIGHT, Sheet, sheet, token_axis
from scaling.decoder import Decoder
from scaling.engines.local import LocalEngine
from scaling.measure.fingerprint import fingerprint
from scaling.rollout import Sampling, rollout
from scaling.rope import Rope
from scaling.tasks.walk import Walk, demonstrations
from scaling.thinking import Delethink, Environment, LongCoT
from trainer.checkpoint import FOLDER, checkpoints, newest
from trainer.loop import Trainer
from trainer.recipe import Advantage, Recipe
from trainer.recipes import walk
from trainer.supervised import LONGEST_SHOWN, batches, warm_start

SCHEMA_VERSION = "1.0"
LENGTHS = ((16, 32), (33, 80), (81, 160), (161, 240))
"""Steps of the walks that are asked: an equal share of each range. The first is the one that is trained on."""
ITERATIONS = (1, 2, 3, 4, 5, 7, 10, 14, 21, 30, 40, 52)
"""Caps on Delethink's chunks; LongCoT gets budgets of the same tokens."""
SHOWN = (5, 10, 21, 52)
FRESH = 1_000_000
"""Added to a run's seed for the walks that it is asked after training."""
LONG, LONG_EXAMPLES = 2_000_000, 16
"""Of the demonstrations that reach the longest budget: their seed's offset, and how many a step learns from."""
GOAL, MEAN_OF = 0.9, 5


@dataclass(frozen=True)
class Policy:
    """What is trained: `mode` in which it is, from the `start` with short or long demonstrations; no mode, no RL."""

    name: str
    start: str
    mode: str | None = None
    advantage: Advantage = "grpo"

    def recipe(self, seed: int, small: Sequence[str]) -> Recipe:
        recipe = walk.longcot() if self.mode == "longcot" else walk.delethink()
        return replace(recipe, advantage=self.advantage, seed=seed).override(small)


POLICIES = (
    Policy("warm", "short"),
    Policy("delethink", "short", "delethink"),
    Policy("longcot", "short", "longcot"),
    Policy("warm-long", "long"),
    Policy("delethink-long", "long", "delethink"),
    Policy("longcot-long", "long", "longcot"),
    Policy("delethink-rloo", "short", "delethink", "rloo"),
    Policy("delethink-vineppo", "short", "delethink", "vineppo"),
)


@dataclass(frozen=True)
class Study:
    """A folder, the seeds, how many walks of each range to ask, and recipe settings (`key=value`) for a small one."""

    folder: Path
    seeds: tuple[int, ...]
    walks: int
    settings: tuple[str, ...] = ()

    def run_of(self, policy: Policy, seed: int) -> Path:
        return self.folder / f"{policy.name}-{seed}"

    def train(self, policy: Policy, seed: int) -> None:
        """Trains what is not trained yet; a warm start is a run that makes no step of reinforcement learning."""
        run, recipe = self.run_of(policy, seed), policy.recipe(seed, self.settings)
        if not checkpoints(run):
            shutil.rmtree(run, ignore_errors=True)  # killed before its first checkpoint
            if policy.mode is None:
                self._teach(policy, run, recipe)
                return
            warm = next(p for p in POLICIES if p.mode is None and p.start == policy.start)
            start = newest(self.run_of(warm, seed))
            trainer = Trainer.start(replace(recipe, model=str(start.absolute()), warm_steps=0), run)
        elif policy.mode is None or newest(run).name == f"step-{recipe.steps:06d}":
            return
        else:
            trainer = Trainer.resume(run)
        try:
            trainer.train(
                lambda line: say(f"{run.name} step {line['step']}: reward {line['reward']:.2f}", line["step"])
            )
        finally:
            trainer.close()

    def _teach(self, policy: Policy, run: Path, recipe: Recipe) -> None:
        begun = time.perf_counter()
        if policy.start == "short":
            Trainer.start(recipe, run, lambda step, loss: say(f"{run.name} step {step}: loss {loss:.2f}", step)).close()
        else:
            self._lengthen(run, recipe)
        (run / "teaching.json").write_text(json.dumps({"seconds": time.perf_counter() - begun}) + "\n")

    def _lengthen(self, run: Path, recipe: Recipe) -> None:
        """Teaches the short warm start on, by demonstrations that are cut at the longest budget instead."""
        decoder = Decoder.load(newest(self.run_of(POLICIES[0], recipe.seed)))
        shown = demonstrations(LONG + recipe.seed, environment(recipe, "longcot").budget, LONGEST_SHOWN)
        warm_start(
            decoder,
            batches(shown, LONG_EXAMPLES),
            max(1, recipe.warm_steps // 4),
            recipe.warm_learning_rate / 3,
            lambda step, loss: say(f"{run.name} step {step}: loss {loss:.2f}", step),
        )
        pending = run / "pending"
        decoder.save(pending)
        Walk.tokenizer.save(pending)
        (pending / "generation_config.json").write_text(json.dumps({"eos_token_id": [Walk.tokenizer.eos]}) + "\n")
        (run / FOLDER).mkdir()
        pending.replace(run / FOLDER / "step-000000")

    def evaluate(self, policy: Policy, seed: int, mode: str, positions: str) -> None:
        """Samples the policy once with the longest budget; what a shorter one brings is a prefix of the same traces."""
        name = f"{policy.name}-{seed}-{mode}-{positions}"
        out = self.folder / "evaluations" / f"{name}.json"
        if out.exists():
            return
        begun, recipe = time.perf_counter(), policy.recipe(seed, self.settings)
        longest = environment(recipe, mode)
        decoder = Decoder.load(newest(self.run_of(policy, seed)))
        tasks = [Walk(self.walks, FRESH + seed, low, high) for low, high in LENGTHS]
        asked = [(task, problem) for task in tasks for problem in task.problems(self.walks)]
        queries = [task.query(problem) for task, problem in asked]
        query = max(map(len, queries))
        if positions == "scaled":
            factor = (query + longest.budget) / (query + recipe.environment.budget)
            scaling = {"rope_type": "linear", "factor": factor}
            decoder.rope = Rope({**decoder.config, "rope_scaling": scaling}, decoder.shape)
        room = longest.budget if mode == "longcot" else recipe.context_size + recipe.head
        engine = LocalEngine(decoder, max_sequences=128, max_length=query + room, eos=(Walk.tokenizer.eos,))
        try:
            traces = rollout(engine, longest, queries, sampling=Sampling(recipe.temperature, seed=FRESH + seed))
        finally:
            engine.close()
        budgets = [environment(recipe, mode, i).budget for i in ITERATIONS]
        right = [[0] * len(budgets) for _ in LENGTHS]
        for trace, (task, problem) in zip(traces, asked, strict=True):
            response = [id for chunk in trace.chunks for id in chunk.response]
            if trace.chunks[-1].finish == "stop" and task.reward(problem, response):
                for place, budget in enumerate(budgets):
                    right[tasks.index(task)][place] += trace.thinking_tokens <= budget
        record = {
            "policy": policy.name,
            "seed": seed,
            "environment": mode,
            "positions": positions,
            "walks": self.walks,
            "budgets": budgets,
            "right": right,
            "finished": sum(trace.chunks[-1].finish == "stop" for trace in traces) / len(traces),
            "thinking_tokens": sum(trace.thinking_tokens for trace in traces) / len(traces),
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        pending = out.with_suffix(".tmp")
        pending.write_text(json.dumps(record) + "\n")
        pending.replace(out)
        say(f"{name}: {sum(counts[-1] for counts in right)} of {len(asked)} in {time.perf_counter() - begun:.0f} s")

    def curve(self, policy: Policy, seed: int) -> dict[str, Any] | None:
        """A run step by step: rewards, seconds of all phases and tokens until then. None if it is not at its end."""
        run = self.run_of(policy, seed)
        if policy.mode is None or not checkpoints(run):
            return None
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        manifest = json.loads((run / "manifest.json").read_text())
        if not lines or lines[-1]["step"] < manifest["recipe"]["steps"]:
            return None
        traces = manifest["recipe"]["queries"] * manifest["recipe"]["group"]
        seconds = [sum(line[f"{phase}_seconds"] for phase in _PHASES) for line in lines]
        return {
            "policy": policy.name,
            "seed": seed,
            "threads": manifest["fingerprint"]["software"]["torch_threads"],
            "reward": [round(line["reward"], 4) for line in lines],
            "seconds": [round(sum(seconds[: i + 1]), 2) for i in range(len(lines))],
            "thinking_tokens": [round(line["thinking_tokens"] * traces) for line in lines],
            "value_tokens": [line["value_tokens"] for line in lines],
        }

    def record(self) -> dict[str, Any]:
        """Everything that the folder holds, as far as it goes."""
        runs = [curve for policy in POLICIES for seed in self.seeds if (curve := self.curve(policy, seed))]
        found = [json.loads(path.read_text()) for path in sorted((self.folder / "evaluations").glob("*.json"))]
        return {
            "format": "training-study",
            "schema_version": SCHEMA_VERSION,
            "recipe": walk.delethink().override(self.settings).to_json(),
            "lengths": LENGTHS,
            "iterations": ITERATIONS,
            "fingerprint": fingerprint(),
            "teaching_seconds": {
                path.parent.name: round(json.loads(path.read_text())["seconds"], 1)
                for path in sorted(self.folder.glob("warm*/teaching.json"))
            },
            "runs": runs,
            "evaluations": [each for each in found if each["seed"] in self.seeds],
        }


_PHASES = ("rollout", "logprob", "update", "sync")


def environment(recipe: Recipe, mode: str, iterations: int = ITERATIONS[-1]) -> Environment:
    """Delethink as it is trained but for its cap, or LongCoT with the budget of that."""
    rule = Delethink(recipe.context_size, recipe.state_size, iterations, recipe.head, recipe.carryover)
    return rule if mode == "delethink" else LongCoT(rule.budget)


def evaluations(policy: Policy) -> Iterator[tuple[str, str]]:
    """Environments in which a policy is sampled, and its positions there: plain, or scaled to the trained range."""
    if policy.advantage == "grpo":
        yield from (("delethink", "plain"), ("longcot", "plain"))
        if policy.name == "longcot":
            yield "longcot", "scaled"
    else:
        yield "delethink", "plain"


def jeffreys(right: int, of: int) -> tuple[float, float]:
    """Jeffreys' 95 % interval of a share; for walks in equal shares of several ranges it is rather too wide."""
    low, high = (float(beta.ppf(q, right + 0.5, of - right + 0.5)) for q in (0.025, 0.975))
    return low if right else 0.0, high if right < of else 1.0


def reached(run: Mapping[str, Any]) -> int | None:
    """The first step at which the mean reward of the last five is the goal."""
    reward = run["reward"]
    ends = range(MEAN_OF, len(reward) + 1)
    return next((end for end in ends if sum(reward[end - MEAN_OF : end]) >= GOAL * MEAN_OF), None)


def shares(record: Mapping[str, Any], budget: int, ranges: slice = slice(None)) -> dict[tuple[str, ...], list[Any]]:
    """Of each policy, environment and kind of positions: (seed, right, asked) at the place `budget` in `budgets`."""
    found: dict[tuple[str, ...], list[Any]] = {}
    order = {policy.name: place for place, policy in enumerate(POLICIES)}
    for each in sorted(record["evaluations"], key=lambda each: (order[each["policy"]], each["seed"])):
        counts = each["right"][ranges]
        key = each["policy"], each["environment"], each["positions"]
        right = sum(count[budget] for count in counts)
        found.setdefault(key, []).append((each["seed"], right, each["walks"] * len(counts)))
    return found


def page(record: Mapping[str, Any]) -> str:
    """The tables as Markdown: training, accuracy by budget over seeds, and of each seed with its interval."""
    lines = [
        f"| policy | seed | threads | step 1 | last {MEAN_OF} | steps to {GOAL} | seconds to {GOAL} | seconds"
        " | tokens in traces | tokens for values |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in record["runs"]:
        reward, step = run["reward"], reached(run)
        lines.append(
            f"| {run['policy']} | {run['seed']} | {run['threads']} | {reward[0]:.2f}"
            f" | {sum(reward[-MEAN_OF:]) / MEAN_OF:.2f} | {step or '–'} | {run['seconds'][step - 1] if step else '–'}"
            f" | {run['seconds'][-1]:.0f} | {sum(run['thinking_tokens']) / 1e6:.2f}M"
            f" | {sum(run['value_tokens']) / 1e6:.2f}M |"
        )
    if not record["evaluations"]:
        return "\n".join(lines)
    heads = " | ".join(f"I = {i}" for i in SHOWN)
    ranges_of = {"all ranges": slice(None)} | {f"{a}–{b} steps": slice(i, i + 1) for i, (a, b) in enumerate(LENGTHS)}
    for title, ranges in ranges_of.items():
        lines += ["", f"Right, {title}: mean over seeds, lowest to highest.", ""]
        lines += [f"| policy | sampled with | positions | {heads} |", "|---|---|---|" + "---|" * len(SHOWN)]
        columns = [shares(record, ITERATIONS.index(i), ranges) for i in SHOWN]
        for key in columns[0] if columns else ():
            cells = []
            for column in columns:
                each = [right / of for _, right, of in column[key]]
                cells.append(f"{sum(each) / len(each):.2f} ({min(each):.2f}–{max(each):.2f})")
            lines.append(f"| {' | '.join((*key, *cells))} |")
    lines += ["", "Each seed, all ranges, with Jeffreys' 95 % interval.", ""]
    lines += [f"| policy | sampled with | positions | seed | {heads} |", "|---|---|---|---|" + "---|" * len(SHOWN)]
    columns = [shares(record, ITERATIONS.index(i)) for i in SHOWN]
    for key in columns[0] if columns else ():
        for row in zip(*(column[key] for column in columns), strict=True):
            cells = ["{:.2f} ({:.2f}–{:.2f})".format(right / of, *jeffreys(right, of)) for _, right, of in row]
            lines.append(f"| {' | '.join((*key, str(row[0][0]), *cells))} |")
    return "\n".join(lines)


def draw(record: Mapping[str, Any], folder: Path) -> None:
    """Writes `reward-step.svg`, `reward-seconds.svg`, and `in-delethink.svg` and `in-longcot.svg`: share right by
    budget, the mean over seeds in a band from the lowest to the highest."""
    runs = [run for run in record["runs"] if run["policy"] in MODES]
    for name, label in (("reward-step", "step"), ("reward-seconds", "seconds of reinforcement learning")):
        with sheet() as paper:
            for run in runs:
                ends = range(1, len(run["reward"]) + 1)
                paper.axes.plot(
                    ends if name == "reward-step" else run["seconds"],
                    [_mean(run["reward"][max(0, end - MEAN_OF) : end]) for end in ends],
                    color=LIGHT[run["policy"]],
                    linewidth=1.2,
                    label=_NAMES[run["policy"]] if run["seed"] == runs[0]["seed"] else None,
                )
            paper.axes.axhline(GOAL, color=LIGHT["muted"], linewidth=0.8, dashes=(2, 2))
            paper.axes.set(xlabel=label, ylabel=f"training reward, mean of {MEAN_OF} steps", ylim=(0, 1))
            paper.axes.legend(frameon=False, loc="lower right")
            _write(folder, name, paper)
    columns = [shares(record, place) for place in range(len(ITERATIONS))]
    for mode, title in MODES.items():
        with sheet(5.2) as paper:
            for policy, dash, positions, more in _CURVES:
                if (key := (policy, mode, positions)) not in columns[0]:
                    continue
                each = [[right / of for _, right, of in column[key]] for column in columns]
                budgets = record["evaluations"][0]["budgets"]
                trained = policy.partition("-")[0]
                look: dict[str, Any] = {"color": LIGHT.get(trained, LIGHT["muted"])}
                paper.axes.plot(budgets, [_mean(shared) for shared in each], dash, label=_NAMES[trained] + more, **look)
                paper.axes.fill_between(budgets, [*map(min, each)], [*map(max, each)], alpha=0.12, linewidth=0, **look)
                token_axis(paper.axes, [budgets[ITERATIONS.index(i)] for i in (1, 2, *SHOWN)])
            paper.axes.set(xlabel=f"thinking tokens allowed in {title}", ylabel="share right", ylim=(0, 1))
            paper.axes.legend(frameon=False, fontsize=8, loc="upper left")
            _write(folder, f"in-{mode}", paper)


MODES = {"delethink": "Delethink", "longcot": "LongCoT"}
_NAMES = {"delethink": "trained in Delethink", "longcot": "trained in LongCoT", "warm": "warm start"}
_CURVES = (
    *((policy, "-", "plain", "") for policy in ("delethink", "longcot", "warm")),
    *((f"{policy}-long", "--", "plain", ", long demonstrations") for policy in ("delethink", "longcot")),
    ("warm-long", "--", "plain", ", long demonstrations"),
    ("longcot", ":", "scaled", ", positions scaled"),
)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _write(folder: Path, name: str, paper: Sheet) -> None:
    (folder / f"{name}.svg").write_text(paper.drawing(name, name, "", pd.DataFrame()).svg)


def say(text: str, step: int = 0) -> None:
    if step % 20 == 0:
        print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.training", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where runs and evaluations are kept, and found again")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--walks", type=int, default=64, help="fresh walks of each range (default: %(default)s)")
    parser.add_argument("--only", help=f"policies to work on now, of {','.join(p.name for p in POLICIES)}")
    parser.add_argument("--train-only", action="store_true", help="leave the evaluations for later")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe settings, for a small study")
    parser.add_argument("--out", type=Path, help="a folder for the record, the tables and the figures")
    parser.add_argument("--json", action="store_true", help="print the record instead of the tables")
    options = parser.parse_args(arguments)
    names = [policy.name for policy in POLICIES]
    wanted = options.only.split(",") if options.only is not None else names
    if wrong := [name for name in wanted if name and name not in names]:
        parser.error(f"unknown policy {wrong[0]!r}; known: {', '.join(names)}")

    study = Study(options.folder, tuple(map(int, options.seeds.split(","))), options.walks, tuple(options.set))
    for policy in (policy for policy in POLICIES if policy.name in wanted):
        for seed in study.seeds:
            study.train(policy, seed)
            for mode, positions in () if options.train_only else evaluations(policy):
                study.evaluate(policy, seed, mode, positions)
    record = study.record()
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "training.json").write_text(json.dumps(record) + "\n")
        (options.out / "training.md").write_text(page(record) + "\n")
        draw(record, options.out)
    print(json.dumps(record) if options.json else page(record))


if __name__ == "__main__":
    main()

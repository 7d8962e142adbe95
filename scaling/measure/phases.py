"""Measures the training phases: log-probabilities, update and weight transfer, on traces of random tokens."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaling.engines.base import Engine
from scaling.measure.cells import Cell
from scaling.measure.full import Measurement
from scaling.measure.stopwatch import Stopwatch

if TYPE_CHECKING:
    from scaling.decoder import Decoder
    from scaling.packing import Batch, Sample

TOKEN_BUDGET = 8192
"""Input tokens of a micro-batch; a longer chunk is one alone."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A model, and the engine that samples it, on one torch device."""

    model: Decoder
    engine: Engine
    torch_device: str


def measure_phase(trained: Trained, cell: Cell, seed: int) -> Measurement:
    """Measures one repeat of a `logprob`, `update` or `sync` cell.

    `full` puts every chunk of every trace through the model, packed, and is timed from outside, the device
    synchronised. `profile` times each distinct chunk length once and counts it as often as the traces have it; it does
    so from inside, so that a GPU's queue runs dry between them no more than it does in `full`. An update is forward and
    backward with activation checkpointing and sliced log-probabilities; the optimizer's step is not in it, being paid
    once a batch and not once a trace.
    """
    if cell.phase == "sync":
        return _sync(trained)
    from scaling.packing import Batch, pack

    segments = Counter((s.prompt, s.decode) for s in cell.segments)
    generator = random.Random(seed)
    _train(trained, cell, [Batch.of([_sample(generator, trained, 32, 32)])])  # first-use costs
    if cell.method == "profile":
        samples = [_sample(generator, trained, *segment) for segment in segments]
        elapsed, laps = _train(trained, cell, [Batch.of([sample]) for sample in samples])
        wall = cell.traces * sum(lap * count for lap, count in zip(laps, segments.values(), strict=True))
    else:
        samples = [_sample(generator, trained, s.prompt, s.decode) for s in cell.segments for _ in range(cell.traces)]
        elapsed, _ = _train(trained, cell, pack(samples, TOKEN_BUDGET))
        wall = elapsed
    return Measurement(
        wall_seconds=wall,
        elapsed_seconds=elapsed,
        processed_tokens=sum(sample.input_tokens for sample in samples),
        actual_thinking_tokens=float(cell.thinking_tokens),
        chunks=cell.traces * len(cell.segments),
    )


def _train(trained: Trained, cell: Cell, batches: Sequence[Batch]) -> tuple[float, list[float]]:
    """Seconds of the phase over these micro-batches, synchronised, and the device's own of each."""
    import torch

    from scaling.update import backward, logprobs

    batches = [batch.to(trained.torch_device) for batch in batches]
    start = _now(trained)
    watch = Stopwatch(trained.torch_device)
    for batch in batches:
        if cell.phase == "update":
            backward(trained.model, batch, traces=cell.traces)
        else:
            with torch.no_grad():
                logprobs(trained.model, batch)
        watch.lap()
    seconds = _now(trained) - start
    trained.model.zero_grad(set_to_none=True)
    return seconds, watch.laps()


def _sample(generator: random.Random, trained: Trained, prompt: int, response: int) -> Sample:
    from scaling.packing import Sample

    tokens = tuple(generator.choices(range(trained.model.shape.vocabulary), k=prompt + response))
    likely = -math.log(trained.model.shape.vocabulary)  # of a token under random weights: importance weights near 1
    return Sample(tokens[:prompt], tokens[prompt:], 1.0, (likely,) * response, 0, response)


def _sync(trained: Trained) -> Measurement:
    """Copies the trainer's weights into the engine once; `wall_seconds` is the whole transfer."""
    tensors = [(name, tensor.detach().clone()) for name, tensor in trained.model.named_parameters()]
    start = _now(trained)
    trained.engine.load_weights(tensors, version=0)
    seconds = _now(trained) - start
    return Measurement(wall_seconds=seconds, elapsed_seconds=seconds, processed_tokens=0)


def _now(trained: Trained) -> float:
    if trained.torch_device != "cpu":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()

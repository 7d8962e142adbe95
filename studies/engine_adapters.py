"""The engines that the speed study compares, each as much of the engine contract as a rollout of equal traces needs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.engines.base import Completion, Engine, Request, Stats

if TYPE_CHECKING:
    import torch

    from scaling.decoder import Decoder


class Adapted:
    """What another project's engine needs to look like ours: ids, a clock, and phases timed apart."""

    eos = ()

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        self.submitted = 0
        self.phases = {"prefill_seconds": 0.0, "decode_seconds": 0.0, "decode_tokens": 0}

    def submit(self, request: Request) -> int:
        self.submitted += 1
        self.requests[str(self.submitted)] = request
        return self.submitted

    def spent(self, prefill: float, decode: float, tokens: int) -> None:
        for phase, amount in zip(self.phases, (prefill, decode, tokens), strict=True):
            self.phases[phase] += amount

    def completed(self, id: str, tokens: list[int]) -> Completion:
        """No log-probabilities were asked for, and single requests are not timed."""
        prompt = len(self.requests.pop(id).prompt)
        nan = float("nan")
        return Completion(int(id), tokens, [nan] * len(tokens), "length", prompt, 0, nan, nan, nan)

    def stats(self) -> Stats:
        return Stats(running=len(self.requests), **self.phases)  # type: ignore[arg-type]

    def now(self) -> float:
        return time.perf_counter()


class Transformers(Adapted):
    """`generate` with its defaults on static batches: a step takes all that waits to its end."""

    def __init__(self, path: Path, dtype: str, batch: int, length: int, kv_bytes: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        super().__init__()
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
        self.model.generation_config.eos_token_id = None
        self.vocabulary = self.model.config.vocab_size

    def step(self) -> list[Completion]:
        import torch

        prompts = torch.tensor([list(request.prompt) for request in self.requests.values()])
        (new,) = {request.max_tokens for request in self.requests.values()}
        sampled: list[float] = []

        def note(tokens: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            """A stopping criterion that stops nothing but sees when the first tokens are there."""
            if not sampled:
                sampled.append(self.now())
            return torch.zeros(len(tokens), dtype=torch.bool)

        started = self.now()
        out = self.model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
            stopping_criteria=[note],
        )
        self.spent(sampled[0] - started, self.now() - sampled[0], len(prompts) * (new - 1))
        responses = out[:, prompts.shape[1] :].tolist()
        return [self.completed(id, response) for id, response in zip(list(self.requests), responses, strict=True)]


class VLLM(Adapted):
    """vLLM's engine in this process, prefix cache off, everything else as it comes."""

    def __init__(self, path: Path, dtype: str, batch: int, length: int, kv_bytes: int) -> None:
        from vllm import LLM

        super().__init__()
        self.engine = LLM(
            str(path),
            dtype=dtype,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            max_model_len=length,
            max_num_seqs=batch,
            kv_cache_memory_bytes=kv_bytes,
        ).llm_engine
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        self.vocabulary = self.engine.model_config.get_vocab_size()

    def submit(self, request: Request) -> int:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        id = super().submit(request)
        sampling = SamplingParams(
            temperature=1.0,
            max_tokens=request.max_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self.engine.add_request(str(id), {"prompt_token_ids": list(request.prompt)}, sampling)
        return id

    def step(self) -> list[Completion]:
        """One step of the scheduler; one that encodes any part of a prompt counts as prefill."""
        running = self.scheduler.running
        encodes = bool(self.scheduler.waiting) or any(r.num_computed_tokens < r.num_prompt_tokens for r in running)
        rows, started = len(running), self.now()
        outputs = self.engine.step()
        seconds = self.now() - started
        self.spent(*((seconds, 0.0, 0) if encodes else (0.0, seconds, rows)))
        return [self.completed(out.request_id, list(out.outputs[0].token_ids)) for out in outputs]


def local(path: Path, dtype: str, batch: int, length: int, kv_bytes: int) -> Engine:
    import torch

    from scaling.decoder import Decoder
    from scaling.engines.local import LocalEngine

    model: Decoder = Decoder.load(path, dtype=getattr(torch, dtype))
    return LocalEngine(model, kv_bytes=kv_bytes, max_sequences=batch, max_length=length)


ENGINES: dict[str, Any] = {"local": local, "transformers": Transformers, "vllm": VLLM}

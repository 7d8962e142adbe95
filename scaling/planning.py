"""From the names of a model and a GPU to the plan of a job: what `scaling plan` and `scaling.plan` share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.errors import UsageError
from scaling.lengths import parse_lengths
from scaling.models import config_of
from scaling.predict import hardware
from scaling.predict.distribution import parse
from scaling.predict.efficiency import device
from scaling.predict.job import Job
from scaling.predict.plan import Plan
from scaling.predict.plan import plan as plan_job
from scaling.predict.roofline import Precision
from scaling.predict.setup import Admission, Device, Placement, Setup, Work
from scaling.predict.shape import Shape, catalogue
from scaling.thinking import MODES, Carryover, Environment, for_budget

if TYPE_CHECKING:
    from scaling.predict.calibrate import Calibration

DEFAULT_MODEL = "r1-distill-qwen-1.5b"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: a model, where it runs, the job, and the environments."""

    model: str
    shape: Shape
    setup: Setup
    work: Work
    modes: tuple[str, ...]
    context_size: int
    state_size: int
    head: int
    carryover: Carryover
    calibration: Calibration | None

    def record(self) -> dict[str, Any]:
        """What every row of JSON says of the question."""
        return {"model": self.model, "calibrated_with": self.calibration and self.calibration.run}

    def environment(
        self, mode: str, context_size: int | None = None, state_size: int | None = None
    ) -> Callable[[int], Environment]:
        """The environment of `mode` by its thinking budget; sizes as asked unless given."""
        return lambda budget: for_budget(
            mode,
            budget,
            context_size=context_size or self.context_size,
            state_size=state_size or self.state_size,
            head=self.head,
            carryover=self.carryover,
        )

    def plan(self, mode: str, tokens: float, context_size: int | None = None, state_size: int | None = None) -> Plan:
        """The plan in the environment of `mode` at a mean of so many thinking tokens; raises `UsageError`."""
        return plan_job(self.shape, self.setup, self.work, self.environment(mode, context_size, state_size), tokens)


def ask(
    model: str | None = None,
    gpu: str | None = None,
    gpus: int | None = None,
    *,
    modes: Iterable[str] = MODES,
    budget: int | None = None,
    distribution: str = "lognormal:0.7",
    context_size: int = 8192,
    state_size: int | None = None,
    head: int = 100,
    carryover: Carryover = "algorithm1",
    steps: int = 1000,
    prompts: int = 128,
    samples: int = 8,
    prompt_tokens: int = 128,
    passes: int = 1,
    tensor_parallel: int | None = None,
    data_parallel: int | None = None,
    placement: Placement = "colocated",
    admission: Admission = "paged",
    max_sequences: int = 256,
    memory_fraction: float = 0.9,
    prefix_caching: bool = False,
    weight_dtype: str | None = None,
    activation_dtype: str | None = None,
    kv_dtype: str | None = None,
    recompute: bool = True,
    price: float | None = None,
    calibrate: Path | str | None = None,
) -> Question:
    """The question that these options put; None is the default that `scaling plan --help` tells.

    Raises `UsageError`, `CheckpointError` or `StoreError` for what makes no sense, does not exist or cannot be read.
    """
    calibration = _calibration(calibrate)
    own = calibration if gpu is None else None  # the device of the run itself is planned for
    count = (1 if own else 8) if gpus is None else gpus
    name, config = config_of(model or (calibration.model if calibration else DEFAULT_MODEL))
    half = own.dtype if own else "bfloat16"
    computed = activation_dtype or half
    # what is computed in 8 bits keeps its keys and values in 16 unless asked otherwise
    kept = kv_dtype or (computed if computed in ("float32", "float16") else "bfloat16")
    question = Question(
        model=name,
        shape=Shape.from_config(config),
        setup=Setup(
            device=_device(gpu, calibration, computed, count),
            gpus=count,
            tensor_parallel=_tensor_parallel(count, tensor_parallel, data_parallel),
            placement=placement,
            admission=admission,
            max_sequences=max_sequences,
            memory_fraction=memory_fraction,
            precision=Precision(weight_dtype or (half if own else _published_dtype(name, config)), computed, kept),
            prefix_caching=prefix_caching,
            recompute=recompute,
            price=price,
        ),
        work=Work(Job(steps, prompts, samples), parse(distribution), prompt_tokens, passes, budget),
        modes=tuple(dict.fromkeys(modes)),
        context_size=context_size,
        state_size=context_size // 2 if state_size is None else state_size,
        head=head,
        carryover=carryover,
        calibration=calibration,
    )
    for mode in question.modes:
        question.environment(mode)(context_size)  # what makes no sense is refused before anything is reckoned
    return question


def plan(lengths: str | Iterable[int] = "8k..96k", **options: Any) -> list[Plan]:
    """What a job costs, as `scaling plan` says it: a plan for every length in every environment.

    `lengths`: mean thinking tokens of a trace, or text such as "16k,96k". `options` are those of `ask`. Raises
    `UsageError` where one does not fit, and says what would.
    """
    question = ask(**options)
    tokens = parse_lengths(lengths) if isinstance(lengths, str) else list(lengths)
    return [question.plan(mode, length) for length in tokens for mode in question.modes]


def _calibration(run: Path | str | None) -> Calibration | None:
    if run is None:
        return None
    from scaling.predict.calibrate import calibrate

    return calibrate(run)


def _device(gpu: str | None, calibration: Calibration | None, activations: str, gpus: int) -> Device:
    if calibration is not None:
        return calibration.moved(hardware.gpu(gpu), gpus, activations) if gpu else calibration.here()
    return device(hardware.gpu(gpu) if gpu else hardware.here(), activations, gpus)


def _published_dtype(model: str, config: dict[str, Any]) -> str:
    """The type that a model's weights are published in."""
    if published := catalogue().get(model, {}).get("weights"):
        return str(published)
    method = (config.get("quantization_config") or {}).get("quant_method")
    return {"mxfp4": "mxfp4", "fp8": "float8"}.get(str(method), "bfloat16")


def _tensor_parallel(gpus: int, tensor_parallel: int | None, data_parallel: int | None) -> int | None:
    if data_parallel is None:
        return tensor_parallel
    if data_parallel < 1 or gpus % data_parallel:
        raise UsageError(f"{gpus} GPUs do not divide into {data_parallel} replicas")
    if tensor_parallel not in (None, gpus // data_parallel):
        raise UsageError(
            f"{data_parallel} replicas of {tensor_parallel} GPUs are not {gpus} GPUs; leave one of them out"
        )
    return gpus // data_parallel

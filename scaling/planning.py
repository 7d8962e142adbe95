"""From the names of a model and a GPU to the plan of a job: what `scaling plan` and `scaling.plan` share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, get_args, get_origin, get_type_hints

from scaling.errors import CheckpointError, UsageError, unknown
from scaling.lengths import MAX_POINTS, MAX_TOKENS, parse_lengths, parse_tokens
from scaling.models import config_of
from scaling.predict import hardware
from scaling.predict.distribution import parse
from scaling.predict.efficiency import device
from scaling.predict.job import Job, positive, shown
from scaling.predict.plan import Plan
from scaling.predict.plan import plan as plan_job
from scaling.predict.roofline import Precision
from scaling.predict.setup import MOST_GPUS, Admission, Device, Placement, Setup, Work
from scaling.predict.shape import STORED_BYTES, Shape, catalogue
from scaling.thinking import DEFAULT_MODES, MODES, Carryover, Environment, check_options, for_budget

if TYPE_CHECKING:
    from scaling.predict.calibrate import Calibration

DEFAULT_MODEL = "r1-distill-qwen-1.5b"
DEFAULT_LENGTHS = "8k..96k"

_NOUNS = {int: "a whole number", float: "a number", bool: "True or False", str: "text", Path: "a path"}


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
    summary_size: int | None
    extensions: int | None
    cue_tokens: int | None
    calibration: Calibration | None

    def record(self) -> dict[str, Any]:
        """What every row of JSON says of the question."""
        return {"model": self.model, "calibrated_with": self.calibration and _plain(self.calibration.run)}

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
            summary_size=self.summary_size,
            extensions=self.extensions,
            cue_tokens=self.cue_tokens,
        )

    def default_lengths(self) -> list[int]:
        """Where no lengths are given: the mean of recorded ones, else a ladder."""
        mean = self.work.distribution.recorded_mean(self.work.budget)
        return parse_lengths(DEFAULT_LENGTHS) if mean is None else [mean]

    def plan(self, mode: str, tokens: float, context_size: int | None = None, state_size: int | None = None) -> Plan:
        """The plan in the environment of `mode` at a mean of so many thinking tokens; raises `UsageError`."""
        return plan_job(self.shape, self.setup, self.work, self.environment(mode, context_size, state_size), tokens)


def ask(
    model: str | None = None,
    gpu: str | None = None,
    gpus: int | None = None,
    *,
    modes: str | Iterable[str] = DEFAULT_MODES,
    budget: int | str | None = None,
    distribution: str = "lognormal:0.7",
    context_size: int | str = 8192,
    state_size: int | str | None = None,
    head: int = 100,
    carryover: Carryover = "algorithm1",
    summary_size: int | str | None = None,
    extensions: int | None = None,
    cue_tokens: int | None = None,
    steps: int = 1000,
    prompts: int = 128,
    samples: int = 8,
    prompt_tokens: int | str = 128,
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
    """The question that these options put; None is the default that `scaling plan --help` tells. Tokens are numbers,
    or text such as "24k".

    Raises `UsageError`, `CheckpointError` or `StoreError` for what makes no sense, does not exist or cannot be read.
    """
    _check_types(locals())
    asked = [modes] if isinstance(modes, str) else list(modes)
    if not asked:
        raise UsageError(f"no mode; give one of {', '.join(MODES)}, or several")
    check_options(asked, {"summary_size": summary_size, "extensions": extensions, "cue_tokens": cue_tokens})
    context, prompt = _tokens("context size", context_size), _tokens("prompt tokens", prompt_tokens)
    if "delethink" in asked and context < 2:
        raise UsageError(f"context size {context} leaves no room for a state and for a thought; the paper uses 8192")
    state = context // 2 if state_size is None else _tokens("state size", state_size)
    if head > MAX_TOKENS:
        raise UsageError(f"head {shown(head)} is more than a context holds; the paper uses 100")
    for dtype in (weight_dtype, activation_dtype, kv_dtype):
        if dtype is not None and dtype not in STORED_BYTES:
            raise unknown("dtype", dtype, STORED_BYTES)
    calibration = _calibration(calibrate)
    here = calibration if gpu is None else None  # the device of the run itself is planned for
    count = (1 if here else 8) if gpus is None else gpus
    if model is None:
        model = calibration.model if calibration else DEFAULT_MODEL
    name, config = config_of(model)
    half = here.dtype if here else "bfloat16"
    computed = half if activation_dtype is None else activation_dtype
    if weight_dtype is None:
        weight_dtype = half if here else _published_dtype(name, config)
    if kv_dtype is None:  # what is computed in 8 bits keeps its keys and values in 16 unless asked otherwise
        kv_dtype = computed if computed in ("float32", "float16") else "bfloat16"
    question = Question(
        model=_plain(name),
        shape=Shape.from_config(config),
        setup=Setup(
            device=_device(gpu, calibration, computed, count),
            gpus=count,
            tensor_parallel=_tensor_parallel(count, tensor_parallel, data_parallel),
            placement=placement,
            admission=admission,
            max_sequences=max_sequences,
            memory_fraction=memory_fraction,
            precision=Precision(weight_dtype, computed, kv_dtype),
            prefix_caching=prefix_caching,
            recompute=recompute,
            price=price,
        ),
        work=Work(
            Job(steps, prompts, samples),
            parse(distribution),
            prompt,
            passes,
            None if budget is None else _tokens("budget", budget),
        ),
        modes=tuple(dict.fromkeys(asked)),
        context_size=context,
        state_size=state,
        head=head,
        carryover=carryover,
        summary_size=None if summary_size is None else _tokens("summary size", summary_size),
        extensions=extensions,
        cue_tokens=cue_tokens,
        calibration=calibration,
    )
    for mode in question.modes:
        question.environment(mode)(1)  # what makes no sense is refused before anything is reckoned
    return question


def for_model(question: Question, name: str, config: dict[str, Any]) -> Question:
    """The question of another model on the same GPUs, its weights of the type that they are published in.

    Raises `UsageError` or `CheckpointError` for a `config` (Hugging Face's) that is none.
    """
    precision = replace(question.setup.precision, weights=_published_dtype(name, config))
    setup = replace(question.setup, precision=precision)
    return replace(question, model=_plain(name), shape=Shape.from_config(config), setup=setup)


def plan(lengths: str | SupportsIndex | Iterable[str | SupportsIndex] | None = None, **options: Any) -> list[Plan]:
    """What a job costs, as `scaling plan` says it: a plan for every length in every environment.

    `lengths`: mean thinking tokens of a trace: a number, text such as "16k,96k", or several of them; by default the
    mean of the lengths where `distribution` is a file of recorded ones, else 8k..96k. `options` are those of `ask`.
    Raises `UsageError` where one does not fit, and says what would.
    """
    known = get_type_hints(ask).keys() - {"return"}
    for name in options:
        if name not in known:
            raise unknown("option", name, known)
    tokens = None if lengths is None else _lengths(lengths)
    question = ask(**options)
    return [question.plan(mode, n) for n in tokens or question.default_lengths() for mode in question.modes]


def _lengths(lengths: Any) -> list[int]:
    several = lengths if isinstance(lengths, Iterable) and not isinstance(lengths, str) else [lengths]
    found: list[int] = []
    for each in several:
        found += parse_lengths(each) if isinstance(each, str) else [_tokens("length", each)]
        if len(found) > MAX_POINTS:
            raise UsageError(f"more than {MAX_POINTS} lengths; give fewer")
    if not found:
        raise UsageError("no lengths; give thinking tokens such as 8192 or '8k..96k', or leave them out")
    return found


def _tokens(name: str, value: Any) -> int:
    """Tokens from a whole number, NumPy's too, or text such as "24k"; raises `UsageError` that names the option."""
    if isinstance(value, str):
        try:
            value = parse_tokens(value)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
    elif isinstance(value, SupportsIndex) and not isinstance(value, bool):
        value = value.__index__()
    positive(name, value, MAX_TOKENS)
    return int(value)


def _check_types(options: Mapping[str, Any]) -> None:
    """Raises `UsageError` for an option of another type than `ask` declares."""
    hints = get_type_hints(ask)
    for name, value in options.items():
        declared = get_args(hints[name]) if isinstance(hints[name], UnionType) else (hints[name],)
        kinds = {str if get_origin(kind) is Literal else get_origin(kind) or kind for kind in declared}
        fits = isinstance(value, (*kinds, int) if float in kinds else tuple(kinds))
        if not fits or (isinstance(value, bool) and bool not in kinds):
            nouns = " or ".join(noun for kind, noun in _NOUNS.items() if kind in kinds)
            raise UsageError(f"{name} {shown(value)} is {type(value).__name__}; expected {nouns}")


def _plain(name: str) -> str:
    """A name as it may be printed: what would steer a terminal is escaped."""
    return name if name.isprintable() else repr(name)[1:-1]


def _calibration(run: Path | str | None) -> Calibration | None:
    if run is None:
        return None
    from scaling.predict.calibrate import calibrate

    return calibrate(run)


def _device(gpu: str | None, calibration: Calibration | None, activations: str, gpus: int) -> Device:
    if calibration is not None:
        return calibration.moved(hardware.gpu(gpu), gpus, activations) if gpu is not None else calibration.here()
    return device(hardware.here() if gpu is None else hardware.gpu(gpu), activations, gpus)


def _published_dtype(model: str, config: dict[str, Any]) -> str:
    """The type that a model's weights are published in."""
    if published := catalogue().get(model, {}).get("weights"):
        return str(published)
    quantised = config.get("quantization_config")
    if quantised is None:
        return "bfloat16"
    if not isinstance(quantised, Mapping):
        raise CheckpointError(f"config.json has quantization_config {shown(quantised)}; expected an object")
    return {"mxfp4": "mxfp4", "fp8": "float8"}.get(str(quantised.get("quant_method")), "bfloat16")


def _tensor_parallel(gpus: int, tensor_parallel: int | None, data_parallel: int | None) -> int | None:
    if data_parallel is None:
        return tensor_parallel
    positive("data parallel", data_parallel, MOST_GPUS)
    if gpus % data_parallel:
        raise UsageError(f"{gpus} GPUs do not divide into {data_parallel} replicas")
    if tensor_parallel not in (None, gpus // data_parallel):
        raise UsageError(
            f"{data_parallel} replicas of {tensor_parallel} GPUs are not {gpus} GPUs; leave one of them out"
        )
    return gpus // data_parallel

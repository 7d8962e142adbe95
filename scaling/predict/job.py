"""What a training job is: its steps, its traces, and how long they think."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.errors import UsageError

HOURS_PER_MONTH = 730.0


@dataclass(frozen=True, slots=True)
class Job:
    """`steps` policy updates, each on `prompts` × `samples` traces; the default is the job of the paper's §6.3."""

    steps: int = 1000
    prompts: int = 128
    samples: int = 8

    def __post_init__(self) -> None:
        for name in ("steps", "prompts", "samples"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} is not positive; the default job is 1000 × 128 × 8")

    @property
    def traces_per_step(self) -> int:
        return self.prompts * self.samples

    @property
    def traces(self) -> int:
        return self.steps * self.traces_per_step

    def gpu_hours(self, seconds_per_trace: float) -> float:
        """Device-hours of the job, from device-seconds per trace."""
        return self.traces * seconds_per_trace / 3600

    def months(self, seconds_per_trace: float) -> float:
        """Months of one device, 730 hours each: the unit in which the paper states its 27 against 7."""
        return self.gpu_hours(seconds_per_trace) / HOURS_PER_MONTH

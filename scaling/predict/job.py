"""What a training job is: its steps, its traces, and how long they think."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass

from scaling.errors import UsageError

HOURS_PER_MONTH = 730.0

MOST_STEPS = 10**9
MOST_TRACES = 1 << 14
"""Of one step."""


@dataclass(frozen=True, slots=True)
class Job:
    """`steps` policy updates, each on `prompts` × `samples` traces; the default is the job of the paper's §6.3."""

    steps: int = 1000
    prompts: int = 128
    samples: int = 8

    def __post_init__(self) -> None:
        positive("steps", self.steps, MOST_STEPS)
        positive("prompts", self.prompts, MOST_TRACES)
        positive("samples", self.samples, MOST_TRACES)
        if self.traces_per_step > MOST_TRACES:
            raise UsageError(
                f"{self.prompts} prompts of {self.samples} samples are more than {MOST_TRACES} traces a step; "
                "the default job has 128 × 8"
            )

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


def positive(name: str, value: object, most: int) -> None:
    """Raises `UsageError` for what is no whole number from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} {shown(value)} is no whole number; expected one from 1 to {most}")
    if value < 1:
        raise UsageError(f"{name} {shown(value)} is not positive; give at least 1")
    if value > most:
        raise UsageError(f"{name} {shown(value)} is too large; give at most {most}")


def shown(value: object) -> str:
    """A value in a message, shortened."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "of thousands of digits"

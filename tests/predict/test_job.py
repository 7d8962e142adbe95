"""What a job costs."""

from __future__ import annotations

import pytest

from scaling.errors import UsageError
from scaling.predict.job import Job


def test_the_default_job_has_a_thousand_steps_of_128_times_8_traces():
    assert Job().traces == 1_024_000


def test_hours_and_months_follow_from_a_trace():
    job = Job(steps=10, prompts=4, samples=9)
    assert job.gpu_hours(100.0) == pytest.approx(10)
    assert job.months(73_000.0) == pytest.approx(10)


def test_a_job_without_steps_is_refused():
    with pytest.raises(UsageError, match="steps 0 is not positive"):
        Job(steps=0)

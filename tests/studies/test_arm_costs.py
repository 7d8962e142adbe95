"""What sampling an arm took is told of that arm, and no more than is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scaling.decoder import Decoder
from scaling.engines.local import LocalEngine
from scaling.predict.shape import architecture
from scaling.thinking import LongCoT
from studies.arm_costs import Watched, measured
from studies.asking import ask, begin


def test_arms_that_differ_in_their_budget_alone_have_their_own_seconds(
    walkers: Callable[..., Any], tmp_path: Path
) -> None:
    study = walkers()
    longer = study.arms[0]
    shorter = replace(longer, label="a shorter one", environment=LongCoT(3))
    study = replace(study, arms=[longer, shorter], budgets=[3])
    store = begin(tmp_path / "run", study)
    ask(store, study)
    rows = store.frame().set_index("thinking_budget")["device_seconds_per_trace"]
    found = {one["arm"]: one["device_seconds_per_trace"] for one in measured(store)}
    assert found == {longer.label: pytest.approx(rows[24]), shorter.label: pytest.approx(rows[3])}
    assert rows[24] != rows[3]


class Apart(LocalEngine):
    """As vLLM on two GPUs: the model is in other processes."""

    apart = True


def test_memory_is_not_claimed_where_the_model_is_in_other_processes() -> None:
    model = Decoder.from_config(architecture("tiny"))
    for engine, known in ((LocalEngine(model, kv_bytes=1 << 20), True), (Apart(model, kv_bytes=1 << 20), False)):
        with Watched(engine, 2) as watched:
            pass
        assert (watched.telemetry.peak_memory_bytes is not None) is known
        assert watched.telemetry.gpus == 2

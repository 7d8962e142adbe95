"""Measured rows and steps as passes: what they are priced at is what the roofline says of the same work."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.errors import UsageError
from scaling.predict.measured import Batch, Passes, Probed, at_length, predicted, records
from scaling.predict.roofline import Machine, Precision, Roofline
from scaling.predict.shape import Shape, architecture
from scaling.results import Store
from scaling.thinking import Delethink, Environment, LongCoT

RUNS = Path(__file__).parents[2] / "docs" / "runs"
MACHINE = Machine(30e9, 15e9, 130e9, 5e-6, seconds_per_row=1e-4)
TINY = Roofline(Shape.from_config(architecture("tiny")), MACHINE, Precision.of("float32"))
WINDOWED = Roofline(Shape.from_config(architecture("gemma-3-1b")), MACHINE)
CHUNKED = Delethink(1024, 512, 7, 100)


def row(environment: Environment, **changed: object) -> dict[str, Any]:
    parameters = environment.parameters()
    names = ("context_size", "state_size", "iterations", "head", "carryover")
    values: dict[str, Any] = {
        **{name: parameters.get(name) for name in names},
        "environment": environment.name, "thinking_budget": environment.budget, "prompt_tokens": 64,
        "mean_thinking_tokens": 4096, "phase": "rollout", "traces": 4, "concurrency_limit": 4,
        "concurrency_peak": 4, "devices": 1,
    }  # fmt: skip
    return values | changed


def seconds(roofline: Roofline, **changed: Any) -> float:
    environment = changed.pop("environment")
    return float(Batch([Passes.of_row(row(environment, **changed))]).seconds(roofline)[0])


def segments(environment: Environment) -> Any:
    return environment.schedule(64, environment.expected_lengths(64, 4096))


@pytest.mark.parametrize("environment", [LongCoT(4096), CHUNKED])
def test_a_rollout_row_is_priced_as_its_traces_in_lockstep(environment: Environment) -> None:
    assert seconds(TINY, environment=environment) == pytest.approx(float(TINY.rollout(segments(environment), 4).total))


def test_a_row_runs_in_waves_of_what_was_at_work_at_once_at_most() -> None:
    parts = [float(TINY.rollout(segments(LongCoT(4096)), rows).total) for rows in (3, 1)]
    assert seconds(TINY, environment=LongCoT(4096), concurrency_peak=3) == pytest.approx(sum(parts))
    assert seconds(TINY, environment=LongCoT(4096), concurrency_peak=None, concurrency_limit=3) == pytest.approx(
        sum(parts)
    )


def test_a_layer_with_a_window_costs_its_pieces_almost_exactly() -> None:
    exact = float(WINDOWED.rollout(segments(LongCoT(4096)), 4).total)
    assert seconds(WINDOWED, environment=LongCoT(4096)) == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("environment", [LongCoT(4096), CHUNKED])
def test_training_rows_are_priced_as_passes_over_the_chunks_of_every_trace(environment: Environment) -> None:
    once = 4 * float(TINY.logprob(segments(environment)).total)
    assert seconds(TINY, environment=environment, phase="logprob") == pytest.approx(once)
    assert seconds(TINY, environment=environment, phase="update") == pytest.approx(4 * once)


def test_a_step_of_a_grid_is_one_decode_step_or_prompts_one_after_another() -> None:
    steps = [Passes.of_step("decode", 2, 700), Passes.of_step("prefill", 2, 700)]
    expected = [float(TINY.decode(2, 1400).total), 2 * float(TINY.prefill(700).total)]
    assert Batch(steps).seconds(TINY) == pytest.approx(expected)


def test_prefills_and_decode_steps_come_apart() -> None:
    passes = Passes.of_row(row(CHUNKED))
    both = Batch([passes, passes.encoding, passes.decoding]).seconds(TINY)
    assert both[0] == pytest.approx(both[1] + both[2])
    assert min(both) > 0


def test_every_row_of_a_run_is_predicted_per_trace_and_weight_transfers_are_not() -> None:
    store = Store.open(RUNS / "phases")
    rows = records(store.frame())
    found = predicted(Probed.of(store.manifest).roofline, rows)
    assert [bool(np.isnan(seconds)) for seconds in found] == [r["phase"] == "sync" for r in rows]


def test_the_prediction_is_the_one_that_the_run_was_planned_with() -> None:
    store = Store.open(RUNS / "demo")
    planned = {cell["cell_id"]: cell["expected_seconds"] for cell in store.manifest["cells"]}
    rows = [r for r in records(store.frame()) if r["method"] == "full"]
    found = predicted(Probed.of(store.manifest).roofline, rows)
    expected = [planned[r["cell_id"]] / r["traces"] for r in rows]
    assert found == pytest.approx(expected, rel=0.05)  # that far the roofline has moved since


@pytest.mark.parametrize("environment", [LongCoT(4096), CHUNKED])
def test_a_row_at_another_length_is_the_same_environment_with_another_budget(environment: Environment) -> None:
    longer = at_length(row(environment), 16384)
    assert longer["mean_thinking_tokens"] == 16384 <= longer["thinking_budget"]
    assert longer["carryover"] == row(environment)["carryover"]
    assert at_length(longer, 4096) == row(environment)
    assert predicted(TINY, [longer])[0] > predicted(TINY, [row(environment)])[0]


def test_what_a_newer_manifest_knows_of_a_machine_is_left_out() -> None:
    manifest = Store.open(RUNS / "demo").manifest
    newer = {**manifest, "machine": {**manifest["machine"], "unheard_of_per_s": 1.0}}
    assert Probed.of(newer) == Probed.of(manifest)


@pytest.mark.parametrize("missing", ["machine", "model"])
def test_a_manifest_that_does_not_say_where_it_ran_is_refused(missing: str) -> None:
    manifest = {k: v for k, v in Store.open(RUNS / "demo").manifest.items() if k != missing}
    with pytest.raises(UsageError, match="no probed machine or no model config"):
        Probed.of(manifest)

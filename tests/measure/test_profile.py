"""The profile method: which points a cell needs, and how their seconds become a rollout's."""

import itertools

import pytest

from scaling.engines.base import Limits
from scaling.errors import MemoryLimitError
from scaling.measure import profile
from scaling.measure.cells import RunConfig, cells_for
from scaling.measure.profile import Grid, Point

AMPLE = Limits(10**9, 10**3, 10**9)


def cell(mode="delethink", length=4096, traces=2, concurrency=2):
    config = RunConfig(
        "tiny", (length,), (mode,), context_size=1024, state_size=512, traces=traces, concurrency=concurrency
    )
    return cells_for(config, "profile", (length,), ("rollout",), weights="random", device="cpu")[0]


def linear(points, base, slope, prefill):
    """Seconds that grow linearly with context: piecewise-linear interpolation must be exact on them."""
    return {p: prefill * p.tokens * p.rows if p.kind == "prefill" else base + slope * p.tokens * p.rows for p in points}


@pytest.mark.parametrize("mode", ["longcot", "delethink"])
@pytest.mark.parametrize(("traces", "concurrency"), [(2, 2), (5, 2), (1, 4)])
def test_integration_sums_every_prefill_and_every_decode_step(mode, traces, concurrency):
    c = cell(mode, traces=traces, concurrency=concurrency)
    seconds = linear(profile.points_for([c], AMPLE), base=3e-3, slope=2e-6, prefill=1e-5)
    prefill, decode = profile.cell_seconds(seconds, c, AMPLE)
    waves = profile.rows_of(c, AMPLE)
    assert sum(waves) == traces
    expected_prefill = sum(1e-5 * s.prefill * rows for s in c.segments for rows in waves)
    expected_decode = sum(
        3e-3 + 2e-6 * (s.prompt + t) * rows for s in c.segments for t in range(1, s.steps + 1) for rows in waves
    )
    assert prefill == pytest.approx(expected_prefill, rel=1e-9)
    assert decode == pytest.approx(expected_decode, rel=1e-9)


@pytest.mark.parametrize("mode", ["summary", "budget-forcing", "folding"])
def test_kept_context_is_not_encoded_again_but_looked_at_once(mode):
    c = cell(mode)
    seconds = linear(profile.points_for([c], AMPLE), base=3e-3, slope=2e-6, prefill=1e-5)
    prefill, decode = profile.cell_seconds(seconds, c, AMPLE)
    behind = [s for s in c.segments if s.reused]
    assert len(behind) == {"summary": 3, "budget-forcing": 1, "folding": 3}[mode]
    looked = sum(3e-3 + 2e-6 * s.prompt * 2 for s in behind)
    steps = sum(3e-3 + 2e-6 * (s.prompt + t) * 2 for s in c.segments for t in range(1, s.steps + 1))
    assert prefill == pytest.approx(sum(2e-5 * s.prefill for s in c.segments), rel=1e-9)
    assert decode == pytest.approx(steps + looked, rel=1e-9)


def test_the_grid_spans_the_contexts_of_all_cells_and_holds_every_prompt_length():
    cells = [cell("longcot", 96 * 1024), cell("delethink", 96 * 1024)]
    points = profile.points_for(cells, AMPLE)
    contexts = sorted(p.tokens for p in points if p.kind == "decode")
    assert contexts[0] == 65
    assert contexts[-1] == 64 + 96 * 1024 - 1
    assert all(b / a < 1.6 for a, b in itertools.pairwise(contexts))
    assert {p.tokens for p in points if p.kind == "prefill"} == {64, 64 + 100 + 512}


def test_kv_memory_bounds_the_rows_in_lockstep():
    c = cell("longcot", 4096, traces=5, concurrency=4)
    assert profile.rows_of(c, Limits(2 * c.peak_context, 64, 10**6)) == [2, 2, 1]
    with pytest.raises(MemoryLimitError, match="does not fit"):
        profile.rows_of(c, Limits(c.peak_context - 1, 64, 10**6))


def test_a_point_that_was_not_visited_is_an_error_not_an_extrapolation():
    c = cell("longcot", 4096)
    seconds = linear(profile.points_for([c], AMPLE), 1e-3, 1e-6, 1e-5)
    longest = max(p for p in seconds if p.kind == "decode")
    del seconds[longest]
    with pytest.raises(MemoryLimitError, match="context"):
        profile.cell_seconds(seconds, c, AMPLE)


def test_visits_come_in_shuffled_rounds_with_prefill_in_every_other():
    points = profile.points_for([cell()], AMPLE)
    decode = [p for p in points if p.kind == "decode"]
    order = profile.shuffled_visits(points, seed=3)
    assert all(order.count(p) == profile.VISITS for p in decode)
    assert all(order.count(p) == profile.VISITS // 2 for p in points if p.kind == "prefill")
    first, second = order[: len(points)], order[len(points) : len(points) + len(decode)]
    assert sorted(first) == points
    assert sorted(second) == decode
    assert [p for p in first if p.kind == "decode"] != second


def test_a_grid_survives_its_json():
    grid = Grid({Point("decode", 2, 65): [0.1, 0.2], Point("prefill", 2, 64): [0.3]})
    assert Grid.from_json(grid.to_json()).visits == grid.visits


def test_resampled_means_stay_within_the_visits():
    import numpy as np

    grid = Grid({Point("decode", 1, 65): [1.0, 2.0, 4.0]})
    means = {grid.resample(np.random.default_rng(s))[Point("decode", 1, 65)] for s in range(50)}
    assert min(means) >= 1.0
    assert max(means) <= 4.0
    assert len(means) > 3

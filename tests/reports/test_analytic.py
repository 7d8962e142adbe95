"""What the roofline says stands beside what was measured, from the probe alone, and is never taken for it."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from reports import figures, tables
from reports.analytic import analytic, beside, rooflines, smooth
from reports.costs import months_frame
from reports.curves import settings
from reports.page import build
from scaling.laws import Job, fit_frame
from scaling.predict.roofline import Machine
from scaling.predict.shape import architecture
from scaling.results import Store
from scaling.thinking import Delethink, LongCoT

MACHINE = Machine(30e9, 15e9, 130e9, 5e-6)


def manifest(machine: Machine = MACHINE):
    return {
        "config": {"engine": "local", "dtype": "float32"},
        "model": {"name": "tiny", "config": architecture("tiny")},
        "machine": machine.to_json(),
    }


@pytest.fixture(scope="module")
def frame(rows):
    return pd.concat([rows(), rows(phases=("update",))], ignore_index=True)


@pytest.fixture(scope="module")
def fits(frame):
    return fit_frame(frame)


@pytest.fixture(scope="module")
def setting(frame, fits):
    return settings(frame, fits, rooflines({"first": manifest()}))[0]


def test_it_is_the_roofline_of_the_curves_own_traces_at_any_length(setting):
    roofline = setting.rooflines["first"]
    longcot, delethink = setting.variants
    for tokens in (1024, 8192, 65536):
        for variant, environment in (
            (longcot, LongCoT(tokens)),
            (delethink, Delethink.for_length(tokens, 1024, 512, 100)),
        ):
            segments = environment.schedule(64, environment.expected_lengths(64, tokens))
            a_trace = float(roofline.rollout(segments, 2).total) / 2
            assert analytic(setting, variant, "rollout", [tokens]) == pytest.approx([a_trace])
            update = float(roofline.update(segments).total)
            assert analytic(setting, variant, "update", [tokens]) == pytest.approx([update])


def test_runs_on_different_machines_give_their_mean(frame, fits):
    both = pd.concat([frame, frame.assign(run="second")])
    slow = Machine(15e9, 7.5e9, 65e9, 1e-5)
    manifests = {"first": manifest(), "second": manifest(slow)}
    joined = settings(both, fits, rooflines(manifests))[0]
    alone = settings(frame, fits, rooflines(manifests))[0]
    (once,) = analytic(alone, alone.variants[0], "rollout", [4096])
    assert analytic(joined, joined.variants[0], "rollout", [4096]) == pytest.approx([1.5 * once])


def test_a_run_without_a_probe_or_a_known_model_has_none(frame, fits):
    unknown = {**manifest(), "model": {"name": "m", "config": {"model_type": "mamba"}}}
    simulated = {**manifest(), "config": {"engine": "simulated", "dtype": "float32"}}
    assert rooflines({"first": {"config": {}}, "second": unknown, "third": simulated}) == {}
    bare = settings(frame, fits)[0]
    assert all(math.isnan(seconds) for seconds in analytic(bare, bare.variants[0], "rollout", [4096, 8192]))
    assert set(tables.costs(bare).shown["analytic, s"]) == {tables.NONE}
    assert "analytic" not in figures.cost(bare, "rollout").caption


def test_the_table_of_costs_has_it_beside_every_measured_mean(setting):
    data = tables.costs(setting).data
    said = data["device_seconds_per_trace_analytic"]
    assert said.notna().all()
    shown = tables.costs(setting).shown
    ratio = said / data["device_seconds_per_trace_mean"]
    assert shown["÷ measured"].tolist() == [tables.number(r) for r in ratio]
    assert "fitted" not in tables.costs(setting).caption


def test_measured_means_do_not_depend_on_it(setting, frame, fits):
    columns = ["device_seconds_per_trace_mean", "device_seconds_per_trace_min", "device_seconds_per_trace_max"]
    bare = settings(frame, fits)[0]
    pd.testing.assert_frame_equal(tables.costs(setting).data[columns], tables.costs(bare).data[columns])


def test_beyond_the_measured_lengths_it_stands_beside_the_interval(setting):
    table = months_frame(setting, Job())
    far = table[table["basis"] == "extrapolated"]
    assert far["months_analytic"].notna().all()
    both = far[(far["phases"] == "rollout+update") & (far["tokens"] == 1 << 20)]
    parts = [sum(analytic(setting, v, phase, [1 << 20])[0] for phase in ("rollout", "update")) for v in both["variant"]]
    assert both["months_analytic"].tolist() == pytest.approx([Job().months(seconds) for seconds in parts])
    shown = tables.months(setting, Job()).shown
    column = shown.set_index("thinking tokens")["LongCoT, rollout"]
    assert "(analytic " in column["1M"]
    assert "analytic" not in column["8k"]


def test_the_figures_say_what_the_thin_line_is_and_carry_its_numbers(setting):
    drawing = figures.cost(setting, "rollout")
    assert "Thin dashes are analytic: the roofline of the machine as probed" in drawing.caption
    assert drawing.data["device_seconds_per_trace_analytic"].notna().all()
    assert "analytic, from the probe" in drawing.svg


def test_what_stands_beside_a_frame_is_in_its_order(setting):
    data = pd.DataFrame(
        [(v, "rollout", tokens) for tokens in (8192, 1024) for v in reversed(setting.variants)],
        columns=["variant", "phase", "tokens"],
        index=[7, 3, 5, 1],
    )
    expected = [analytic(setting, v, "rollout", [tokens])[0] for v, _, tokens in data.itertuples(index=False)]
    assert beside(setting, data).tolist() == expected
    assert beside(setting, data).index.tolist() == [7, 3, 5, 1]


def test_chunked_curves_are_drawn_through_chunk_boundaries(setting):
    longcot, delethink = setting.variants
    assert len(smooth(longcot, 1024, 8192)) == 40
    assert smooth(delethink, 1024, 2048) == [1024, 1536, 2048]


def test_a_committed_run_is_reported_with_its_own_probe():
    store = Store.open(Path(__file__).parents[2] / "docs" / "runs" / "phases")
    frame = store.frame().assign(run="phases")
    report = build(frame, {"phases": store.manifest}, fit_frame(frame), Job())
    (costs,) = (t for c in report.chapters for s in c.sections for t in s.tables if t.name == "costs")
    ratios = costs.data["device_seconds_per_trace_analytic"] / costs.data["device_seconds_per_trace_mean"]
    assert ratios.between(0.5, 2).all()

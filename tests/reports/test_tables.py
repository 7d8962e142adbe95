"""Tables whose numbers are the rows' own."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from reports import tables
from reports.curves import settings
from scaling.laws import Job, fit_frame
from scaling.results import PROFILED_MEANWHILE


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4727.3, "4,730"), (0.08213, "0.0821"), (-0.5, "−0.500"), (2.2e-7, "2.20×10⁻⁷"), (-3e12, "−3.00×10¹²"),
        (9.996, "10.00"), (0, "0"), (math.nan, "–"), (None, "–"), (math.inf, "∞"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_and_no_bare_exponents(value, text):
    assert tables.number(value) == text


def test_bytes_are_binary_units():
    assert [tables.size(n) for n in (512, 1536, 3 << 20, 5 << 30)] == ["512 B", "1.5 KiB", "3 MiB", "5 GiB"]


@pytest.fixture(scope="module")
def frame(rows):
    return pd.concat(
        [
            rows(phases=("rollout", "update")),
            rows(lengths=[131072], failed=("oom", "2 GiB of KV memory are full")),
            rows(lengths=[1024], seconds_valid=False, seconds_reason="another process was busy"),
        ],
        ignore_index=True,
    )


@pytest.fixture(scope="module")
def setting(frame):
    return settings(frame, fit_frame(frame))[0]


def test_costs_are_the_means_of_the_valid_rows(frame, setting):
    table = tables.costs(setting)
    good = frame[(frame["status"] == "ok") & frame["seconds_valid"]]
    means = good.groupby(["environment", "phase", "mean_thinking_tokens"])["device_seconds_per_trace"].mean()
    assert len(table.data) == len(means) == len(table.shown)
    for row in table.data.itertuples():
        environment = row.environment.split()[0].lower()
        expected = means[environment, row.phase, row.thinking_tokens]
        assert row.device_seconds_per_trace_mean == pytest.approx(expected)


def test_the_ratio_table_says_what_its_numbers_say(setting):
    table = tables.ratio(setting)
    for shown in table.shown.itertuples(index=False):
        tokens = {tables.short(n): n for n in table.data["thinking_tokens"]}[shown[1]]
        for phase in ("rollout", "update"):
            at = (table.data["thinking_tokens"] == tokens) & (table.data["phase"] == phase)
            assert getattr(shown, phase).split()[0] == tables.number(table.data[at]["ratio"].item())


def test_phases_add_up(setting):
    data = tables.by_phase(setting).data
    parts = data["rollout_device_seconds_per_trace"] + data["update_device_seconds_per_trace"]
    assert data["total_device_seconds_per_trace"].tolist() == pytest.approx(parts.tolist())


def test_months_mark_what_is_extrapolated_and_give_it_no_estimate(setting):
    shown = tables.months(setting, Job()).shown.set_index("thinking tokens")
    assert shown.loc["8k"].str.startswith("●").all()
    assert shown.loc["1M"].str.fullmatch(r"‡ \S+ to \S+").all()


def test_every_failure_and_invalid_metric_has_its_reason(setting):
    shown = tables.failures(setting).shown
    assert list(zip(shown["thinking tokens"], shown["repeats"], shown["what"], shown["reason"], strict=True)) == [
        ("128k", "3", "oom", "2 GiB of KV memory are full"),
        ("128k", "3", "oom", "2 GiB of KV memory are full"),
        ("1k", "3", "seconds invalid", "another process was busy"),
        ("1k", "3", "seconds invalid", "another process was busy"),
    ]
    assert "no energy counter" in tables.failures(setting).caption


def test_laws_carry_their_parameters_and_intervals(setting):
    table = tables.laws(setting)
    (fit,) = setting.laws(setting.variants[0], "rollout")
    row = table.data.iloc[0]
    assert (row["law"], row["b"], row["curvature_share"]) == (fit.law, fit.parameters["b"], fit.curvature_share)
    assert row["b_low"] < row["b"] < row["b_high"]
    assert tables.number(fit.exponent) in table.shown["exponent (95 %)"].iloc[0]


def test_the_agreement_says_where_a_profile_came_after_the_full_rollouts(rows):
    frame = rows(methods=("full", "profile"))
    assert "In 36 pairs the profile was measured after" in tables.agreements(settings(frame, [])[0]).caption
    frame.loc[frame["method"] == "full", ["memory_valid", "memory_reason"]] = [False, PROFILED_MEANWHILE]
    assert "was measured after" not in tables.agreements(settings(frame, [])[0]).caption

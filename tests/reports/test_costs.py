"""Costs at a length: measured, by law, extrapolated or missing, and never one passed off as another."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from reports.costs import Cost, add, agreement, months_frame
from reports.curves import settings
from scaling.laws import Job, fit_frame
from scaling.results import PROFILED_MEANWHILE

from .conftest import LADDER


@pytest.fixture(scope="module")
def setting(rows):
    frame = pd.concat([rows(), rows(lengths=LADDER, methods=("profile",)), rows(phases=("update",))])
    return settings(frame, fit_frame(frame))[0]


@pytest.fixture(scope="module")
def table(setting):
    data = months_frame(setting, Job())
    return data.assign(label=[v.label for v in data["variant"]]).set_index(["label", "phases", "tokens"]).sort_index()


def test_full_rows_come_before_profiled_ones_and_laws_last(table):
    basis = table["basis"].loc["LongCoT", "rollout"]
    assert basis[[8192, 98304, 1 << 20]].tolist() == ["full", "profile", "extrapolated"]


def test_months_are_the_measured_seconds_times_the_job(setting, table):
    rows = setting.timed
    full = rows[(rows["method"] == "full") & (rows["phase"] == "rollout") & (rows["tokens"] == 8192)]
    seconds = full[[v.is_longcot for v in full["variant"]]]["device_seconds_per_trace"]
    months = table["months"].loc["LongCoT", "rollout", 8192]
    assert months == pytest.approx(seconds.mean() * 1000 * 128 * 8 / 3600 / 730)


def test_a_sum_of_phases_is_as_certain_as_its_least_certain_part(table):
    both = table.loc["LongCoT", "rollout+update"]
    assert both["basis"][[8192, 98304]].tolist() == ["full", "extrapolated"]
    assert add([Cost(1, 0.5, 2, "full"), Cost(3, 2, 4, "law")]) == Cost(4, 2.5, 6, "law")


def test_a_phase_without_rows_or_law_leaves_the_sum_missing(rows):
    frame = pd.concat([rows(), rows(lengths=[1024], phases=("update",))])
    (setting,) = settings(frame, fit_frame(rows()))
    data = months_frame(setting, Job())
    late = data[(data["phases"] == "rollout+update") & (data["tokens"] == 8192)]
    assert late["basis"].tolist() == ["missing", "missing"]
    assert all(math.isnan(months) for months in late["months"])


def test_full_and_profile_are_compared_where_both_ran(setting):
    data = agreement(setting)
    assert sorted(set(data["tokens"])) == [1024, 2048, 3072, 4096, 6144, 8192]
    row = data[data["variant"].map(lambda v: v.is_longcot) & (data["tokens"] == 8192)].iloc[0]
    assert abs(row["difference"]) < 0.05
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    assert row["processed_ratio"] == pytest.approx(2 * (64 + 8191) / 2000)
    assert row["elapsed_ratio"] == pytest.approx(2 * row["full_seconds"] / 3)


def test_pairs_whose_profile_came_after_the_full_rollouts_are_counted(rows):
    frame = rows(methods=("full", "profile"), lengths=(1024, 2048, 4096))
    assert set(agreement(settings(frame, [])[0])["apart_n"]) == {3}
    one = (frame["method"] == "full") & (frame["repeat"] == 1) & (frame["mean_thinking_tokens"] == 4096)
    frame.loc[one, ["memory_valid", "memory_reason"]] = [False, PROFILED_MEANWHILE]
    assert set(agreement(settings(frame, [])[0])["apart_n"]) == {2}

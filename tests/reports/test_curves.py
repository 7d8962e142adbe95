"""Which rows are compared, and how repeats become points and ratios."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from reports.curves import paired_ratio, points, settings


def test_rows_of_another_model_are_another_setting(rows):
    found = settings(pd.concat([rows(), rows(model="other", repeats=2)]), [])
    assert [(s.values["model"], s.slug, len(s.rows)) for s in found] == [("tiny", "tiny", 36), ("other", "other", 24)]


def test_a_budget_moves_along_a_curve_and_a_context_size_starts_another(rows):
    (setting,) = settings(rows(sizes=((1024, 512), (2048, 512))), [])
    assert [v.label for v in setting.variants] == ["LongCoT", "Delethink C=1k m=512", "Delethink C=2k m=512"]
    assert [v.role for v in setting.variants] == ["longcot", "delethink", "delethink"]
    assert setting.variants[1].dash != setting.variants[2].dash


def test_labels_that_would_be_equal_say_what_differs(rows):
    (setting,) = settings(pd.concat([rows(), rows(head=50)]), [])
    assert "Delethink C=1k m=512, head 100, algorithm1" in [v.label for v in setting.variants]


def test_failed_and_invalid_rows_have_no_time(rows):
    frame = pd.concat([rows(), rows(failed=("oom", "too big")), rows(seconds_valid=False, seconds_reason="busy")])
    (setting,) = settings(frame, [])
    assert (len(setting.rows), len(setting.timed)) == (108, 36)


def test_points_are_means_with_the_range_of_the_repeats(rows):
    (setting,) = settings(rows(lengths=[2048]), [])
    first = points(setting.timed, "device_seconds_per_trace").iloc[0]
    seconds = setting.timed[setting.timed["variant"] == first["variant"]]["device_seconds_per_trace"]
    assert (first["mean"], first["low"], first["high"], first["n"]) == (
        pytest.approx(seconds.mean()), seconds.min(), seconds.max(), 3
    )  # fmt: skip


def ratio_of(above, below):
    frames = [pd.DataFrame({"run": "a", "repeat": range(len(values)), "s": values}) for values in (above, below)]
    return paired_ratio(*frames, "s")


def test_a_ratio_pairs_repeats_so_that_drift_cancels():
    ratio, low, high, n = ratio_of([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
    assert (ratio, low, high, n) == (pytest.approx(2), pytest.approx(2), pytest.approx(2), 3)


def test_a_ratio_s_interval_is_student_s_on_logs():
    ratio, low, high, _ = ratio_of([math.e, 1.0], [1.0, 1.0])
    assert ratio == pytest.approx(math.exp(0.5))
    assert math.log(high / low) / 2 == pytest.approx(12.7062 * math.sqrt(0.5) / math.sqrt(2), rel=1e-4)


def test_one_pair_has_no_interval_and_none_has_no_ratio():
    ratio, low, high, n = ratio_of([3.0], [2.0, 5.0])
    assert (ratio, n) == (1.5, 1)
    assert math.isnan(low)
    assert math.isnan(high)
    assert ratio_of([], [1.0]) is None

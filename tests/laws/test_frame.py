"""Rows into curves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scaling.errors import FitError
from scaling.laws import CURVE_COLUMNS, FitWarning, at_boundary, fit_frame


def line(length):
    return -0.1 + length * 1e-3


def test_each_environment_phase_and_method_is_a_curve(make_frame, longcot):
    frame = pd.concat(
        [
            make_frame(line),
            make_frame(lambda n: 2 * line(n), phase="update"),
            make_frame(lambda n: n * 1e-3 + n**2 * 1e-6, **longcot),
            make_frame(line, method="profile"),
        ]
    )
    fits = fit_frame(frame)
    assert [(f.label, f.curve["phase"], f.curve["method"]) for f in fits] == [
        ("Delethink C=1k m=512", "rollout", "full"),
        ("Delethink C=1k m=512", "update", "full"),
        ("LongCoT", "rollout", "full"),
        ("Delethink C=1k m=512", "rollout", "profile"),
    ]
    assert set(fits[0].curve) == {*CURVE_COLUMNS, "concurrency_mean"}
    assert fits[0].parameters == pytest.approx({"a": -0.1, "b": 1e-3})
    assert (fits[2].curve["context_size"], fits[2].curve["devices"]) == (None, 1)
    assert not fits[0].warnings


def test_the_length_is_what_was_thought_not_what_was_asked(make_frame, longcot):
    frame = make_frame(line, **longcot)
    frame["actual_thinking_tokens"] = frame["mean_thinking_tokens"] * 0.5
    assert fit_frame(frame)[0].largest == 4096
    assert fit_frame(frame.assign(actual_thinking_tokens=np.nan))[0].largest == 8192


def test_a_failed_row_is_left_out_and_counted_never_a_zero(make_frame, longcot):
    frame = make_frame(line, **longcot)
    failed = frame["mean_thinking_tokens"] == 8192
    frame.loc[failed, ["status", "device_seconds_per_trace", "actual_thinking_tokens", "concurrency_mean"]] = [
        "oom",
        np.nan,
        np.nan,
        np.nan,
    ]
    (fit,) = fit_frame(frame)
    assert fit.parameters == pytest.approx({"a": -0.1, "b": 1e-3})
    assert fit.largest == 4096
    assert fit.warnings[0] == "3 of 18 rows did not finish (3 oom) and are left out"


def test_a_row_whose_seconds_are_not_valid_is_left_out(make_frame):
    frame = make_frame(line)
    frame.loc[0, ["seconds_valid", "device_seconds_per_trace"]] = [False, 99.0]
    (fit,) = fit_frame(frame)
    assert fit.parameters == pytest.approx({"a": -0.1, "b": 1e-3})
    assert fit.warnings[0] == "1 of 18 rows have no valid seconds and are left out"


def test_a_chunked_environment_is_fitted_at_chunk_boundaries_only(make_frame, longcot):
    lengths = [512, 1024, 1536, 2000, 2048, 4096]
    (fit,) = fit_frame(make_frame(line, lengths))
    assert set(fit.tokens) == {1024, 1536, 2048, 4096}
    assert fit.warnings[0].startswith("6 rows are not at a chunk boundary")
    (whole,) = fit_frame(make_frame(line, lengths, **longcot))
    assert set(whole.tokens) == set(lengths)


@pytest.mark.parametrize(
    ("tokens", "at"), [(0, False), (512, False), (1024, True), (1536, True), (1800, False), (2048, True), (2049, False)]
)
def test_a_chunk_boundary_is_the_context_size_and_whole_chunks_beyond(tokens, at):
    assert at_boundary(tokens, 1024, 512) == at


def test_lengths_that_ran_at_another_concurrency_are_another_curve(make_frame, longcot):
    frame = make_frame(line, **longcot)
    frame["concurrency_mean"] = np.where(frame["mean_thinking_tokens"] > 2048, 2.0, 4.0)
    first, second = fit_frame(frame)
    assert (first.largest, second.smallest) == (2048, 3072)
    assert (first.curve["concurrency_mean"], second.curve["concurrency_mean"]) == (4, 2)
    assert all("one of 2 regimes" in fit.warnings[0] for fit in (first, second))
    frame["concurrency_mean"] = np.where(frame["mean_thinking_tokens"] > 2048, 3.7, 4.0)
    assert len(fit_frame(frame)) == 1


def test_replicates_are_asked_for_the_rows_of_profiled_curves_only(make_frame, longcot):
    asked = []

    def replicates(rows):
        asked.append(set(rows["method"]))
        return np.outer(np.linspace(0.9, 1.1, 100), rows["device_seconds_per_trace"])

    frame = pd.concat([make_frame(line, **longcot), make_frame(line, method="profile", grid_id="g0", **longcot)])
    full, profiled = fit_frame(frame, replicates)
    assert asked == [{"profile"}]
    assert profiled.predict(4096).low == pytest.approx(0.905 * line(4096), rel=1e-3)
    assert full.predict(4096).low == pytest.approx(line(4096))


def test_a_profiled_chunk_environment_is_straight_by_construction_and_says_so(make_frame, longcot):
    chunked, whole = fit_frame(pd.concat([make_frame(line, method="profile", **c) for c in ({}, longcot)]))
    assert any("by construction" in remark for remark in chunked.warnings)
    assert not any("by construction" in remark for remark in whole.warnings)


def test_a_profile_whose_repeats_drifted_says_so(make_frame):
    frame = make_frame(line, method="profile")
    frame["device_seconds_per_trace"] *= 1 + 0.2 * frame["repeat"]
    assert any("whole repeats differ by 17%" in remark for remark in fit_frame(frame)[0].warnings)


def test_a_curve_of_one_length_is_warned_about_and_the_others_are_fitted(make_frame, longcot):
    frame = pd.concat([make_frame(line), make_frame(line, [1024], **longcot)])
    with pytest.warns(FitWarning, match="longcot rollout .full.: 1 thinking length cannot show a law"):
        (fit,) = fit_frame(frame)
    assert fit.label.startswith("Delethink")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.head(2), "1 thinking length"),
        (lambda frame: frame.head(0), "no rows to fit"),
        (lambda frame: frame.assign(status="oom"), "18 of 18 rows did not finish"),
        (lambda frame: frame.drop(columns="status"), "rows lack the columns status"),
    ],
)
def test_a_frame_without_a_single_law_is_refused(make_frame, change, message):
    with pytest.raises(FitError, match=message):
        fit_frame(change(make_frame(line)))

"""`scaling fit`, from a stored run to tables and JSON."""

from __future__ import annotations

import json
import os

import pytest

from scaling.results import SCHEMA_VERSION, Store

LENGTHS = [1024, 1536, 2048, 3072, 4096, 8192]
LONGCOT = {"environment": "longcot", "context_size": None, "state_size": None, "head": None, "carryover": None}
SPREAD = (0.99, 1.0, 1.01)


def bent(tokens):
    return 0.5e-3 * tokens + 1e-7 * tokens**2


def straight(tokens):
    return 0.8e-3 * tokens


@pytest.fixture
def make_run(tmp_path, make_row):
    """A run of both environments, LongCoT dearer from 3000 tokens on, in the given phases."""

    def make(name="runs/first", phases=("rollout",), **changes):
        store = Store.create(tmp_path / name, {})
        for phase in phases:
            for environment, cost in ((LONGCOT, bent), ({}, straight)):
                for tokens in LENGTHS:
                    for repeat, factor in enumerate(SPREAD):
                        store.append(
                            make_row(
                                **{
                                    "cell_id": f"{phase}{len(environment)}n{tokens}",
                                    "repeat": repeat,
                                    "phase": phase,
                                    "mean_thinking_tokens": tokens,
                                    "actual_thinking_tokens": float(tokens),
                                    "device_seconds_per_trace": factor * cost(tokens),
                                }
                                | environment
                                | changes
                            )
                        )
        return store

    return make


def lines(ran, *words):
    return [line for line in ran.out.splitlines() if all(word in line for word in words)]


def test_each_curve_has_its_law_parameters_bend_and_errors_in_one_row(cli, make_run):
    ran = cli("fit", make_run().path)
    assert ran.code == 0
    (longcot,) = lines(ran, "LongCoT", "rollout (full)", "throughput")
    assert "b = 500 [" in longcot
    assert "µs/token" in longcot
    assert "at 8k" in longcot
    (delethink,) = lines(ran, "Delethink C=1k m=512", "rollout (full)", "linear")
    assert "0.0% [-" in delethink
    assert ran.err == ""


def test_the_crossover_is_named_with_its_interval(cli, make_run):
    ran = cli("fit", make_run().path)
    (line,) = lines(ran, "is cheaper than")
    assert line.startswith("rollout (full): Delethink C=1k m=512 is cheaper than LongCoT from 2.9k [2.")
    assert line.endswith("thinking tokens on")


def test_curves_that_scatter_hides_are_not_ranked(cli, make_run):
    store = make_run(device_seconds_per_trace=1.0)
    (line,) = lines(cli("fit", store.path), "is cheaper")
    assert "which of LongCoT and Delethink C=1k m=512 is cheaper is within the rows' scatter" in line
    (crossing,) = json.loads(cli("fit", store.path, "--json").out)["crossovers"]
    assert crossing["settled"] is False


def test_predictions_within_reach_are_numbers_and_beyond_only_marked_intervals(cli, make_run):
    ran = cli("fit", make_run().path, "--at", "8k,12k,16k", "--steps", "450", "--prompts", "2", "--samples", "4")
    (near,) = lines(ran, "LongCoT", " 8k ", "test CPU")
    assert "10.8 [" in near  # seconds a trace, and hours: the job is 3600 traces
    assert near.count("10.8 [") == 2
    (far,) = lines(ran, "LongCoT", " 16k* ")
    assert "[" not in far
    assert " – " in far
    assert lines(ran, "LongCoT", " 12k ")
    assert "* beyond 1.5× the largest measured length" in ran.out
    assert "450 steps × 2 prompts × 4 samples = 3,600 traces" in ran.out


def test_phases_have_their_laws_and_a_total_that_names_them(cli, make_run):
    store = make_run(phases=("rollout", "update"))
    ran = cli("fit", store.path, "--at", "8k")
    assert len(lines(ran, "is cheaper than")) == 3
    assert len(lines(ran, "rollout+update (full)", "21.6 [")) == 1
    only = cli("fit", store.path, "--at", "8k", "--phase", "update")
    assert "rollout" not in only.out
    assert len(lines(only, "update (full)", "8k", "test CPU")) == 2


def test_concurrency_regimes_of_one_curve_are_told_apart(cli, make_run, make_row):
    store = make_run()
    for repeat in range(3):
        for tokens in (16384, 32768):
            store.append(
                make_row(cell_id=f"crowded{tokens}", repeat=repeat, mean_thinking_tokens=tokens, concurrency_mean=2.5,
                         actual_thinking_tokens=float(tokens), device_seconds_per_trace=bent(tokens), **LONGCOT)
            )  # fmt: skip
    ran = cli("fit", store.path)
    assert len(lines(ran, "LongCoT concurrency mean 4", "throughput")) == 1
    assert len(lines(ran, "LongCoT concurrency mean 2.5", "linear")) == 1
    assert "warning: LongCoT rollout (full): mean concurrency differs by more than 10 %" in ran.err


def test_the_newest_run_is_the_default(cli, make_run, tmp_path, monkeypatch):
    old, new = make_run("runs/old"), make_run("runs/new", model="newer")
    os.utime(old.path / "manifest.json", (1, 1))
    monkeypatch.chdir(tmp_path)
    assert json.loads(cli("fit", "--json").out)["run"] == str(new.path.relative_to(tmp_path))


def test_json_holds_everything_and_is_alone_on_stdout(cli, make_run):
    found = json.loads(cli("fit", make_run(phases=("rollout", "update")).path, "--json", "--at", "8k,1m").out)
    assert list(found) == [
        "schema_version", "run", "job", "curves", "totals", "crossovers", "warnings"
    ]  # fmt: skip
    assert found["schema_version"] == SCHEMA_VERSION
    assert found["job"] == {"steps": 1000, "prompts": 128, "samples": 8, "traces": 1_024_000}
    assert len(found["curves"]) == 4
    longcot = found["curves"][0]
    assert set(longcot) == {
        "label", "curve", "law", "formula", "parameters", "tokens", "seconds", "curvature_share", "exponent",
        "relative_rms", "leave_largest_out", "aicc", "bic", "warnings", "predictions",
    }  # fmt: skip
    assert (longcot["law"], longcot["formula"]) == ("throughput", "b·L + c·L²")
    assert longcot["parameters"]["c"]["estimate"] == pytest.approx(1e-7, rel=0.05)
    assert longcot["curve"]["context_size"] is None
    share = longcot["curvature_share"]
    assert 0 < share["low"] < 0.819 / 1.319 < share["high"]
    near, far = longcot["predictions"]
    assert (near["extrapolated"], far["extrapolated"]) == (False, True)
    assert near["device_hours"]["estimate"] == pytest.approx(
        near["device_seconds_per_trace"]["estimate"] * 1_024_000 / 3600
    )
    assert near["device_months"]["low"] == pytest.approx(near["device_hours"]["low"] / 730)
    assert [each["phases"] for each in found["totals"]] == [["rollout", "update"]] * 2
    crossing = found["crossovers"][-1]
    assert (crossing["phase"], crossing["cheaper"], crossing["dearer"]) == (
        "rollout+update",
        "Delethink C=1k m=512",
        "LongCoT",
    )
    assert crossing["low"] < 3000 < crossing["high"]
    assert crossing["settled"] is True


def test_what_the_rows_leave_open_is_null_in_json(cli, make_run, make_row):
    store = make_run(status="oom", device_seconds_per_trace=None, seconds_valid=False)
    for tokens in (1024, 2048):
        store.append(
            make_row(cell_id=f"n{tokens}", mean_thinking_tokens=tokens, actual_thinking_tokens=float(tokens),
                     device_seconds_per_trace=straight(tokens))
        )  # fmt: skip
    (curve,) = json.loads(cli("fit", store.path, "--json", "--at", "2k").out)["curves"]
    assert curve["curvature_share"] == {"estimate": None, "low": None, "high": None}
    assert curve["parameters"]["b"] == {"estimate": pytest.approx(0.8e-3), "low": None, "high": None}
    assert curve["predictions"][0]["device_seconds_per_trace"]["high"] is None


def test_failed_rows_and_short_lengths_are_warned_about_on_stderr(cli, make_run, make_row):
    store = make_run()
    store.append(
        make_row(cell_id="failed", mean_thinking_tokens=16384, status="oom", reason="no room", seconds_valid=False,
                 actual_thinking_tokens=None, device_seconds_per_trace=None, **LONGCOT)
    )  # fmt: skip
    ran = cli("fit", store.path, "--at", "512,8k")
    assert ran.code == 0
    assert "warning: LongCoT rollout (full): 1 of 19 rows did not finish (1 oom) and are left out" in ran.err
    assert "512 is below its smallest measured length" in ran.err
    assert not lines(ran, " 512 ", "test CPU")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no run at nowhere"),
        (["--at", "8q"], "'8q' is no number of tokens"),
        (["--steps", "0"], "steps 0 is not positive"),
        (["--steps", "many"], "invalid value for '--steps'"),
        (["--phase", "rolout"], "unknown phase 'rolout'; did you mean rollout?"),
        (["--phase", "sync"], "no rows of phase sync; measured: rollout"),
    ],
)
def test_bad_input_is_one_line(cli, make_run, tmp_path, monkeypatch, arguments, message):
    make_run()
    monkeypatch.chdir(tmp_path)
    ran = cli("fit", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_a_run_without_rows_says_how_to_get_some(cli, tmp_path):
    path = Store.create(tmp_path / "empty", {}).path
    ran = cli("fit", path)
    assert (ran.code, ran.out) == (2, "")
    assert f"has no rows yet; measure them with `scaling run --resume --out {path}`" in ran.err

"""A simulated run has the cells, rows and store of a measured one, and says everywhere that nothing was measured."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from scaling.lengths import parse_lengths
from scaling.measure.cells import RunConfig
from scaling.measure.run import configure, prepare, resume, run
from scaling.predict.efficiency import device
from scaling.predict.hardware import gpu
from scaling.predict.rollouts import Schedule, synchronous
from scaling.predict.roofline import Roofline
from scaling.predict.shape import Shape, architecture
from scaling.results import Store

MODEL = "r1-distill-qwen-1.5b"
SHAPE = Shape.from_config(architecture(MODEL))
H100 = device(gpu("h100"), "bfloat16", 1)
SMALL = {
    "engine": "simulated",
    "gpu": "h100",
    "model": MODEL,
    "lengths": "1k,2k,3k,4k",
    "context_size": 1024,
    "state_size": 512,
    "concurrency": 8,
    "repeats": 2,
}
ARGUMENTS = ["--engine", "simulated", "--gpu", "h100", "--model", MODEL, "--lengths", "1k,2k,3k,4k"]
ARGUMENTS += ["--context-size", "1k", "--state-size", "512", "--concurrency", "8", "--repeats", "2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    phases = ("rollout", "logprob", "update", "sync")
    return run(out=tmp_path_factory.mktemp("runs") / "r", phases=phases, **SMALL)


@pytest.fixture(scope="module")
def rows(store):
    return store.frame()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestRows:
    def test_they_cover_what_a_measured_run_covers(self, rows):
        assert (rows["status"] == "ok").all()
        assert rows.groupby("phase").size().to_dict() == {"rollout": 16, "logprob": 16, "update": 16, "sync": 2}
        assert (rows["method"] == "full").all()
        rollouts = rows[rows["phase"] == "rollout"]
        assert (rollouts["actual_thinking_tokens"] == rollouts["mean_thinking_tokens"]).all()
        assert rollouts["flops"].gt(0).all()

    def test_they_do_not_pass_for_measured_ones(self, rows, store):
        assert set(rows["engine"]) == {"simulated"}
        assert set(rows["device"]) == {"NVIDIA H100 SXM5 80GB (simulated)"}
        assert {cell["device"] for cell in store.manifest["cells"]} == set(rows["device"])

    def test_what_this_machine_used_is_not_in_them(self, rows):
        assert rows[["peak_memory_bytes", "memory_method", "energy_joules"]].isna().all(axis=None)
        assert set(rows["memory_reason"]) == set(rows["energy_reason"]) == {"simulated"}
        assert not rows["memory_valid"].any()

    def test_no_neighbour_disturbs_a_virtual_clock(self, rows):
        assert rows["seconds_valid"].all()

    def test_the_fingerprint_is_still_this_machine_s(self, store):
        from scaling.measure.fingerprint import fingerprint, fingerprint_id

        assert store.manifest["fingerprint_id"] == fingerprint_id(fingerprint())

    def test_repeats_are_equal_but_for_rounding(self, rows):
        seconds = rows.groupby("cell_id")["wall_seconds"].agg(["min", "max"])
        assert seconds["min"].to_numpy() == pytest.approx(seconds["max"].to_numpy(), rel=1e-9)


class TestSeconds:
    def test_a_rollout_s_are_the_gpu_s_and_the_measuring_s_are_ours(self, rows):
        rollouts = rows[rows["phase"] == "rollout"]
        assert (rollouts["elapsed_seconds"] < rollouts["wall_seconds"] / 2).all()
        assert (rollouts["tokens_per_second"] * rollouts["wall_seconds"]).to_numpy() == pytest.approx(
            (rollouts["traces"] * rollouts["mean_thinking_tokens"]).to_numpy(np.float64)
        )

    @pytest.mark.parametrize("mode", ["longcot", "delethink"])
    def test_a_rollout_takes_what_the_closed_form_says(self, rows, mode):
        config = RunConfig(**{**SMALL, "lengths": tuple(parse_lengths("1k,2k,3k,4k"))})
        roofline = Roofline(SHAPE, H100.serving)
        for _, row in rows[(rows["phase"] == "rollout") & (rows["environment"] == mode)].iterrows():
            tokens = int(row["mean_thinking_tokens"])
            schedule = Schedule.of(config.environment(mode, tokens), config.prompt_tokens, tokens)
            expected = synchronous(roofline, schedule, np.full(8, tokens), 8).total
            assert row["wall_seconds"] == pytest.approx(expected, rel=1e-6)

    def test_an_update_is_four_times_its_log_probabilities_in_training(self, rows):
        seconds = rows.groupby(["phase", "environment", "mean_thinking_tokens"])["wall_seconds"].first()
        assert (seconds["update"] / seconds["logprob"]).to_numpy() == pytest.approx(4)
        config = RunConfig(**{**SMALL, "lengths": (4096,)})
        segments = config.environment("longcot", 4096).schedule(config.prompt_tokens, [4096])
        expected = 8 * float(Roofline(SHAPE, H100.training).logprob(segments).total)
        assert seconds["logprob", "longcot", 4096] == pytest.approx(expected)

    def test_a_profile_integrates_to_the_same(self, rows, tmp_path):
        profiled = run(out=tmp_path / "p", method="profile", **SMALL).frame()
        full = rows[rows["phase"] == "rollout"]
        by = ["environment", "mean_thinking_tokens"]
        ratio = profiled.groupby(by)["wall_seconds"].mean() / full.groupby(by)["wall_seconds"].mean()
        assert ratio.to_numpy() == pytest.approx(1, abs=5e-3)
        assert set(profiled["memory_reason"]) == {"simulated"}

    def test_measuring_in_between_moves_no_clock(self, rows, tmp_path):
        """Full rollouts and a profile in one run, whose visits fall between the steps."""
        from scaling.measure.plan import PlannedCell, plan
        from scaling.measure.simulation import build_simulation
        from scaling.measure.sweep import Sweep

        config = configure({**SMALL, "lengths": (2048,), "repeats": 1})
        cells: list[PlannedCell] = []
        for method in ("full", "profile"):
            chosen = configure({**config.to_json(), "method": method})
            cells += plan(chosen, SHAPE, H100.serving, weights="random", device="simulated")
        store = Store.create(tmp_path / "both", {"cells": []})
        subject = build_simulation(config, SHAPE, [p.cell for p in cells])
        Sweep(subject, cells, store, repeats=1, seed=0, device_name="simulated", fingerprint_id="0").run()
        seconds = store.frame().set_index(["method", "environment"])["wall_seconds"]
        alone = rows[(rows["phase"] == "rollout") & (rows["mean_thinking_tokens"] == 2048)]
        for mode, expected in alone.groupby("environment")["wall_seconds"].first().items():
            assert seconds["full", mode] == pytest.approx(expected, rel=1e-9)


class TestRuns:
    def test_auto_samples_every_length(self):
        prepared = prepare(configure({**SMALL, "lengths": tuple(parse_lengths("8k..96k")), "traces": 1024}))
        assert {p.cell.method for p in prepared.planned} == {"full"}

    def test_models_that_nothing_here_could_hold_run_too(self, tmp_path):
        found = run(out=tmp_path / "r", **{**SMALL, "model": "gpt-oss-20b", "gpu": "b200", "repeats": 1}).frame()
        assert (found["status"] == "ok").all()

    def test_one_that_was_cut_short_goes_on(self, tmp_path):
        whole = run(out=tmp_path / "r", **SMALL)
        before = whole.frame()
        for part in sorted((tmp_path / "r").glob("*.parquet"))[::2]:
            part.unlink()
        outcome = resume(tmp_path / "r")
        assert outcome.failed == 0
        ours = ["started_unix", "elapsed_seconds", "cpu_seconds"]
        pd.testing.assert_frame_equal(before.drop(columns=ours), outcome.store.frame().drop(columns=ours), rtol=1e-9)

    def test_memory_that_holds_no_trace_makes_rows_that_say_so(self, tmp_path):
        found = run(out=tmp_path / "r", **{**SMALL, "kv_memory": 3 * 2**24, "repeats": 1}).frame()
        status = found.set_index(["environment", "mean_thinking_tokens"])["status"]
        assert status["longcot", 4096] == "oom"
        assert status["delethink", 4096] == "ok"

    def test_memory_that_holds_few_traces_takes_longer(self, rows, tmp_path):
        scarce = run(out=tmp_path / "r", **{**SMALL, "kv_memory": 2**28, "repeats": 1}).frame()
        by = ["environment", "mean_thinking_tokens"]
        ample = rows[rows["phase"] == "rollout"].groupby(by)["wall_seconds"].first()
        longer = scarce.groupby(by)["wall_seconds"].first() / ample
        assert longer["longcot", 4096] > 1.2
        assert scarce.set_index(by)["preemptions"]["longcot", 4096] > 0


class TestTheCommand:
    def test_a_law_and_a_report_come_of_it(self, cli, here):
        done = cli("run", *ARGUMENTS, "--out", "r")
        assert done.code == 0, done.err
        assert "NVIDIA H100 SXM5 80GB (simulated)" in done.err
        curves = json.loads(cli("fit", "r", "--json").out)["curves"]
        found = {curve["curve"]["environment"]: curve for curve in curves}
        assert found["longcot"]["curve"]["device"].endswith("(simulated)")
        assert found["longcot"]["exponent"]["estimate"] > found["delethink"]["exponent"]["estimate"]
        assert cli("report", "r").code == 0
        assert "(simulated)" in (here / "r" / "report" / "report.md").read_text()

    def test_a_dry_run_writes_nothing(self, cli, here):
        done = cli("run", *ARGUMENTS, "--dry-run")
        assert done.code == 0
        assert "roofline of that GPU" in done.out
        assert list(here.iterdir()) == []

    def test_what_was_measured_can_be_simulated_and_the_other_way_round(self, cli, here):
        small = ["--lengths", "48,96", "--context-size", "64", "--state-size", "32", "--head", "8", "--repeats", "1"]
        assert cli("run", "--model", "tiny", *small, "--out", "here").code == 0
        assert cli("run", "--from", "here", "--engine", "simulated", "--gpu", "a100", "--out", "there").code == 0
        assert cli("run", "--from", "there", "--engine", "local", "--out", "again").code == 0
        frames = {name: Store.open(here / name).frame() for name in ("here", "there", "again")}
        assert set(frames["here"]["cell_id"]) == set(frames["again"]["cell_id"])
        assert set(frames["here"]["cell_id"]).isdisjoint(frames["there"]["cell_id"])
        columns = ["prefill_computed_tokens", "decode_tokens", "chunks", "concurrency_mean", "flops"]
        by = ["environment", "mean_thinking_tokens"]
        measured, simulated = (frames[name].set_index(by)[columns].sort_index() for name in ("here", "there"))
        assert measured.equals(simulated)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--engine", "simulated"], "--gpu h100"),
            (["--gpu", "h100"], "--engine simulated"),
            (["--engine", "simulated", "--gpu", "h10"], "did you mean h100"),
            (["--engine", "simulated", "--gpu", "l4", "--model", "deepseek-v3"], "scaling plan"),
        ],
    )
    @pytest.mark.parametrize("dry", [[], ["--dry-run"]])
    def test_what_makes_no_sense_is_one_line(self, cli, here, arguments, said, dry):
        done = cli("run", *arguments, *dry)
        assert done.code == 2
        [line] = done.err.strip().splitlines()
        assert said in line
        assert list(here.iterdir()) == []

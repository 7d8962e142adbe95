"""`scaling run` as a user meets it: what it measures, writes, prints, and refuses."""

import json
import shutil
import subprocess
import sys

import pytest

from scaling.results import Store

SMALL = ["--context-size", "64", "--state-size", "32", "--head", "8", "--prompt-tokens", "8", "--repeats", "2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(cli, *arguments, lengths="48,96"):
    return cli("run", "--lengths", lengths, *SMALL, *arguments)


def test_both_environments_are_measured_and_the_run_is_the_only_stdout(cli, here):
    done = ran(cli)
    assert done.code == 0, done.err
    [run] = (here / "runs").iterdir()
    assert done.out.strip() == str(run.relative_to(here))
    frame = Store.open(run).frame()
    assert set(frame["environment"]) == {"longcot", "delethink"}
    assert set(frame["mean_thinking_tokens"]) == {48, 96}
    assert len(frame) == 2 * 2 * 2
    assert (frame["status"] == "ok").all()
    assert (frame["actual_thinking_tokens"] == frame["mean_thinking_tokens"]).all()
    assert (frame["wall_seconds"] > 0).all()


def test_the_manifest_says_everything_that_was_measured(cli, here):
    ran(cli, "--out", "r", "--seed", "5")
    manifest = Store.open(here / "r").manifest
    assert manifest["config"]["seed"] == 5
    assert manifest["model"]["weights"] == "random"
    assert manifest["fingerprint"]["software"]["packages"]["torch"]
    assert len(manifest["cells"]) == 4


def test_every_phase_has_rows_and_weight_transfer_no_cost_a_trace(cli, here):
    phases = ["--phase", "rollout", "--phase", "logprob", "--phase", "update", "--phase", "sync"]
    assert ran(cli, *phases, "--out", "r").code == 0
    frame = Store.open(here / "r").frame()
    assert frame.groupby("phase").size().to_dict() == {"rollout": 8, "logprob": 8, "update": 8, "sync": 2}
    sync = frame[frame["phase"] == "sync"]
    assert sync["device_seconds_per_trace"].isna().all()
    assert (sync["wall_seconds"] > 0).all()
    flops = frame.groupby(["phase", "environment", "mean_thinking_tokens"])["flops"].mean()
    assert (flops["update"] == 4 * flops["logprob"]).all()


def test_profile_stands_for_the_same_tokens_as_full(cli, here):
    assert ran(cli, "--method", "full", "--out", "full").code == 0
    assert ran(cli, "--method", "profile", "--out", "profile").code == 0
    columns = ["environment", "mean_thinking_tokens", "prefill_computed_tokens", "decode_tokens", "chunks", "flops"]
    columns += ["concurrency_peak", "peak_kv_bytes"]
    full, profile = (
        Store.open(here / name).frame().sort_values([*columns[:2], "repeat"])[columns].reset_index(drop=True)
        for name in ("full", "profile")
    )
    assert full.equals(profile)
    grids = Store.open(here / "profile").frame()["grid_id"]
    assert grids.nunique() == 2  # one a repeat
    assert Store.open(here / "profile").grid(grids[0])["points"]


def test_profile_of_an_update_counts_each_distinct_chunk(cli, here):
    assert ran(cli, "--method", "profile", "--phase", "update", "--mode", "delethink", "--out", "r").code == 0
    frame = Store.open(here / "r").frame()
    assert (frame["elapsed_seconds"] <= frame["wall_seconds"]).all()


def test_without_a_profile_no_visit_is_ever_due():
    """Parts of expected seconds may add up to a little more than all of them."""
    from scaling.measure.sweep import Interlude

    class NoVisits:
        share = 1.0

        def one(self):
            raise AssertionError("a visit to an empty grid")

    interlude = Interlude(None, NoVisits(), None, 0.7000000000000001, 0.30000000000000004)
    interlude.reported = float("inf")
    interlude(1.0)
    assert not interlude.visited


@pytest.mark.usefixtures("here")
def test_lengths_shorter_than_the_warm_up_can_be_measured(cli):
    assert ran(cli, "--method", "full", "--out", "r", lengths="16").code == 0


@pytest.mark.usefixtures("here")
def test_laws_of_profiled_training_phases_have_intervals_of_their_own(cli):
    ran(cli, "--method", "profile", "--phase", "rollout", "--phase", "update", "--out", "r", lengths="64,96,128,160")
    curves = json.loads(cli("fit", "r", "--json").out)["curves"]
    update = [c for c in curves if c["curve"]["phase"] == "update"]
    assert len(update) == 2
    for curve in update:
        found = curve["exponent"]
        assert -20 < found["low"] <= found["estimate"] <= found["high"] < 20


def test_a_short_cell_after_a_long_one_has_its_own_peak(cli, here):
    ran(cli, "--method", "full", "--mode", "longcot", "--out", "r", lengths="48,160,320")
    frame = Store.open(here / "r").frame()
    held = frame["traces"] * (frame["prompt_tokens"] + frame["mean_thinking_tokens"] - 1)  # the last is never fed back
    assert (frame["peak_kv_bytes"] == held * frame["kv_bytes_per_token"]).all()


def test_iterations_set_the_length_to_delethinks_budget(cli, here):
    assert cli("run", "--iterations", "4", *SMALL, "--out", "r").code == 0
    frame = Store.open(here / "r").frame()
    assert set(frame["mean_thinking_tokens"]) == {64 + 3 * 32}
    assert set(frame["chunks"] / frame["traces"]) == {1, 4}


def test_a_dry_run_lists_the_cells_and_writes_nothing(cli, here):
    done = ran(cli, "--dry-run", "--json")
    plan = json.loads(done.out)
    assert len(plan["cells"]) == 4
    assert all(cell["expected_seconds"] > 0 for cell in plan["cells"])
    assert list(here.iterdir()) == []


def test_from_measures_the_same_cells_again_and_options_override(cli, here):
    ran(cli, "--out", "a")
    assert cli("run", "--from", "a", "--out", "b").code == 0
    assert Store.open(here / "a").done() == Store.open(here / "b").done()
    assert cli("run", "--from", "a", "--repeats", "1", "--out", "c").code == 0
    assert Store.open(here / "c").done() < Store.open(here / "a").done()


@pytest.mark.parametrize("arguments", [("--resume", "--out", "r"), ("--from", "r")])
def test_a_run_of_another_kind_is_refused(cli, here, arguments):
    Store.create(here / "r", {"study": "probe", "config": {"problems": 4}})
    done = cli("run", *arguments)
    assert (done.code, done.out) == (2, "")
    assert "r holds no run of measurements; expected one that `scaling run` made" in done.err


def test_resuming_a_finished_run_measures_nothing(cli, here):
    ran(cli, "--out", "a")
    before = {path: path.stat().st_mtime_ns for path in (here / "a").iterdir()}
    assert cli("run", "--resume", "--out", "a").code == 0
    assert {path: path.stat().st_mtime_ns for path in (here / "a").iterdir()} == before


def test_a_cell_that_runs_out_of_memory_is_a_row_and_the_rest_goes_on(cli, here):
    # 4 layers' worth of KV: the tiny model keeps 4096 bytes a token, so 1 MiB holds two sequences of 128 tokens
    done = ran(cli, "--kv-memory", "1m", "--method", "full", "--out", "r", lengths="48,2000")
    assert done.code == 4
    frame = Store.open(here / "r").frame()
    status = frame.groupby(["environment", "mean_thinking_tokens"])["status"].agg(set).to_dict()
    assert status["longcot", 2000] == {"oom"}
    assert status["longcot", 48] == status["delethink", 48] == status["delethink", 2000] == {"ok"}
    failed = frame[frame["status"] == "oom"]
    assert failed["reason"].notna().all()
    for metric in ("wall_seconds", "device_seconds_per_trace", "decode_tokens", "flops", "peak_kv_bytes"):
        assert failed[metric].isna().all()
    assert "longcot rollout at 2000: oom" in done.err


def test_a_profile_of_what_does_not_fit_is_a_row_too(cli, here):
    done = ran(cli, "--kv-memory", "1m", "--method", "profile", "--out", "r", lengths="48,2000")
    assert done.code == 4
    frame = Store.open(here / "r").frame()
    assert set(frame[frame["status"] == "oom"]["environment"]) == {"longcot"}


BAD = {
    "nonsense lengths": (["--lengths", "8k..banana"], "banana"),
    "a length of nothing": (["--lengths", "0"], "0"),
    "state as large as the context": (["--context-size", "64", "--state-size", "64"], "below context size"),
    "a head that fills the chunk": (["--context-size", "64", "--state-size", "32", "--head", "32"], "head 32"),
    "a model that is not there": (["--model", "smolm2-135m"], "smollm2-135m"),
    "a directory that is not there": (["--model", "./nowhere"], "nowhere"),
    "an engine that is not there": (["--engine", "locl"], "local"),
    "a mode that is not there": (["--mode", "delethnk"], "delethink"),
    "a phase that is not there": (["--phase", "rolout"], "rollout"),
    "a method that is not there": (["--method", "fully"], "full"),
    "a dtype that is not there": (["--dtype", "float3"], "float32"),
    "a carryover that is not there": (["--carryover", "algorithm"], "algorithm1"),
    "no repeats": (["--repeats", "0"], "repeats 0"),
    "no traces": (["--traces", "0"], "traces 0"),
    "negative concurrency": (["--concurrency", "-1"], "concurrency -1"),
    "an unreadable size": (["--kv-memory", "lots"], "512m"),
    "lengths and iterations": (["--lengths", "1k", "--iterations", "3"], "give one"),
    "resume with other options": (["--resume", "--lengths", "1k"], "--resume"),
    "resume of nothing": (["--resume", "--out", "nothing"], "nothing"),
    "from nothing": (["--from", "nothing"], "nothing"),
}


@pytest.mark.parametrize(("arguments", "said"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_exit_2_and_nothing_written(cli, here, arguments, said):
    done = cli("run", *arguments)
    assert done.code == 2
    assert done.out == ""
    [line] = done.err.strip().splitlines()
    assert said in line
    assert list(here.iterdir()) == []


def test_a_directory_that_holds_something_else_is_left_alone(cli, here):
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("precious")
    done = ran(cli, "--out", "mine")
    assert done.code == 2
    assert [path.name for path in (here / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"hidden_size": 64}, "shape"),
    ],
    ids=["unsupported architecture", "missing tensors", "misshapen tensors"],
)
def test_a_checkpoint_that_cannot_be_loaded_is_one_line(cli, here, chat_model, change, said):
    shutil.copytree(chat_model, here / "model")
    config = here / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    done = ran(cli, "--model", "./model", "--out", "r")
    assert done.code == 2
    assert said in done.err.strip().splitlines()[-1]
    assert not (here / "r").exists()


def test_a_checkpoint_s_trained_positions_bound_longcot(cli, chat_model):
    done = cli("run", "--model", str(chat_model), "--lengths", "1k", *SMALL, "--dry-run")
    assert done.code == 2
    assert "512" in done.err


def test_a_real_checkpoint_is_named_by_its_weights(cli, here, chat_model):
    assert ran(cli, "--model", str(chat_model), "--out", "r").code == 0
    manifest = Store.open(here / "r").manifest
    assert manifest["model"]["weights"] == "checkpoint"
    assert manifest["cells"][0]["weights"] == manifest["model"]["digest"]


def test_a_full_disk_is_one_line_and_what_was_measured_stays(tmp_path):
    """The store's file system fills up while the run goes on: a real, tiny one where mounting is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        command = [sys.executable, "-m", "scaling", "run", "--lengths", "48,96", *SMALL, "--out", str(disk / "r")]
        done = subprocess.run([*command, "--repeats", "9"], check=False, capture_output=True, text=True)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "space" in done.stderr.strip().splitlines()[-1].lower()
        frame = Store.open(disk / "r").frame()
        assert 0 < len(frame) < 36
        assert (frame["status"] == "ok").all()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_shards_fill_one_run_and_say_how_much_of_it_exists(cli, here):
    first = ran(cli, "--shard", "2/2", "--out", "r")
    assert first.code == 0, first.err
    assert "4 of 8 rows of the run exist" in first.err
    second = ran(cli, "--shard", "1/2", "--out", "r")
    assert "8 rows, 0 failed; next: scaling fit r" in second.err
    assert len(Store.open(here / "r").done()) == 8
    once_more = cli("run", "--resume", "--out", "r", "--shard", "1/2", "--json")
    assert json.loads(once_more.out) | {"schema_version": ""} == {
        "schema_version": "",
        "run": "r",
        "rows": 8,
        "total": 8,
        "failed": 0,
    }


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shard", "1/2"], "--out"),
        (["--shard", "3/2", "--out", "r"], "2/8"),
        (["--shard", "1/2", "--out", "r", "--launcher", "ray"], "leave --launcher ray out"),
        (["--launcher", "slurm"], "unknown launcher 'slurm'"),
        (["--shard", "1/2", "--out", "r", "--dry-run"], "whole run"),
    ],
)
def test_a_launch_that_makes_no_sense_is_one_line(cli, arguments, said):
    done = ran(cli, *arguments)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.splitlines()) == 1


NEW = ["--mode", "summary", "--mode", "budget-forcing", "--mode", "folding"]
CHEAP = ["--engine", "simulated", "--gpu", "h100", "--model", "tiny", "--context-size", "256", "--repeats", "3"]


def test_every_environment_is_measured_fitted_and_reported_under_its_own_name(cli, here):
    """Simulated, so that it takes seconds: the same cells, rows, laws and pages as of a measured run."""
    modes = ["--mode", "delethink", *NEW, "--summary-size", "32", "--extensions", "2"]
    done = cli("run", *modes, "--lengths", "256..2k:256", "--head", "16", *CHEAP, "--out", "r")
    assert done.code == 0, done.err
    frame = Store.open(here / "r").frame()
    assert (frame["status"] == "ok").all()
    rounds = frame[frame["environment"].isin(["summary", "folding"])]
    assert set(rounds["summary_size"]) == {32}
    assert set(frame.loc[frame["environment"] == "budget-forcing", "extensions"]) == {2}
    assert frame.groupby("environment")["cue_tokens"].max().dropna().to_dict() == {"budget-forcing": 1, "summary": 32}
    kept = frame.groupby("environment")["prefill_cached_tokens"].max()
    assert kept["delethink"] == 0
    assert (kept[["summary", "folding", "budget-forcing"]] > 0).all()
    labels = ["Delethink C=256 m=128", "Summary C=256 s=32", "Budget forcing N=2", "Folding C=256 s=32"]
    fitted = json.loads(cli("fit", "r", "--json").out)["curves"]
    assert sorted(curve["label"] for curve in fitted) == sorted(labels)
    assert all("left out" not in " ".join(curve["warnings"]) for curve in fitted)  # every length is on the law
    assert cli("report", "r", "--out", "page").code == 0
    page = (here / "page" / "report.md").read_text()
    assert all(label in page for label in labels)


def test_an_option_of_one_mode_is_refused_without_it(cli, here):
    for option, owner in [("--summary-size", "summary or folding"), ("--extensions", "budget-forcing")]:
        refused = ran(cli, option, "8")
        assert refused.code == 2
        assert f"{option} goes with --mode {owner}; add that mode, or leave it out" in refused.err
    assert not (here / "runs").exists()


def test_a_run_repeated_from_another_keeps_its_sizes(cli, here):
    assert cli("run", "--mode", "summary", "--summary-size", "16", "--lengths", "256", *CHEAP, "--out", "a").code == 0
    assert cli("run", "--from", "a", "--lengths", "512", "--out", "b").code == 0
    assert set(Store.open(here / "b").frame()["summary_size"]) == {16}

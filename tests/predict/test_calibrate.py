"""Calibration on committed runs: fitted to their shorter lengths, it is right about the longer ones."""

import json
import math
import random
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scaling.errors import CheckpointError, StoreError, UsageError
from scaling.predict.calibrate import calibrate, held_out, summary
from scaling.predict.hardware import gpu
from scaling.predict.measured import Batch, Passes, Probed, records
from scaling.predict.roofline import Machine, Roofline
from scaling.results import Row, Store

RUNS = Path(__file__).parents[2] / "docs" / "runs"
RATES = {"bandwidth", "kv_bandwidth", "matmul", "attention"}

Altered = Callable[..., Path]


@pytest.fixture
def altered(tmp_path: Path) -> Altered:
    """A copy of a committed run whose manifest says something else."""

    def copy(name: str, keep: str = "*", **changed: Any) -> Path:
        path = tmp_path / name
        shutil.copytree(RUNS / name, path, ignore=shutil.ignore_patterns("report"))
        for part in set(path.glob("*.parquet")) - set(path.glob(f"{keep}.parquet")):
            part.unlink()
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**manifest, **changed}))
        return path

    return copy


def generated(path: Path, machine: Machine, noise: float) -> Path:
    """The rows and grids of a committed run, as `machine` would have left them."""
    source = Store.open(RUNS / "agreement")
    probed = Probed.of(source.manifest)
    roofline = Roofline(probed.shape, machine, probed.precision)
    noisy = random.Random(0)

    def seconds(passes: Passes) -> float:
        return float(Batch([passes]).seconds(roofline)[0]) * math.exp(noisy.gauss(0, noise))

    store = Store.create(path, source.manifest)
    for row in records(source.frame()):
        passes = Passes.of_row(row)
        prefill, decode = seconds(passes.encoding), seconds(passes.decoding)
        found = {"prefill_seconds": prefill, "decode_seconds": decode, "wall_seconds": prefill + decode,
                 "device_seconds_per_trace": (prefill + decode) / row["traces"]}  # fmt: skip
        store.append(Row(**{**row, **found}))
    for grid in {row["grid_id"] for row in records(source.frame())} - {None}:
        points = [
            {**p, "seconds": [seconds(Passes.of_step(p["kind"], p["rows"], p["tokens"])) for _ in p["seconds"]]}
            for p in source.grid(grid)["points"]
        ]
        store.save_grid(grid, {"points": points})
    return path


def test_the_machine_behind_a_run_is_found_within_its_intervals(tmp_path: Path) -> None:
    probed = Probed.of(Store.open(RUNS / "agreement").manifest).machine
    true = replace(
        probed,
        bandwidth_bytes_per_s=1.3 * probed.bandwidth_bytes_per_s,
        kv_bandwidth_bytes_per_s=0.6 * probed.kv_bandwidth_bytes_per_s,
        flops_per_s=1.5 * probed.flops_per_s,
        attention_flops_per_s=1.2 * probed.flops_per_s,
        seconds_per_kernel=0.8 * probed.seconds_per_kernel,
    )
    run = generated(tmp_path / "run", true, noise=0.02)
    found = calibrate(run)
    for name, fitted in found.factors["serving"].items():
        assert fitted.low <= getattr(true, name) <= fitted.high, name
    assert found.serving.kv_bandwidth_bytes_per_s == pytest.approx(true.kv_bandwidth_bytes_per_s, rel=0.03)
    assert found.serving.flops_per_s == pytest.approx(true.flops_per_s, rel=0.05)
    assert max(abs(h.error) for h in held_out(run)) < 0.05


def documented() -> list[tuple[str, int, int, float, float]]:
    """(run, fitted up to, longer ones, median, worst) of the table in docs/calibration.md."""
    text = (RUNS.parent / "calibration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w-]+) \| (\d+) \| (\d+) \|.*\| ([\d.]+) % \| ([\d.]+) % \|$", text, re.MULTILINE)
    return [(run, int(up_to), int(n), float(median) / 100, float(worst) / 100) for run, up_to, n, median, worst in rows]


@pytest.mark.parametrize(("run", "up_to", "longer", "median", "worst"), documented())
def test_the_longer_lengths_of_a_measured_run_are_predicted_from_its_shorter_ones(
    run: str, up_to: int, longer: int, median: float, worst: float
) -> None:
    found = held_out(RUNS / run, up_to)
    assert len(found) == longer
    assert {h.environment for h in found} == {"longcot", "delethink"}
    assert min(h.thinking_tokens for h in found) > up_to
    errors = [abs(h.error) for h in found]
    assert statistics.median(errors) <= 0.10
    assert (statistics.median(errors), max(errors)) == pytest.approx((median, worst), abs=0.005)  # as documented


def test_rollouts_and_training_of_several_runs_are_documented() -> None:
    assert {run for run, *_ in documented()} >= {"demo", "agreement", "phases", "smollm2-135m"}


def test_calibration_halves_the_error_of_the_probe() -> None:
    found = held_out(RUNS / "demo") + held_out(RUNS / "phases")
    probe = statistics.median(abs(h.probed / h.measured - 1) for h in found)
    assert statistics.median(abs(h.error) for h in found) < probe / 2


def test_half_of_the_lengths_are_held_out_unless_it_is_said_how_many() -> None:
    assert {h.thinking_tokens for h in held_out(RUNS / "phases")} == {4096, 8192}


def test_a_run_of_rollouts_says_what_its_device_sustains_in_serving() -> None:
    found = calibrate(RUNS / "demo")
    assert set(found.factors) == {"serving"}
    kv = found.factors["serving"]["kv_bandwidth_bytes_per_s"]
    assert kv.determined
    assert kv.low < kv.value == found.serving.kv_bandwidth_bytes_per_s < kv.high
    assert found.residual["serving"] < 0.05
    assert (found.device, found.dtype, found.repeats) == ("AMD EPYC, 2 threads", "float32", 3)
    assert found.training.flops_per_s == found.factors["serving"]["flops_per_s"].probed  # not measured: as probed
    weights, dispatch = (found.factors["serving"][n] for n in ("bandwidth_bytes_per_s", "seconds_per_kernel"))
    assert not weights.determined  # one concurrency tells only the sum of the two
    assert not dispatch.determined


def test_a_run_of_training_phases_says_it_of_training() -> None:
    found = calibrate(RUNS / "phases")
    assert set(found.factors) == {"training"}
    assert found.factors["training"]["flops_per_s"].determined
    assert found.training.flops_per_s < found.serving.flops_per_s


def test_only_lengths_up_to_the_one_given_are_used() -> None:
    few, all_ = calibrate(RUNS / "agreement", up_to=2048), calibrate(RUNS / "agreement")
    assert few.points["serving"] < all_.points["serving"]
    assert few.up_to == 2048


def test_what_it_found_is_json() -> None:
    told = json.loads(json.dumps(calibrate(RUNS / "phases").to_json()))
    assert set(told["factors"]["training"]["flops_per_s"]) == {"probed", "value", "low", "high", "determined"}
    assert told["gpu"] is None
    assert told["training"]["flops_per_s"] == told["factors"]["training"]["flops_per_s"]["value"]


def test_it_is_told_with_intervals_beside_the_probe_and_with_its_doubts() -> None:
    first, serving, *rest, training = calibrate(RUNS / "demo").lines()
    assert first.endswith("tiny on AMD EPYC, 2 threads in float32, 3 repeats")
    assert re.fullmatch(r"serving: 2\.\d% median error over 49 measured points", serving)
    kv = r"  keys and values: 29\.\d GB/s \(95 % interval 28\.\d to 30\.\d; probed 30\.4\)"
    assert [line for line in rest if re.fullmatch(kv, line)]
    assert all("not determined by these rows" in line for line in rest if "weights" in line or "dispatch" in line)
    assert training.startswith("training: no rows, so as it was probed")
    held = summary(held_out(RUNS / "demo"))
    assert re.match(r"fitted to the shorter lengths alone, it predicts the 14 measurements of 12,288 and more", held)


def test_one_length_leaves_none_to_hold_out(altered: Altered) -> None:
    one = altered("phases", keep="e7db188bd3654943-*")
    assert summary(held_out(one)) == ""


def test_the_measured_device_itself_can_be_planned_for() -> None:
    found = calibrate(RUNS / "demo")
    here = found.here()
    assert (here.serving, here.watts) == (found.serving, None)
    assert here.memory_bytes == 24 * 2**30


def test_a_cpu_has_no_datasheet_to_move_by() -> None:
    found = calibrate(RUNS / "demo")
    with pytest.raises(UsageError, match="was measured on AMD EPYC, 2 threads, which has no datasheet"):
        found.moved(gpu("h100"))


def test_a_gpu_keeps_its_shares_on_another_one(altered: Altered) -> None:
    found = calibrate(altered("phases", device="NVIDIA A100-SXM4-80GB", config={"dtype": "bfloat16"}))
    shares = found.efficiencies()["training"]
    assert set(shares) == RATES
    a100, h100 = gpu("a100"), gpu("h100")
    assert found.gpu is a100
    assert shares["matmul"].value == pytest.approx(found.training.flops_per_s / a100.flops_per_s["bfloat16"])
    assert shares["matmul"].low < shares["matmul"].value < shares["matmul"].high
    moved = found.moved(h100)
    assert (moved.name, moved.memory_bytes, moved.watts) == ("h100-sxm", h100.memory_bytes, h100.watts)
    assert moved.training.flops_per_s == pytest.approx(shares["matmul"].value * h100.flops_per_s["bfloat16"])
    assert moved.training.kv_bandwidth_bytes_per_s / found.training.kv_bandwidth_bytes_per_s == pytest.approx(
        h100.bandwidth_bytes_per_s / a100.bandwidth_bytes_per_s
    )
    assert moved.training.seconds_per_kernel == found.training.seconds_per_kernel
    assert moved.training.kernels_a_layer == found.training.kernels_a_layer
    assert found.moved(h100, dtype="float8").serving.flops_per_s == pytest.approx(
        2 * moved.serving.flops_per_s, rel=1e-3
    )
    assert any(re.search(r"products: .*\), \d+% of the datasheet", line) for line in found.lines())


def test_a_gpu_moved_to_itself_is_as_it_was_measured(altered: Altered) -> None:
    found = calibrate(altered("phases", device="NVIDIA H200", config={"dtype": "bfloat16"}))
    again = found.moved(gpu("h200"))
    for name in ("bandwidth_bytes_per_s", "kv_bandwidth_bytes_per_s", "flops_per_s", "attention_flops_per_s"):
        assert getattr(again.training, name) == pytest.approx(getattr(found.training, name))


def test_a_gpu_without_the_runs_arithmetic_is_refused(altered: Altered) -> None:
    found = calibrate(altered("phases", device="NVIDIA H100 80GB HBM3", config={"dtype": "bfloat16"}))
    with pytest.raises(UsageError, match="has no bfloat16 arithmetic"):
        found.moved(gpu("v100"))


def test_a_simulated_run_is_no_measurement(altered: Altered) -> None:
    with pytest.raises(UsageError, match="a simulated run repeats what it was told"):
        calibrate(altered("phases", config={"engine": "simulated", "dtype": "float32"}))


def test_a_run_without_finished_rows_is_refused(altered: Altered) -> None:
    with pytest.raises(UsageError, match="has no finished rollout, log-probability or update rows to calibrate with"):
        calibrate(altered("phases", keep="none"))
    with pytest.raises(UsageError, match="rows of at most 512 thinking tokens"):
        calibrate(RUNS / "demo", up_to=512)


def test_a_model_that_cannot_be_priced_is_refused(altered: Altered) -> None:
    path = altered("phases", model={"name": "m", "config": {"model_type": "mamba"}})
    with pytest.raises(CheckpointError, match="unsupported architecture 'mamba'"):
        calibrate(path)


def test_no_run_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run at"):
        calibrate(tmp_path / "nothing")


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = {"torch", "pandas", "pyarrow", "scipy", "matplotlib"}
    code = "import sys, scaling.predict.calibrate; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & set(loaded)

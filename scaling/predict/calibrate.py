"""Rates fitted to a measured run: its probed machine, corrected until the roofline says what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.errors import UsageError
from scaling.predict.efficiency import SERVING, Efficiency
from scaling.predict.fitting import RATES, TIMES, Fitted, Point, fit
from scaling.predict.hardware import Gpu, gpu
from scaling.predict.measured import Passes, Probed, predicted, records
from scaling.predict.roofline import Machine
from scaling.predict.setup import Device
from scaling.results import Store, timed

if TYPE_CHECKING:
    import pandas as pd


TITLES = {
    "bandwidth_bytes_per_s": ("weights", 1e-9, "GB/s"),
    "kv_bandwidth_bytes_per_s": ("keys and values", 1e-9, "GB/s"),
    "flops_per_s": ("products", 1e-12, "TFLOP/s"),
    "attention_flops_per_s": ("attention of many queries", 1e-12, "TFLOP/s"),
    "seconds_per_kernel": ("dispatch of a kernel", 1e6, "µs"),
    "seconds_per_step": ("a decode step", 1e6, "µs"),
    "seconds_per_row": ("a row of a step", 1e6, "µs"),
}
"""What a parameter of a machine is called, and the unit that it is shown in."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a measured run says of its device. `gpu`: its datasheet, None for a device that has none.

    `factors`: by phase (`serving`, `training`) and field of `Machine`; a phase without rows is absent, and its machine
    as probed. `points`: what was fitted to, in each phase; `residual`: their median relative error.
    `repeats`: fewest of a point; of one alone the intervals show only how well the form fits.
    """

    run: str
    model: str
    device: str
    dtype: str
    memory_bytes: float
    gpu: Gpu | None
    serving: Machine
    training: Machine
    factors: Mapping[str, Mapping[str, Fitted]]
    points: Mapping[str, int]
    residual: Mapping[str, float]
    repeats: int
    up_to: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(replace(self, gpu=None)), "gpu": self.gpu and self.gpu.name}

    def here(self) -> Device:
        """The device that was measured, to plan for."""
        watts = self.gpu.watts if self.gpu else None
        return Device(self.device, self.memory_bytes, watts, self.serving, self.training)

    def efficiencies(self) -> dict[str, dict[str, Fitted]]:
        """Shares of the datasheet by phase, for each rate that was fitted; `probed`: that of the probe.

        Raises `UsageError` where the device has none.
        """
        peaks = self._peaks()
        return {
            phase: {RATES[name]: fitted.over(peaks[name]) for name, fitted in factors.items() if name in RATES}
            for phase, factors in self.factors.items()
        }

    def moved(self, to: Gpu, gpus: int = 1, dtype: str | None = None) -> Device:
        """Another GPU, one of `gpus`, with the shares of its datasheet that were measured here; times a kernel, step
        and row are kept. It generates in `dtype`, and trains in that of the run, which is also the default.

        Raises `UsageError` where this device has no datasheet, or that GPU no such arithmetic.
        """
        serving = self._efficiency(self.serving).machine(to, dtype or self.dtype, gpus)
        training = self._efficiency(self.training).machine(to, self.dtype, gpus)
        return Device(to.name, to.memory_bytes, to.watts, serving, training)

    def lines(self) -> list[str]:
        """What was found, to be read: a line for each phase, and one for each of its parameters."""
        said = [f"calibrated with {self.run}: {self.model} on {self.device} in {self.dtype}, {_count(self.repeats)}"]
        for phase, machine in (("serving", self.serving), ("training", self.training)):
            if phase not in self.factors:
                said.append(f"{phase}: no rows, so as it was probed ({machine.flops_per_s / 1e12:.3g} TFLOP/s)")
                continue
            error = f"{self.residual[phase]:.1%} median error over {self.points[phase]} measured points"
            said.append(f"{phase}: {error}")
            peaks = self._peaks() if self.gpu else {}
            said += [f"  {_told(name, fitted, peaks.get(name))}" for name, fitted in self.factors[phase].items()]
        return said

    def _efficiency(self, machine: Machine) -> Efficiency:
        peaks = self._peaks()
        shares = {share: (getattr(machine, name) or machine.flops_per_s) / peaks[name] for name, share in RATES.items()}
        kept = {name: getattr(machine, name) for name in (*TIMES, "kernels_a_layer", "kernels_a_pass")}
        return Efficiency(**shares, **kept, link=SERVING.link, seconds_per_collective=SERVING.seconds_per_collective)

    def _peaks(self) -> dict[str, float]:
        if self.gpu is None:
            raise UsageError(
                f"{self.run} was measured on {self.device}, which has no datasheet to move its efficiencies by; "
                "calibrate with a run on a GPU, or plan without --gpu for the device of the run"
            )
        if self.dtype not in self.gpu.flops_per_s:
            raise UsageError(f"{self.gpu.title} has no {self.dtype} rate in its datasheet to compare the run with")
        bandwidth, rate = self.gpu.bandwidth_bytes_per_s, self.gpu.flops_per_s[self.dtype]
        return dict(zip(RATES, (bandwidth, bandwidth, rate, rate), strict=True))


def calibrate(run: Path | str, *, up_to: int | None = None) -> Calibration:
    """The machine that the rows of `run` were measured on, fitted to them.

    `up_to`: only from what traces of at most so many thinking tokens go through. Raises `UsageError` for a simulated
    run or one without usable rows, `CheckpointError` for a model that cannot be priced, `StoreError` where the run
    cannot be read.
    """
    store = Store.open(run)
    probed = Probed.of(store.manifest)
    usable = timed(store.frame())
    rows = usable if up_to is None else usable[usable["mean_thinking_tokens"] <= up_to]
    points = {"serving": [*_sampled(rows), *_stepped(rows, store)], "training": _trained(rows)}
    points = {phase: [p for p in found if p.mean > 0] for phase, found in points.items()}
    if not any(points.values()):
        least = f" of at most {up_to} thinking tokens" if up_to is not None else ""
        raise UsageError(
            f"{store.path} has no finished rollout, log-probability or update rows{least} to calibrate with; measure "
            "some with `scaling run`"
        )
    sheet = _datasheet(store.manifest["device"])
    start = _start(probed.machine, on_gpu=sheet is not None)
    machines = dict.fromkeys(points, start)
    factors: dict[str, dict[str, Fitted]] = {}
    residual: dict[str, float] = {}
    for phase, found in points.items():
        if found:
            machines[phase], factors[phase], residual[phase] = fit(replace(probed, machine=start), found)
    return Calibration(
        run=str(store.path),
        model=store.manifest["model"]["name"],
        device=store.manifest["device"],
        dtype=probed.precision.activations,
        memory_bytes=sheet.memory_bytes if sheet else _memory_bytes(store.manifest["fingerprint"]["hardware"]),
        gpu=sheet,
        serving=machines["serving"],
        training=machines["training"],
        factors=factors,
        points={phase: len(found) for phase, found in points.items()},
        residual=residual,
        repeats=min(len(p.seconds) for found in points.values() for p in found),
        up_to=up_to,
    )


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Device-seconds per trace at a length that a calibration did not see: measured (mean of the repeats), by the
    machine as probed, and by the machine as fitted."""

    phase: str
    environment: str
    method: str
    thinking_tokens: int
    measured: float
    probed: float
    calibrated: float

    @property
    def error(self) -> float:
        """Relative, of the calibrated prediction."""
        return self.calibrated / self.measured - 1


def held_out(run: Path | str, up_to: int | None = None) -> list[HeldOut]:
    """Every measured length above `up_to`, predicted after calibration on those up to it.

    `up_to`: the middle one of the run's lengths unless given. Raises like `calibrate`.
    """
    store = Store.open(run)
    rows = timed(store.frame())
    lengths = sorted(set(rows["mean_thinking_tokens"].tolist()))
    if up_to is None:
        up_to = int(lengths[(len(lengths) - 1) // 2]) if lengths else 0
    calibration = calibrate(run, up_to=up_to)
    probed = Probed.of(store.manifest)
    beyond = rows[rows["mean_thinking_tokens"] > up_to]
    found = []
    for _, cell in beyond.groupby("cell_id", sort=False):
        row = records(cell)[0]
        machine = calibration.serving if row["phase"] == "rollout" else calibration.training
        found.append(
            HeldOut(
                phase=row["phase"],
                environment=row["environment"],
                method=row["method"],
                thinking_tokens=row["mean_thinking_tokens"],
                measured=float(cell["device_seconds_per_trace"].mean()),
                probed=float(predicted(probed.roofline, [row])[0]),
                calibrated=float(predicted(replace(probed, machine=machine).roofline, [row])[0]),
            )
        )
    return sorted(found, key=lambda h: (h.phase, h.environment, h.method, h.thinking_tokens))


def summary(found: Sequence[HeldOut]) -> str:
    """One line on lengths that were held out; empty without any."""
    if not found:
        return ""
    errors = [abs(h.error) for h in found]
    least = min(h.thinking_tokens for h in found)
    return (
        f"fitted to the shorter lengths alone, it predicts the {len(found)} measurements of {least:,} and more "
        f"thinking tokens within {statistics.median(errors):.1%} (median; worst {max(errors):.1%})"
    )


def _count(repeats: int) -> str:
    return f"{repeats} repeats" if repeats > 1 else "1 repeat, which shows no drift"


def _told(name: str, fitted: Fitted, peak: float | None) -> str:
    """A parameter with its interval, beside the probe, and as a share of its datasheet where there is one."""
    title, scale, unit = TITLES[name]
    value, low, high, probed = (scale * each for each in (fitted.value, fitted.low, fitted.high, fitted.probed))
    share = f", {fitted.value / peak:.0%} of the datasheet" if peak else ""
    doubt = "" if fitted.determined else "; not determined by these rows"
    return f"{title}: {value:.3g} {unit} (95 % interval {low:.3g} to {high:.3g}; probed {probed:.3g}{doubt}){share}"


def _start(machine: Machine, on_gpu: bool) -> Machine:
    """The probed machine with what the probe does not measure: attention of many queries as fast as other products,
    and on a GPU, whose caches are small, activations as fast as weights."""
    activations = machine.activation_bandwidth_bytes_per_s or (machine.bandwidth_bytes_per_s if on_gpu else None)
    return replace(
        machine,
        attention_flops_per_s=machine.attention_flops_per_s or machine.flops_per_s,
        activation_bandwidth_bytes_per_s=activations,
    )


def _memory_bytes(hardware: Mapping[str, Any]) -> float:
    """Of a device without datasheet: a GPU's own where it has some, else the machine's."""
    return float((hardware["gpus"] or [hardware])[0]["memory_gib"] or hardware["memory_gib"]) * 2**30


def _datasheet(device: str) -> Gpu | None:
    try:
        return gpu(device)
    except UsageError:
        return None


def _sampled(rows: pd.DataFrame) -> Iterable[Point]:
    """Rollouts in full: prefill and the rest apart where the engine told them apart."""
    full = rows[(rows["phase"] == "rollout") & (rows["method"] == "full")]
    for _, cell in full.groupby("cell_id", sort=False):
        repeats = records(cell)
        passes = Passes.of_row(repeats[0])
        if cell["prefill_seconds"].isna().any():
            yield Point(passes, {int(r["repeat"]): [r["wall_seconds"]] for r in repeats})
            continue
        yield Point(passes.encoding, {int(r["repeat"]): [r["prefill_seconds"]] for r in repeats})
        if passes.decode:
            rest = {int(r["repeat"]): [r["wall_seconds"] - r["prefill_seconds"]] for r in repeats}
            yield Point(passes.decoding, rest)


def _stepped(rows: pd.DataFrame, store: Store) -> Iterable[Point]:
    """The points of the grids that profiled rollouts are integrated from, as far as these rows' contexts reach."""
    profiled = rows[(rows["phase"] == "rollout") & (rows["method"] == "profile") & rows["grid_id"].notna()]
    works = [Passes.of_row(row) for row in records(profiled.drop_duplicates("cell_id"))]
    longest = max((keys / n for work in works for n, keys, _ in work.decode), default=0.0)
    prompts = {new for work in works for new, *_ in work.prefill}
    points: dict[tuple[str, int, int], Point] = {}
    for grid_id, repeat in profiled[["grid_id", "repeat"]].drop_duplicates().itertuples(index=False):
        for p in store.grid(grid_id)["points"]:
            if p["tokens"] <= longest if p["kind"] == "decode" else p["tokens"] in prompts:
                key = p["kind"], p["rows"], p["tokens"]
                points.setdefault(key, Point(Passes.of_step(*key))).add(int(repeat), p["seconds"])
    return points.values()


def _trained(rows: pd.DataFrame) -> list[Point]:
    """Log-probabilities and updates."""
    return [
        Point(
            Passes.of_row(records(cell)[0]),
            dict(zip(cell["repeat"].astype(int), ([seconds] for seconds in cell["wall_seconds"]), strict=True)),
        )
        for _, cell in rows[rows["phase"].isin(["logprob", "update"])].groupby("cell_id", sort=False)
    ]

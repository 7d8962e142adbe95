"""Fitting a machine: what is known is found again, within its intervals, and what is not is not claimed."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from scaling.predict.fitting import Point, fit, scaled
from scaling.predict.measured import Batch, Passes, Probed
from scaling.predict.roofline import Machine, Precision, Roofline
from scaling.predict.shape import Shape, architecture

SHAPE = Shape.from_config(architecture("r1-distill-qwen-1.5b"))
PROBED = Probed(
    SHAPE,
    Machine(3e12, 2.5e12, 500e12, 3e-6, attention_flops_per_s=400e12, seconds_per_step=1e-3, seconds_per_row=2e-5),
    Precision(),
)
NAMES = ("bandwidth_bytes_per_s", "kv_bandwidth_bytes_per_s", "flops_per_s", "attention_flops_per_s",
         "seconds_per_kernel", "seconds_per_step", "seconds_per_row")  # fmt: skip
TRUE = scaled(PROBED.machine, NAMES, np.array([0.2, 0.4, 0.5, 0.3, -0.3, 0.2, 0.6]))
MIXED = [
    *(Passes.of_step("decode", rows, tokens) for rows in (1, 4, 16, 64) for tokens in (512, 2048, 8192, 32768)),
    *(Passes.of_step("prefill", 1, tokens) for tokens in (16, 128, 1024, 4096, 16384, 65536)),
]


def points(passes: Sequence[Passes], machine: Machine, noise: float, seed: int = 0, repeats: int = 5) -> list[Point]:
    generator = np.random.default_rng(seed)
    seconds = Batch(passes).seconds(Roofline(SHAPE, machine))
    return [
        Point(each, {repeat: [float(s * np.exp(generator.normal(0, noise)))] for repeat in range(repeats)})
        for each, s in zip(passes, seconds, strict=True)
    ]


def test_rates_that_determine_the_seconds_are_recovered() -> None:
    machine, fitted, residual = fit(PROBED, points(MIXED, TRUE, noise=0.0))
    for name in ("bandwidth_bytes_per_s", "kv_bandwidth_bytes_per_s", "flops_per_s", "attention_flops_per_s"):
        assert fitted[name].determined
        assert getattr(machine, name) == pytest.approx(getattr(TRUE, name), rel=0.05)
    assert residual < 0.01


def test_intervals_contain_what_is_true_about_as_often_as_they_say() -> None:
    fits = [fit(PROBED, points(MIXED, TRUE, noise=0.05, seed=seed))[1] for seed in range(20)]
    inside = [f[name].low <= getattr(TRUE, name) <= f[name].high for f in fits for name in NAMES]
    assert 0.9 <= np.mean(inside) <= 1.0
    sharp = [f[name] for f in fits for name in ("kv_bandwidth_bytes_per_s", "attention_flops_per_s")]
    assert max(s.high / s.low for s in sharp) < 1.5


def test_drift_of_whole_repeats_widens_every_interval() -> None:
    steady = points(MIXED, TRUE, noise=0.01)
    drifting = [
        Point(p.passes, {repeat: [s * (1 + 0.1 * (repeat % 2)) for s in found] for repeat, found in p.seconds.items()})
        for p in steady
    ]
    widths = [
        f["kv_bandwidth_bytes_per_s"].high / f["kv_bandwidth_bytes_per_s"].low
        for f in (fit(PROBED, steady)[1], fit(PROBED, drifting)[1])
    ]
    assert widths[1] > 1.05 * widths[0]


def test_what_the_rows_do_not_touch_stays_as_probed_and_is_said_to_be_undetermined() -> None:
    prompts = [p for p in MIXED if p.prefill]
    machine, fitted, _ = fit(PROBED, points(prompts, TRUE, noise=0.01))
    for name in ("kv_bandwidth_bytes_per_s", "seconds_per_step", "seconds_per_row"):  # of decode steps
        assert getattr(machine, name) == pytest.approx(getattr(PROBED.machine, name), rel=1e-3)
        assert not fitted[name].determined
        assert fitted[name].low < 0.4 * fitted[name].probed
        assert fitted[name].high > 2.5 * fitted[name].probed


def test_what_only_a_sum_is_known_of_is_undetermined_and_the_sum_is_right() -> None:
    one_batch = [Passes.of_step("decode", 4, tokens) for tokens in (256, 1024, 4096, 16384, 65536)]
    machine, fitted, residual = fit(PROBED, points(one_batch, TRUE, noise=0.0))
    assert not fitted["seconds_per_kernel"].determined
    assert not fitted["seconds_per_step"].determined
    assert fitted["kv_bandwidth_bytes_per_s"].determined
    assert residual < 0.01
    short = Batch([Passes.of_step("decode", 4, 256)])
    assert short.seconds(Roofline(SHAPE, machine)) == pytest.approx(short.seconds(Roofline(SHAPE, TRUE)), rel=0.02)


def test_a_time_of_zero_is_not_invented() -> None:
    machine, fitted, _ = fit(replace(PROBED, machine=replace(PROBED.machine, seconds_per_row=0.0)),
                             points(MIXED, TRUE, noise=0.0))  # fmt: skip
    assert "seconds_per_row" not in fitted
    assert machine.seconds_per_row == 0


def test_activations_go_with_the_weights() -> None:
    start = replace(PROBED.machine, activation_bandwidth_bytes_per_s=3e12)
    machine, fitted, _ = fit(replace(PROBED, machine=start), points(MIXED, TRUE, noise=0.0))
    assert machine.activation_bandwidth_bytes_per_s == pytest.approx(fitted["bandwidth_bytes_per_s"].value)


def test_the_same_measurements_give_the_same_intervals() -> None:
    once, again = (fit(PROBED, points(MIXED, TRUE, noise=0.05))[1] for _ in range(2))
    assert once == again


def test_a_single_repeat_is_fitted_too() -> None:
    _, fitted, _ = fit(PROBED, points(MIXED, TRUE, noise=0.02, repeats=1))
    kv = fitted["kv_bandwidth_bytes_per_s"]
    assert kv.low < TRUE.kv_bandwidth_bytes_per_s < kv.high

"""Fits a machine's parameters to what passes took: factors on the probed rates, with intervals.

Every parameter is multiplied by a factor. The factors minimise squared relative errors, plus a weak pull towards 1:
what the measurements do not tell apart moves together and as little as explains them, what they do not touch stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from scaling.predict.measured import Batch, Passes, Probed
from scaling.predict.roofline import Array, Machine, Roofline

RATES = {
    "bandwidth_bytes_per_s": "bandwidth",
    "kv_bandwidth_bytes_per_s": "kv_bandwidth",
    "flops_per_s": "matmul",
    "attention_flops_per_s": "attention",
}
"""Rates of a machine that are fitted, and what their shares of a datasheet are called."""

TIMES = ("seconds_per_kernel", "seconds_per_step", "seconds_per_row")
"""Times of a machine that are fitted, where they are not 0."""

PULL = math.log(2)
"""How far, as the standard deviation of a logarithm, a probed rate may be from what an engine gets of it."""

FORM = 0.05
"""Relative error of the roofline's form, beyond which even many repeats of one point are not trusted."""

DETERMINED = 2.0
"""High ÷ low of a 95 % interval, up to which a parameter counts as determined; of the pull alone it is 15."""

RESAMPLES, ROUNDS = 1000, 20


@dataclass(frozen=True, slots=True)
class Fitted:
    """A parameter of a machine as it was probed and as it was fitted, with its 95 % interval.

    `determined`: whether the measurements say what it is; where not, they at most say what it is together with others.
    """

    probed: float
    value: float
    low: float
    high: float
    determined: bool

    def over(self, peak: float) -> Fitted:
        """As a share of `peak`."""
        return Fitted(self.probed / peak, self.value / peak, self.low / peak, self.high / peak, self.determined)


@dataclass(slots=True)
class Point:
    """One thing that was measured: its passes, and the seconds that they took in each repeat."""

    passes: Passes
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def add(self, repeat: int, seconds: Iterable[float]) -> None:
        self.seconds.setdefault(repeat, []).extend(seconds)

    @property
    def by_repeat(self) -> dict[int, float]:
        return {repeat: float(np.mean(seconds)) for repeat, seconds in self.seconds.items()}

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.by_repeat.values())))

    @property
    def error(self) -> float:
        """Relative standard error of the mean; 0 of a single measurement, which shows none."""
        every = np.concatenate([np.asarray(seconds) for seconds in self.seconds.values()])
        return float(every.std(ddof=1) / every.mean() / math.sqrt(len(every))) if len(every) > 1 else 0.0


def fit(probed: Probed, points: Sequence[Point]) -> tuple[Machine, dict[str, Fitted], float]:
    """The machine, its parameters by field name, and the median relative error over the points.

    Gauss–Newton in the logarithms of the factors; where a kernel waits for bytes and where for arithmetic is found
    anew in every round. Intervals are of the linearised fit, over resamples: repeats are drawn again (those of all
    points together, since drift meets all), residuals change their sign at random for what the form gets wrong, and
    the pull's centre is drawn too, so that what nothing determines is as wide as the pull.
    """
    names = [name for name in (*RATES, *TIMES) if getattr(probed.machine, name)]
    batch = Batch([p.passes for p in points])
    measured = np.log([p.mean for p in points])
    trust = 1 / np.hypot(FORM, [p.error for p in points])
    pull = np.eye(len(names)) / PULL**2

    def misses(factors: Array) -> Array:
        roofline = Roofline(probed.shape, scaled(probed.machine, names, factors), probed.precision)
        return np.asarray((measured - np.log(batch.seconds(roofline))) * trust)

    def loss(factors: Array) -> float:
        return float(np.sum(misses(factors) ** 2) + factors @ pull @ factors)

    def slopes(factors: Array, step: float = 1e-4) -> Array:
        sides = [misses(factors - step * unit) - misses(factors + step * unit) for unit in np.eye(len(names))]
        return np.asarray(np.column_stack(sides) / (2 * step))

    at = np.zeros(len(names))
    for _ in range(ROUNDS):
        slope = slopes(at)
        move = np.linalg.solve(slope.T @ slope + pull, slope.T @ misses(at) - pull @ at)
        best = min((at, *(at + share * move for share in (1.0, 0.5, 0.25, 0.0625))), key=loss)
        if np.allclose(best, at, atol=1e-5):
            break
        at = best
    slope, missed = slopes(at), misses(at)
    inverse = np.linalg.inv(slope.T @ slope + pull)
    freedom = max(len(points) - float(np.trace(inverse @ slope.T @ slope)), 1.0)
    generator = np.random.default_rng(0)
    signs = generator.choice([-1.0, 1.0], size=(RESAMPLES, len(points)))
    wobble = signs * missed * math.sqrt(len(points) / freedom) + _redrawn(points, generator) * trust
    centres = generator.normal(0, PULL, size=(RESAMPLES, len(names)))
    drawn = at + (wobble @ slope + centres @ pull) @ inverse
    ends = np.quantile(drawn, [0.025, 0.975], axis=0)
    machine, *outer = (scaled(probed.machine, names, factors) for factors in (at, *ends))
    fitted = {}
    for name in names:
        low, high = sorted(getattr(end, name) for end in outer)
        fitted[name] = Fitted(
            getattr(probed.machine, name), getattr(machine, name), low, high, determined=high <= DETERMINED * low
        )
    return machine, fitted, float(np.median(np.abs(np.expm1(-missed / trust))))


def scaled(machine: Machine, names: Sequence[str], factors: Array) -> Machine:
    """The machine that spends longer on each name by a factor, given as its logarithm; activations go with weights."""
    longer = dict(zip(names, np.exp(factors).tolist(), strict=True))
    changed = {name: getattr(machine, name) * (f if name in TIMES else 1 / f) for name, f in longer.items()}
    if machine.activation_bandwidth_bytes_per_s is not None:
        slower = longer["bandwidth_bytes_per_s"]
        changed["activation_bandwidth_bytes_per_s"] = machine.activation_bandwidth_bytes_per_s / slower
    return replace(machine, **changed, spread={})


def _redrawn(points: Sequence[Point], generator: np.random.Generator) -> Array:
    """[RESAMPLES, points] log-ratios of means over repeats drawn again to their mean; of n repeats n − 1, which makes
    their spread that of a mean of n."""
    repeats = sorted({repeat for p in points for repeat in p.seconds})
    if len(repeats) < 2:
        return np.zeros((RESAMPLES, len(points)))
    means = [p.by_repeat for p in points]
    ratios = np.array([[m.get(r, math.nan) / p.mean for p, m in zip(points, means, strict=True)] for r in repeats])
    drawn = ratios[generator.integers(len(repeats), size=(RESAMPLES, len(repeats) - 1))]
    found = np.isfinite(drawn).sum(axis=1)
    return np.asarray(np.log(np.where(found > 0, np.nansum(drawn, axis=1) / np.maximum(found, 1), 1.0)))

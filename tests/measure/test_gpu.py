"""A GPU over a window: what its samples are worth, on traces written by hand."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from scaling.errors import UsageError
from scaling.measure import gpu as module
from scaling.measure.gpu import GpuUse, Replay, Trace, Watch, examine, together
from scaling.measure.nvml import POWER_CAP, Sample
from scaling.measure.occupancy import Occupancy
from scaling.measure.telemetry import Telemetry

UUID = "8c7d6e5f-0000-4000-8000-000000000001"
US = 4242


def trace(seconds: float = 4.0, *, watts: float = 500.0) -> Trace:
    """A quiet window of ours: a sample every 0.1 s, a GPU at full clocks and constant power."""
    times = [i / 10 for i in range(round(seconds * 10) + 1)]
    samples = [
        Sample(at, energy_joules=1000 + watts * at, power_watts=watts, sm_mhz=1980, memory_mhz=2619,
               temperature_celsius=50, memory_bytes=2**30, clock_events=0, pids=(US,))
        for at in times
    ]  # fmt: skip
    return Trace(f"GPU-{UUID}", frozenset({US}), tuple(samples))


def with_samples(change: Callable[[Sample], Sample | None], of: Trace | None = None) -> Trace:
    """The quiet trace with each sample changed, or left out where the change is null."""
    of = of or trace()
    return replace(of, samples=tuple(new for sample in of.samples if (new := change(sample)) is not None))


def examined(of: Trace) -> GpuUse:
    return examine(of, UUID)


def test_a_clean_window_has_energy_clocks_and_no_reason() -> None:
    use = examined(trace())
    assert use.energy_joules == pytest.approx(2000)
    assert use.integrated_joules == pytest.approx(2000)
    assert (use.energy_reason, use.seconds_reason) == (None, None)
    assert use.sm_mhz == pytest.approx(1980)
    assert use.memory_mhz == pytest.approx(2619)
    assert (use.throttled_share, use.power_capped_share) == (0, 0)
    assert (use.max_temperature_celsius, use.peak_memory_bytes) == (50, 2**30)


class TestEnergy:
    def reason(self, of: Trace, code: str) -> GpuUse:
        use = examined(of)
        assert use.energy_joules is None
        assert use.energy_reason is not None
        assert use.energy_reason.startswith(code)
        return use

    def test_a_short_window(self) -> None:
        use = self.reason(trace(1.5), "window_too_short: 1.50 s of at least 2 s")
        assert use.seconds_reason is None
        assert use.integrated_joules == pytest.approx(750)

    @pytest.mark.parametrize("edges", [(1.0, 2.0), (-1.0, 1.0), (3.0, 5.0)], ids=["middle", "start", "end"])
    def test_a_gap_between_power_readings(self, edges: tuple[float, float]) -> None:
        low, high = edges
        gappy = with_samples(lambda s: replace(s, power_watts=None) if low < s.seconds < high else s)
        self.reason(gappy, "sample_gap: 1.0")

    def test_samples_that_were_not_taken(self) -> None:
        self.reason(with_samples(lambda s: None if 1 < s.seconds < 2 else s), "sample_gap: 1.0")

    def test_no_power_at_all_leaves_the_counter_unchecked(self) -> None:
        use = self.reason(with_samples(lambda s: replace(s, power_watts=None)), "sample_gap: 4.0")
        assert use.integrated_joules is None

    @pytest.mark.parametrize(("factor", "trusted"), [(1.04, True), (0.96, True), (1.07, False), (0.93, False)])
    def test_counter_and_power_may_differ_by_a_twentieth(self, factor: float, trusted: bool) -> None:
        differing = with_samples(lambda s: replace(s, power_watts=500 * factor))
        assert (examined(differing).energy_reason is None) is trusted
        if not trusted:
            self.reason(differing, "energy_mismatch: 2000.0 J counted")

    @pytest.mark.parametrize("joules", [1000.0, 0.0])
    def test_a_counter_that_stands_still_or_was_reset(self, joules: float) -> None:
        self.reason(
            with_samples(lambda s: replace(s, energy_joules=joules if s.seconds else 1000.0)), "energy_mismatch"
        )

    def test_power_that_varies_is_integrated_over_time(self) -> None:
        ramp = with_samples(lambda s: replace(s, power_watts=100 * s.seconds, energy_joules=50 * s.seconds**2))
        assert examined(ramp).integrated_joules == pytest.approx(800)
        assert examined(ramp).energy_joules == pytest.approx(800)

    def test_no_counter(self) -> None:
        use = self.reason(with_samples(lambda s: replace(s, energy_joules=None)), "no energy counter")
        assert use.integrated_joules == pytest.approx(2000)


class TestSeconds:
    @pytest.mark.parametrize(
        ("bit", "name"),
        [(0x08, "hardware slowdown"), (0x20, "software thermal"), (0x40, "hardware thermal"), (0x80, "power brake")],
    )
    def test_a_slowdown_for_a_part_of_the_window(self, bit: int, name: str) -> None:
        hot = with_samples(lambda s: replace(s, clock_events=bit if s.seconds > 2 else 0))
        use = examined(hot)
        assert use.seconds_reason == f"throttled: 49% of the window ({name})"
        assert use.throttled_share == pytest.approx(0.49, abs=0.01)
        assert use.energy_joules == pytest.approx(2000)  # the joules were used all the same

    def test_a_moment_of_it_is_let_pass(self) -> None:
        use = examined(with_samples(lambda s: replace(s, clock_events=0x40 if s.seconds == 2 else 0)))
        assert use.seconds_reason is None
        assert use.throttled_share == pytest.approx(0.025)

    @pytest.mark.parametrize("bit", [0x01, 0x02, 0x10, 0x100])
    def test_idleness_and_chosen_clocks_are_no_slowdown(self, bit: int) -> None:
        assert examined(with_samples(lambda s: replace(s, clock_events=bit))).seconds_reason is None

    def test_a_power_cap_is_told_apart(self) -> None:
        use = examined(with_samples(lambda s: replace(s, clock_events=POWER_CAP if s.seconds > 1 else 0)))
        assert use.seconds_reason is None
        assert use.throttled_share == 0
        assert use.power_capped_share == pytest.approx(0.74, abs=0.01)

    def test_another_process_spoils_seconds_and_energy(self) -> None:
        use = examined(with_samples(lambda s: replace(s, pids=(US, 99) if s.seconds == 2 else (US,))))
        assert use.seconds_reason == use.energy_reason == "foreign_process: 99 on the GPU"
        assert use.energy_joules is None

    def test_our_children_are_ours(self) -> None:
        both = with_samples(lambda s: replace(s, pids=(US, US + 1)))
        assert examined(replace(both, our_pids=frozenset({US, US + 1}))).seconds_reason is None

    def test_where_the_driver_numbers_processes_otherwise_only_too_many_are_foreign(self) -> None:
        """As in a container: of one process we cannot say that it is not ours."""
        assert examined(with_samples(lambda s: replace(s, pids=(70001,)))).seconds_reason is None
        two = with_samples(lambda s: replace(s, pids=(70001, 70002)))
        assert examined(two).seconds_reason == "foreign_process: 1 more on the GPU than we have"

    @pytest.mark.parametrize("uuid", ["GPU-11111111-0000-4000-8000-000000000001", None])
    def test_another_device_says_nothing_of_ours(self, uuid: str | None) -> None:
        use = examined(replace(trace(), uuid=uuid))
        assert use.seconds_reason is not None
        assert use.seconds_reason.startswith(f"device_mismatch: torch uses {UUID}")
        assert use.energy_reason == use.seconds_reason
        assert (use.energy_joules, use.integrated_joules) == (None, None)

    @pytest.mark.parametrize("uuid", [f"GPU-{UUID}", f"MIG-{UUID}", UUID.upper()])
    def test_a_uuid_is_the_same_however_it_is_written(self, uuid: str) -> None:
        assert examined(replace(trace(), uuid=uuid)).seconds_reason is None


def test_a_driver_that_tells_nothing_leaves_nulls() -> None:
    use = examined(with_samples(lambda s: Sample(s.seconds)))
    assert use == GpuUse(None, "no energy counter", None, None, None, None, None, None, None, None)


class TestTraces:
    def test_a_trace_is_kept_as_json(self, tmp_path: Path) -> None:
        sparse = with_samples(lambda s: replace(s, power_watts=None) if s.seconds == 1 else s)
        sparse.save(tmp_path / "trace.json")
        assert Trace.load(tmp_path / "trace.json") == sparse
        assert "power_watts" not in json.loads((tmp_path / "trace.json").read_text())["samples"][10]

    @pytest.mark.parametrize("text", ["", "[]", '{"format": "else"}', '{"format": "nvml-trace"}',
        '{"format": "nvml-trace", "our_pids": [], "samples": [{"seconds": 0, "sparks": 1}]}',
        '{"format": "nvml-trace", "our_pids": [], "samples": []}',
        '{"format": "nvml-trace", "our_pids": [], "uuid": 5, "samples": [{"seconds": 0}]}',
        '{"format": "nvml-trace", "our_pids": [], "samples": [{"seconds": "0"}]}',
        '{"format": "nvml-trace", "our_pids": [], "samples": [{"seconds": 0, "power_watts": NaN}]}',
        '{"format": "nvml-trace", "our_pids": [], "samples": [{"seconds": 1}, {"seconds": 0}]}'])  # fmt: skip
    def test_what_is_no_trace_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "trace.json").write_text(text)
        with pytest.raises(UsageError, match=r"trace\.json is not a recorded trace"):
            Trace.load(tmp_path / "trace.json")

    def test_a_replay_keeps_the_pace(self) -> None:
        replay = Replay(trace(1.0))
        began = time.perf_counter()
        assert replay.sample().seconds == 0
        time.sleep(0.35)
        seen, elapsed = replay.sample().seconds, time.perf_counter() - began
        assert min(1.0, elapsed) - 0.11 < seen <= elapsed


@contextmanager
def family(script: str) -> Iterator[tuple[int, int]]:
    """A shell that is our child, and the process that it starts and names; without `wait` it leaves that an orphan."""
    shell = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    started = int(shell.stdout.readline())
    if "wait" not in script:
        shell.wait()
    try:
        yield shell.pid, started
    finally:
        psutil.Process(started).kill()
        shell.wait()


class Listing:
    """A driver that lists these processes."""

    uuid: str | None = UUID

    def __init__(self, *pids: int) -> None:
        self.pids = pids

    def sample(self) -> Sample:
        return Sample(time.perf_counter(), pids=self.pids)


class TestSeveral:
    """GPUs that run one model together."""

    def test_they_are_as_one(self) -> None:
        hot = with_samples(lambda s: replace(s, sm_mhz=1780, temperature_celsius=80, clock_events=POWER_CAP))
        use = together([examined(trace()), examined(hot)])
        assert use.energy_joules == pytest.approx(4000)
        assert use.integrated_joules == pytest.approx(4000)
        assert use.peak_memory_bytes == 2 * 2**30
        assert use.sm_mhz == pytest.approx(1880)
        assert use.max_temperature_celsius == 80
        assert use.power_capped_share == pytest.approx(1)
        assert (use.energy_reason, use.seconds_reason) == (None, None)

    def test_one_that_is_spoilt_spoils_them_and_is_named(self) -> None:
        shared = with_samples(lambda s: replace(s, pids=(US, 99)))
        use = together([examined(trace()), examined(shared)])
        assert use.seconds_reason == use.energy_reason == "foreign_process: 99 on the GPU (GPU 1)"
        assert use.energy_joules is None
        assert use.integrated_joules == pytest.approx(4000)

    def test_what_one_does_not_tell_is_not_known_of_all(self) -> None:
        silent = with_samples(lambda s: replace(s, memory_bytes=None))
        use = together([examined(trace()), examined(silent)])
        assert use.peak_memory_bytes is None

    def test_one_alone_is_itself(self) -> None:
        assert together([examined(trace())]) == examined(trace())


class TestWatch:
    def test_a_watched_replay_is_the_trace_that_it_plays(self) -> None:
        watch = Watch(Replay(trace(30.0)))
        watch.start()
        time.sleep(2.3)
        watch.stop()
        seen = watch.trace
        assert os.getpid() in seen.our_pids
        use = examined(replace(seen, our_pids=frozenset({US})))
        assert use.integrated_joules == pytest.approx(500 * (seen.samples[-1].seconds - seen.samples[0].seconds))
        assert watch.cpu_seconds < 0.01 * 2.3

    def test_a_dear_source_is_asked_less_often(self) -> None:
        """20 ms of processor time a sample: at half a hundredth, the next one is due after 4 s."""

        class Dear(Replay):
            def sample(self) -> Sample:
                end = time.thread_time() + 0.02
                while time.thread_time() < end:
                    pass
                return super().sample()

        watch = Watch(Dear(trace(30.0)))
        watch.start()
        time.sleep(1.0)
        watch.stop()
        assert len(watch.trace.samples) == 3  # at the start, one by the thread, at the end

    def spoilt_by(self, known: tuple[int, ...], late: int) -> str | None:
        """Why a window is spoilt in which the driver lists us and `known` first, and then `late` too."""
        gpu = Listing(os.getpid(), *known)
        watch = Watch(gpu)
        watch.take()
        gpu.pids += (late,)
        watch.take()
        return examined(watch.trace).seconds_reason

    def test_all_processes_below_us_are_ours_however_late(self) -> None:
        """As vLLM's engine and its workers are: a child, and a grandchild that comes when the window is open."""
        with family("sleep 60 & echo $!; wait") as (child, grandchild):
            assert self.spoilt_by((child,), grandchild) is None

    def test_a_process_beside_us_on_our_gpu_is_foreign(self) -> None:
        with family("sleep 60 >/dev/null & echo $!") as (_, orphan):
            assert self.spoilt_by((), orphan) == f"foreign_process: {orphan} on the GPU"

    def test_an_interrupted_recording_still_ends(self) -> None:
        watch = Watch(Replay(trace(0.1)))
        watch.start()
        watch.stop()
        seen = watch.trace
        assert examined(seen).energy_joules is None


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: calls.append("synchronise"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 300)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(uuid=UUID), raising=False)
    return calls


class TestTelemetry:
    """The window around a measurement on CUDA, torch's allocator and driver played by hand."""

    def test_what_the_driver_said_is_in_the_window(self, cuda: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        hot = with_samples(lambda s: replace(s, clock_events=0x40), trace(30.0))
        monkeypatch.setattr(module, "Device", lambda *_: Replay(hot))
        with Telemetry("cuda:0") as window:
            time.sleep(0.3)
        assert cuda == ["synchronise"] * 2
        assert (window.baseline_memory_bytes, window.peak_memory_bytes) == (100, 300)
        assert window.gpu is not None
        assert window.gpu.seconds_reason == "throttled: 100% of the window (hardware thermal)"
        assert not window.seconds_valid
        assert window.energy_joules is None
        assert window.energy_reason is not None
        assert window.energy_reason.startswith("window_too_short")

    @pytest.mark.usefixtures("cuda")
    def test_a_model_in_other_processes_on_two_gpus_has_the_memory_of_both(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "Device", lambda *_: Replay(trace(30.0)))
        with Telemetry("cuda", gpus=2, apart=True) as window:
            time.sleep(0.15)
        assert window.peak_memory_bytes == 2 * 2**30
        assert window.memory_method == "in use on the GPUs, by their driver"
        assert window.gpu is not None
        assert window.gpu.sm_mhz == pytest.approx(1980)

    @pytest.mark.usefixtures("cuda")
    def test_without_a_driver_nobody_knows_their_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(*_: object) -> None:
            raise OSError("no driver here")

        monkeypatch.setattr(module, "Device", absent)
        with Telemetry("cuda", gpus=2, apart=True) as window:
            pass
        assert window.peak_memory_bytes is None

    @pytest.mark.usefixtures("cuda")
    def test_without_a_driver_energy_is_null_with_the_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(*_: object) -> None:
            raise OSError("no driver here")

        monkeypatch.setattr(module, "Device", absent)
        with Telemetry("cuda") as window:
            pass
        assert window.gpu is None
        assert (window.energy_joules, window.energy_reason) == (None, "no energy counter: no driver here")


@pytest.mark.usefixtures("cuda")
class TestOccupancyOfAGpu:
    """Windows too short for a thread: the driver is asked as each begins and ends."""

    def windows(self, events: int, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, str | None]:
        played = with_samples(lambda s: replace(s, clock_events=events), trace(30.0))
        monkeypatch.setattr(module, "Device", lambda *_: Replay(played))
        occupancy = Occupancy("cuda")
        monkeypatch.setattr(occupancy, "_busy", lambda: None)  # whoever else uses this machine's processors
        for _ in range(3):
            occupancy.start()
            time.sleep(0.11)
            occupancy.stop()
        return occupancy.verdict()

    def test_a_quiet_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.windows(0, monkeypatch) == (True, None)

    def test_a_throttled_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.windows(0x40, monkeypatch) == (False, "throttled: 100% of the window (hardware thermal)")

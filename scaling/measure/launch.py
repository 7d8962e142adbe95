"""Starts a run on the GPUs that there are: in this process, in one for each GPU, or on a Ray cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from scaling.errors import ScalingError, StoreError, UsageError, unknown
from scaling.measure.cells import VLLM, RunConfig
from scaling.measure.cluster import launch_ray
from scaling.measure.run import Outcome, config_of, execute, outcome, planned_cells, prepare, resume
from scaling.measure.shards import POLL_SECONDS, Announce, Shard, Tally, join
from scaling.measure.sweep import Progress
from scaling.results import Store
from scaling.results.store import MANIFEST

LAUNCHERS = ("local", "ray")
PATIENCE_SECONDS = 30.0  # for a worker that was told to stop


def launch(
    config: RunConfig | None,
    out: Path,
    *,
    launcher: str = "local",
    shard: Shard | None = None,
    observe: Callable[[Progress], None] = lambda _: None,
    announce: Announce = lambda *_: None,
    command: str | None = None,
) -> Outcome:
    """Measures a run into `out`, or without a `config` goes on with the one that is there.

    `shard` measures that part alone, in this process; whoever comes first begins the run, the others join it. Else
    `local` has a process for each GPU (each `tensor_parallel` GPUs), or this one where there are not two, and `ray` a
    task for each cell. Engines that run no model here need none of it. Raises `StoreError` for a `config` where there
    is a run already, unless it is a shard's.
    """
    if launcher not in LAUNCHERS:
        raise unknown("launcher", launcher, LAUNCHERS)
    if shard is not None:
        if launcher != "local":
            raise UsageError(f"--shard is a launcher of its own; leave --launcher {launcher} out")
        return join(config, out, shard, observe=observe, announce=announce, command=command)
    if config is not None and (out / MANIFEST).exists():
        raise StoreError(f"there is a run at {out} already; give a new directory, or go on with it by --resume")
    effective = config or config_of(Store.open(out))
    if effective.engine in ("local", VLLM):
        if launcher == "ray":
            return launch_ray(config, out, observe=observe, announce=announce, command=command)
        groups = device_groups(visible_devices(), effective.tensor_parallel)
        if len(groups) > 1:
            return launch_local(groups, config, out, observe=observe, announce=announce, command=command)
    if config is None:
        return resume(out, observe=observe)
    prepared = prepare(config)
    announce(prepared.config, prepared.device, prepared.planned)
    return execute(prepared, out, observe=observe, command=command)


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` calls them; none without CUDA."""
    import torch

    count = torch.cuda.device_count()
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return shown.split(",")[:count] if shown is not None else [str(index) for index in range(count)]


def device_groups(devices: Sequence[str], each: int) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` shows each worker of `each` GPUs; GPUs that make no whole group are left out."""
    starts = range(0, len(devices) - each + 1, each)
    return [",".join(devices[start : start + each]) for start in starts]


class Worker:
    """A process that measures one shard of the run in `out` on the GPUs that it is shown.

    Its standard input stays open as long as we live and want it to: where that ends, so does the process.
    """

    def __init__(self, shard: Shard, devices: str, config: RunConfig | None, out: Path, command: str | None) -> None:
        self.name = f"shard {shard} on GPU {devices}" if devices else f"shard {shard}"
        self._said = TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scaling.measure.launch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": devices},
            start_new_session=True,  # so that a Ctrl-C reaches it by its input alone
        )
        task = {
            "shard": str(shard),
            "config": config and config.to_json(),
            "out": str(out.resolve()),
            "command": command,
        }
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # what it died of is told by `death`
            self.process.stdin.write(json.dumps(task).encode() + b"\n")
            self.process.stdin.flush()

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def death(self) -> str | None:
        """What a worker that ended died of, in a line; None if it did its work."""
        code = self.process.returncode
        if code == 0:
            return None
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {code}"

    def ask_to_stop(self) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def stop(self) -> None:
        """Ends the process if it still runs, in peace if it can."""
        self.ask_to_stop()
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._said.close()


@contextmanager
def _stopping(workers: list[Worker]) -> Iterator[None]:
    try:
        yield
    finally:
        for worker in workers:
            worker.ask_to_stop()
        for worker in workers:
            worker.stop()


def launch_local(
    groups: Sequence[str],
    config: RunConfig | None,
    out: Path,
    *,
    observe: Callable[[Progress], None] = lambda _: None,
    announce: Announce = lambda *_: None,
    command: str | None = None,
) -> Outcome:
    """Measures a run with a process for each of `groups`: what `CUDA_VISIBLE_DEVICES` shows it, each on its shard.

    A process that dies leaves its rows missing and the others at work; `Outcome.died` says what it died of. Raises
    `ScalingError` with what the first one said if it could not even begin the run.
    """
    workers: list[Worker] = []

    def start(index: int) -> Worker:
        workers.append(Worker(Shard(index, len(groups)), groups[index - 1], config, out, command))
        return workers[-1]

    with _stopping(workers):
        first = start(1)  # begins the run, which the others then join: one plan, one probe, one message if it fails
        while first.running and not (out / MANIFEST).exists():
            time.sleep(POLL_SECONDS)
        if not (out / MANIFEST).exists():
            _could_not_begin(first.death() or "it ended", ours=first.process.returncode != ScalingError.exit_code)
        store = Store.open(out)
        if config is not None:
            announce(config, store.manifest["device"], planned_cells(store))
        for index in range(2, len(groups) + 1):
            start(index)
        tally = Tally(store, len(groups))
        while any(worker.running for worker in workers):
            observe(tally.progress())
            time.sleep(POLL_SECONDS)
        died = [f"{worker.name}: {cause}" for worker in workers if (cause := worker.death())]
    return outcome(store, tally.planned, died)


def _could_not_begin(said: str, *, ours: bool) -> None:
    if ours:
        raise RuntimeError(f"the first worker died before the run began: {said}")
    raise ScalingError(said)


def main() -> int:
    """A worker: one line of standard input tells it what to measure; the input's end tells it to stop."""
    task = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job would have inherited as ignored
    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    config = task["config"] and RunConfig.from_json(task["config"])
    try:
        join(config, Path(task["out"]), Shard.parse(task["shard"]), command=task["command"])
    except ScalingError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _stop_at_end_of_input() -> None:
    os.read(0, 1)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())

"""A run that is killed at any moment loses no finished repeat, doubles none, and ends as an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from scaling.results import Store

KILLS = int(os.environ.get("SCALING_TEST_KILLS", "4"))
RUN = [sys.executable, "-m", "scaling", "run", "--lengths", "48,96,160", "--context-size", "64", "--state-size", "32"]
RUN += ["--head", "8", "--prompt-tokens", "8", "--repeats", "3", "--seed", "7"]
COUNTS = ["cell_id", "repeat", "status", "environment", "actual_thinking_tokens", "chunks", "prefill_computed_tokens"]
COUNTS += ["decode_tokens", "concurrency_peak", "peak_kv_bytes", "flops"]


def scaling(*arguments, **options):
    command = [sys.executable, "-m", "scaling", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, **options)


def counts(run):
    frame = Store.open(run).frame()[COUNTS]
    return frame.sort_values(["cell_id", "repeat"]).reset_index(drop=True)


@pytest.mark.parametrize("method", ["full", "profile"])
def test_kills_at_random_moments_lose_and_double_nothing(tmp_path, method):
    begin = [*RUN, "--method", method]
    started = time.monotonic()
    subprocess.run([*begin, "--out", str(tmp_path / "calm")], check=True, capture_output=True)
    usual = time.monotonic() - started
    moments = random.Random(5)
    disturbed = tmp_path / "disturbed"
    command = [*begin, "--out", str(disturbed)]
    saved: set = set()
    for _ in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(usual * moments.uniform(0.3, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if disturbed.exists() and (disturbed / "manifest.json").exists():
            command = [sys.executable, "-m", "scaling", "run", "--resume", "--out", str(disturbed)]
            now = Store.open(disturbed).done()
            assert saved <= now
            saved = now
    finished = scaling(*(["run", "--resume", "--out", str(disturbed)] if saved else command[3:]))
    assert finished.returncode == 0, finished.stderr
    assert counts(disturbed).equals(counts(tmp_path / "calm"))


def test_ctrl_c_saves_and_exits_130(tmp_path):
    out = tmp_path / "run"
    command = [*RUN, "--lengths", "20000", "--method", "full", "--repeats", "50", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 60
    while not (out / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"scaling run --resume --out {out}" in said
    assert "Traceback" not in said
    Store.open(out)
